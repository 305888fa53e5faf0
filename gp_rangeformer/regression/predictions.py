"""Predictions as a table: what is said of each row, and the row beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gp_rangeformer.regression.errors import import_pandas

if TYPE_CHECKING:
    import pandas as pd

_NORMAL_95 = 1.959964  # half-width of a central 95 % interval in standard deviations


def with_interval(mean: Any, sd: Any, index: Any) -> pd.DataFrame:
    """``mean``, ``sd``, ``lower95`` and ``upper95``; NaN where ``mean`` is."""
    pd = import_pandas()
    margin = _NORMAL_95 * sd
    return pd.DataFrame({"mean": mean, "sd": sd, "lower95": mean - margin, "upper95": mean + margin}, index=index)


def beside(predictions: pd.DataFrame, frame: Any, target: str) -> pd.DataFrame:
    """The target, where the table ``frame`` has it, the predictions, and the other columns as they are.

    A column whose name a prediction or the index has is called ``NAME (input)``.
    """
    pd = import_pandas()
    taken = {*predictions.columns, target, frame.index.name}
    others = frame.drop(columns=target, errors="ignore")
    others = others.set_axis([f"{name} (input)" if name in taken else name for name in others.columns], axis=1)
    parts = [predictions, others]
    if target in frame.columns:
        title = f"{target} (target)" if target in predictions.columns else target
        parts.insert(0, frame[[target]].set_axis([title], axis=1))
    return pd.concat(parts, axis=1)
