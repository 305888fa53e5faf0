"""Where certificates come from, whether predictions keep what they promise, and what effects mean, in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from gp_rangeformer.fit import FitResult
from gp_rangeformer.predict.leave_one_out import Coverage, LeaveOneOut
from gp_rangeformer.regression.words import VISIBLE_ROUNDING, Statement

_DEVIATIONS = 3.0  # of chance: three levels together are further out once in a hundred calibrated models


def of_evaluation(fit: FitResult) -> Statement:
    """Where the numbers about the likelihood come from."""
    rows = max(fit.evaluations, default=0)
    title = f"They come from the evaluation where the fit ended, on {rows:,} rows."
    if fit.report is None:
        return Statement(title, "The solver's report of it is not known: a model that is kept has its numbers alone.")
    return Statement(title, f"The solver's report of it: {fit.report.summary()}.")


def of_calibration(scores: LeaveOneOut, rounding: float = 0.0) -> list[Statement]:
    """How good predictions are, and whether their intervals keep what they promise.

    :param rounding: what it leaves of log p(y) / n, in nats.
    """
    text = "Every row is predicted from all others, with hyperparameters that were fitted to all: new rows do a "
    text += "little worse. "
    if scores.variance_error:
        text += f"Variances are estimated, to about {scores.variance_error:.1%} of each; means move with them."
    elif rounding > VISIBLE_ROUNDING:
        text += (
            f"Rounding, beside so little noise, limits them as it does the likelihood, by about {rounding:.2g} nats."
        )
    else:
        text += "Means and variances are exact, up to rounding."
    return [Statement("Scores are leave-one-out.", text), _verdict(scores.coverage)]


def _verdict(coverage: Sequence[Coverage]) -> Statement:
    """Beyond three deviations of chance, and in which direction."""
    narrow = [one for one in coverage if one.share < one.level - _DEVIATIONS * one.deviation]
    wide = [one for one in coverage if one.share > one.level + _DEVIATIONS * one.deviation]
    chance = "The deviations are binomial: what chance alone would move, were rows independent of each other."
    if narrow and wide:
        parts = f"too wide at {_levels(wide)}, too narrow at {_levels(narrow)}"
        return Statement(f"Intervals have the wrong shape: {parts}.", _HEAVY + chance, doubtful=True)
    if narrow:
        return Statement(f"Intervals are too narrow at {_levels(narrow)}.", _NARROW + chance, doubtful=True)
    if wide:
        return Statement(f"Intervals are too wide at {_levels(wide)}.", _WIDE + chance, doubtful=True)
    return Statement("Intervals contain as many rows as they promise.", chance)


_HEAVY = (
    "The errors are not Gaussian, or their size differs from row to row: one noise for all rows describes neither. "
)
_NARROW = "More rows fall outside than should: treat predictions as less sure than they say. "
_WIDE = "Fewer rows fall outside than should: predictions are surer than they say. "


def _levels(coverage: Sequence[Coverage]) -> str:
    return ", ".join(f"{one.level:.0%}" for one in coverage)


_VISIBLE = 0.001  # of an observation's variance


def of_effects(variance_error: float) -> Statement:
    """What the bands cover.

    :param variance_error: standard error of their variances, relative to that of an observation; 0 if exact.
    """
    text = (
        "It contains the function at 95%, without noise and one place at a time, while all other columns stay at their "
        "median or most frequent category; a column that acts only together with others may look flat."
    )
    if variance_error > _VISIBLE:
        text += (
            f" Its variance is estimated, to about {variance_error:.1%} of the variance of an observation: where noise "
            "is most of that, the band may be far too narrow or too wide."
        )
    return Statement("The band of an effect is about the function.", text)
