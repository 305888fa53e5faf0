"""What the learning buys: every learned part on, replaced by a classical choice of equal cost, and off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from statistics import mean

import torch

from gp_rangeformer.bench.replay import WARM_UP, Outcome, record_trajectory, replay
from gp_rangeformer.compare.audit import ExactEvaluator
from gp_rangeformer.compare.solvers import SolverSpec
from gp_rangeformer.datasets import Dataset
from gp_rangeformer.models import default_kernel


@dataclass(frozen=True)
class Contender:
    """A row of the table: one part of the solver in one state, everything else at its default."""

    part: str
    state: str
    overrides: dict[str, object]

    def spec(self, dtype: str) -> SolverSpec:
        return SolverSpec(f"{self.part}: {self.state}", "rangeformer", dtype, {"min_size": 1, **self.overrides})


_LEARNED = "log determinant"
PARTS = (
    Contender("all learned parts", "on (default)", {"logdet": "learned"}),
    Contender(_LEARNED, "two-node quadrature, same cost, not learned", {"logdet": "quadrature"}),
    Contender(_LEARNED, "off: Lanczos with 16 probes", {"logdet": "lanczos"}),
    Contender(_LEARNED, "off: Lanczos with 10 probes", {"logdet": "lanczos", "num_logdet_probes": 10}),
    Contender("ranges", "uniform landmarks instead of RPCholesky (neither is learned)", {"landmarks": "uniform"}),
    Contender("predictor", "the last solution instead of extrapolation", {"predictor": "previous"}),
    Contender("predictor", "Galerkin on the last two solutions", {"predictor": "galerkin"}),
)
REFERENCE = PARTS[0]


@dataclass(frozen=True)
class Cell:
    """One data set, size and seed: every contender's outcome on the same trajectory."""

    data: str
    n: int
    seed: int
    steps: int
    outcomes: list[Outcome]

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
    outcomes = replay(data, kernel, states, specs, exact, audit_every=max(1, steps // 4))
    return Cell(dataset.name, len(dataset.train_y), seed, steps, outcomes)


def learning_table(cells: Sequence[Cell]) -> list[dict[str, object]]:
    """One row per contender: means over the cells; ``speed``: its seconds over the default's, geometric mean over cells
    of the median over steps of the ratio within a step."""
    rows: list[dict[str, object]] = []
    for number, contender in enumerate(PARTS):
        summaries = [cell.outcomes[number].summary() for cell in cells]
        ratios = [_ratio(cell.outcomes[number], cell.outcomes[0]) for cell in cells]
        rows.append(
            {
                "part": contender.part,
                "state": contender.state,
                "seconds": mean(summary["seconds"] for summary in summaries),
                "ratio": exp(mean(log(ratio) for ratio in ratios)),
                **{
                    key: mean(summary[key] for summary in summaries)
                    for key in ("iterations", "passes", "value_error", "gradient_error")
                },
                "largest_value_error": max(summary["largest_value_error"] for summary in summaries),
            }
        )
    return rows


def _ratio(outcome: Outcome, reference: Outcome) -> float:
    pairs = list(zip(outcome.seconds, reference.seconds, strict=True))[WARM_UP:]
    return float(torch.tensor([own / other for own, other in pairs]).median())
