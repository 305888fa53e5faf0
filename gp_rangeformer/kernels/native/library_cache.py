"""Where compiled libraries are kept: in a folder that nobody but this user can write to.

Loading a library runs what is in it. So one is taken only from a folder, and as a file, that this user owns and nobody
else may change. The names are ``tiles-HOST-COMPILER-CONTENT.so``: digests of what must fit this machine, of what made
it, and of the file itself, because loading one that was cut short can end the process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs


def kept(host: str, compiler: str | None) -> list[Path]:
    """The intact libraries for this machine; ``compiler`` None stands for any. Damaged ones are removed."""
    found = []
    for file in (file for place in _places() for file in sorted(place.glob(f"tiles-{host}-{compiler or '*'}-*.so"))):
        if not _private(file, stat.S_ISREG):
            continue
        if file.stem.endswith(_content(file)):
            found.append(file)
        else:
            with contextlib.suppress(OSError):  # the folder may only be read
                file.unlink(missing_ok=True)
    return found


def _places() -> list[Path]:
    """The folder that is written to, and the user's, which a read-only system may have with a library in it."""
    places = [folder()]
    with contextlib.suppress(OSError, RuntimeError):
        users = _users_folder()
        if users != places[0] and _private(users, stat.S_ISDIR):
            places.insert(0, users)
    return places


def keep(host: str, compiler: str, make: Callable[[Path], bool]) -> Path | None:
    """What ``make`` writes to the path that it is given, or None where it says that it failed. Processes that do so at
    the same time do not disturb each other.

    :raises OSError: if there is no room for it, or no folder at all.
    """
    try:
        return _keep(folder(), host, compiler, make)
    except OSError:  # full, or over a quota: perhaps the temporary folder is on another disk
        return _keep(Path(_temporary().name), host, compiler, make)


def _keep(folder: Path, host: str, compiler: str, make: Callable[[Path], bool]) -> Path | None:
    # Not what remains of the folder, which somebody may have removed, decides about what was made in it.
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as inside:
        made = Path(inside) / "tiles.so"
        if not make(made):
            return None
        made.chmod(0o700)  # whatever the umask
        target = folder / f"tiles-{host}-{compiler}-{_content(made)}.so"
        os.replace(made, target)
    return target


@functools.cache
def folder() -> Path:
    """The user's cache folder; one for this process alone where that cannot be written, or others can write to it,
    which a warning says once.

    :raises OSError: if there is no temporary folder either.
    """
    try:
        place = _users_folder()
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return Path(_temporary().name)
    if not os.access(place, os.W_OK):
        return Path(_temporary().name)
    if not _private(place, stat.S_ISDIR):
        warnings.warn(
            f"compiled code is not kept in {place}, and is made anew by every process, because others could replace "
            "it there: make that a folder (no link) of your own that nobody else may write to (chmod go-w)",
            RuntimeWarning,
            stacklevel=2,
        )
        return Path(_temporary().name)
    return place


def _users_folder() -> Path:
    """:raises RuntimeError: there is no home."""
    return platformdirs.user_cache_path("gp_rangeformer")


def _private(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether ``path`` itself, not what a link leads to, is this user's, and nobody else may write to it."""
    with contextlib.suppress(OSError):
        found = path.lstat()
        if not hasattr(os, "getuid"):  # Windows: profiles are private, and modes mean nothing
            return is_kind(found.st_mode)
        return is_kind(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022
    return False


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16]


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gp_rangeformer-", ignore_cleanup_errors=True)
