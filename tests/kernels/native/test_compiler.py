"""The library of compiled tiles: made once, made anew when damaged, and done without where nothing makes it."""

from __future__ import annotations

import errno
import logging
import os
import platform
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gp_rangeformer import settings
from gp_rangeformer.kernels.native import compiler, library_cache
from gp_rangeformer.kernels.native import processor as processor_module
from gp_rangeformer.kernels.native.compiler import describe, forget, native_library
from gp_rangeformer.lab.bench.products import matern_kernel

X = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def swift(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """A folder with a compiler that hands out the library of this machine, which takes the real one seconds to make."""
    forget()
    if native_library() is None:
        return None
    library, folder = tmp_path_factory.mktemp("made") / "tiles.so", tmp_path_factory.mktemp("swift")
    shutil.copy(describe(), library)
    real = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))))
    script = f"""
    case "$*" in *-dM*) exec {real} "$@" ;; esac
    while [ "$1" != -o ]; do shift; done
    exec cp {library} "$2"
    """
    write_compiler(folder / "c++", script)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swift: Path | None) -> Iterator[Path]:
    """An empty folder in place of the user's."""
    monkeypatch.delenv("CXX", raising=False)
    if swift is not None:
        monkeypatch.setenv("PATH", f"{swift}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(library_cache.platformdirs, "user_cache_path", lambda name: tmp_path / name)
    forget()
    yield tmp_path / "gp_rangeformer"
    forget()


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
    forget()
    assert native_library() is not None
    assert [file.stat().st_mtime_ns for file in cache.iterdir()] == [made]


@needs_compiler
def test_a_damaged_library_is_made_anew(cache, monkeypatch, tmp_path) -> None:
    assert native_library() is not None
    (sound,) = cache.iterdir()
    # Elsewhere: what is loaded already is not loaded again from the same place.
    damaged = tmp_path / "elsewhere" / sound.name
    damaged.parent.mkdir(mode=0o700)
    damaged.write_bytes(sound.read_bytes()[:1000])
    damaged.chmod(0o700)
    monkeypatch.setattr(library_cache.platformdirs, "user_cache_path", lambda name: damaged.parent)
    forget()
    assert native_library() is not None
    assert damaged.read_bytes() == sound.read_bytes()


@needs_compiler
def test_a_cache_that_cannot_be_written_is_replaced_for_this_process(cache) -> None:
    cache.write_text("a file where the folder should be")
    assert native_library() is not None
    assert cache.is_file()


@needs_compiler
def test_the_setting_turns_the_library_off(monkeypatch) -> None:
    with monkeypatch.context() as patched, settings.fused_kernels("tensors"):
        patched.setattr("gp_rangeformer.kernels.native.compiler.native_library", lambda: pytest.fail("was asked for"))
        matern_kernel(X).dense()


def test_without_a_compiler_tensor_operations_answer_and_say_so_once(monkeypatch, recwarn) -> None:
    with settings.fused_kernels("tensors"):
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
    forget()
    monkeypatch.setattr(compiler.torch, "get_num_threads", lambda: 2)
    assert native_library() is not None


@needs_compiler
def test_the_description_names_the_library_or_the_reason(monkeypatch, cache) -> None:
    assert describe().startswith(str(cache))
    for made in cache.iterdir():
        made.unlink()
    forget()
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
    forget()
    assert native_library() is not None
    assert len(list(cache.iterdir())) == 2


needs_owners = pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no modes here")


@needs_compiler
@needs_owners
@pytest.mark.parametrize("fault", ["others may write", "group may write", "another's", "a link"])
def test_a_cache_folder_that_others_can_change_is_not_used_and_a_warning_says_so_once(
    fault, cache, monkeypatch, tmp_path, recwarn
) -> None:
    place = tmp_path / "elsewhere" if fault == "a link" else cache
    place.mkdir(mode=0o700)
    if fault == "a link":
        cache.symlink_to(place, target_is_directory=True)
    elif fault == "another's":
        owner = os.getuid()
        monkeypatch.setattr(library_cache.os, "getuid", lambda: owner + 1)
        # The temporary folder is then another's as well, but is not looked for libraries of other processes.
    else:
        cache.chmod(0o702 if fault == "others may write" else 0o720)
    assert native_library() is not None
    assert [str(warning.message) for warning in recwarn if "others could replace" in str(warning.message)]
    assert list(place.iterdir()) == []
    assert not describe().startswith(str(cache))
    recwarn.clear()
    native_library()
    assert not recwarn.list


@needs_compiler
@needs_owners
@pytest.mark.parametrize("fault", ["others may write", "a link"])
def test_a_library_that_others_could_have_written_is_not_loaded(fault, cache, tmp_path) -> None:
    assert native_library() is not None
    (made,) = cache.iterdir()
    if fault == "a link":
        elsewhere = tmp_path / made.name
        made.rename(elsewhere)
        made.symlink_to(elsewhere)
    else:
        made.chmod(0o722)
    before = made.lstat().st_ino
    forget()
    assert native_library() is not None
    (again,) = cache.iterdir()  # made anew, in its place
    assert again.lstat().st_ino != before
    assert stat.S_ISREG(again.lstat().st_mode)
    assert stat.S_IMODE(again.lstat().st_mode) == 0o700


@needs_compiler
@needs_owners
@pytest.mark.parametrize("umask", [0o000, 0o002])
def test_nobody_else_can_write_to_what_is_kept_whatever_the_umask(umask, cache) -> None:
    before = os.umask(umask)
    try:
        assert native_library() is not None
    finally:
        os.umask(before)
    (made,) = cache.iterdir()
    assert stat.S_IMODE(cache.stat().st_mode) == stat.S_IMODE(made.stat().st_mode) == 0o700


def test_a_compiler_that_speaks_another_encoding_is_quoted(monkeypatch, tmp_path) -> None:
    script = "printf 'erreur \\351\\n' >&2; exit 1"
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "french", script))
    with pytest.warns(RuntimeWarning, match="failed: erreur \ufffd"):
        assert native_library() is None


