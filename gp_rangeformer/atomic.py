"""Files that a reader, or an interrupt, meets old or new and never half written."""

from __future__ import annotations

import errno
import os
import tempfile
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
    try:
        if path.exists() and not path.is_file():
            path.write_bytes(content)
        else:
            _replace(path, content)
    except OSError as error:
        raise WriteError(error.errno, error.strerror or str(error), str(path)) from error


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # mkstemp makes files that only the owner can read.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        with open(handle, "wb") as file:
            file.write(content)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
