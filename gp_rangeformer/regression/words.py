"""What a fit's numbers promise, in words: what is certain, what is likely and what is not covered."""

from __future__ import annotations

from dataclasses import dataclass

from gp_rangeformer.fit import FitResult
from gp_rangeformer.fit.result import AS_NEAR_AS_PROBES_ALLOW, AS_NEAR_AS_ROUNDING_ALLOWS, decimals

VISIBLE_ROUNDING = 5e-5  # nats per row: half of the last digit that is shown of an exact value


@dataclass(frozen=True)
class Statement:
    """One number with what it means: a few words, and sentences."""

    title: str
    text: str
    doubtful: bool = False  # something that the reader should act on


def in_words(fit: FitResult, level: float | None, dtype: str) -> str:
    """The statements of a fit and of predictions, a line each, and its notes.

    :param level: as :func:`of_fit` has it, and ``dtype``.
    """
    predictions = [OF_PREDICTIONS, LIMITED_BY_ROUNDING] if fit.rounding > VISIBLE_ROUNDING else [OF_PREDICTIONS]
    lines = [f"{one.title} {one.text}" for one in (*of_fit(fit, level, dtype), *predictions)]
    return "\n".join([*lines, *(f"Note: {note}." for note in fit.notes)])


def of_fit(fit: FitResult, level: float | None, dtype: str) -> list[Statement]:
    """Whether the fit has converged, how high the likelihood is, and how well that is known.

    :param level: the probability of ``fit.error``; None where the likelihood is exact.
    :param dtype: of the fit, "float64" say.
    """
    found = [_convergence(fit, dtype), _likelihood(fit), _likely(fit, level), _certain(fit)]
    return [statement for statement in found if statement is not None]


def _convergence(fit: FitResult, dtype: str) -> Statement:
    left = f"Its last model of the likelihood has {max(fit.decrement, 0.0):.1e} nats per row left to gain"
    if fit.noise:
        left += f", of which the choice of probes alone explains {fit.noise:.1e}"
    if fit.converged:
        return Statement("The fit converged.", f"{left}. It is a maximum; whether there is a higher one is not known.")
    if fit.reason == AS_NEAR_AS_PROBES_ALLOW:
        return Statement("The fit ended as near to the maximum as the probes allow.", f"{left}.")
    if fit.reason == AS_NEAR_AS_ROUNDING_ALLOWS:
        return Statement("The fit ended as near to the maximum as rounding allows.", f"{left}; rounding hides as much.")
    if fit.settled:
        return Statement("The fit ended where steps gained nothing more.", f"{left}.")
    remedy = "The parameters are the best of those that were tried" + ("." if dtype == "float64" else _FURTHER)
    return Statement(f"The fit has not converged: {fit.reason}.", f"{left}. {remedy}", doubtful=True)


_FURTHER = "; float64 may get further."


def _likelihood(fit: FitResult) -> Statement:
    text = "The log marginal likelihood of the standardised targets, in nats per row; larger is better."
    if not fit.error:
        text += " A Cholesky factorisation computed it."
    if fit.rounding > VISIBLE_ROUNDING:
        text += f" Rounding, beside so little noise, may have moved it by about {fit.rounding:.2g}."
    return Statement(f"log p(y)/n is {fit.value:.{_decimals(fit)}f}.", text)


def _likely(fit: FitResult, level: float | None) -> Statement | None:
    if not fit.error or level is None:
        return None
    return Statement(
        f"Likely, at {level:.0%}: about {fit.error:.{_decimals(fit)}f} to either side.",
        "The log determinant is estimated, and this interval contains the exact value with that probability over the "
        "choice of its random probe vectors. It says nothing about whether the model suits the data.",
    )


def _certain(fit: FitResult) -> Statement:
    if fit.certain is None:
        return Statement(
            "No certain interval is known.",
            "The last evaluation stated none"
            + (": its error is a likely one." if fit.error else "; it is exact to rounding."),
        )
    lower, upper = fit.certain.outward(max(_decimals(fit), 3))
    text = "This interval contains the exact value, rounding included. "
    if fit.error:
        text = "This interval contains the exact value whatever the probes were, and may be far wider. "
    return Statement(
        f"Certain: between {lower} and {upper}.",
        f"{text}It is about the kernel matrix with its entries as they were computed: what was lost inside the "
        "kernel's own evaluation is not covered.",
    )


def _decimals(fit: FitResult) -> int:
    """So that half of the likely interval shows two digits, within reason; or what rounding leaves of an exact value
    does."""
    if not fit.error:
        return decimals(fit.rounding)
    for places in range(3, 7):
        if fit.error >= 10.0 ** (1 - places):
            return places
    return 6


OF_PREDICTIONS = Statement(
    "The interval of a prediction is about a new observation.",
    "It is to contain 95 of 100 new observations. Noise is in it, and what the rows leave open about the function, "
    "with the hyperparameters as they are: their own uncertainty is not in it.",
)

LIMITED_BY_ROUNDING = Statement(
    "Rounding limits predictions.",
    "Beside so little noise leave-one-out scores are off by about as much as the likelihood, and deviations by a few "
    "times as much of themselves.",
)