def test_an_unbalanced_quote_in_the_name_of_the_compiler_is_named(monkeypatch) -> None:
    monkeypatch.setenv("CXX", "g++ 'oops")
    with pytest.warns(RuntimeWarning, match="CXX is no command .*quotation"):
        assert native_library() is None


@needs_compiler
def test_without_a_home_the_library_is_made_for_this_process(monkeypatch) -> None:
    def homeless(name: str) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(library_cache.platformdirs, "user_cache_path", homeless)
    assert native_library() is not None


@needs_compiler
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up:ResourceWarning")
def test_a_full_disk_is_replaced_by_another_one_or_ends_in_the_warning(monkeypatch, cache) -> None:
    replace, full = os.replace, [cache]

    def refusing(source: Path, target: Path) -> None:
        if any(Path(target).is_relative_to(place) for place in full):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(library_cache.os, "replace", refusing)
    assert native_library() is not None
    full.append(Path("/"))
    forget()
    library_cache._temporary.cache_clear()  # where it was kept
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        assert native_library() is None
    monkeypatch.setattr(library_cache.tempfile, "TemporaryDirectory", refusing_folder)
    forget()
    with pytest.warns(RuntimeWarning, match="no usable temporary directory"):
        assert native_library() is None


def refusing_folder(**options: object) -> None:
    raise FileNotFoundError(2, "no usable temporary directory")


@needs_compiler
@pytest.mark.skipif(platform.system() != "Linux", reason="the processor is not described without a compiler")
def test_a_kept_library_needs_no_compiler(monkeypatch, cache) -> None:
    assert native_library() is not None
    monkeypatch.setenv("PATH", "/nowhere")
    forget()
    assert native_library() is not None
    assert describe().startswith(str(cache))


@needs_compiler
@pytest.mark.skipif(platform.system() != "Linux", reason="the processor is not described without a compiler")
@pytest.mark.parametrize("damaged", [False, True])
def test_a_cache_that_can_only_be_read_is_read(damaged, monkeypatch, cache) -> None:
    """As that of an image whose library was made when it was built."""
    assert native_library() is not None
    access, unlink = os.access, Path.unlink

    def read_only(file: Path, missing_ok: bool = False) -> None:
        if file.parent == cache:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(file))
        unlink(file, missing_ok)

    monkeypatch.setattr(library_cache.os, "access", lambda place, mode: place != cache and access(place, mode))
    monkeypatch.setattr(Path, "unlink", read_only)
    (made,) = cache.iterdir()
    if damaged:
        cut = made.with_suffix(".cut")  # another file: this one is loaded
        cut.write_bytes(made.read_bytes()[:1000])
        cut.chmod(0o700)
        os.replace(cut, made)
    else:
        monkeypatch.setenv("PATH", "/nowhere")
    forget()
    assert native_library() is not None
    assert describe().startswith(str(cache)) is not damaged


