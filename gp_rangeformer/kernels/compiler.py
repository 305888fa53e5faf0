"""Tiles and products of a CPU in C++: compiled by the system's compiler when first needed, kept for the next process.

One library for every kernel, size and value: expressions are data to it. What is kept is named by a digest of the
sources, the flags and what the compiler says of this processor, so that a change of any of them compiles anew.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from importlib import resources
from pathlib import Path

import platformdirs
import torch

# Exact arithmetic but for what no formula here relies on: errno, traps, the sign of zero. Infinity and NaN stay.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")
# In the order of preference: OpenMP's threads are PyTorch's own where both use the same library. Half the width costs
# a quarter of the speed (Matern-3/2, AVX-512).
_WITH_THREADS = (("-march=native", "-mprefer-vector-width=512", "-fopenmp"), ("-march=native", "-fopenmp"))
_WITHOUT = (("-march=native", "-fopenmp-simd"), ("-mcpu=native", "-fopenmp-simd"))
# One thread of compiled code is as fast as so many of tensor operations.
_EQUIVALENT_THREADS = 2
_SECONDS = 300  # that a compiler may take


class CompilerError(RuntimeError):
    """No compiler, or one that fails."""


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The compiled functions, or None where nothing compiles them: tensor operations answer, about twice slower, and a
    warning says so once. Four seconds the first time on a machine, 0.02 after that."""
    try:
        return _load(_compiler())
    except (CompilerError, OSError, subprocess.SubprocessError) as error:
        warnings.warn(
            f"kernel matrices on this CPU are made by PyTorch's own operations, about twice slower: {error}. "
            "Install a C++ compiler with OpenMP (g++, or clang++ with libomp; CXX names another one), or do without "
            "under settings.compiled_kernels(False)",
            RuntimeWarning,
            stacklevel=2,
        )
        return None


def describe() -> str:
    """Where the compiled functions are, or why there are none."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        library = native_library()
    if library is not None:
        return str(library._name)
    return str(caught[0].message) if caught else "none"


def _compiler() -> list[str]:
    """The command of the C++ compiler.

    :raises CompilerError: without one.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]) is not None:
            return command
    raise CompilerError(f"CXX names {named[0]!r}, which is not there" if named else "there is no C++ compiler")


def _load(compiler: list[str]) -> ctypes.CDLL:
    sources = resources.files("gp_rangeformer.kernels") / "native"
    failures = []
    tunings = _WITH_THREADS if torch.get_num_threads() > _EQUIVALENT_THREADS else _WITH_THREADS + _WITHOUT
    for tuning in tunings:
        flags = [*_FLAGS, *tuning]
        # What the flags mean here: instruction sets, and the compiler's version.
        described = _run([*compiler, *flags, "-dM", "-E", "-x", "c++", os.devnull])
        if described.returncode != 0:
            failures.append(described.stderr)
            continue
        digest = hashlib.sha256("\0".join([*compiler, *flags, described.stdout]).encode())
        with resources.as_file(sources) as folder:
            for file in sorted(Path(folder).iterdir()):
                digest.update(file.read_bytes())
            units = [str(file) for file in sorted(Path(folder).glob("*.cpp"))]
            library, failure = _kept(digest.hexdigest()[:32], [*compiler, *flags, *units])
        if library is not None:
            return _declared(ctypes.CDLL(str(library)))
        failures.append(failure)
    raise CompilerError(f"{shlex.join(compiler)} failed: {(failures[0].strip().splitlines() or ['no message'])[-1]}")


def _kept(key: str, command: list[str]) -> tuple[Path | None, str]:
    """The library of ``key``, compiled unless an intact one is there; None with what the compiler said if it failed.

    Its name ends in the digest of its content: loading a file that was cut short can end the process.
    """
    cache = _cache()
    for found in sorted(cache.glob(f"tiles-{key}-*.so")):
        if found.stem.endswith(_content(found)):
            return found, ""
        found.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / "tiles.so"
        finished = _run([*command, "-o", str(made)])
        if finished.returncode != 0 or not made.exists():
            return None, finished.stderr
        target = cache / f"tiles-{key}-{_content(made)}.so"
        os.replace(made, target)
    return target, ""


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gp_rangeformer-")


def _cache() -> Path:
    """The user's cache folder; one for this process alone where that cannot be written."""
    folder = platformdirs.user_cache_path("gp_rangeformer")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(_temporary().name)
    return folder if os.access(folder, os.W_OK) else Path(_temporary().name)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """:raises OSError: if a function is missing."""
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
