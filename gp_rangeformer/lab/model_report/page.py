"""The page: what stands where."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.figure import Figure

from gp_rangeformer.fit import FitResult
from gp_rangeformer.fit.result import shown
from gp_rangeformer.lab.compare.machine import versions
from gp_rangeformer.lab.model_report import calibration, residuals, training, words
from gp_rangeformer.lab.model_report.drawing import as_image
from gp_rangeformer.lab.model_report.effects import Effect, effect_figure, effects
from gp_rangeformer.predict import LeaveOneOut
from gp_rangeformer.regression import TableError, TableRegression
from gp_rangeformer.regression.errors import counted
from gp_rangeformer.regression.kinds import as_numbers, column_of
from gp_rangeformer.regression.predictions import target_title
from gp_rangeformer.regression.words import OF_PREDICTIONS, Statement, of_fit

if TYPE_CHECKING:
    import pandas as pd

_MOST_EFFECTS = 8
_SURPRISES = 5  # rows that lie farthest out
_NAMED = 3  # columns that say which row it is
_SCORE = "leave-one-out score, standardised"
_MINUTE = 60  # seconds
_LEFT_ALONE = "leave the table as it was written, or remove it"


@dataclass(frozen=True)
class Drawn:
    """A figure as the page has it: the address of its image, and its caption."""

    title: str
    text: str
    image: str


@dataclass(frozen=True)
class Table:
    """Cells as they are shown; the first column is words, the others are numbers."""

    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


@dataclass(frozen=True)
class Relevance:
    """One bar."""

    name: str
    shown: str
    percent: float


def render(model: TableRegression, held_out: pd.DataFrame | None = None) -> str:
    """The report of ``model`` as one HTML page, which needs no other file, no network and no script.

    :param held_out: rows that it was not fitted to, with the target, ``mean``, ``sd``, ``lower95`` and ``upper95``.
    :raises TableError: ``held_out`` has no such columns, or they hold no numbers.
    :raises NotPSDError: as :func:`gp_rangeformer.predict.leave_one_out`.
    """
    frame, scores = model.training_frame(), model.leave_one_out()
    ranked, relevance_text = _ranked(model)
    rounding = 0.0 if model.fit_result is None else model.fit_result.rounding
    shown = list(ranked)[:_MOST_EFFECTS]
    found = effects(model, frame, shown)
    template = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source = resources.files("gp_rangeformer.lab.model_report").joinpath("page.html").read_text("utf-8")
    return template.from_string(source).render(
        target=model.target,
        rows=f"{len(frame):,}",
        facts=_facts(model, frame, scores),
        fit_statements=_fit_statements(model),
        fit_figures=_fit_figures(model.fit_result),
        calibration_statements=[*words.of_calibration(scores, rounding), OF_PREDICTIONS],
        coverage=_coverage(scores),
        held_out=None if held_out is None else _held_out(held_out, model.target),
        calibration_figures=_calibration_figures(scores),
        residual_figures=_residual_figures(scores, model.target),
        surprises=_surprises(_rounded(frame.loc[:, shown[:_NAMED]], model.dtype), scores),
        relevance_text=relevance_text,
        relevance=_bars(ranked),
        effect_statements=[words.of_effects(found[0].variance_error)],
        effect_figures=_effect_figures(found, frame, model.target),
        unshown=len(ranked) - len(shown),
        hyperparameters=_hyperparameters(model),
        candidates=_candidates(model),
        notes=_notes(model),
        versions=", ".join(f"{name} {version}" for name, version in versions().items()),
    )


def _facts(model: TableRegression, frame: pd.DataFrame, scores: LeaveOneOut) -> list[tuple[str, str]]:
    scale = float(model.outputs.scale)  # in whose units nothing overflows
    missed, targets = (scores.targets - scores.mean) / scale, scores.targets / scale
    explained = 1 - float(missed.square().mean() / targets.var(correction=0))
    found = [
        ("rows", f"{len(frame):,}"),
        ("columns, inputs", f"{len(model.columns.inputs)}, {len(model.columns.names)}"),
        ("kernel", model.kernel),
        ("precision", model.dtype),
        ("leave-one-out RMSE", f"{scores.rmse:.4g}"),
        ("variance explained", f"{explained:.1%}"),
        # In the unit of the likelihoods and of the kernels' scores.
        (_SCORE, f"{scores.score + math.log(scale):.4f} nats per row"),
    ]
    if model.fit_result is not None:
        found.append(("time of the fit", f"{model.fit_result.seconds:.1f} s"))
    return found


def _fit_statements(model: TableRegression) -> list[Statement]:
    if model.fit_result is None:
        return [Statement(model.certificate(), "No certificates of the likelihood are known.", doubtful=True)]
    return [*of_fit(model.fit_result, model.level, model.dtype), words.of_evaluation(model.fit_result)]


def _fit_figures(fit: FitResult | None) -> list[Drawn]:
    if fit is None or not fit.history:
        return []
    whole = (
        "Accepted steps on all rows, on subsets (whose value per row is another one), and steps that were rejected; "
        "those below the panel stand on its floor. The bar at the end is the certain interval, as far as it fits."
    )
    found = [_drawn("Likelihood over seconds.", whole, training.whole_fit(fit))]
    if fit.error:
        end = "Bars are the likely interval, half of its width to either side."
        found.append(_drawn("The end, magnified.", end, training.magnified_end(fit)))
    return found


def _calibration_figures(scores: LeaveOneOut) -> list[Drawn]:
    coverage = "The share of rows inside the central interval of every level; grey: within two deviations of chance."
    histogram = "Flat if calibrated; a hill: intervals are too wide, a valley: too narrow, a slope: a bias."
    return [
        _drawn("Coverage.", coverage, calibration.coverage_figure(scores)),
        _drawn("Where targets lie in their predictions.", histogram, calibration.histogram_figure(scores)),
    ]


def _residual_figures(scores: LeaveOneOut, target: str) -> list[Drawn]:
    return [
        _drawn("Observed against predicted.", "Every row from all others.", residuals.observed_figure(scores, target)),
        _drawn(
            "Residuals.",
            "Observed minus predicted, in predictive deviations; 95% belong between the dashed lines.",
            residuals.residual_figure(scores, target),
        ),
    ]


def _effect_figures(found: Sequence[Effect], frame: pd.DataFrame, target: str) -> list[Drawn]:
    limits = min(one.ends[0] for one in found), max(one.ends[1] for one in found)
    return [_drawn(one.name, "", effect_figure(one, frame, target, limits)) for one in found]


def _drawn(title: str, text: str, figure: Figure) -> Drawn:
    return Drawn(title, text, as_image(figure))


def _coverage(scores: LeaveOneOut) -> Table:
    rows = [(f"{one.level:.0%}", f"{one.share:.1%}", f"{one.deviation:.1%}") for one in scores.coverage]
    return Table(("interval", "rows inside", "deviation by chance"), rows)


def _held_out(rows: pd.DataFrame, target: str) -> Statement:
    """Of rows that the model has not seen.

    :raises TableError: they are not as ``fit --out`` writes them.
    """
    cells = []
    for name in (target_title(target), "mean", "lower95", "upper95"):
        if name not in rows.columns:
            raise TableError(f"the held-out rows have no column {name!r}: {_LEFT_ALONE}")
        try:
            cells.append(as_numbers(column_of(rows, name), "number"))
        except TableError as error:
            raise TableError(f"the held-out rows, {error}: {_LEFT_ALONE}") from error
    observed, mean, lower, upper = np.stack(cells)[:, ~np.isnan(cells).any(axis=0)]
    n = len(observed)
    if n == 0:
        return Statement("No held-out row has a prediction.", "There is none, or every one has a missing cell.")
    error = float(np.sqrt(np.mean((observed - mean) ** 2)))
    inside = float(np.mean((lower <= observed) & (observed <= upper)))
    deviation = math.sqrt(0.95 * 0.05 / n)
    return Statement(
        f"On {counted(n, 'held-out row')} the RMSE is {error:.4g}.",
        f"{inside:.1%} of them are inside their 95% interval (deviation by chance {deviation:.1%}).",
        doubtful=inside < 0.95 - 3 * deviation,
    )


def _surprises(named: pd.DataFrame, scores: LeaveOneOut) -> Table:
    """The rows that lie farthest out, with the cells by which they can be found.

    :param named: of all rows, the columns that are shown.
    """
    standard = (scores.targets - scores.mean) / scores.variance.sqrt()
    rows = []
    for at in standard.abs().argsort(descending=True)[:_SURPRISES].tolist():
        cells = ", ".join(f"{name} {_shown(cell)}" for name, cell in named.iloc[at].items())
        numbers = (f"{float(scores.targets[at]):.5g}", f"{float(scores.mean[at]):.5g}", f"{float(standard[at]):+.1f}")
        rows.append((cells, *numbers))
    return Table(("largest residuals", "observed", "predicted", "deviations"), rows)


def _rounded(named: pd.DataFrame, dtype: str) -> pd.DataFrame:
    """Dates to a minute, or to a day where standardised inputs resolve no minutes."""
    import pandas as pd

    found = named.copy()
    for name, column in named.items():
        if pd.api.types.is_datetime64_any_dtype(column):
            span = (column.max() - column.min()).total_seconds()
            resolved = np.finfo(dtype).eps * span < 0.5 * _MINUTE
            found[name] = column.dt.round("min" if resolved else "D")
    return found


def _shown(cell: Any) -> str:
    if hasattr(cell, "isoformat"):  # a date of any year; strftime knows four digits
        day = f"{cell.year:0{4 + (cell.year < 0)}d}-{cell.month:02d}-{cell.day:02d}"
        return day if cell == cell.normalize() else f"{day} {cell.hour:02d}:{cell.minute:02d}"
    return f"{cell:.5g}" if isinstance(cell, float) else str(cell)


def _ranked(model: TableRegression) -> tuple[dict[str, float], str]:
    """Relevance by column, the largest first, and what it means; without one, the columns in their order."""
    try:
        found = {str(name): float(value) for name, value in model.relevance().items()}
    except ValueError as error:
        return {column.name: math.nan for column in model.columns.inputs}, f"{error}."
    text = (
        "One over the length-scale, in standard deviations of the column: at 1 the target changes much while the "
        "column moves by one standard deviation, at 0.01 hardly over all of it. It is about how fast the target "
        "changes, not how far."
    )
    return found, text


def _bars(ranked: dict[str, float]) -> list[Relevance]:
    largest = max((value for value in ranked.values() if value > 0), default=1.0)
    return [
        Relevance(name, f"{value:.3g}", 100 * value / largest)
        for name, value in ranked.items()
        if not math.isnan(value)
    ]


def _candidates(model: TableRegression) -> Table | None:
    """The kernels that were compared; None where one was named."""
    if not model.candidates:
        return None
    rows = []
    for one in model.candidates:
        left_out = "-" if one.leave_one_out is None else f"{one.leave_one_out:.4f}"
        value = one.failure
        if one.value is not None:
            value = shown(one.value, one.error or 0.0, one.rounding).removesuffix(" +- 0.0000")
            value = value.replace("+-", "\N{PLUS-MINUS SIGN}")
        rows.append((one.kernel, value, left_out, f"{one.rows:,}", f"{one.seconds:.1f}"))
    return Table(("kernel", "log p(y)/n", _SCORE, "rows", "seconds"), rows)


def _hyperparameters(model: TableRegression) -> Table:
    rows = [(name, f"{value:.5g}") for name, value in model.hyperparameters().items()]
    return Table(("hyperparameter", "value, in standardised units"), rows)


def _notes(model: TableRegression) -> list[str]:
    fit = model.fit_result
    return [*model.notes, *(fit.notes if fit is not None else ())] or [
        "Nothing was left out of the table, and nothing was remarkable in the fit."
    ]
