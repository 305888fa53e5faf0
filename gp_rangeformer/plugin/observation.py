"""A look at the systems behind a likelihood while it is evaluated: what an optimiser of second order asks for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.eligibility import EligibleSystem
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.exact_batch import BatchEvaluation
from gp_rangeformer.system.answers import Evaluation, Prepared


@dataclass
class Observation:
    """One system A = K + D of a likelihood, and A^-1 of its right-hand sides.

    ``fused``, ``noise`` (n) and ``rhs`` (n x m, targets minus mean) are in the autograd graph; ``fused`` is None where
    GPyTorch has evaluated K. ``solve``: A^-1 of further columns, roughly (:meth:`CertifiedPrepared.approximate`) or by
    the factor that is there.
    """

    fused: FusedKernel | None
    noise: Float[Tensor, " n"]
    rhs: Float[Tensor, "n m"]
    solution: Float[Tensor, "n m"]
    solve: Callable[[Tensor], Tensor]
    evaluation: Evaluation | BatchEvaluation


class _Watching(threading.local):
    """Whoever watches in this thread: others evaluate likelihoods of their own."""

    def __init__(self) -> None:
        self.watchers: list[list[Observation]] = []


_watching = _Watching()


@contextlib.contextmanager
def observe_likelihoods() -> Iterator[list[Observation]]:
    """The systems of every likelihood that the plug-in answers inside the context, in this thread. Each holds its K
    while it lives."""
    seen: list[Observation] = []
    _watching.watchers.append(seen)
    try:
        yield seen
    finally:
        _watching.watchers = [other for other in _watching.watchers if other is not seen]


def observed() -> bool:
    return bool(_watching.watchers)


def show(system: EligibleSystem, rhs: Tensor, prepared: Prepared, evaluation: Evaluation, noise: Tensor) -> None:
    """To whoever watches: one element that was evaluated by itself."""
    if not observed():
        return
    fused = system.fused if isinstance(system.fused, FusedKernel) else None
    solve = prepared.approximate if isinstance(prepared, CertifiedPrepared) else lambda b: prepared.solve(b).value
    seen = Observation(fused, noise, rhs, evaluation.weight.solutions, solve, evaluation)
    for watcher in _watching.watchers:
        watcher.append(seen)


def show_together(system: EligibleSystem, rhs: Tensor, noise: Tensor, evaluation: BatchEvaluation) -> None:
    """Of a batch, of which only a single element is of use."""
    factor = evaluation.weight.factor
    if not observed() or len(rhs) != 1 or factor is None:
        return
    (fused,) = system.fused_elements()

    def solve(columns: Tensor) -> Tensor:
        half = torch.linalg.solve_triangular(factor[0], columns.to(factor.dtype), upper=False)
        return torch.linalg.solve_triangular(factor[0].mT, half, upper=True).to(columns.dtype)

    for watcher in _watching.watchers:
        watcher.append(Observation(fused, noise[0], rhs[0], evaluation.weight.solutions[0], solve, evaluation))
