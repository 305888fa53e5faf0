"""log|A| extrapolated by the trained head from what a step has solved already; it works in a certified solver."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gp_rangeformer.checkpoint import ModelCard, load_checkpoint, read_card
from gp_rangeformer.logdet.estimate import TailEstimate
from gp_rangeformer.logdet.evidence import (
    SMALLEST_SIZE,
    TRAINED_PROBES,
    TailEvidence,
    ask_tail_evidence,
    moment_evidence,
    sample_points,
)
from gp_rangeformer.logdet.features import LOG_SIZE, SCALARS, check_features
from gp_rangeformer.logdet.network import QUANTILES, LogDetTail
from gp_rangeformer.logdet.reader import TailReader
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.system.answers import Interval
from gp_rangeformer.system.linear_system import LinearSystem

HEAD = Path(__file__).parent / "weights" / "head"
# Standard deviations of training beyond the range seen there, in any feature.
_EXTRAPOLATION = 0.5
# Trained up to n = 32,649, measured up to 36,000 (pretrain/README.md).
_LARGEST_SIZE = 36_000


def load_head() -> LogDetTail:
    """The head that comes with the package, float32, in eval mode on the CPU.

    :raises CheckpointError: a damaged or missing file, or a head that was trained on other features.
    """
    head, card = load_checkpoint(HEAD, LogDetTail)
    check_features(card, HEAD.with_suffix(".json"))
    return head


def head_card() -> ModelCard:
    """How it was trained, and its errors on systems that were left out.

    :raises CheckpointError: a damaged or missing file.
    """
    return read_card(HEAD)


@torch.no_grad()
def tail(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    quadratic: Float[Tensor, " p"],
    *,
    seed: int = 0,
) -> TailEstimate:
    """The network's tail of log|A|; a :class:`~gp_rangeformer.logdet.estimate.TailEstimator`.

    :param seed: of the sampled points; the same seed gives the same answer.
    :raises CheckpointError: as :func:`load_head`.
    Cost: :func:`~gp_rangeformer.logdet.evidence.tail_evidence`, and 0.1 ms for the network, which stays on the CPU.
    """
    return ask(system, preconditioner, probes, solutions, seed=seed)(quadratic)


@torch.no_grad()
def ask(
    system: LinearSystem,
    preconditioner: NystromPreconditioner,
    probes: Float[Tensor, "n p"],
    solutions: Float[Tensor, "n p"],
    *,
    seed: int = 0,
) -> Callable[[Tensor], TailEstimate]:
    """Gives the same for ``quadratic``, once the host reads what it asked of the device."""
    n, count = probes.shape
    if not SMALLEST_SIZE <= n <= _LARGEST_SIZE:
        return _refusing(f"n = {n} is not in {SMALLEST_SIZE} to {_LARGEST_SIZE}, where its errors are known")
    if count < TRAINED_PROBES:
        return _refusing(f"it was trained on {TRAINED_PROBES} probes, num_probes is {count}")
    gather = ask_tail_evidence(system, preconditioner, probes, solutions, _points(n, seed + 3, system.device))
    return lambda quadratic: read(gather(quadratic))


@torch.no_grad()
def read(evidence: TailEvidence) -> TailEstimate:
    """The network's tail from evidence of any size: what :func:`tail` answers where it does not refuse n.

    :raises CheckpointError: as :func:`load_head`.
    """
    reader = _reader()
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
        refusal = f"feature {SCALARS[feature]} is {distance:.1f} standard deviations outside its training range"
    return TailEstimate(middle, Interval(low, high), QUANTILES[2] - QUANTILES[0], "learned", evidence.definite, refusal)


@functools.cache
def _reader() -> TailReader:
    return TailReader(load_head())


@functools.lru_cache(maxsize=8)
def _points(n: int, seed: int, device: torch.device) -> Int[Tensor, " b"]:
    return sample_points(n, torch.Generator().manual_seed(seed)).to(device)


def _refusing(reason: str) -> Callable[[Tensor], TailEstimate]:
    refused = TailEstimate(float("nan"), None, None, "learned", refusal=reason)
    return lambda quadratic: refused


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
