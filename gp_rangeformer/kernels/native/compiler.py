"""Tiles and products of a CPU in C++: compiled by the system's compiler when first needed, kept for the next process.

One library for every kernel, size and value: expressions are data to it. What is kept is named by digests of the
sources, the flags and this processor, and of what the compiler says of itself, so that a change of any of them compiles
anew; where there is no compiler any more, what one has made for this processor is loaded.

Environment variables: ``CXX`` names the compiler, with options. ``GP_RANGEFORMER_MARCH`` takes the place of ``native``
in ``-march=native``: ``x86-64-v3`` leaves AVX-512 alone. Instructions that this processor lacks are refused.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch

from gp_rangeformer import settings
from gp_rangeformer.kernels.native import library_cache
from gp_rangeformer.kernels.native.interface import declare
from gp_rangeformer.kernels.native.processor import processor

# Exact arithmetic but for what no formula here relies on: errno, traps, the sign of zero. Infinity and NaN stay.
_FLAGS = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros")
# One thread of compiled code is as fast as so many of tensor operations.
_EQUIVALENT_THREADS = 2
_SECONDS = 300  # that a compiler may take
_logger = logging.getLogger("gp_rangeformer")


class CompilerError(RuntimeError):
    """No compiler, or one that fails."""


class Tuning(NamedTuple):
    """Flags for this processor and its threads, and the libraries that they need, which follow the sources."""

    flags: tuple[str, ...]
    libraries: tuple[str, ...] = ()


_loading = threading.Lock()


@functools.cache
def native_library() -> ctypes.CDLL | None:
    """The compiled functions, or None where nothing compiles them: tensor operations answer, about twice slower, and a
    warning says so once. Six seconds the first time on a machine, 0.02 after that."""
    with _loading:  # threads that come first together compile once
        found = _library()
    if not isinstance(found, str):
        return found
    warnings.warn(
        f"kernel matrices on this CPU are made by PyTorch's own operations, about twice slower: {found}. "
        "Install a C++ compiler with OpenMP (g++, or clang++ with libomp; CXX names another one), or do without "
        'under settings.fused_kernels("tensors")',
        RuntimeWarning,
        stacklevel=2,
    )
    return None


def library_on(device: torch.device) -> ctypes.CDLL | None:
    """The compiled functions where they answer on ``device``: a CPU, unless ``settings.fused_kernels`` says otherwise
    or nothing compiles them."""
    return native_library() if device.type == "cpu" and settings.fused_kernels.compiled() else None


def describe() -> str:
    """Where the compiled functions are, or why there are none."""
    found = _library()
    return found if isinstance(found, str) else str(found._name)


def forget() -> None:
    """Look for the library again when it is next needed."""
    for found in (native_library, _library, library_cache.folder):
        found.cache_clear()


@functools.cache
def _library() -> ctypes.CDLL | str:
    """The compiled functions, or why there are none."""
    try:
        return _load()
    except Exception as error:  # whatever the environment, the compiler, the linker or the file system may raise
        return str(error) or type(error).__name__


def _load() -> ctypes.CDLL:
    """:raises CompilerError: without a library. What else is wrong with the environment raises anything."""
    try:
        compiler, failures = _compiler(), []
    except CompilerError as error:
        compiler, failures = None, [str(error)]
    sources = resources.files("gp_rangeformer.kernels.native")
    with resources.as_file(sources) as found:
        folder = Path(found)
        for tuning in _tunings():
            for library in _candidates(compiler, tuning, folder, failures):
                try:
                    loaded = declare(ctypes.CDLL(str(library)))
                except OSError as error:  # made where a library was that is no longer there
                    failures.append(str(error))
                    continue
                _logger.info("compiled kernels: %s, made with %s", library, shlex.join(tuning.flags))
                return loaded
    cause = (failures[0].strip().splitlines() or ["no message"])[-1]
    raise CompilerError(cause if compiler is None else f"{shlex.join(compiler)} failed: {cause}")


def _compiler() -> list[str]:
    """The command of the C++ compiler.

    :raises CompilerError: without one.
    """
    try:
        named = shlex.split(os.environ.get("CXX", ""))
    except ValueError as error:
        raise CompilerError(f"CXX is no command ({error})") from error
    for command in [named] if named else [["c++"], ["g++"], ["clang++"]]:
        if shutil.which(command[0]) is not None:
            return command
    raise CompilerError(f"CXX names {named[0]!r}, which is not there" if named else "there is no C++ compiler")


def _march() -> str:
    return os.environ.get("GP_RANGEFORMER_MARCH") or "native"


def _tunings() -> list[Tuning]:
    """In the order of preference: OpenMP's threads are PyTorch's own where both use the same library. Half the width
    costs a quarter of the speed (Matern-3/2, AVX-512)."""
    march = f"-march={_march()}"
    # PyTorch's own copy of libomp, where it brings one: a second one in the process would end it.
    torchs = Path(torch.__file__).parent / "lib"
    tunings = [
        Tuning((march, "-mprefer-vector-width=512", "-fopenmp")),
        Tuning((march, "-fopenmp")),
        # Apple's compiler refuses -fopenmp, and yet knows it.
        Tuning((march, "-Xpreprocessor", "-fopenmp"), (f"-L{torchs}", f"-Wl,-rpath,{torchs}", "-lomp")),
    ]
    if torch.get_num_threads() <= _EQUIVALENT_THREADS:
        tunings.append(Tuning((march, "-fopenmp-simd")))
        if _march() == "native":
            tunings.append(Tuning(("-mcpu=native", "-fopenmp-simd")))
    return tunings


def _candidates(compiler: list[str] | None, tuning: Tuning, sources: Path, failures: list[str]) -> Iterator[Path]:
    """Libraries for this machine, kept or made now; why there are none is added to ``failures``."""
    flags, host = [*_FLAGS, *tuning.flags], processor()
    files = [file.read_bytes() for file in sorted(sources.iterdir()) if file.suffix in (".cpp", ".h")]
    key = _digest(*flags, *tuning.libraries, str(host), *files)
    if compiler is None:
        if host is not None:  # else what is kept may be another machine's, under a home that they share
            yield from library_cache.kept(key, None)
        return
    # What the flags mean here: instruction sets, and the compiler's version.
    described = _macros([*compiler, *flags])
    if described.returncode != 0:
        failures.append(described.stderr)
        return
    _require_instructions(compiler, described.stdout)
    made_by = _digest(*compiler, described.stdout)
    yield from library_cache.kept(key, made_by)
    units = sorted(sources.glob("*.cpp"))

    def make(library: Path) -> bool:
        with tempfile.TemporaryDirectory() as made, ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = [str(Path(made) / f"{unit.stem}.o") for unit in units]
            pairs = zip(units, objects, strict=True)
            jobs = [pool.submit(_run, [*compiler, *flags, "-c", str(unit), "-o", to]) for unit, to in pairs]
            finished = [job.result() for job in jobs]
            finished.append(_run([*compiler, *flags, *objects, "-o", str(library), *tuning.libraries]))
        if finished[-1].returncode == 0 and library.exists():
            return True
        failures.append(next((run.stderr for run in finished if run.returncode != 0), finished[-1].stderr))
        return False

    made = library_cache.keep(key, made_by, make)
    if made is not None:
        yield made


def _require_instructions(compiler: list[str], macros: str) -> None:
    """:raises CompilerError: if the flags ask for instructions that this processor lacks."""
    if _march() == "native":
        return
    natives = (_macros([*compiler, *_FLAGS, flag]) for flag in ("-march=native", "-mcpu=native"))
    native = next((described.stdout for described in natives if described.returncode == 0), "")
    # Names of processors are in lower case, of instruction sets in upper case.
    asked, available = (
        set(re.findall(r"^#define (__[A-Z0-9_]+__) 1$", text, re.MULTILINE)) for text in (macros, native)
    )
    lacking = asked - available
    if lacking:
        raise CompilerError(
            f"GP_RANGEFORMER_MARCH={_march()} asks for instructions that this processor lacks "
            f"({', '.join(sorted(lacking)[:3])})"
        )


def _macros(command: list[str]) -> subprocess.CompletedProcess[str]:
    return _run([*command, "-dM", "-E", "-x", "c++", os.devnull])


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode(errors="surrogateescape") if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:16]


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """What it says may be in any encoding."""
    return subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=_SECONDS)
