"""Every setting: its default, its context, what it refuses, and that it is listed."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch
from linear_operator.settings import _feature_flag, _value_context

from gp_rangeformer import settings

COUNTS = [
    (settings.rank, 1),
    (settings.num_probes, 2),
    (settings.num_logdet_probes, 2),
    (settings.history, 0),
    (settings.min_size, 1),
    (settings.exact_size, 1),
    (settings.max_passes, 1),
    (settings.seed, 0),
    (settings.memory_limit, 0),
]
POSITIVE = [settings.gradient_tolerance]
SHARES = [settings.tolerance, settings.logdet_tolerance, settings.prediction_tolerance]
CHOICES = [
    (settings.predictor, ("rows", "extrapolate", "galerkin", "previous", "none")),
    (settings.logdet, ("learned", "lanczos", "quadrature", "exact")),
    (settings.landmarks, ("rp_cholesky", "uniform")),
    (settings.mode, ("certified", "direct")),
    (settings.kernel_storage, ("auto", "dense", "tiles")),
]
FLAGS = [
    (settings.rangeformer, False),
    (settings.verbose, False),
    (settings.exact_line_search, True),
    (settings.fused_kernels, True),
    (settings.compiled_kernels, True),
    (settings.adaptive_rank, True),
    (settings.deterministic, False),
]


def everything() -> set[str]:
    found = {
        name
        for name, setting in vars(settings).items()
        if isinstance(setting, type) and issubclass(setting, (_feature_flag, _value_context)) and name[0] != "_"
    }
    return found


def test_this_file_knows_every_setting() -> None:
    known = {setting.__name__ for setting, _ in [*COUNTS, *CHOICES, *FLAGS]} | {
        setting.__name__ for setting in SHARES + POSITIVE
    }
    assert known | {"process_group", "landmark_refresh"} == everything()


def test_current_lists_every_setting_with_its_present_value() -> None:
    assert set(settings.current()) == everything()
    with settings.rank(7), settings.rangeformer(), settings.logdet("exact"):
        changed = settings.current()
    assert (changed["rank"], changed["rangeformer"], changed["logdet"]) == (7, True, "exact")
    assert settings.current()["rank"] != 7


def test_every_docstring_states_the_default() -> None:
    for name in everything():
        setting = getattr(settings, name)
        assert setting.__doc__ is not None
        stated = setting.__doc__.split("(Default: ")[1].split(")")[0].strip('"')
        value = setting._default if issubclass(setting, _feature_flag) else setting._global_value
        expected = "512 MiB" if name == "memory_limit" else str(value)
        assert stated == expected, name


@pytest.mark.parametrize(("setting", "smallest"), COUNTS)
def test_counts_refuse_what_is_no_count(setting: Any, smallest: int) -> None:
    before = setting.value()
    for bad in (smallest - 1, -5, 2.5, math.nan, "3", None, True, [3]):
        with pytest.raises(
            ValueError, match=rf"settings\.{setting.__name__} must be an integer of at least {smallest}"
        ):
            setting(bad)
    assert setting.value() == before


@pytest.mark.parametrize("setting", SHARES)
def test_shares_refuse_what_is_no_share(setting: Any) -> None:
    before = setting.value()
    for bad in (0, 1, -0.1, 2, math.nan, math.inf, "0.1", None, True, [0.1]):
        with pytest.raises(ValueError, match=rf"settings\.{setting.__name__} must be a number between 0 and 1"):
            setting(bad)
    assert setting.value() == before


def test_the_refresh_of_landmarks_refuses_what_is_no_factor() -> None:
    before = settings.landmark_refresh.value()
    for bad in (0.99, 0, -1, math.nan, -math.inf, "2", None, True, [2.0]):
        with pytest.raises(ValueError, match=r"settings\.landmark_refresh must be a number of at least 1, or infinity"):
            settings.landmark_refresh(bad)
    for good in (1, 1.5, math.inf):
        with settings.landmark_refresh(good):
            assert settings.landmark_refresh.value() == good
    assert settings.landmark_refresh.value() == before


@pytest.mark.parametrize(("setting", "choices"), CHOICES)
def test_choices_refuse_others_and_list_their_own(setting: Any, choices: tuple[str, ...]) -> None:
    before = setting.value()
    for bad in ("cg", "", None, 1, "Exact"):
        with pytest.raises(ValueError, match=rf"settings\.{setting.__name__} must be one of.*{choices[0]}") as caught:
            setting(bad)
        assert all(repr(choice) in str(caught.value) for choice in choices)
    for choice in choices:
        with setting(choice):
            assert setting.value() == choice
    assert setting.value() == before


@pytest.mark.parametrize(
    ("setting", "value"), [(s, 50) for s, _ in COUNTS] + [(s, 0.5) for s in SHARES] + [(c, v[-1]) for c, v in CHOICES]
)
def test_contexts_nest_and_restore_also_after_an_error(setting: Any, value: Any) -> None:
    before = setting.value()
    with setting(value):
        assert setting.value() == value
        with setting(before):
            assert setting.value() == before
        assert setting.value() == value
    assert setting.value() == before
    with pytest.raises(KeyError), setting(value):
        raise KeyError
    assert setting.value() == before


@pytest.mark.parametrize(("flag", "default"), FLAGS)
def test_flags_speak_the_hosts_dialect(flag: Any, default: bool) -> None:
    assert flag.on() is default
    assert flag.off() is not default
    assert flag.is_default()
    with flag(not default):
        assert flag.on() is not default
        with flag(default):
            assert flag.on() is default
        assert flag.on() is not default
    assert flag.on() is default
    with pytest.raises(KeyError), flag(not default):
        raise KeyError
    assert flag.on() is default


def test_the_flag_is_on_without_an_argument() -> None:
    with settings.rangeformer():
        assert settings.rangeformer.on()


def test_a_setting_is_seen_from_other_threads_as_the_hosts_are() -> None:
    seen = []
    with settings.rank(11):
        thread = threading.Thread(target=lambda: seen.append(settings.rank.value()))
        thread.start()
        thread.join()
    assert seen == [11]


def test_numpy_floats_are_numbers_and_numpy_integers_are_refused_by_name() -> None:
    with settings.tolerance(np.float64(0.5)):
        assert settings.tolerance.value() == 0.5
    with pytest.raises(ValueError, match=r"settings\.rank must be an integer"):
        settings.rank(np.int64(5))


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
