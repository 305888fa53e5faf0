"""RangeFormer on a LinearSystem: what the pretrained network answers about K + D, from products and columns alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gp_rangeformer.model.checkpoint import CheckpointError, load_pretrained
from gp_rangeformer.model.rangeformer import RangeFormer
from gp_rangeformer.model.tail import LOG_SIZE, QUANTILES
from gp_rangeformer.model.tail_reader import TailReader
from gp_rangeformer.ranges.tail import (
    SMALLEST_SIZE,
    TRAINED_PROBES,
    TailEvidence,
    moment_evidence,
    sample_points,
    tail_evidence,
)
from gp_rangeformer.solvers.base import Interval, LinearSystem
from gp_rangeformer.solvers.direct import Answer
from gp_rangeformer.solvers.nystrom import NystromPreconditioner
from gp_rangeformer.solvers.tail import TailEstimate

# Standard deviations of training beyond the range seen there, in any feature.
_EXTRAPOLATION = 0.5
# Trained up to n = 32,554, measured up to 36,000 (pretrain/README.md).
_LARGEST_SIZE = 36_000


@dataclass(frozen=True)
class SystemOperator:
    """A = K + D as the network sees it: a batch of one."""

    system: LinearSystem
    batch: int = 1

    @property
    def size(self) -> int:
        return self.system.size

    def diagonal(self) -> Float[Tensor, "1 n"]:
        return (self.system.diagonal() + self.system.noise).unsqueeze(0)

    def matmul(self, block: Float[Tensor, "1 n k"]) -> Float[Tensor, "1 n k"]:
        return self.system.matmul(block.squeeze(0)).unsqueeze(0)


@functools.lru_cache(maxsize=4)
def pretrained(name: str, dtype: torch.dtype, device: torch.device) -> RangeFormer:
    """A shipped model in the precision and on the device of a system. Loaded once.

    :raises CheckpointError: unknown name or damaged file.
    """
    return load_pretrained(name).to(device=device, dtype=dtype).requires_grad_(False)


@torch.no_grad()
def answer(
    system: LinearSystem, rhs: Float[Tensor, "n m"], *, loops: int | None = None, seed: int = 0, name: str = "base"
) -> Answer:
    """The network's last loop for one system: log|A|, A^-1 rhs, and a range, none of them verified.

    :param loops: T; None for the model's default.
    :param seed: of the random codes; the same seed gives the same answer.
    Cost: one pass with ``dim`` columns, then per loop one with ``rank`` and one with m columns.
    """
    model = pretrained(name, system.dtype, system.device)
    output = model(
        SystemOperator(system),
        rhs.unsqueeze(0) if rhs.shape[1] else None,
        loops=loops,
        floor=system.noise.min().unsqueeze(0),
        generator=torch.Generator().manual_seed(seed),
    )[-1]
    solution = rhs if output.solution is None else output.solution.squeeze(0)
    return Answer(solution, float(output.logdet), output.basis.squeeze(0))


@torch.no_grad()
def tail(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    quadratic: Float[Tensor, " p"],
    *,
    seed: int = 0,
    name: str = "base",
) -> TailEstimate:
    """The network's tail of log|A|; a :class:`~gp_rangeformer.solvers.tail.TailEstimator`.

    :param seed: of the sampled points; the same seed gives the same answer.
    :raises CheckpointError: as :func:`pretrained`, or if the checkpoint has no head for the tail.
    Cost: :func:`~gp_rangeformer.ranges.tail.tail_evidence`, and 0.1 ms for the network, which stays on the CPU.
    """
    n, count = probes.shape
    if not SMALLEST_SIZE <= n <= _LARGEST_SIZE:
        return _refused(f"n = {n} is not in {SMALLEST_SIZE} to {_LARGEST_SIZE}, where its errors are known")
    if count < TRAINED_PROBES:
        return _refused(f"it was trained on {TRAINED_PROBES} probes, settings.num_probes is {count}")
    chosen = _points(n, seed + 3, system.device)
    return read(tail_evidence(system, preconditioner, probes, solutions, quadratic, chosen), name=name)


@torch.no_grad()
def read(evidence: TailEvidence, *, name: str = "base") -> TailEstimate:
    """The network's tail from evidence of any size: what :func:`tail` answers where it does not refuse n.

    :raises CheckpointError: as :func:`tail`.
    """
    reader = _tail_reader(name)
    # In the precision in which evidence is cached and kept.
    scalars, tokens = evidence.scalars.float().numpy(), evidence.tokens.float().numpy()
    ends = [float(np.float32(value)) for value in (evidence.estimate, evidence.upper)]
    low, middle, high = reader(scalars, tokens, *ends).tolist()
    # Sizes beyond those of training were measured, up to _LARGEST_SIZE.
    known = scalars.copy()
    known[LOG_SIZE] = min(known[LOG_SIZE], reader.largest_log_size)
    feature, distance = reader.farthest_outside(known)
    refusal = None
    if distance > _EXTRAPOLATION:
        refusal = f"feature {feature} is {distance:.1f} standard deviations outside its training range"
    return TailEstimate(middle, Interval(low, high), QUANTILES[2] - QUANTILES[0], "learned", evidence.definite, refusal)


@functools.lru_cache(maxsize=4)
def _tail_reader(name: str) -> TailReader:
    head = pretrained(name, torch.float32, torch.device("cpu")).tail
    if head is None:
        raise CheckpointError(f"the checkpoint {name!r} has no head for the log determinant: reinstall gp-rangeformer")
    return TailReader(head)


@functools.lru_cache(maxsize=8)
def _points(n: int, seed: int, device: torch.device) -> Int[Tensor, " b"]:
    return sample_points(n, torch.Generator().manual_seed(seed)).to(device)


def _refused(reason: str) -> TailEstimate:
    return TailEstimate(float("nan"), None, None, "learned", refusal=reason)


@torch.no_grad()
def quadrature(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    quadratic: Float[Tensor, " p"],
) -> TailEstimate:
    """The same moments without the network: the quadrature rule's own estimate, for comparison."""
    moments = moment_evidence(system, preconditioner, probes, solutions, quadratic)
    return TailEstimate(moments.estimate, None, None, "quadrature", moments.definite)
