"""Do learned ranges pay inside the certified solver? RangeFormer's 16 columns beside landmarks, on UCI systems.

    OMP_NUM_THREADS=1 python -m pretrain.experiments.ranges --out pretrain/results/ranges.json

Every range makes a preconditioner P = Q + D; block CG then solves for y and 32 probes, from zero to a residual of 0.01,
certified as in training (float32). Systems: Matern-3/2 ARD, hyperparameters along 60 Adam steps at rate 0.1 and
n = 2000. Ranges at equal rank r:

* "uniform", "landmarks": r columns of K, drawn uniformly or by RPCholesky; "landmarks, 2 r" and "4 r" have more.
* "compressed": of 4 r landmarks the r leading directions, refined by one pass over K.
* "exact": the r leading eigenvectors, the limit of every range of that rank. Nobody is charged for finding them.
* "A: ..." and "rest: ...": r - 16 landmarks and 16 columns found by products, either with A = K + D or with what the
  landmarks leave, K - Q + D: by the network (T loops; 64 + 16 T columns multiplied), by the untrained network, by
  subspace iteration with the same products, or by block Krylov with as many columns. "limit": converged ones.
* "landmarks for the seconds of ...": as many as are chosen and factored in the seconds of another range.

Seconds are those of the processor, one thread, the least of some repeats: a busy machine does not change them much.
"Build" is all that precedes block CG, the choice of landmarks included.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.compare import machine
from gp_rangeformer.compare.audit import Parameters
from gp_rangeformer.model.operator import MatrixOperator
from gp_rangeformer.model.rangeformer import RangeFormer
from gp_rangeformer.model.subspace import orthonormalise
from gp_rangeformer.ranges.landmarks import Landmarks, rp_cholesky_landmarks, uniform_landmarks
from gp_rangeformer.ranges.learned import SystemOperator, pretrained
from gp_rangeformer.ranges.memory import Memory
from gp_rangeformer.solvers.base import LinearSystem
from gp_rangeformer.solvers.nystrom import (
    PreconditionerError,
    ProposedTestMatrix,
    RangeProposal,
    nystrom_preconditioner,
)
from gp_rangeformer.solvers.rangeformer import RangeFormerPrepared, RangeFormerSolver
from pretrain.baselines.untrained import untrained
from pretrain.log_determinant.evaluate import SETS, system_at, trajectory

T = TypeVar("T")
# A range of the operator from T loops: orthonormal columns and their image. The generator draws what is random.
Finder = Callable[[MatrixOperator, int, torch.Generator], tuple[Tensor, Tensor]]
# Of the Krylov space called the limit: its 16 Ritz values agree with LAPACK's to four digits (pol, n = 2000, r = 128).
_LIMIT_WIDTH, _LIMIT_DEPTH = 48, 8
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


@dataclass(frozen=True)
class Extended:
    """The range of columns of K and of further columns U: Omega = [identity[:, index], U]; its sketch is known.

    :param image: K U, from the product that found U.
    """

    landmarks: Landmarks
    basis: Float[Tensor, "n k"]
    image: Float[Tensor, "n k"]

    def sketch(self, system: LinearSystem) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r r"]]:
        """K Omega and Omega' K Omega, the latter in float64: no pass over K."""
        columns, core = self.landmarks.sketch(system)
        cross = self.image.index_select(0, self.landmarks.index).double()
        inner = self.basis.mT.double() @ self.image.double()
        core = torch.cat([torch.cat([core.double(), cross], dim=1), torch.cat([cross.mT, inner], dim=1)])
        return torch.cat([columns, self.image], dim=1), core


