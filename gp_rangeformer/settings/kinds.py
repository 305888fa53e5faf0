"""What a setting is: a context in linear_operator's dialect, with a value that is checked; it decorates functions."""

from __future__ import annotations

import contextlib
import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from linear_operator.settings import _feature_flag, _value_context

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _goes_on(func: Any) -> bool:
    """Whether it, what it wraps, or the method that calls it is a generator or a coroutine."""
    inside = _innermost(func)
    return any(
        goes_on(each)
        for goes_on in (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)
        for each in (func, inside, type(inside).__call__)
    )


def _innermost(func: Any) -> Any:
    """What decorators and partial objects were made of."""
    while True:
        if isinstance(func, functools.partial):
            func = func.func
        elif hasattr(func, "__wrapped__"):
            func = inspect.unwrap(func)
        else:
            return func


class _Thread(threading.local):
    """What tells this thread from all others, also from later ones that the system gives the same number."""

    def __init__(self) -> None:
        self.token = object()


_thread = _Thread()


class _Open:
    """A context that was entered and not left: the value that holds in it, and the thread that entered it."""

    def __init__(self, value: Any) -> None:
        self.value, self.thread = value, _thread.token
        self.by_main = threading.get_ident() == threading.main_thread().ident


def _own(contexts: list[_Open]) -> _Open | None:
    """The last that this thread has entered. Others may enter and leave meanwhile: what they take away moves nothing
    that is still to be looked at from the end."""
    thread = _thread.token
    for each in reversed(contexts):
        if each.thread is thread:
            return each
    return None


def _seen_here(contexts: list[_Open]) -> _Open | None:
    """The last that this thread has entered, else the main one; what no Python code has started (backward passes on a
    device run in such threads) sees the last of all."""
    if not contexts:
        return None
    own = _own(contexts)
    if own is not None:
        return own
    started = threading.get_ident() in threading._active  # type: ignore[attr-defined]
    return next((each for each in reversed(contexts.copy()) if each.by_main or not started), None)


class Setting(contextlib.ContextDecorator):
    """What both kinds have beyond the host's. Contexts are a stack of what is open, from which each takes itself: one
    may be entered again while it is open, as decorated functions do that call themselves, and threads whose contexts
    overlap neither end nor change each other's. A thread that has entered none sees the main thread's."""

    _open: list[_Open]

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        cls._open = []

    def __init__(self, *arguments: Any, **changes: Any) -> None:
        self._entered: list[_Open] = []

    @classmethod
    def set_global(cls, *arguments: Any, **changes: Any) -> None:
        """Set for the whole process, with the arguments of the context, until it is set again. A context that is open
        around this call puts back at its end what was there before it."""
        value = cls(*arguments, **changes)._inside()
        own = _own(cls._open)
        if own is None:
            cls._store(value)
        else:
            own.value = value

    @classmethod
    def _held(cls) -> Any:
        """What holds in this thread, now."""
        seen = _seen_here(cls._open)
        return cls._stored() if seen is None else seen.value

    def __call__(self, func: _Function) -> _Function:
        """``func`` with this setting during each of its calls: a function, class method, static method or any other
        callable.

        :raises TypeError: a class, what cannot be called, or what goes on after its call has returned: a generator, a
            coroutine, or what such a one was made of.
        """
        decorator = f"@settings.{type(self).__name__}(...)"
        if isinstance(func, type):
            raise TypeError(f"{decorator} is for functions: put it on the methods of {func.__name__}")
        if isinstance(func, classmethod | staticmethod):
            found: Any = type(func)(self(func.__func__))
            return found
        if not callable(func):
            kind = type(func).__name__
            raise TypeError(
                f"{decorator} is for functions, got a {kind}: put it directly above `def`, below the others"
            )
        if _goes_on(func):
            name = getattr(_innermost(func), "__qualname__", type(_innermost(func)).__qualname__)
            raise TypeError(
                f"{decorator} ends when the call returns, and {name} goes on after it: write `with {decorator[1:]}:` "
                "inside, around what computes"
            )
        return super().__call__(func)

    def __enter__(self) -> None:
        entered = _Open(self._inside())
        self._entered.append(entered)
        self._open.append(entered)

    def __exit__(self, *_: object) -> None:
        entered = _own(self._entered) or self._entered[-1]  # another thread may close a generator
        self._entered.remove(entered)
        self._open.remove(entered)

    def _inside(self) -> Any:
        """What holds in the context."""
        raise NotImplementedError

    @classmethod
    def _stored(cls) -> Any:
        """What holds where no context is open."""
        raise NotImplementedError

    @classmethod
    def _store(cls, value: Any) -> None:
        raise NotImplementedError


class Flag(Setting, _feature_flag):
    """A flag that takes True or False and nothing that merely counts as one of them."""

    def __init__(self, state: bool = True) -> None:
        if not isinstance(state, bool):
            name = f"settings.{type(self).__name__}"
            hint = f"; as a decorator it is @{name}()" if callable(state) else ""
            raise ValueError(f"{name} must be True or False, got {state!r}{hint}")
        super().__init__()
        self.state = state

    @classmethod
    def is_default(cls) -> bool:
        return cls._held() is None

    @classmethod
    def on(cls) -> bool:
        # Every call of the host's asks: where no context is open that is all that is looked at.
        value = cls._held() if cls._open else cls._state
        return cls._default if value is None else value

    @classmethod
    def off(cls) -> bool:
        value = cls._held() if cls._open else cls._state
        return not (cls._default if value is None else value)

    def _inside(self) -> bool:
        return self.state

    @classmethod
    def _stored(cls) -> bool | None:
        return cls._state  # None: the default

    @classmethod
    def _store(cls, value: bool | None) -> None:
        cls._set_state(value)


class Value(Setting, _value_context):
    """A value that is checked when it is set, so that a typing error is met where it was made."""

    def __init__(self, value: Any) -> None:
        self.check(value)
        super().__init__()
        self._chosen = value

    def _inside(self) -> Any:
        return self._chosen

    @classmethod
    def _stored(cls) -> Any:
        return cls._global_value

    @classmethod
    def _store(cls, value: Any) -> None:
        cls._set_value(value)

    @classmethod
    def value(cls) -> Any:
        return cls._held() if cls._open else cls._stored()  # which a prediction asks for a dozen times

    @classmethod
    def check(cls, value: Any) -> None:
        """Raise ValueError unless ``value`` fits."""

    @classmethod
    def _refuse(cls, value: Any, expected: str) -> None:
        hint = f"; as a decorator it is @settings.{cls.__name__}(...)" if inspect.isroutine(value) else ""
        raise ValueError(f"settings.{cls.__name__} must be {expected}, got {value!r}{hint}")


class Count(Value):
    _smallest = 1

    @classmethod
    def check(cls, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < cls._smallest:
            cls._refuse(value, f"an integer of at least {cls._smallest}")


class Choice(Value):
    _choices: tuple[str, ...] = ()

    @classmethod
    def check(cls, value: Any) -> None:
        if not isinstance(value, str) or value not in cls._choices:
            cls._refuse(value, "one of " + ", ".join(repr(choice) for choice in cls._choices))
