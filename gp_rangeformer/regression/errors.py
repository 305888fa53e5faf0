"""What is said of a table or a folder that cannot be used, and of pandas where it is missing."""

from __future__ import annotations

from typing import Any

INSTALL = "pip install 'gp-rangeformer[tables]'"


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
