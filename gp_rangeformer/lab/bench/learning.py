"""What the learning buys: every part that is learned or tuned at its default, and replaced by its alternatives.

One part is learned: the log determinant. The others are here to give its gain a measure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import geometric_mean, mean

import torch

from gp_rangeformer.lab.bench.contenders import ModelContender
from gp_rangeformer.lab.bench.replay import Outcome, ratio, record_trajectory, replay
from gp_rangeformer.lab.compare.audit import ExactEvaluator
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.models import default_kernel


@dataclass(frozen=True)
class Contender:
    """A row of the table: one part of the solver in one state, everything else at its default."""

    part: str
    state: str
    overrides: dict[str, object]
    effort: bool = False  # spends more or less on the same answer

    @property
    def name(self) -> str:
        return f"{self.part}: {self.state}"

    def spec(self, dtype: str) -> SolverSpec:
        return SolverSpec(self.name, "rangeformer", dtype, {"min_size": 1, **self.overrides})


PARTS = (
    Contender("all", "the defaults", {}),
    Contender("log determinant (learned)", "two-node quadrature: same cost, not learned", {"logdet": "quadrature"}),
    Contender("log determinant (learned)", "Lanczos, 10 probes", {"logdet": "lanczos", "num_logdet_probes": 10}),
    Contender("log determinant (learned)", "Lanczos, 16 probes", {"logdet": "lanczos"}),
    Contender("predictor (sampled rows)", "linear extrapolation", {"predictor": "extrapolate"}, effort=True),
    Contender("predictor (sampled rows)", "Galerkin on two solutions", {"predictor": "galerkin"}, effort=True),
    Contender("predictor (sampled rows)", "the last solution", {"predictor": "previous"}, effort=True),
    Contender("history (3 solutions)", "2", {"history": 2}, effort=True),
    Contender("history (3 solutions)", "4", {"history": 4}, effort=True),
    Contender("probes (32)", "64: a better gradient", {"num_probes": 64}),
    Contender("rank (adaptive)", "64", {"adaptive_rank": False, "rank": 64}, effort=True),
    Contender("rank (adaptive)", "128", {"adaptive_rank": False, "rank": 128}, effort=True),
    Contender("rank (adaptive)", "400", {"adaptive_rank": False}, effort=True),
    Contender("landmarks (RPCholesky)", "uniform", {"landmarks": "uniform"}, effort=True),
    Contender("landmarks (drawn again when iterations double)", "never", {"landmark_refresh": math.inf}, effort=True),
    Contender(
        "landmarks (drawn again when iterations double)", "at every increase", {"landmark_refresh": 1.0}, effort=True
    ),
    Contender("kernel (fused)", "tensor operations instead of compiled code", {"fused_kernels": "tensors"}),
    Contender("kernel (fused)", "GPyTorch's own evaluation", {"fused_kernels": "off"}),
)


@dataclass(frozen=True)
class Cell:
    """One data set, size and seed: every contender's outcome on the same trajectory."""

    data: str
    n: int
    seed: int
    steps: int
    outcomes: list[Outcome]

    @property
    def complete(self) -> bool:
        """Whether it holds the contenders of today's table."""
        return [outcome.name for outcome in self.outcomes] == [contender.name for contender in PARTS]

    def to_json(self) -> dict[str, object]:
        return {
            **{key: value for key, value in asdict(self).items()},
            "summaries": {outcome.name: outcome.summary() for outcome in self.outcomes},
        }

    @classmethod
    def from_json(cls, content: dict) -> Cell:
        outcomes = [Outcome(**outcome) for outcome in content["outcomes"]]
        return cls(content["data"], content["n"], content["seed"], content["steps"], outcomes)


