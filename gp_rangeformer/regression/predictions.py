"""Predictions as a table: what is said of each row, and the row beside it."""

from __future__ import annotations

from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gp_rangeformer.regression.errors import TableError, import_pandas

if TYPE_CHECKING:
    import pandas as pd

PREDICTED = ("mean", "sd", "lower95", "upper95")
_NORMAL_95 = 1.959964  # half-width of a central 95 % interval in standard deviations


def with_interval(mean: Any, sd: Any, index: Any) -> pd.DataFrame:
    """``mean``, ``sd``, ``lower95`` and ``upper95``; NaN where ``mean`` is."""
    pd = import_pandas()
    margin = _NORMAL_95 * sd
    return pd.DataFrame({"mean": mean, "sd": sd, "lower95": mean - margin, "upper95": mean + margin}, index=index)


def beside(predictions: pd.DataFrame, frame: Any, target: str) -> pd.DataFrame:
    """The target, where the table ``frame`` has it, the predictions, and the other columns as they are.

    No two names are the same: a column that has the name of a prediction is called ``NAME (input)``, the target
    ``NAME (target)``, and an index that has a column's ``NAME (index)``.
    """
    pd = import_pandas()
    parts, others = [predictions], frame.drop(columns=target, errors="ignore")
    reserved, titles = {*predictions.columns, target_title(target)}, list[str]()
    taken = {*reserved, *others.columns}
    for name in others.columns:
        titles.append(_free(name, "input", taken) if name in reserved else name)
        taken.add(titles[-1])
    parts.append(others.set_axis(titles, axis=1))
    if target in frame.columns:
        parts.insert(0, frame[[target]].set_axis([target_title(target)], axis=1))
    found = pd.concat(parts, axis=1)
    return found.rename_axis(index=_free(frame.index.name, "index", found.columns))


def target_title(target: str) -> str:
    """What :func:`beside` calls it."""
    return f"{target} (target)" if target in PREDICTED else target


def _free(name: Any, what: str, taken: Container[str]) -> Any:
    while name in taken:
        name = f"{name} ({what})"
    return name


def read_predictions(path: Path) -> pd.DataFrame:
    """What :func:`beside` made, from a CSV file: names and texts to the letter, blanks at their ends too.

    :raises TableError: it is none.
    """
    pd = import_pandas()
    try:
        return pd.read_csv(path, index_col=0, encoding="utf-8")
    except (OSError, ValueError) as error:
        why = str(error).strip()
        raise TableError(f"cannot read {path} ({why}): leave the table as it was written, or remove it") from error