class Remainder:
    """A - Q for the Q of some landmarks, as a batch of one: positive definite, its small eigenvalues those of D."""

    def __init__(self, system: LinearSystem, landmarks: Landmarks) -> None:
        columns, core = landmarks.sketch(system)
        core = core.double()
        core.diagonal().add_(2 * torch.finfo(system.dtype).eps * float(core.diagonal().sum()))
        factor = torch.linalg.cholesky(core)
        self.system = system
        self.root = torch.linalg.solve_triangular(factor, columns.mT.double(), upper=False).mT.to(system.dtype)
        self.batch, self.size = 1, system.size

    def explained(self, block: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Q block."""
        return self.root @ (self.root.mT @ block)

    def diagonal(self) -> Float[Tensor, "1 n"]:
        rest = (self.system.diagonal() - self.root.square().sum(-1)).clamp_min(0)
        return (rest + self.system.noise).unsqueeze(0)

    def matmul(self, block: Float[Tensor, "1 n k"]) -> Float[Tensor, "1 n k"]:
        return (self.system.matmul(block[0]) - self.explained(block[0])).unsqueeze(0)


@torch.no_grad()
def network(
    operator: MatrixOperator,
    loops: int,
    generator: torch.Generator,
    *,
    model: RangeFormer,
    floor: float,
    bfloat16: bool,
) -> tuple[Tensor, Tensor]:
    """The basis of the last loop of a RangeFormer, with the image that the loop has computed."""
    lowest = torch.tensor([floor])
    output = model(operator, loops=loops, floor=lowest, generator=generator, bfloat16=bfloat16)[-1]
    return output.basis[0], output.image[0]


def subspace_iteration(
    operator: MatrixOperator, loops: int, generator: torch.Generator, *, width: int, rank: int
) -> tuple[Tensor, Tensor]:
    """The network's products without the network: ``width`` random columns, the ``rank`` best of the images, loops."""
    start = operator.matmul(_gaussian(operator, width, generator))
    basis = torch.linalg.svd(start, full_matrices=False).U[..., :rank]
    for _ in range(loops - 1):
        basis = orthonormalise(operator.matmul(basis))
    return basis[0], operator.matmul(basis)[0]


def block_krylov(
    operator: MatrixOperator, loops: int, generator: torch.Generator, *, width: int, rank: int, depth: int
) -> tuple[Tensor, Tensor]:
    """The ``rank`` leading Ritz vectors of span{Omega, A Omega, ...}: ``depth`` + loops blocks of ``width`` columns."""
    blocks = [torch.linalg.qr(_gaussian(operator, width, generator)).Q]
    images = [operator.matmul(blocks[0])]
    while len(blocks) < depth + loops and (len(blocks) + 1) * width <= operator.size:
        block, known = images[-1], torch.cat(blocks, dim=-1)
        for _ in range(2):  # twice: that keeps the basis orthonormal to rounding
            block = torch.linalg.qr(block - known @ (known.mT @ block)).Q
        blocks.append(block)
        images.append(operator.matmul(block))
    basis, image = torch.cat(blocks, dim=-1)[0], torch.cat(images, dim=-1)[0]
    core = basis.mT.double() @ image.double()
    leading = torch.linalg.eigh(0.5 * (core + core.mT)).eigenvectors.flip(1)[:, :rank].to(basis.dtype)
    return basis @ leading, image @ leading


def _gaussian(operator: MatrixOperator, width: int, generator: torch.Generator) -> Float[Tensor, "1 n k"]:
    return torch.randn(1, operator.size, width, generator=generator).to(operator.diagonal())


def finders(system: LinearSystem, loops: Sequence[int]) -> dict[str, tuple[Finder, int]]:
    """Ways to find 16 columns, with the number of loops: the network's, its control's, and classical ones."""
    model = pretrained("base", system.dtype, system.device)
    control = untrained(model.config, dtype=system.dtype)
    width, rank, floor = model.config.dim, model.config.rank, float(system.noise.min())
    kinds: dict[str, Finder] = {
        "network": partial(network, model=model, floor=floor, bfloat16=False),
        "network, bfloat16": partial(network, model=model, floor=floor, bfloat16=True),
        "untrained": partial(network, model=control, floor=floor, bfloat16=False),
        "subspace iteration": partial(subspace_iteration, width=width, rank=rank),
        "block Krylov": partial(block_krylov, width=rank, rank=rank, depth=width // rank),
    }
    found = {f"{kind}, {count}": (finder, count) for kind, finder in kinds.items() for count in loops}
    return {**found, "limit": (partial(block_krylov, width=_LIMIT_WIDTH, rank=rank, depth=0), _LIMIT_DEPTH)}


def extend(system: LinearSystem, landmarks: Landmarks, finder: Finder, loops: int, target: str, seed: int) -> Extended:
    """``landmarks`` and the columns that ``finder`` finds in A (``target`` "A") or in what they leave ("rest")."""
    generator = torch.Generator().manual_seed(seed + 5)
    if target == "A":
        basis, image = finder(SystemOperator(system), loops, generator)
    else:
        rest = Remainder(system, landmarks)
        basis, image = finder(rest, loops, generator)
        image = image + rest.explained(basis)
    return Extended(landmarks, basis, image - system.noise.unsqueeze(-1) * basis)


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


class Bench:
    """One system with its right-hand sides, and a record per range."""

    def __init__(self, system: LinearSystem, target: Float[Tensor, "n 1"], plan: Plan) -> None:
        self.system, self.plan = system, plan
        self.solver = RangeFormerSolver(predictor="none", max_passes=1000, seed=plan.seed)
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
        prepared = RangeFormerPrepared(self.solver, self.system, Memory(), preconditioner, None)
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


def tabulate(records: Sequence[dict[str, Any]]) -> str:
    """Markdown, sums over the systems of every n and rank, build + solve; means of the directions kept.

    "fewer / more": in how many systems the range took fewer or more iterations than the r landmarks.
    """
    lines = []
    for n, rank in sorted({(record["n"], record["rank"]) for record in records}):
        here = [record for record in records if (record["n"], record["rank"]) == (n, rank)]
        base = [record["iterations"] for record in here if record["method"] == "landmarks"]
        lines += [f"n = {n}, r = {rank}, {len(base)} systems", ""]
        lines.append("| range | kept | iterations | fewer / more | passes | columns / 1000 | seconds | in all |")
        lines.append("| --- |" + " ---: |" * 7)
        for method in dict.fromkeys(record["method"] for record in here):
            rows = [record for record in here if record["method"] == method]
            if any("failure" in row for row in rows):
                lines.append(f"| {method} | failed on {sum('failure' in row for row in rows)} |")
                continue
            total = {key: sum(row[key] for row in rows) for key in rows[0] if isinstance(rows[0][key], int | float)}
            change = [row["iterations"] - before for row, before in zip(rows, base, strict=True)]
            build, solve = total["build_seconds"], total["solve_seconds"]
            lines.append(
                f"| {method} | {total['kept'] / len(rows):.0f} | {total['iterations']} "
                f"| {sum(c < 0 for c in change)} / {sum(c > 0 for c in change)} "
                f"| {total['build_passes']} + {total['passes']} "
                f"| {total['build_columns'] / 1000:.1f} + {total['columns'] / 1000:.1f} "
                f"| {build:.2f} + {solve:.2f} | {build + solve:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write OUT after every data set, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny, without UCI: checks that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = QUICK if options.quick else Plan()
    content: dict[str, Any] = {"about": __doc__, "machine": machine.describe(), "plan": asdict(plan), "records": []}
    trained: dict[str, list[tuple[int, Parameters]]] = {}
    for name, n in plan.systems:
        if name not in trained:
            trained[name] = trajectory(name, min(n, plan.trained_size), plan.stages, plan.seed)
        for step, state in trained[name]:
            system, target, _ = system_at(name, n, state, plan.seed)
            records = Bench(system, target, plan).run()
            content["records"] += [{"data": name, "n": n, "step": step, **record} for record in records]
        print(f"{name}, n = {n}: {time.process_time():.0f} s of the processor so far", flush=True)
        write_bytes(options.out, json.dumps(content, indent=1).encode())
    print(tabulate(content["records"]))


if __name__ == "__main__":
    main()
