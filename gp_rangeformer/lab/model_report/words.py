"""What is certain, what is likely and what is not covered, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gp_rangeformer.fit import FitResult
from gp_rangeformer.fit.result import AS_NEAR_AS_PROBES_ALLOW
from gp_rangeformer.predict.leave_one_out import Coverage, LeaveOneOut

_DEVIATIONS = 3.0  # of chance: three levels together are further out once in a hundred calibrated models


@dataclass(frozen=True)
class Statement:
    """One number with what it means: a few words, and sentences."""

    title: str
    text: str
    doubtful: bool = False  # something that the reader should act on


def of_fit(fit: FitResult, level: float | None, dtype: str) -> list[Statement]:
    """Whether the fit has converged, how high the likelihood is, and how well that is known.

    :param level: the probability of ``fit.error``; None where the likelihood is exact.
    """
    found = [_convergence(fit), _likelihood(fit), _likely(fit, level), _certain(fit, dtype)]
    return [statement for statement in found if statement is not None]


def _convergence(fit: FitResult) -> Statement:
    left = f"Its last model of the likelihood has {fit.decrement:.1e} nats per row left to gain"
    if fit.noise:
        left += f", of which the choice of probes alone explains {fit.noise:.1e}"
    if fit.converged:
        return Statement("The fit converged.", f"{left}. It is a maximum; whether there is a higher one is not known.")
    if fit.reason == AS_NEAR_AS_PROBES_ALLOW:
        return Statement("The fit ended as near to the maximum as the probes allow.", f"{left}.")
    if fit.settled:
        return Statement("The fit ended where steps gained nothing more.", f"{left}.")
    remedy = "The parameters are the best of those that were tried; float64 may get further."
    return Statement(f"The fit has not converged: {fit.reason}.", f"{left}. {remedy}", doubtful=True)


def _likelihood(fit: FitResult) -> Statement:
    text = "The log marginal likelihood of the standardised targets, in nats per row; larger is better."
    if not fit.error:
        text += " A Cholesky factorisation computed it."
    return Statement(f"log p(y)/n is {fit.value:.{_decimals(fit)}f}.", text)


def _likely(fit: FitResult, level: float | None) -> Statement | None:
    if not fit.error or level is None:
        return None
    return Statement(
        f"Likely, at {level:.0%}: about {fit.error:.{_decimals(fit)}f} to either side.",
        "The log determinant is estimated, and this interval contains the exact value with that probability over the "
        "choice of its random probe vectors. It says nothing about whether the model suits the data.",
    )


def _certain(fit: FitResult, dtype: str) -> Statement | None:
    if fit.certain is None:
        return None
    places = _decimals(fit)
    text = "This interval contains the exact value, rounding included. "
    if fit.error:
        text = "This interval contains the exact value whatever the probes were, and may be far wider. "
    return Statement(
        f"Certain: between {fit.certain.lower:.{places}f} and {fit.certain.upper:.{places}f}.",
        f"{text}It is about the kernel matrix with its entries as computed in {dtype}: what was lost inside the "
        "kernel's own evaluation is not covered.",
    )


def _decimals(fit: FitResult) -> int:
    """So that half of the likely interval shows two digits, within reason."""
    for places in range(3, 7):
        if fit.error >= 10.0 ** (1 - places):
            return places
    return 6 if fit.error else 4


def of_calibration(scores: LeaveOneOut) -> list[Statement]:
    """How good predictions are, and whether their intervals keep what they promise."""
    text = "Every row is predicted from all others, with hyperparameters that were fitted to all: new rows do a "
    text += "little worse. "
    if scores.variance_error:
        text += f"Variances are estimated, to about {scores.variance_error:.1%} of each; means move with them."
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


OF_PREDICTIONS = Statement(
    "The interval of a prediction is about a new observation.",
    "It contains noise and what the rows leave open about the function, with the hyperparameters as they are: their "
    "own uncertainty is not in it.",
)


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
