"""What is said of a table or a folder that cannot be used, and of pandas where it is missing."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any

INSTALL = "pip install 'gp-rangeformer[tables]'"


_naming_options = ContextVar("whether messages are for who typed a command", default=False)


@contextlib.contextmanager
def naming_options() -> Iterator[None]:
    """Inside, messages name options of the command line where they else name arguments of Python."""
    token = _naming_options.set(True)
    try:
        yield
    finally:
        _naming_options.reset(token)


def argument(name: str, value: str | bool | Sequence[str]) -> str:
    """How a message asks for a setting: ``encode='one-hot'``, or ``--encode one-hot`` where a command is answered.

    :param value: a bool of what is a flag there, a sequence of what is a list with commas there.
    """
    if not _naming_options.get():
        return f"{name}={value!r}"
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    words = value if isinstance(value, str) else ",".join(f'"{one}"' if "," in one else one for one in value)
    return f"--{name} {shlex.quote(words)}"


def counted(count: int, what: str) -> str:
    """``1 row`` and ``2 rows``."""
    return f"{count:,} {what}" + ("" if count == 1 else "s")


class TableError(ValueError):
    """A table that cannot be used as it is; the message names row, column and remedy."""


class KernelError(ValueError):
    """A kernel that does not exist or does not fit the data; the message names what does."""


class SavedModelError(ValueError):
    """A folder that holds no model that can be read; the message says what to do."""


class TableWarning(UserWarning):
    """What was left out of a table, and where a fit began or predictions are missing."""


def import_pandas() -> Any:
    """The module, imported where a table is touched: who only asks for help need not wait for it.

    :raises ImportError: it is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ImportError(f"tables need pandas, which is not installed: {INSTALL}") from error
    return pandas
