"""Which kernel: several are fitted to the same rows, and the one of the highest certified likelihood is taken, less one
nat for every parameter (Akaike 1974): a kernel that contains another one must earn what it has more."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gp_rangeformer.fit import FitError
from gp_rangeformer.predict import leave_one_out
from gp_rangeformer.regression.errors import KernelError
from gp_rangeformer.regression.fit_json import fit_from_json, fit_to_json
from gp_rangeformer.regression.fitting import Fitted, Watch, fitted
from gp_rangeformer.regression.kernels import Covariance, Regression, build_for_table, check_name
from gp_rangeformer.regression.unfinished import Unfinished, parameters_from_json, parameters_to_json

# Those that have a fused form: with others a large fit takes far longer.
AUTO = ("matern12", "matern32", "matern52", "rbf", "rq")
MOST_ROWS = 1000


@dataclass(frozen=True)
class Candidate:
    """A kernel fitted to ``rows`` of the training rows, in standardised units and nats per point: the log likelihood
    with half the width of its interval (0: exact; ``rounding`` is about what that leaves), the leave-one-out score with
    its error, seconds, whether the fit converged, and the number of the model's parameters. ``failure``: why there is
    no value; None where there is one."""

    kernel: str
    rows: int
    value: float | None = None
    error: float | None = None
    leave_one_out: float | None = None
    leave_one_out_error: float | None = None
    converged: bool = False
    seconds: float = 0.0
    failure: str | None = None
    parameters: int = 0
    rounding: float = 0.0

    @property
    def merit(self) -> float:
        """What candidates are ranked by: nats per point, less one nat for every parameter."""
        return -math.inf if self.value is None else self.value - self.parameters / self.rows


class Choice(NamedTuple):
    """All candidates, best first, and the best one's model and fit where that was fitted to all rows."""

    candidates: tuple[Candidate, ...]
    fitted: Fitted | None


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


def choose(
    x: Tensor, y: Tensor, starts: Sequence[Covariance], seed: int, watch: Watch, unfinished: Unfinished
) -> Choice:
    """Fit each kernel to at most 1000 random rows, the same for all.

    :param x: n x d, standardised.
    :param y: n, standardised.
    :param starts: with different names.
    :param unfinished: has those that were fitted before an interrupt, and keeps the others.
    :raises FitError: none of the fits came to an end.
    """
    drawn = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed), device="cpu")
    rows = drawn[:MOST_ROWS].sort().values.to(x.device)
    whole = len(rows) == len(y)
    found: list[tuple[Candidate, Fitted | None]] = []
    for start in starts:
        kept = unfinished.compared(start)
        if kept is not None:
            found.append((Candidate(**kept["candidate"]), _restored(x, y, start, kept["fitted"]) if whole else None))
            continue
        name = start.title
        try:
            fit = fitted(x[rows], y[rows], start, seed, lambda record, name=name: watch(name, record), unfinished)
        except FitError as error:
            found.append((Candidate(name, len(rows), failure=str(error)), None))
            continue
        candidate = _candidate(name, len(rows), fit)
        unfinished.keep_compared(start, {"candidate": asdict(candidate), "fitted": _plain(fit) if whole else None})
        found.append((candidate, fit if whole else None))
    found.sort(key=lambda one: one[0].merit, reverse=True)
    candidates = tuple(candidate for candidate, _ in found)
    if candidates[0].value is None:
        failures = "; ".join(f"{one.kernel}: {one.failure}" for one in candidates)
        raise FitError(f"no kernel could be fitted: {failures}")
    return Choice(candidates, found[0][1])


def _candidate(name: str, rows: int, fit: Fitted) -> Candidate:
    gp, result, _ = fit
    score, score_error = _left_out(gp)
    parameters = sum(parameter.numel() for parameter in gp.parameters() if parameter.requires_grad)
    values = result.value, result.error, score, score_error, result.converged, result.seconds
    return Candidate(name, rows, *values, parameters=parameters, rounding=result.rounding)


def _plain(fit: Fitted) -> dict[str, Any]:
    return {"parameters": parameters_to_json(fit.gp), "fit": fit_to_json(fit.result), "level": fit.level}


def _restored(x: Tensor, y: Tensor, start: Covariance, content: Mapping[str, Any]) -> Fitted:
    """What :func:`_plain` was made of; the fit without its report."""
    gp = build_for_table(x, y, start)
    parameters_from_json(gp, content["parameters"])
    return Fitted(gp, fit_from_json(content["fit"]), content["level"])


def _left_out(gp: Regression) -> tuple[float | None, float | None]:
    """The score and its error; None where it cannot be had, which does not cost the fit."""
    try:
        scores = leave_one_out(gp)
    except (RuntimeError, ArithmeticError):
        return None, None
    return scores.score, scores.score_error
