"""The functions of the compiled library, as ctypes calls them."""

from __future__ import annotations

import ctypes


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library with the signatures of its functions.

    :raises OSError: if a function is missing.
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
    for name, signature in signatures.items():
        for suffix in ("float", "double"):
            try:
                function = getattr(library, f"{name}_{suffix}")
            except AttributeError as error:
                raise OSError(str(error)) from error
            function.argtypes, function.restype = signature, None
    return library
