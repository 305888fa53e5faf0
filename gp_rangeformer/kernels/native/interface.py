"""The functions of the compiled library as ctypes calls them, and the data that they read."""

from __future__ import annotations

import ctypes
import enum
from typing import Any

import torch

# Of native/border.h: columns of a packed panel, and rows that it serves at once.
PANEL, BATCH = 32, 96


class Operation(enum.IntEnum):
    """Of native/program.h."""

    STATIONARY = 0
    CONSTANT = 1
    SCALE = 2
    SUM = 3
    PRODUCT = 4


# Of native/profiles.h; a periodic kernel is an RBF of embedded points.
KINDS = {"rbf": 0, "periodic": 0, "matern12": 1, "matern32": 2, "matern52": 3, "rq": 4}


class Node(ctypes.Structure):
    """Of native/program.h, and so is :class:`Program`."""

    _fields_ = (
        ("operation", ctypes.c_int32),
        ("kind", ctypes.c_int32),
        ("first_child", ctypes.c_int32),
        ("child_count", ctypes.c_int32),
        ("dimensions", ctypes.c_int32),
        ("parameter", ctypes.c_double),
        ("largest", ctypes.c_double),
        ("coordinates", ctypes.c_void_p),
        ("gradient", ctypes.c_void_p),
        ("parameter_gradient", ctypes.c_void_p),
    )


class Program(ctypes.Structure):
    _fields_ = (
        ("node_count", ctypes.c_int32),
        ("nodes", ctypes.c_void_p),
        ("children", ctypes.c_void_p),
        ("n", ctypes.c_int64),
    )


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the signatures of its functions, which raise MemoryError without enough of it.

    :raises OSError: if a function is missing, or what both sides must agree on differs.
    """
    size, number, address = ctypes.c_int64, ctypes.c_int, ctypes.c_void_p
    on_tiles = [address, size, size, size, size, address, size, number]
    signatures = {"value": on_tiles, "pull": on_tiles}
    block = [address, number, address, number]
    signatures["multiply_dense"] = [address, size, size, size, *block, address, number]
    signatures["multiply_made"] = [address, size, size, *block, address, number]
    columns = [address, number]
    signatures["multiply_wide_dense"] = [address, size, size, size, *columns, address, address, number]
    signatures["multiply_wide_made"] = [address, size, size, *columns, address, address, number]
    batch = [address, size, address, address, address]
    signatures["value_batch"] = [*batch, number]
    signatures["pull_batch"] = [*batch, address, number]
    signatures["nearest"] = [address, size, number, address, number]
    signatures["condition"] = [address, size, address, number, address, number, address, address, address, number]
    signatures["pull_conditions"] = [address, address, number, address, number]
    signatures["derive"] = [address, address, address, address, number, address, address, address, number]
    signatures["sparse_solve"] = [address, address, address, size, address, number, number]
    signatures["sparse"] = [address, address, address, size, address, number, address, number]
    try:
        for name, signature in signatures.items():
            for suffix in ("float", "double"):
                function = getattr(library, f"{name}_{suffix}")
                function.argtypes, function.restype, function.errcheck = signature, number, _check
        constant = library.shared_constant
    except AttributeError as error:
        raise OSError(str(error)) from error
    expected = [PANEL, BATCH, ctypes.sizeof(Node), ctypes.sizeof(Program)]
    found = [constant(which) for which in range(len(expected))]
    if found != expected:
        raise OSError(f"the library has the constants {found}, not {expected}")
    return library


def function_for(library: ctypes.CDLL, name: str, dtype: torch.dtype) -> Any:
    """The library's function ``name`` for numbers of ``dtype``, float32 or float64."""
    return getattr(library, f"{name}_{'float' if dtype == torch.float32 else 'double'}")


def _check(code: int, function: Any, arguments: tuple[Any, ...]) -> None:
    if code != 0:
        raise MemoryError(f"the compiled function {function.__name__} has too little memory")
