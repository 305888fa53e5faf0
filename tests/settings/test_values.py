"""Every setting: its default, what it accepts and what it refuses."""

from __future__ import annotations

import dataclasses
import importlib
import math
from typing import Any

import numpy as np
import pytest
import torch
from linear_operator.settings import _feature_flag

from gp_rangeformer import Certified, Exact, settings
from tests.settings.listed import CHOICES, COUNTS, FLAGS, everything


def test_this_file_knows_every_setting() -> None:
    known = {setting.__name__ for setting, _ in [*COUNTS, *CHOICES, *FLAGS]}
    assert known | {"process_group", "solver"} == everything()


def test_current_lists_every_setting_with_its_present_value() -> None:
    assert set(settings.current()) == everything()
    with settings.min_size(7), settings.rangeformer(), settings.solver(rank=7):
        changed = settings.current()
    assert (changed["min_size"], changed["rangeformer"]) == (7, True)
    assert changed["solver"] == {"name": "Certified", **dataclasses.asdict(Certified(rank=7))}
    assert settings.current()["min_size"] != 7


def test_every_docstring_states_the_default() -> None:
    for name in everything():
        setting = getattr(settings, name)
        assert setting.__doc__ is not None
        stated = setting.__doc__.split("(Default: ")[1].strip().removesuffix(")").strip('"')
        value = setting._default if issubclass(setting, _feature_flag) else setting._global_value
        shown = {"memory_limit": "512 MiB", "solver": "Certified()"}
        assert stated == shown.get(name, str(value)), name
    assert settings.solver.value() == Certified()


@pytest.mark.parametrize(("setting", "smallest"), COUNTS)
def test_counts_refuse_what_is_no_count(setting: Any, smallest: int) -> None:
    before = setting.value()
    for bad in (smallest - 1, -5, 2.5, math.nan, "3", None, True, [3]):
        with pytest.raises(
            ValueError, match=rf"settings\.{setting.__name__} must be an integer of at least {smallest}"
        ):
            setting(bad)
    assert setting.value() == before


@pytest.mark.parametrize(("setting", "choices"), CHOICES)
def test_choices_refuse_others_and_list_their_own(setting: Any, choices: tuple[str, ...]) -> None:
    before = setting.value()
    for bad in ("cg", "", None, 2, "Dense"):
        with pytest.raises(ValueError, match=rf"settings\.{setting.__name__} must be one of.*{choices[0]}") as caught:
            setting(bad)
        assert all(repr(choice) in str(caught.value) for choice in choices)
    for choice in choices:
        with setting(choice):
            assert setting.value() == choice
    assert setting.value() == before


async def coroutine() -> None: ...


async def both():
    yield 1


def test_numpy_integers_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"settings\.min_size must be an integer"):
        settings.min_size(np.int64(5))


def test_a_solver_is_an_object_or_what_is_changed_of_the_present_one() -> None:
    with settings.solver(Certified(rank=9, num_probes=8)):
        with settings.solver(num_probes=16):
            assert settings.solver.value() == Certified(rank=9, num_probes=16)
        assert settings.solver.value() == Certified(rank=9, num_probes=8)
        with settings.solver(Exact(), tolerance=0.5):
            assert settings.solver.value() == Exact(tolerance=0.5)
    assert settings.solver.value() == Certified()


def test_changes_are_made_to_the_solver_that_is_present_when_they_are_entered() -> None:
    first, second = settings.solver(rank=9), settings.solver(num_probes=16)
    with first, second:
        assert settings.solver.value() == Certified(rank=9, num_probes=16)
    assert settings.solver.value() == Certified()


def test_a_module_that_is_loaded_again_still_has_a_solver() -> None:
    before = dict(vars(settings))
    try:
        importlib.reload(settings)
        assert settings.solver is not before["solver"]
        with settings.rangeformer(), settings.solver(rank=9):
            assert settings.solver.value() == Certified(rank=9)
        assert settings.solver.value() == Certified()
    finally:
        for name, value in before.items():
            setattr(settings, name, value)


def test_what_is_no_solver_or_no_argument_of_one_is_refused() -> None:
    for bad in ("cg", Certified, 3, None):
        with pytest.raises(ValueError, match=r"settings\.solver must be gp_rangeformer\.Certified"):
            settings.solver(bad)
    with pytest.raises(ValueError, match="Exact has no argument rank; it has tolerance"):
        settings.solver(Exact(), rank=3)
    with pytest.raises(ValueError, match="rank of Certified must be an integer of at least 1, got 0"):
        settings.solver(rank=0)


def test_true_and_false_say_whether_kernels_are_fused() -> None:
    with settings.fused_kernels(False):
        assert settings.fused_kernels.value() == "off"
        assert settings.fused_kernels.off()
        with settings.fused_kernels():
            assert settings.fused_kernels.compiled()
        with settings.fused_kernels("tensors"):
            assert settings.fused_kernels.on()
            assert not settings.fused_kernels.compiled()


@pytest.mark.parametrize("name", sorted(settings._MOVED))
def test_a_former_setting_says_where_it_went(name: str) -> None:
    with pytest.raises(AttributeError, match=rf"settings\.{name} is gone: "):
        getattr(settings, name)
    argument = {field.name for field in dataclasses.fields(Certified)} & {name}
    assert argument or settings._MOVED[name].startswith(("settings.solver(gp_range", "settings.fused", "logging."))
    with pytest.raises(AttributeError, match="has no attribute 'colour'"):
        _ = settings.colour


@pytest.mark.parametrize(("flag", "default"), FLAGS)
def test_flags_refuse_what_is_no_truth_value(flag: Any, default: bool) -> None:
    for bad in ("off", "lanczos", 0.5, None):
        with pytest.raises(ValueError, match=rf"settings\.{flag.__name__}"):
            flag(bad)


def test_a_process_group_is_one_of_torchs_or_the_default_or_none() -> None:
    for bad in (False, 0, 1, "nccl", [True]):
        with pytest.raises(ValueError, match=r"settings\.process_group must be None, True or a torch.distributed"):
            settings.process_group(bad)
    with settings.process_group(True):
        assert settings.process_group.value() is True
    assert settings.process_group.value() is None


def test_the_smallest_size_differs_on_cuda_until_it_is_set() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert (settings.min_size.value_on(cpu), settings.min_size.value_on(cuda)) == (1500, 5000)
    with settings.min_size(1500):
        assert settings.min_size.value_on(cuda) == 1500
    assert settings.min_size.value_on(cuda) == 5000
    assert settings.min_size.value() == 1500
