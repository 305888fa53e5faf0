"""One-dimensional effects: what the function does while one column moves and the others stay where they usually are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from linear_operator.utils.warnings import NumericalWarning
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure

from gp_rangeformer import settings
from gp_rangeformer.lab.model_report.drawing import GREY, PALE, new_panel, shortened
from gp_rangeformer.lab.plots.style import BLUE
from gp_rangeformer.regression import Column, TableRegression
from gp_rangeformer.regression.kinds import as_numbers, column_of
from gp_rangeformer.report import collect_reports

if TYPE_CHECKING:
    import pandas as pd

_NORMAL_95 = 1.959964
# Values of a column: of one among several, and of an only one, where seasons must not fall between them.
_POINTS, _POINTS_ALONE = 120, 1000
_RUG = 50  # quantiles of the rows, as ticks below
_FIRST_DAY, _LAST_DAY = (float(np.datetime64(day).astype(int)) for day in ("0001-01-01", "9999-12-31"))  # since 1970
_DAYS_A_YEAR = 365.2425
_MOST_NAMED = 6  # categories whose names stand side by side; more stand on their heads


@dataclass(frozen=True)
class Effect:
    """Of one column: ``values`` in its own units (dates in days since 1970), the posterior mean there and its standard
    deviation, without noise, in the target's. ``variance_error``: standard error of the variances, relative to that of
    an observation; 0 where they are exact."""

    name: str
    kind: str  # number, boolean, date or text
    values: Any
    mean: np.ndarray
    deviation: np.ndarray
    variance_error: float

    @property
    def ends(self) -> tuple[float, float]:
        """Of the band."""
        margin = _NORMAL_95 * self.deviation
        return float((self.mean - margin).min()), float((self.mean + margin).max())


def effects(model: TableRegression, frame: pd.DataFrame, names: Sequence[str]) -> list[Effect]:
    """Of the columns ``names``, all in one prediction.

    :param frame: the rows that the model was fitted to.
    """
    columns = {column.name: column for column in model.columns.inputs}
    slices, raw = model.columns.slices, model.columns.encoded(frame).numpy()
    usual = np.concatenate([_usual(raw[:, slices[name]], column) for name, column in columns.items()])
    points = _POINTS_ALONE if len(columns) == 1 else _POINTS
    moved, rows = [], []
    for name in names:
        values, inputs = _moved(raw[:, slices[name]], columns[name], points)
        moved.append(values)
        rows.append(np.tile(usual, (len(inputs), 1)))
        rows[-1][:, slices[name]] = inputs
    mean, deviation, error = _function(model, np.concatenate(rows))
    ends = np.cumsum([len(values) for values in moved])[:-1]
    parts = zip(names, moved, np.split(mean, ends), np.split(deviation, ends), strict=True)
    return [Effect(name, columns[name].kind, values, m, s, error) for name, values, m, s in parts]


def _function(model: TableRegression, inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Posterior mean and standard deviation without noise, in the target's units, and the variances' error."""
    x = model.inputs.standardised(torch.from_numpy(inputs)).to(model.gp.train_targets)
    model.gp.eval()
    with settings.rangeformer(), torch.no_grad(), collect_reports() as reports, warnings.catch_warnings():
        # A variance that vanishes may round to below 0; GPyTorch puts 1e-6 of the target's own there.
        warnings.simplefilter("ignore", NumericalWarning)
        found = model.gp(x)
        mean, deviation = (part.double().cpu()[:, None] for part in (found.mean, found.stddev))
    error = max((report.variance_error for report in reports if report.variance_error), default=0.0)
    return model.outputs.restored(mean)[:, 0].numpy(), (deviation * model.outputs.scale)[:, 0].numpy(), error


def _usual(inputs: np.ndarray, column: Column) -> np.ndarray:
    """Of a column's inputs, n x 1 or of a text one for each category: the median, or the most frequent category."""
    if column.kind == "text":
        return np.eye(inputs.shape[1])[inputs.sum(0).argmax()]
    middle = np.median(inputs, axis=0)
    return (inputs.mean(0) > 0.5).astype(float) if column.kind == "boolean" else middle


def _moved(inputs: np.ndarray, column: Column, points: int) -> tuple[Any, np.ndarray]:
    """Over the range of the rows, or every category that they have: the values, and the inputs for them."""
    if column.kind == "text":
        return list(column.categories), np.eye(len(column.categories))
    if column.kind == "boolean":
        return [False, True], np.array([[0.0], [1.0]])
    values = np.linspace(inputs.min(), inputs.max(), points)
    return values, values[:, np.newaxis]


def effect_figure(effect: Effect, frame: pd.DataFrame, target: str, limits: tuple[float, float]) -> Figure:
    """The mean with its 95% band; between two ticks below lie two rows of a hundred. Of an only column, the rows too.

    :param limits: of the target, the same for all effects, so that their sizes compare.
    """
    figure, axes = new_panel(2.4)
    margin = _NORMAL_95 * effect.deviation
    if effect.kind in ("number", "date"):
        rows = as_numbers(column_of(frame, effect.name), effect.kind)
        values = effect.values
        if effect.kind == "date":
            values, rows = np.split(_on_dates(axes, np.concatenate([values, rows])), [len(values)])
        if len(frame.columns) == 2:
            observed = frame[target].to_numpy()
            axes.scatter(rows, observed, s=4, color=PALE, linewidths=0, rasterized=True, zorder=1)
            limits = min(limits[0], observed.min()), max(limits[1], observed.max())
        axes.fill_between(
            values, effect.mean - margin, effect.mean + margin, color=BLUE, alpha=0.25, linewidth=0, zorder=2
        )
        axes.plot(values, effect.mean, color=BLUE, linewidth=1.6, zorder=3)
        rug = np.quantile(rows, np.linspace(0, 1, _RUG + 1))
        axes.vlines(rug, 0, 0.03, color=GREY, linewidth=0.6, transform=axes.get_xaxis_transform())
    else:
        _draw_categories(axes, effect, margin)
    room = 0.08 * (limits[1] - limits[0]) or 1.0
    axes.set_ylim(limits[0] - room, limits[1] + room)
    axes.set_ylabel(shortened(target), parse_math=False)
    return figure


def _on_dates(axes: Axes, days: np.ndarray) -> np.ndarray:
    """Where days since 1970 stand: as such, which are Matplotlib's dates and end with the years 1 and 9999, or in
    years."""
    low, high = days.min(), days.max()
    room = high - low  # of which margins and ticks take some
    if low - room >= _FIRST_DAY and high + room <= _LAST_DAY:
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
        return days
    axes.set_xlabel("year")
    axes.ticklabel_format(axis="x", useOffset=False, style="plain")
    return 1970 + days / _DAYS_A_YEAR


def _draw_categories(axes: Axes, effect: Effect, margin: np.ndarray) -> None:
    places = np.arange(len(effect.values))
    axes.errorbar(places, effect.mean, margin, fmt="o", color=BLUE, markersize=5, capsize=4, linewidth=1.4)
    many = len(places) > _MOST_NAMED
    axes.set_xticks(places, [shortened(value) for value in effect.values], rotation=90 if many else 0, parse_math=False)
    axes.set_xlim(-0.6, len(places) - 0.4)
