"""The plug-in among its peers: one size of one problem, and what was found there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from gp_rangeformer import clear_memory
from gp_rangeformer.allocation.free_memory import free_bytes
from gp_rangeformer.lab.bench.contenders import Contender, Problem, UnavailableError
from gp_rangeformer.lab.bench.entrants import Entrant
from gp_rangeformer.lab.bench.forecast import refusal
from gp_rangeformer.lab.bench.memory import measure_memory
from gp_rangeformer.lab.bench.replay import Outcome, describe_error, record_trajectory, replay
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.audit import ExactEvaluator, Parameters, snapshot
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.models import build_model

Observer = Callable[[str], None]
LEARNING_RATE, LATE_LEARNING_RATE = 0.1, 0.01
_MIB = 2**20


@dataclass
class Row:
    """One contender at one size.

    :param outcome: of the replay; without steps where it did not come to one. ``outcome.left_out`` says why.
    :param first_call: seconds of its first step in the process, None where an earlier size had it.
    :param peak: MiB above what was held before, of one step, or of as many as fill its memory.
    """

    outcome: Outcome
    description: str
    first_call: float | None = None
    peak: float | None = None

    @property
    def name(self) -> str:
        return self.outcome.name

    @property
    def complete(self) -> bool:
        return self.outcome.left_out is None

    def seconds(self) -> float | None:
        """The median, None for a contender that was left out."""
        return self.outcome.summary()["seconds"] if self.complete else None


@dataclass
class Size:
    """All contenders at one n."""

    n: int
    d: int
    kernel: str
    machine: str
    threads: int
    rows: list[Row]

    def row(self, name: str) -> Row | None:
        return next((row for row in self.rows if row.name == name), None)

    def to_json(self) -> dict[str, object]:
        summaries = {row.name: row.outcome.summary() for row in self.rows}
        return {**asdict(self), "summaries": summaries}

    @classmethod
    def from_json(cls, content: Mapping) -> Size:
        rows = [Row(**{**row, "outcome": Outcome(**row["outcome"])}) for row in content["rows"]]
        return cls(content["n"], content["d"], content["kernel"], content["machine"], content["threads"], rows)


def measure_size(
    problem: Problem,
    entrants: Sequence[Entrant],
    earlier: Sequence[Size],
    *,
    steps: int,
    seed: int = 0,
    start: Parameters | None = None,
    patience: float = math.inf,
    audit: bool = True,
    first_calls: bool = True,
    peaks: bool = True,
    observer: Observer = lambda text: None,
) -> Size:
    """Record a trajectory with the plug-in, replay it with everybody, then measure memory one contender at a time.

    :param start: where the trajectory begins, the end of a fit, from where its steps are ten times smaller; None for
        the model's own values.
    :param earlier: smaller sizes of the same problem, from which seconds and memory are foreseen.
    :param patience: seconds a step may take, foreseen or found.
    :param audit: compute exact float64 values and gradients; O(n^3) and about four n x n matrices.
    :param first_calls: time the first step of every contender before anything else has run.
    :param peaks: measure peak memory.
    """
    torch.manual_seed(seed)
    rows = [Row(Outcome(entrant.name), entrant.description) for entrant in entrants]
    first = start or snapshot(build_model(problem.data, problem.kernel)[0])
    contenders: dict[str, Contender] = {}
    for entrant, row in zip(entrants, rows, strict=True):
        row.outcome.left_out = _refusal(entrant, problem, earlier, patience)
        if row.complete:
            try:
                contenders[row.name] = entrant.build(problem)
                if first_calls:
                    observer(f"first call of {row.name}")
                    row.first_call = contenders[row.name].evaluate(first).seconds
            except UnavailableError as error:
                row.outcome.left_out = str(error)
            except Exception as error:
                row.outcome.left_out = f"failed at its first call: {describe_error(error)}"
            clear_memory()
    observer("trajectory")
    rate = LEARNING_RATE if start is None else LATE_LEARNING_RATE
    states = record_trajectory(problem.data, problem.kernel, recorder(problem), steps, rate, start)
    running = [contenders[row.name] for row in rows if row.complete]
    del contenders
    exact = None
    if audit:
        exact = ExactEvaluator(problem.dataset.to(torch.float64, problem.device), problem.kernel)
    observer("replay")
    outcomes = replay(running, states, exact, max(1, steps // 4), patience)
    for outcome in outcomes:
        next(row for row in rows if row.name == outcome.name).outcome = outcome
    del running, exact
    observer("memory")
    for entrant, row in zip(entrants, rows, strict=True):
        if row.complete and peaks:
            row.peak = measure_memory(entrant, problem, states)
    d = problem.dataset.train_x.shape[1]
    return Size(problem.n, d, problem.kernel, machine.one_line(problem.device), torch.get_num_threads(), rows)


def recorder(problem: Problem) -> SolverSpec:
    """Takes the trajectory: the plug-in's defaults, at any n."""
    return SolverSpec("rangeformer", "rangeformer", problem.dtype, {"min_size": 1})


def _refusal(entrant: Entrant, problem: Problem, earlier: Sequence[Size], patience: float) -> str | None:
    found = {size.n: row for size in earlier if (row := size.row(entrant.name)) is not None}
    free = free_bytes(torch.device(problem.device))
    return refusal(
        problem.n,
        {n: row.outcome.summary()["seconds"] for n, row in found.items() if row.outcome.seconds},
        {n: row.peak for n, row in found.items() if row.peak is not None},
        growth=entrant.growth,
        patience=patience,
        free=None if free is None else free / _MIB,
    )
