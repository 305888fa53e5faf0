"""The library of compiled tiles: made once, made anew when damaged, and done without where nothing makes it."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gp_rangeformer import settings
from gp_rangeformer.bench.products import matern_kernel
from gp_rangeformer.kernels import compiler
from gp_rangeformer.kernels.compiler import describe, native_library

X = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of the user's."""
    monkeypatch.setattr(compiler.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    native_library.cache_clear()
    yield tmp_path / "gp_rangeformer"
    native_library.cache_clear()


needs_compiler = pytest.mark.skipif(
    not any(shutil.which(command) for command in ("c++", "g++", "clang++")), reason="there is no C++ compiler"
)


def write_compiler(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@needs_compiler
def test_the_library_is_made_once(cache) -> None:
    assert native_library() is not None
    (kept,) = cache.iterdir()
    made = kept.stat().st_mtime_ns
    native_library.cache_clear()
    assert native_library() is not None
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [made]


@needs_compiler
def test_a_damaged_library_is_made_anew(cache, monkeypatch, tmp_path) -> None:
    assert native_library() is not None
    (sound,) = cache.iterdir()
    # Elsewhere: what is loaded already is not loaded again from the same place.
    damaged = tmp_path / "elsewhere" / sound.name
    damaged.parent.mkdir()
    damaged.write_bytes(sound.read_bytes()[:1000])
    monkeypatch.setattr(compiler.platformdirs, "user_cache_path", lambda name: damaged.parent)
    native_library.cache_clear()
    assert native_library() is not None
    assert damaged.read_bytes() == sound.read_bytes()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_replaced_for_this_process(cache) -> None:
    cache.write_text("a file where the folder should be")
    assert native_library() is not None
    assert cache.is_file()


@needs_compiler
def test_the_setting_turns_the_library_off(monkeypatch) -> None:
    monkeypatch.setattr("gp_rangeformer.kernels.bind.native_library", lambda: pytest.fail("was asked for"))
    with settings.compiled_kernels(False):
        matern_kernel(X).dense()


def test_without_a_compiler_tensor_operations_answer_and_say_so_once(monkeypatch, recwarn) -> None:
    with settings.compiled_kernels(False):
        expected = matern_kernel(X).dense()
    monkeypatch.setenv("CXX", "no-such-compiler --with-an-option")
    with pytest.warns(RuntimeWarning, match="'no-such-compiler', which is not there"):
        found = matern_kernel(X).dense()
    assert torch.equal(found, expected)
    recwarn.clear()
    matern_kernel(X).dense()
    assert not recwarn.list


def test_a_compiler_that_fails_is_quoted(monkeypatch, tmp_path, cache) -> None:
    script = "case \"$*\" in *-dM*) exit 0;; esac; echo 'tiles.cpp: error: I am tired' >&2; exit 1"
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "tired", script))
    with pytest.warns(RuntimeWarning, match="I am tired"):
        assert native_library() is None
    assert list(cache.iterdir()) == []


@needs_compiler
def test_without_openmp_one_thread_of_compiled_code_does_not_replace_many_of_pytorch(monkeypatch, tmp_path) -> None:
    script = 'case "$*" in *-fopenmp\\ *) echo no OpenMP here >&2; exit 1;; esac; exec c++ "$@"'
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "single", script))
    monkeypatch.setattr(compiler.torch, "get_num_threads", lambda: 3)
    with pytest.warns(RuntimeWarning, match="no OpenMP here"):
        assert native_library() is None
    native_library.cache_clear()
    monkeypatch.setattr(compiler.torch, "get_num_threads", lambda: 2)
    assert native_library() is not None


@needs_compiler
def test_the_description_names_the_library_or_the_reason(monkeypatch, cache) -> None:
    assert describe().startswith(str(cache))
    native_library.cache_clear()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "not there" in describe()


@needs_compiler
def test_flags_that_a_compiler_does_not_know_are_left_out(monkeypatch, tmp_path) -> None:
    script = 'case "$*" in *prefer-vector*|*-fopenmp\\ *) echo unknown flag >&2; exit 1;; esac; exec c++ "$@"'
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "plain", script))
    assert native_library() is not None
    assert float(matern_kernel(X).dense()[0, 0]) == 1


def test_another_compiler_gets_another_library(monkeypatch, tmp_path, cache) -> None:
    if native_library() is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "other", 'exec c++ "$@"'))
    native_library.cache_clear()
    assert native_library() is not None
    assert len(list(cache.iterdir())) == 2
