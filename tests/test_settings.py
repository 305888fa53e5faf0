"""Every setting: its default, its context, what it refuses, and that it is listed."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from linear_operator.settings import _feature_flag, _value_context

from gp_rangeformer import Certified, Exact, settings

COUNTS = [(settings.min_size, 1), (settings.exact_size, 1), (settings.memory_limit, 0)]
CHOICES = [
    (settings.fused_kernels, ("compiled", "tensors", "off")),
    (settings.kernel_storage, ("auto", "dense", "tiles")),
]
FLAGS = [
    (settings.rangeformer, False),
    (settings.exact_line_search, True),
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


@pytest.mark.parametrize(("setting", "value"), [(s, 50) for s, _ in COUNTS] + [(c, v[-1]) for c, v in CHOICES])
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


def every_context() -> list[tuple[str, Any, Any]]:
    """Of every setting its name, arguments other than the present value, and the value that they make."""
    flags = [(flag.__name__, not default, not default) for flag, default in FLAGS]
    values = [(setting.__name__, 7, 7) for setting, _ in COUNTS] + [(c.__name__, v[1], v[1]) for c, v in CHOICES]
    return [*flags, *values, ("process_group", True, True), ("solver", Exact(), Exact())]


def present(name: str) -> Any:
    setting = getattr(settings, name)
    return setting.on() if issubclass(setting, _feature_flag) else setting.value()


contexts = pytest.mark.parametrize(("name", "argument", "value"), every_context(), ids=[c[0] for c in every_context()])


@contexts
def test_a_decorated_function_has_the_setting_in_each_of_its_calls(name: str, argument: Any, value: Any) -> None:
    before, seen = present(name), []

    @getattr(settings, name)(argument)
    def countdown(left: int) -> str:
        """Calls itself."""
        seen.append(present(name))
        if left == 0:
            raise KeyError
        if left > 1:
            countdown(left - 1)
            seen.append(present(name))
        return "done"

    assert present(name) == before
    assert (countdown(1), countdown.__name__, countdown.__doc__) == ("done", "countdown", "Calls itself.")
    assert present(name) == before
    countdown(3)
    with pytest.raises(KeyError):
        countdown(0)
    assert present(name) == before
    assert seen == [value] * len(seen)
    assert len(seen) == 7


@contexts
def test_a_setting_for_the_whole_process_holds_until_it_is_set_again(name: str, argument: Any, value: Any) -> None:
    setting, before = getattr(settings, name), present(name)
    assert value != before
    setting.set_global(argument)
    assert present(name) == value
    with setting(before):
        assert present(name) == before
    assert present(name) == value
    with pytest.raises(ValueError, match=rf"settings\.{name} must be"):
        setting.set_global(2.5)
    assert present(name) == value
    setting.set_global(before)
    assert present(name) == before


def test_the_flag_for_the_whole_process_is_on_without_an_argument() -> None:
    with settings.rangeformer(False), settings.solver(Certified()):
        settings.rangeformer.set_global()
        settings.solver.set_global(rank=9)
        assert settings.rangeformer.on()
        assert settings.solver.value() == Certified(rank=9)
    assert settings.rangeformer.off()


def test_a_context_puts_back_what_was_there_when_it_was_entered() -> None:
    made_before = settings.min_size(7)
    with settings.min_size(9):
        with made_before:
            assert settings.min_size.value() == 7
        assert settings.min_size.value() == 9


def size_and(*arguments: Any) -> tuple[Any, ...]:
    return settings.min_size.value(), *arguments


class Called:
    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        return size_and(*arguments)


class Methods:
    @settings.min_size(7)
    def own(self, value: int) -> tuple[Any, ...]:
        return size_and(value)

    @settings.min_size(7)
    @classmethod
    def outside_class(cls, value: int) -> tuple[Any, ...]:
        return size_and(cls, value)

    @classmethod
    @settings.min_size(7)
    def inside_class(cls, value: int) -> tuple[Any, ...]:
        return size_and(cls, value)

    @settings.min_size(7)
    @staticmethod
    def outside_static(value: int) -> tuple[Any, ...]:
        return size_and(value)

    @property
    @settings.min_size(7)
    def inside_property(self) -> tuple[Any, ...]:
        return size_and()


@pytest.mark.parametrize(
    "function",
    [size_and, Called(), functools.partial(size_and), functools.lru_cache(size_and), Called().__call__, Methods().own,
     functools.partial(Called())],
)  # fmt: skip
def test_whatever_can_be_called_is_decorated(function: Any) -> None:
    before = settings.min_size.value()
    assert settings.min_size(7)(function)(3) == (7, 3)
    assert settings.min_size.value() == before


def test_methods_of_classes_and_static_ones_are_decorated_on_either_side() -> None:
    before = settings.min_size.value()
    for owner in (Methods, Methods()):
        assert owner.outside_class(3) == owner.inside_class(3) == (7, Methods, 3)
        assert owner.outside_static(3) == (7, 3)
    assert Methods().own(3) == (7, 3)
    assert Methods().inside_property == (7,)
    assert settings.min_size.value() == before


def generator(*arguments: Any) -> Iterator[int]:
    yield 1


async def coroutine() -> None: ...


async def both():
    yield 1


class Generating:
    def __call__(self):
        yield 1

    async def asynchronous(self) -> None: ...


@functools.wraps(generator)
def around(*arguments: Any) -> Any:
    return generator(*arguments)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (generator, "generator"),
        (coroutine, "coroutine"),
        (both, "both"),
        (functools.partial(functools.partial(generator)), "generator"),
        (functools.partial(Generating()), "Generating"),
        (Generating(), "Generating"),
        (Generating().asynchronous, "Generating.asynchronous"),
        (classmethod(generator), "generator"),
        (staticmethod(coroutine), "coroutine"),
        (contextlib.contextmanager(generator), "generator"),
        (around, "generator"),
    ],
)
def test_what_goes_on_after_its_call_is_not_decorated(function: Any, name: str) -> None:
    with pytest.raises(TypeError, match=rf"{name} goes on after it: write `with settings\.min_size"):
        settings.min_size(7)(function)


@pytest.mark.parametrize(
    "thing", [property(size_and), functools.cached_property(size_and), functools.partialmethod(size_and), 3, None]
)
def test_what_cannot_be_called_is_not_decorated(thing: Any) -> None:
    with pytest.raises(TypeError, match=r"directly above `def`"):
        settings.min_size(7)(thing)


def test_a_class_is_not_decorated_and_a_setting_is_not_without_its_parentheses() -> None:
    with pytest.raises(TypeError, match="put it on the methods of Called"):
        settings.rangeformer()(Called)
    for name in everything():
        with pytest.raises(ValueError, match=rf"as a decorator it is @settings\.{name}\("):
            getattr(settings, name)(size_and)


def test_a_setting_is_seen_from_other_threads_as_the_hosts_are() -> None:
    seen = []
    with settings.min_size(11):
        thread = threading.Thread(target=lambda: seen.append(settings.min_size.value()))
        thread.start()
        thread.join()
    assert seen == [11]


def test_threads_whose_contexts_overlap_neither_see_nor_end_each_others() -> None:
    """Entered by the first, by the second, left by the first, by the second: what the second enters holds in it alone,
    and nothing is left behind."""
    entered, left = threading.Event(), threading.Event()
    seen: dict[str, tuple[bool, int]] = {}

    def present() -> tuple[bool, int]:
        return settings.rangeformer.on(), settings.min_size.value()

    def second() -> None:
        with settings.rangeformer(), settings.min_size(22):
            entered.set()
            left.wait(10)
            seen["second, after the first has left"] = present()

    thread = threading.Thread(target=second)
    before = present()
    with settings.rangeformer(), settings.min_size(11):
        thread.start()
        entered.wait(10)
        seen["first"] = present()
    left.set()
    thread.join()
    assert seen == {"first": (True, 11), "second, after the first has left": (True, 22)}
    assert present() == before


def test_generators_that_end_in_the_order_in_which_they_began_leave_nothing_behind() -> None:
    def holding(size: int) -> Iterator[None]:
        with settings.min_size(size):
            yield

    before = settings.min_size.value()
    first, second = holding(11), holding(22)
    next(first)
    next(second)
    next(first, None)
    assert settings.min_size.value() == 22
    next(second, None)
    assert settings.min_size.value() == before


def test_one_context_may_be_entered_by_several_threads() -> None:
    both = threading.Barrier(2)
    context, seen = settings.min_size(33), []

    @context
    def inside() -> None:
        both.wait(10)
        seen.append(settings.min_size.value())

    threads = [threading.Thread(target=inside) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [33, 33]


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


def test_one_context_may_be_entered_twice() -> None:
    exact = settings.solver(Exact())
    with exact:
        with exact:
            assert settings.solver.value() == Exact()
        assert settings.solver.value() == Exact()
    assert settings.solver.value() == Certified()


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
