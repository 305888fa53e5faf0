"""Solve the systems of a path one after the other, as the solver does in training, with any predictor of the next X.

Every predictor remembers its own solutions, each stopped at the tolerance; the landmarks, the probes and the stopping
rule are :class:`Certified`'s. Only the prediction and the solve that follows it are timed and counted.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.experiments.predictor.paths import Path

HISTORY = 4
# Rows of A at which a predictor may look before the pass.
ROWS = 64


@dataclass
class Past:
    """What is kept of a solved system: X, and R = B - A X, which the verification computes anyway."""

    solution: Float[Tensor, "n m"]
    residual: Float[Tensor, "n m"]
    rows: Float[Tensor, "s n"]
    preconditioner: NystromPreconditioner = field(repr=False)

    @cached_property
    def correction(self) -> Float[Tensor, "n m"]:
        """P^-1 R, O(n r m) at the first use: one step of Richardson's iteration that was not taken."""
        return self.preconditioner.solve(self.residual)


@dataclass
class Situation:
    """What a predictor may look at before the pass: the new system, its preconditioner, and the past, newest first."""

    system: LinearSystem
    preconditioner: NystromPreconditioner
    rhs: Float[Tensor, "n m"]
    past: tuple[Past, ...]
    index: Int[Tensor, " s"]  # of the rows
    rows: Float[Tensor, "s n"]  # of A
    columns: float = 0.0  # multiplied with rows of A, in columns multiplied with all of A

    def look(self, vectors: Float[Tensor, "n k"], count: int) -> Float[Tensor, "s k"]:
        """The first ``count`` sampled rows of A times ``vectors``: count / n of a pass, and booked as that."""
        rows = self.rows[:count]
        self.columns += vectors.shape[1] * len(rows) / self.system.size
        return rows @ vectors


Proposal = Tensor | tuple[Tensor, Tensor] | None
Predictor = Callable[[Situation], Proposal]


@dataclass(frozen=True)
class Step:
    """What the solve of one system took: iterations of block CG, columns multiplied with K, seconds."""

    iterations: int
    columns: float
    seconds: float
    converged: bool


def walk(
    path: Path, predictors: Mapping[str, Predictor], *, rank: int, repeats: int = 1
) -> Iterator[dict[str, tuple[Situation, Step]]]:
    """The systems of a path, float32 and to 0.01: what each predictor knew before its solve, and what that took.

    The predictors share K and P, whose landmarks are drawn once, and nothing else. A step that does not converge within
    the solver's 100 passes ends a predictor's memory. Seconds are the least of ``repeats`` equal solves: the machine is
    rarely alone.

    :raises RuntimeError: a preconditioner cannot be built.
    """
    solver = Certified(rank=rank, adaptive_rank=False)
    memory = Memory()
    pasts: dict[str, tuple[Past, ...]] = dict.fromkeys(predictors, ())
    for raw in path.raw:
        kernel, noise, target = path.problem.covariance(raw)
        system = LinearSystem(kernel.float(), noise.float())
        prepared = solver.prepare(system, memory)
        preconditioner = prepared.preconditioner
        if preconditioner is None or memory.landmarks is None:
            raise RuntimeError(f"no preconditioner for {path.problem.name}: {prepared.failure}")
        block = torch.cat([target.float()[:, None], solver.probe_vectors(system)], dim=1)
        index = _other_points(memory.landmarks.index, system.size)
        rows = system.columns(index).mT.contiguous()
        rows[torch.arange(len(index)), index] += system.noise[index]
        # The solver's own rule: half of it, in nats, is a tenth of the tolerance per point.
        energy = np.full(block.shape[1], math.inf)
        energy[0] = 2 * 0.1 * solver.tolerance * system.size
        found = {}
        for name, predictor in predictors.items():
            past, seconds = pasts[name], []
            for _ in range(repeats):
                situation = Situation(system, preconditioner, block, past, index, rows)
                if past:
                    past[0].__dict__.pop("correction", None)  # every repeat pays for it
                system.take_counts()
                started = time.perf_counter()
                solution = prepared.attempt(block, predictor(situation) if past else None, stop_energy=energy)
                seconds.append(time.perf_counter() - started)
            columns = system.take_counts()[1] + situation.columns
            found[name] = situation, Step(solution.iterations, columns, min(seconds), solution.converged)
            residual = block - system.matmul(solution.value)
            new = Past(solution.value, residual, rows, preconditioner)
            pasts[name] = (new, *past)[:HISTORY] if solution.converged else ()
        yield found


def replay(
    path: Path, predictors: Mapping[str, Predictor], *, rank: int, repeats: int = 1
) -> dict[str, dict[str, float]]:
    """Per predictor: iterations, columns and seconds over the path, and the steps that did not converge."""
    steps: dict[str, list[Step]] = {name: [] for name in predictors}
    for found in walk(path, predictors, rank=rank, repeats=repeats):
        for name, (_, step) in found.items():
            steps[name].append(step)
    return {
        name: {
            "iterations": sum(step.iterations for step in each),
            "columns": sum(step.columns for step in each),
            "seconds": sum(step.seconds for step in each),
            "not converged": sum(not step.converged for step in each),
        }
        for name, each in steps.items()
    }


def _other_points(landmarks: Int[Tensor, " r"], n: int) -> Int[Tensor, " s"]:
    """Random points that are no landmarks: at those P is exact, and their residuals are not like the others."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(n))
    return order[~torch.isin(order, landmarks)][:ROWS]
