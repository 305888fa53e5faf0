"""Settings as contexts and as decorators: nested, entered again, in threads and generators, for the whole process."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from linear_operator.settings import _feature_flag

from gp_rangeformer import Certified, Exact, settings
from tests.settings.listed import CHOICES, COUNTS, FLAGS, everything


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


def in_a_thread(function: Callable[[], Any]) -> Any:
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_thread_without_contexts_sees_the_main_ones_and_not_its_siblings() -> None:
    def beside(sibling: int) -> int:
        with settings.min_size(sibling):
            return in_a_thread(settings.min_size.value)

    before = settings.min_size.value()
    assert in_a_thread(lambda: beside(22)) == before
    with settings.min_size(11):
        assert in_a_thread(lambda: beside(22)) == 11


def test_a_value_for_the_whole_process_leaves_the_contexts_of_other_threads_alone() -> None:
    before = settings.min_size.value()
    entered, changed, seen = threading.Event(), threading.Event(), []

    def inside() -> None:
        with settings.min_size(22):
            entered.set()
            changed.wait(10)
            seen.append(settings.min_size.value())
        seen.append(settings.min_size.value())

    thread = threading.Thread(target=inside)
    thread.start()
    entered.wait(10)
    settings.min_size.set_global(33)
    changed.set()
    thread.join()
    assert seen == [22, 33]
    assert settings.min_size.value() == 33
    settings.min_size.set_global(before)


def test_what_a_thread_left_open_is_not_a_later_ones() -> None:
    """The system gives the numbers of threads that have ended to new ones."""
    before, context = settings.min_size.value(), settings.min_size(22)
    in_a_thread(context.__enter__)
    assert [in_a_thread(settings.min_size.value) for _ in range(5)] == [before] * 5
    context.__exit__()
    assert settings.min_size.value() == before


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


def test_one_context_may_be_entered_twice() -> None:
    exact = settings.solver(Exact())
    with exact:
        with exact:
            assert settings.solver.value() == Exact()
        assert settings.solver.value() == Exact()
    assert settings.solver.value() == Certified()
