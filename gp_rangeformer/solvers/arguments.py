"""Checks of what a solver is made with: a wrong value is met where it was written, by its name and with a remedy.

Solvers are frozen dataclasses. NumPy's numbers are taken too, and kept as Python's.
"""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_count(solver: object, name: str, smallest: int) -> None:
    """:raises ValueError: unless the argument is an integer of at least ``smallest``."""
    value = getattr(solver, name)
    if isinstance(value, bool) or not isinstance(value, Integral) or value < smallest:
        _refuse(solver, name, value, f"an integer of at least {smallest}")
    _keep(solver, name, int(value))


def check_at_most(solver: object, name: str, largest: int) -> None:
    """:raises ValueError: if the argument, a number, is above ``largest``."""
    value = getattr(solver, name)
    if value > largest:
        _refuse(solver, name, value, f"at most {largest}")


def check_share(solver: object, name: str) -> None:
    """:raises ValueError: unless the argument is a number between 0 and 1."""
    value = getattr(solver, name)
    number = _number(value)
    if not 0 < number < 1:
        _refuse(solver, name, value, "a number between 0 and 1")
    _keep(solver, name, number)


def check_above(solver: object, name: str, least: float, *, itself: bool) -> None:
    """:raises ValueError: unless the argument is a number above ``least``, or ``least`` ``itself``; infinity is one."""
    value = getattr(solver, name)
    number = _number(value)
    if not (number > least or (itself and number == least)):
        wanted = f"a number of at least {least:g}" if itself else "a positive number"
        _refuse(solver, name, value, f"{wanted}, or infinity")
    _keep(solver, name, number)


def check_flag(solver: object, name: str) -> None:
    """:raises ValueError: unless the argument is True or False."""
    value = getattr(solver, name)
    if not isinstance(value, bool):
        _refuse(solver, name, value, "True or False")


def check_choice(solver: object, name: str, choices: tuple[str, ...]) -> None:
    """:raises ValueError: unless the argument is one of ``choices``."""
    value = getattr(solver, name)
    if not isinstance(value, str) or value not in choices:
        _refuse(solver, name, value, "one of " + ", ".join(repr(choice) for choice in choices))


def _number(value: object) -> float:
    """NaN, which lies nowhere, for what is none."""
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan


def _keep(solver: object, name: str, value: int | float) -> None:
    object.__setattr__(solver, name, value)


def _refuse(solver: object, name: str, value: Any, expected: str) -> None:
    raise ValueError(f"{name} of {type(solver).__name__} must be {expected}, got {value!r}")
