"""One system solved with every range at every rank: what each takes to build and to solve with."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.preconditioner.landmarks import Landmarks, rp_cholesky_landmarks, uniform_landmarks
from gp_rangeformer.preconditioner.nystrom import (
    PreconditionerError,
    ProposedTestMatrix,
    RangeProposal,
    nystrom_preconditioner,
)
from gp_rangeformer.rangeformer.answer import pretrained
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified, CertifiedPrepared
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.experiments.ranges.extended import extend
from pretrain.experiments.ranges.finders import finders
from pretrain.log_determinant.evaluate import SETS

T = TypeVar("T")
_PLAIN = {"landmarks": 1, "landmarks, 2 r": 2, "landmarks, 4 r": 4}


@dataclass(frozen=True)
class Plan:
    """``systems``: (data set, n). Where n is larger than ``trained_size``, hyperparameters are from that size."""

    systems: tuple[tuple[str, int], ...] = (*((name, 2000) for name in SETS), ("pol", 4000), ("kin40k", 4000))
    trained_size: int = 2000
    stages: tuple[int, ...] = (15, 60)
    ranks: tuple[int, ...] = (128, 400)
    loops: tuple[int, ...] = (1, 2, 4)
    repeats: int = 2
    seed: int = 0


QUICK = Plan(systems=(("robot_arm", 300),), stages=(2,), ranks=(32,), loops=(1, 2), repeats=1)


class Bench:
    """One system with its right-hand sides, and a record per range."""

    def __init__(self, system: LinearSystem, target: Float[Tensor, "n 1"], plan: Plan) -> None:
        self.system, self.plan = system, plan
        self.solver = Certified(adaptive_rank=False, predictor="none", max_passes=1000, seed=plan.seed)
        self.rhs = torch.cat([target, self.solver.probe_vectors(system)], dim=1)
        self.records: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """Every range at every rank."""
        vectors = torch.linalg.eigh(self.system.to_dense()).eigenvectors.flip(1)
        for rank in self.plan.ranks:
            self._landmarks(rank)
            self._extended(rank)
            self.measure(rank, "exact", lambda rank=rank: ProposedTestMatrix(vectors[:, :rank].contiguous()))
            self._for_the_seconds(rank)
        return self.records

    def drawn(self, rank: int) -> Landmarks:
        """RPCholesky landmarks."""
        return rp_cholesky_landmarks(self.system, rank, torch.Generator().manual_seed(self.plan.seed))

    def measure(self, rank: int, method: str, propose: Callable[[], RangeProposal], before: float = 0.0) -> None:
        """Build, solve and record. ``before``: seconds of the build that were spent already."""
        repeats = self.plan.repeats
        record: dict[str, Any] = {"rank": rank, "method": method}
        self.records.append(record)
        self.system.take_counts()
        try:
            preconditioner, build = timed(lambda: nystrom_preconditioner(self.system, propose()), repeats)
        except (PreconditionerError, torch.linalg.LinAlgError) as problem:
            record["failure"] = str(problem)
            return
        passes, columns = self.system.take_counts()
        record |= {"kept": preconditioner.rank, "build_passes": passes // repeats, "build_columns": columns // repeats}
        prepared = CertifiedPrepared(self.solver, self.system, Memory(), preconditioner, None)
        solution, solve = timed(lambda: prepared.attempt(self.rhs, None), repeats)
        passes, columns = self.system.take_counts()
        record |= {"iterations": solution.iterations, "passes": passes // repeats, "columns": columns // repeats}
        record |= {"build_seconds": before + build, "solve_seconds": solve}
        if not solution.converged:
            record["failure"] = solution.reason.value

    def _landmarks(self, rank: int) -> None:
        seed = self.plan.seed
        uniform = partial(uniform_landmarks, self.system, rank)
        self.measure(rank, "uniform", lambda: uniform(torch.Generator().manual_seed(seed)))
        for name, factor in _PLAIN.items():
            self.measure(rank, name, partial(self.drawn, factor * rank))

        def compressed() -> ProposedTestMatrix:
            wide = nystrom_preconditioner(self.system, self.drawn(4 * rank))
            return ProposedTestMatrix(wide.basis[:, :rank].contiguous())

        self.measure(rank, "compressed", compressed)

    def _extended(self, rank: int) -> None:
        columns = pretrained("base", self.system.dtype, self.system.device).config.rank
        landmarks, spent = timed(lambda: self.drawn(rank - columns), self.plan.repeats)
        for target in ("A", "rest"):
            for name, (finder, loops) in finders(self.system, self.plan.loops).items():
                propose = partial(extend, self.system, landmarks, finder, loops, target, self.plan.seed)
                self.measure(rank, f"{target}: {name}", propose, spent)

    def _for_the_seconds(self, rank: int) -> None:
        """As many landmarks as are built in the seconds of the network with fewest and with most loops."""
        seconds = {
            record["method"]: record["build_seconds"]
            for record in self.records
            if record["rank"] == rank and "build_seconds" in record
        }
        known = [(factor * rank, seconds[name]) for name, factor in _PLAIN.items()]
        for target in ("A", "rest"):
            for loops in (self.plan.loops[0], self.plan.loops[-1]):
                name = f"{target}: network, {loops}"
                if name in seconds:
                    size = min(rank_for(seconds[name], known), self.system.size)
                    self.measure(rank, f"landmarks for the seconds of {name}", partial(self.drawn, size))


def timed(make: Callable[[], T], repeats: int) -> tuple[T, float]:
    """The last result, and the least processor seconds, of ``repeats`` >= 1 calls."""
    least = math.inf
    for _ in range(repeats - 1):
        started = time.process_time()
        make()
        least = min(least, time.process_time() - started)
    started = time.process_time()
    result = make()
    return result, min(least, time.process_time() - started)


def rank_for(seconds: float, known: Sequence[tuple[int, float]]) -> int:
    """How many landmarks take ``seconds``: on the line through the nearest two of ``known``, in logarithms."""
    upper = next((i for i, (_, spent) in enumerate(known) if i > 0 and spent >= seconds), len(known) - 1)
    (r0, s0), (r1, s1) = known[upper - 1], known[upper]
    growth = max(s1 / s0, 1.1)  # where systems are tiny, the clock may call the larger rank the faster one
    return max(round(r0 * (seconds / s0) ** (math.log(r1 / r0) / math.log(growth))), 1)
