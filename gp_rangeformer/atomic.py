"""Files that a reader, or an interrupt, meets old or new and never half written."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free some space there, or choose another path"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a path that you may write to"),
}


class WriteError(OSError):
    """A file that could not be written. Nothing of it is left; what was there before still is."""

    def __str__(self) -> str:
        remedy = _REMEDIES.get(self.errno or 0, "choose another path")
        return f"cannot write {self.filename}: {self.strerror}: {remedy}"


def write_bytes(path: Path, content: bytes) -> None:
    """Replace or create ``path``. The folder is made if it is not there; a failure leaves what was there before.

    A device or a pipe is written to, and not replaced.

    :raises WriteError: the disk is full, the folder is not writable, and the like; the message names path and remedy.
    """
    with _naming(path):
        replaced = path.is_file() or not path.exists()
        if not replaced:
            path.write_bytes(content)
    if replaced:
        write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Replace or create files that belong together: none takes its place before the disk has had space for all.

    :raises WriteError: as :func:`write_bytes`.
    """
    staged: dict[Path, str] = {}
    try:
        for path, content in contents.items():
            with _naming(path):
                staged[path] = _staged(path, content)
        for path, temporary in staged.items():
            with _naming(path):
                os.replace(temporary, path)
    finally:
        for temporary in staged.values():
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error


def _staged(path: Path, content: bytes) -> str:
    """A file beside ``path``, whose place it can take."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # mkstemp makes files that only the owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        with open(handle, "wb") as file:
            file.write(content)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return temporary