def measure_cell(
    dataset: Dataset, *, steps: int, lr: float = 0.1, seed: int = 0, dtype: str = "float32", device: str = "cpu"
) -> Cell:
    """Record a trajectory of the default, replay it with every contender.

    :param dataset: in float64, as loaded.
    """
    kernel = default_kernel(dataset)
    data = dataset.to(getattr(torch, dtype), device)
    specs = [contender.spec(dtype) for contender in PARTS]
    torch.manual_seed(seed)
    states = record_trajectory(data, kernel, specs[0], steps, lr)
    exact = ExactEvaluator(dataset.to(torch.float64, device), kernel)
    contenders = [ModelContender(spec, data, kernel) for spec in specs]
    outcomes = replay(contenders, states, exact, audit_every=max(1, steps // 4))
    return Cell(dataset.name, len(dataset.train_y), seed, steps, outcomes)


def learning_table(cells: Sequence[Cell]) -> list[dict[str, float | str]]:
    """One row per contender: means over the cells. ``ratio``: its seconds over the default's, the geometric mean over
    cells of the median over steps of the ratio within a step."""
    rows: list[dict[str, float | str]] = []
    for number, contender in enumerate(PARTS):
        summaries = [cell.outcomes[number].summary() for cell in cells]
        ratios = [ratio(cell.outcomes[number], cell.outcomes[0]) for cell in cells]
        row: dict[str, float | str] = {"part": contender.part, "state": contender.state}
        row["ratio"] = geometric_mean(ratios)
        for key in ("seconds", "iterations", "passes", "value_error", "gradient_error"):
            row[key] = mean(summary[key] for summary in summaries)
        row["largest_value_error"] = max(summary["largest_value_error"] for summary in summaries)
        rows.append(row)
    return rows


def best_fixed(cells: Sequence[Cell]) -> dict[str, tuple[str, float]]:
    """For every data set the setting of effort that was the fastest over its seeds, the default included, and its
    seconds over the default's: what a rule could gain that knew each set beforehand."""
    found = {}
    for data in sorted({cell.data for cell in cells}):
        own = [cell for cell in cells if cell.data == data]
        ratios = {PARTS[0].state: 1.0}
        for number, contender in enumerate(PARTS):
            if contender.effort:
                ratios[contender.name] = geometric_mean(ratio(cell.outcomes[number], cell.outcomes[0]) for cell in own)
        name = min(ratios, key=ratios.__getitem__)
        found[data] = name, ratios[name]
    return found


def grids(cells: Sequence[Cell], machine: str) -> list[Grid]:
    """One table per size."""
    headers = ("part", "instead", "s/step", "/ default", "iter", "passes", "value err", "largest", "grad err")
    found = []
    for n in sorted({cell.n for cell in cells}):
        members = [cell for cell in cells if cell.n == n]
        rows = tuple(
            (
                str(row["part"]),
                str(row["state"]),
                f"{row['seconds']:.3f}",
                f"{row['ratio']:.2f}",
                f"{row['iterations']:.2f}",
                f"{row['passes']:.1f}",
                f"{row['value_error']:.4f}",
                f"{row['largest_value_error']:.4f}",
                f"{100 * float(row['gradient_error']):.1f} %",
            )
            for row in learning_table(members)
        )
        names = ", ".join(sorted({cell.data for cell in members}))
        seeds = ", ".join(str(seed) for seed in sorted({cell.seed for cell in members}))
        steps = max(cell.steps for cell in members)
        best = best_fixed(members)
        gained = geometric_mean(value for _, value in best.values())
        chosen = ", ".join(f"{data} {value:.2f} ({name})" for data, (name, value) in best.items())
        notes = (
            f"{names}; seeds {seeds}; {steps} Adam steps, float32; means over data sets and seeds; {machine}",
            "/ default: seconds over the default's within a step; errors in nats per point against exact float64",
            f"the best fixed effort of every set, chosen afterwards: {gained:.2f} of the default's seconds: {chosen}",
        )
        found.append(Grid(f"n = {n}", headers, rows, notes, keys=2))
    return found
