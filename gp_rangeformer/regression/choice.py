"""Which kernel: several are fitted to the same rows, and the one of the highest certified likelihood is taken, less one
nat for every parameter (Akaike 1974): a kernel that contains another one must earn what it has more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gp_rangeformer.fit import FitError, FitResult
from gp_rangeformer.predict import leave_one_out
from gp_rangeformer.regression.errors import KernelError
from gp_rangeformer.regression.fitting import Watch, fitted
from gp_rangeformer.regression.kernels import Covariance, Regression, check_name

# Those that have a fused form: with others a large fit takes far longer.
AUTO = ("matern12", "matern32", "matern52", "rbf", "rq")
MOST_ROWS = 1000


@dataclass(frozen=True)
class Candidate:
    """A kernel fitted to ``rows`` of the training rows, in standardised units and nats per point: the log likelihood
    with half the width of its interval (0: exact), the leave-one-out score with its error, seconds, and whether the fit
    converged. ``failure``: why there is no value; None where there is one."""

    kernel: str
    rows: int
    value: float | None = None
    error: float | None = None
    leave_one_out: float | None = None
    leave_one_out_error: float | None = None
    converged: bool = False
    seconds: float = 0.0
    failure: str | None = None


class Choice(NamedTuple):
    """The best candidate's name, all of them, best first, and its model and fit where that was fitted to all rows."""

    kernel: str
    candidates: tuple[Candidate, ...]
    fitted: tuple[Regression, FitResult] | None


def kernel_names(text: str) -> tuple[str, ...]:
    """The kernels that "auto", a name or several, with commas between them, ask for.

    :raises KernelError: one is unknown, or named twice.
    """
    names = AUTO if text == "auto" else tuple(name.strip() for name in text.split(","))
    for name in names:
        check_name(name)
        if names.count(name) > 1:
            raise KernelError(f"kernel {name!r} is named twice: name each once")
    return names


def choose(x: Tensor, y: Tensor, starts: Sequence[Covariance], seed: int, watch: Watch) -> Choice:
    """Fit each kernel to at most 1000 random rows, the same for all.

    :param x: n x d, standardised.
    :param y: n, standardised.
    :param starts: with different names.
    :raises FitError: none of the fits came to an end.
    """
    n = len(y)
    rows = torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:MOST_ROWS].sort().values.to(x.device)
    found: list[tuple[float, Candidate]] = []
    best: tuple[float, str, tuple[Regression, FitResult]] | None = None
    for start in starts:
        name = start.title
        try:
            gp, result = fitted(x[rows], y[rows], start, seed, lambda record, name=name: watch(name, record))
        except FitError as error:
            found.append((-float("inf"), Candidate(name, len(rows), failure=str(error))))
            continue
        parameters = sum(parameter.numel() for parameter in gp.parameters() if parameter.requires_grad)
        merit = result.value - parameters / len(rows)
        score, score_error = _left_out(gp)
        values = result.value, result.error, score, score_error, result.converged, result.seconds
        found.append((merit, Candidate(name, len(rows), *values)))
        if best is None or merit > best[0]:
            best = merit, name, (gp, result)
    if best is None:
        failures = "; ".join(f"{one.kernel}: {one.failure}" for _, one in found)
        raise FitError(f"no kernel could be fitted: {failures}")
    order = sorted(found, key=lambda ranked: ranked[0], reverse=True)
    return Choice(best[1], tuple(one for _, one in order), best[2] if len(rows) == n else None)


def _left_out(gp: Regression) -> tuple[float | None, float | None]:
    """The score and its error; None where it cannot be had, which does not cost the fit."""
    try:
        scores = leave_one_out(gp)
    except (RuntimeError, ArithmeticError):
        return None, None
    return scores.score, scores.score_error
