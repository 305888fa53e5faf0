"""Files are replaced as a whole or not at all, and a failure says what to do."""

from __future__ import annotations

import errno
import os
import pickle
import tempfile
from pathlib import Path

import pytest

from gp_rangeformer.atomic import WriteError, write_bytes, write_together


def test_the_folder_is_made_and_the_file_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    for content in (b"old", b"new"):
        write_bytes(path, content)
        assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EROFS, "that you may write to"), (errno.EIO, "choose another path")],
)
def test_a_failure_leaves_the_old_file_and_names_path_and_remedy(
    number: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("gp_rangeformer.atomic.os.replace", fail)
    with pytest.raises(WriteError, match=remedy) as raised:
        write_bytes(path, b"new")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.errno == number
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device that is always full")
def test_files_that_belong_together_are_all_replaced_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for content in (b"old", b"new"):
        write_together({first: content, second: content})
        assert first.read_bytes() == second.read_bytes() == content
    made = tempfile.mkstemp

    def full(prefix: str, **options: object) -> tuple[int, str]:
        handle, name = made(prefix=prefix, dir=tmp_path)
        return (os.open("/dev/full", os.O_WRONLY), name) if prefix == ".second." else (handle, name)

    monkeypatch.setattr("gp_rangeformer.atomic.tempfile.mkstemp", full)
    with pytest.raises(WriteError, match=f"cannot write {second}: No space left"):
        write_together({first: b"newer", second: b"newer"})
    assert first.read_bytes() == second.read_bytes() == b"new"
    assert sorted(tmp_path.iterdir()) == [first, second]


def test_an_error_survives_the_way_between_processes() -> None:
    error = WriteError(errno.ENOSPC, "No space left on device", "/a")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(WriteError, match="choose a path that you may write to"):
            write_bytes(tmp_path / "file", b"new")
    finally:
        tmp_path.chmod(0o700)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WriteError, match="Is a directory: choose another path"):
        write_bytes(tmp_path, b"new")


def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_bytes(path, b"new")
        assert os.read(reader, 10) == b"new"
    finally:
        os.close(reader)
    assert path.is_fifo()