@needs_compiler
@pytest.mark.parametrize("other", ["another processor", None])
def test_without_a_compiler_another_processors_library_is_left_alone(other, monkeypatch, cache) -> None:
    """``None``: a processor that is not described, whose home may be shared with any other."""
    monkeypatch.setattr(compiler, "processor", lambda: other)
    assert native_library() is not None
    if other is not None:
        monkeypatch.setattr(compiler, "processor", processor_module.processor)
    monkeypatch.setenv("PATH", "/nowhere")
    forget()
    with pytest.warns(RuntimeWarning, match=r"there is no C\+\+ compiler"):
        assert native_library() is None
    assert len(list(cache.iterdir())) == 1


def test_a_processor_is_described_by_its_instructions_in_any_order(monkeypatch, tmp_path) -> None:
    descriptions = []
    for number, text in enumerate(
        [
            "flags : avx sse\ncpu MHz : 2000\n\nflags : sse\n",
            "flags : sse\ncpu MHz : 2100\nflags : sse avx\n",
            "flags : sse\n",
        ]
    ):
        file = tmp_path / str(number)
        file.write_text(text)
        monkeypatch.setattr(processor_module, "_CPUINFO", file)
        processor_module.processor.cache_clear()
        descriptions.append(processor_module.processor())
    monkeypatch.setattr(processor_module, "_CPUINFO", tmp_path / "not there")
    processor_module.processor.cache_clear()
    assert processor_module.processor() is None
    processor_module.processor.cache_clear()
    assert descriptions[0] == descriptions[1] != descriptions[2]
    assert None not in descriptions


@needs_compiler
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the names are those of x86")
def test_another_architecture_can_be_asked_for_unless_the_processor_lacks_its_instructions(monkeypatch, cache) -> None:
    monkeypatch.delenv("GP_RANGEFORMER_MARCH", raising=False)
    assert native_library() is not None
    monkeypatch.setenv("GP_RANGEFORMER_MARCH", "x86-64")
    forget()
    assert native_library() is not None
    assert len(list(cache.iterdir())) == 2
    unknown = "knl"  # with AVX-512PF and ER, which nothing else has
    monkeypatch.setenv("GP_RANGEFORMER_MARCH", unknown)
    forget()
    with pytest.warns(
        RuntimeWarning, match=f"GP_RANGEFORMER_MARCH={unknown} asks for instructions .* lacks|'{unknown}'"
    ):
        assert native_library() is None


@needs_compiler
def test_a_compiler_that_knows_openmp_under_another_name_is_used_with_it(monkeypatch, tmp_path, caplog) -> None:
    """As Apple's: it refuses -fopenmp, and links libomp if told to."""
    script = """
    for argument in "$@"; do
        shift
        case "$argument" in
            -Xpreprocessor) known=1 ;;
            -fopenmp) [ -n "$known" ] || { echo "unsupported option '-fopenmp'" >&2; exit 1; }; set -- "$@" -fopenmp ;;
            -lomp) ;;
            *) set -- "$@" "$argument" ;;
        esac
    done
    exec c++ "$@"
    """
    monkeypatch.setenv("CXX", write_compiler(tmp_path / "apple", script))
    monkeypatch.setattr(compiler.torch, "get_num_threads", lambda: 8)
    with caplog.at_level(logging.INFO, logger="gp_rangeformer"):
        assert native_library() is not None
        native_library()
    (record,) = caplog.records
    assert "-Xpreprocessor -fopenmp" in record.getMessage()


@needs_compiler
def test_processes_that_compile_at_once_do_not_disturb_each_other(tmp_path) -> None:
    program = "from gp_rangeformer.kernels.native.compiler import describe; print(describe())"
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "HOME": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate()[0].strip() for process in processes]
    assert all(Path(path).name.startswith("tiles-") and Path(path).exists() for path in said)
    assert all(len(list(Path(path).parent.iterdir())) <= 2 for path in said)
