"""What a fit's numbers promise, in words."""

from __future__ import annotations

from gp_rangeformer.fit import FitResult


def in_words(result: FitResult, level: float | None) -> str:
    """Whether the fit converged, the likelihood, and what its intervals cover; a sentence or two each line.

    :param level: the probability of ``result.error``; None where the likelihood is exact.
    """
    left = f"about {max(result.decrement, 0.0):.1e} nats per point were left to gain, by its own estimate"
    if result.converged:
        ended = f"The fit converged: {left}."
    elif result.settled:
        ended = f"The fit ended where steps gained nothing more: {left}."
    else:
        ended = f"The fit has not converged ({result.reason}): the parameters are the best of those tried."
    certain = "" if result.certain is None else f"[{result.certain.lower:.4f}, {result.certain.upper:.4f}]"
    if level is None or result.error == 0:
        known = f"log p(y)/n is {result.value:.4f}, by factorisation"
        known += f"; rounding leaves it certainly in {certain}." if certain else ": exact to rounding."
    else:
        known = f"log p(y)/n is {result.value:.4f} +- {result.error:.4f} with a probability of {level:.0%}"
        known += f", and certainly in {certain}." if certain else "."
    known += " This is what the computation may be off at these parameters, and nothing else."
    meant = (
        "Predictions: the 95 % interval is to contain 95 of 100 new observations, noise included, if the kernel and "
        "the noise describe the data; parameters are taken as they were fitted."
    )
    return "\n".join([ended, known, meant, *(f"Note: {note}." for note in result.notes)])
