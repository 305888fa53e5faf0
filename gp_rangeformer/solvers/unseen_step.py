"""A training step on an accelerator: everything that it asks of the device, before a look at any of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer.logdet import learned
from gp_rangeformer.logdet.estimate import TailEstimate
from gp_rangeformer.preconditioner.unseen_nystrom import UnseenNystrom
from gp_rangeformer.solvers.probes import Probes
from gp_rangeformer.solvers.unseen import Unseen, shares_to_reach, solve_unseen
from gp_rangeformer.system.answers import Solution
from gp_rangeformer.system.device_cores import resident

if TYPE_CHECKING:
    from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared


@dataclass(frozen=True)
class UnseenStep:
    """Probes, the solve of targets and probes, and what gives the evidence of its log determinant, if any."""

    probes: Probes
    started: Unseen
    evidence: Callable[[Tensor], TailEstimate] | None

    @property
    def value(self) -> Float[Tensor, "n k"]:
        return self.started.value

    def certified(self) -> Solution | None:
        """None where it does not certify. Reads what the host has asked for."""
        return self.started.certified()

    def tail(self, value: Float[Tensor, "n k"], quadratic: Float[Tensor, " p"]) -> TailEstimate | None:
        """Of the log determinant; None where another solution than this one was taken.

        :param quadratic: of the probes.
        """
        return self.evidence(quadratic) if self.evidence is not None and value is self.value else None


def start_step(
    prepared: CertifiedPrepared,
    preconditioner: UnseenNystrom,
    rhs: Float[Tensor, "n m"],
    signs: Float[Tensor, "n p"],
    energy: NDArray[np.float64],
) -> UnseenStep | None:
    """None where nothing is started: no steps before, neighbours, or more columns than cores on a device hold.

    :param energy: r' P^-1 r to reach, per column.
    """
    solver, system, memory, m = prepared.solver, prepared.system, prepared.memory, rhs.shape[1]
    probes, block = prepared.block_of(rhs, signs)
    if prepared.vecchia is not None or not resident(block) or not memory.solved_in:
        return None
    wanted = torch.from_numpy(energy)
    key = m, len(energy), system.size, solver.tolerance, system.device
    shares = memory.drawn("shares", key, lambda: shares_to_reach(solver.tolerance, wanted, system.device))
    first = prepared.predict(block, probes, m)
    if isinstance(first, tuple):
        return None
    started = solve_unseen(
        system, preconditioner, block, first, tolerance=solver.tolerance, stop_energy=wanted, shares=shares,
        iterations=min(max(memory.solved_in), solver.max_passes),
    )  # fmt: skip
    evidence = None
    if solver.logdet == "learned" and signs.shape[1]:
        count = solver.num_probes
        own, solved = signs[:, :count], started.value[:, m : m + count]
        evidence = learned.ask(system, preconditioner, own, solved, seed=solver.seed)
    return UnseenStep(probes, started, evidence)
