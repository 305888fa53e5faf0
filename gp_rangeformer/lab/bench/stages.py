"""Where the seconds of a training step go: into K and its gradient, which are the floor, into products, and the rest.

Every stage's time is its own, without that of the stages it calls. Products run at a rate that can be compared with the
fastest that the machine's library reaches, on square matrices: what is left to gain by faster products.
"""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from gp_rangeformer import clear_memory
from gp_rangeformer.kernels import fused
from gp_rangeformer.lab.bench.contenders import ModelContender, Problem, UnavailableError
from gp_rangeformer.lab.bench.floors import factors
from gp_rangeformer.lab.bench.peers import LEARNING_RATE, recorder
from gp_rangeformer.lab.bench.products import median_seconds
from gp_rangeformer.lab.bench.replay import WARM_UP, record_trajectory
from gp_rangeformer.lab.compare.instruments import synchronize
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.models import build_model
from gp_rangeformer.logdet import learned
from gp_rangeformer.plugin.recognition import recognise
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.solvers import certified, certified_prepared
from gp_rangeformer.system.kernel_matrix import DenseKernelMatrix
from gp_rangeformer.system.linear_system import LinearSystem

FLOOR = ("K", "contraction of its gradient")
PRODUCTS = "products with K"
# (stage, whose function, its name): looked up at every call, so that it can be replaced by one that is timed.
_FUNCTIONS: tuple[tuple[str, Any, str], ...] = (
    (FLOOR[0], fused.FusedKernel, "evaluate"),
    (FLOOR[0], fused, "evaluate_arguments"),
    (FLOOR[1], fused.FusedKernel, "contract_symmetric"),
    (FLOOR[1], fused, "contract"),
    (PRODUCTS, LinearSystem, "matmul"),
    ("preconditioner", certified, "nystrom_preconditioner"),
    ("preconditioner", NystromPreconditioner, "solve"),
    ("prediction", certified_prepared, "fit_to_rows"),
    ("block CG and certificates", certified_prepared, "refine"),
    ("log determinant", learned, "tail"),
)
REST = "autograd, GPyTorch, and all else"
STAGES = (*dict.fromkeys(stage for stage, _, _ in _FUNCTIONS), REST)
_SQUARE = 4096  # rows of the matrices that the library multiplies


@dataclass(frozen=True)
class Breakdown:
    """One size. ``seconds``: means per step after the warm-up, for every one of :data:`STAGES`; ``iterations`` and
    ``passes`` likewise. ``rate``: floating-point operations per second of a product of K with 33 columns, and
    ``fastest`` of a product of two square matrices by PyTorch's library."""

    n: int
    seconds: dict[str, float]
    iterations: float
    passes: float
    rate: float
    fastest: float

    @property
    def step(self) -> float:
        return sum(self.seconds.values())

    @property
    def floor(self) -> float:
        return sum(self.seconds[stage] for stage in FLOOR)


def measure_stages(problem: Problem, *, steps: int = 12, seed: int = 0) -> Breakdown:
    """Take a trajectory of Adam steps with the defaults, and take it again with a clock in every stage.

    :param steps: more than the three of the warm-up.
    :raises UnavailableError: the kernel has no fused form.
    """
    torch.manual_seed(seed)
    rates = _rates(problem)
    spec = recorder(problem)
    spec = replace(spec, overrides={**spec.overrides, "kernel_storage": "dense"})
    states = record_trajectory(problem.data, problem.kernel, spec, steps, LEARNING_RATE)
    contender = ModelContender(spec, problem.data, problem.kernel)
    clear_memory()
    for state in states[:WARM_UP]:
        contender.evaluate(state)
    with timed(torch.device(problem.device)) as seconds:
        measured = [contender.evaluate(state) for state in states[WARM_UP:]]
    clear_memory()
    count = len(measured)
    found = {stage: seconds[stage] / count for stage in STAGES}
    found[REST] = sum(evaluation.seconds for evaluation in measured) / count - sum(found.values())
    iterations = sum(evaluation.iterations for evaluation in measured) / count
    passes = sum(evaluation.passes for evaluation in measured) / count
    return Breakdown(problem.n, found, iterations, passes, *rates)


@contextlib.contextmanager
def timed(device: torch.device) -> Iterator[dict[str, float]]:
    """Sums of seconds by stage, of all calls inside; what a stage spends in another is the other's."""
    seconds: dict[str, float] = defaultdict(float)
    inner = [0.0]  # seconds of the stages that each running stage, or the caller, has called

    def clocked(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            synchronize(device)
            started = time.perf_counter()
            inner.append(0.0)
            try:
                return function(*arguments, **options)
            finally:
                synchronize(device)
                taken = time.perf_counter() - started
                seconds[stage] += taken - inner.pop()
                inner[-1] += taken

        return call

    with contextlib.ExitStack() as stack:
        for stage, owner, name in _FUNCTIONS:
            stack.enter_context(mock.patch.object(owner, name, clocked(stage, getattr(owner, name))))
        yield seconds


def _rates(problem: Problem) -> tuple[float, float]:
    x, device = problem.data.train_x, torch.device(problem.device)
    model, _ = build_model(problem.data, problem.kernel)
    kernel = recognise(model.covar_module, x)
    if kernel is None:
        raise UnavailableError(f"kernel {problem.kernel!r} has no fused form")
    with torch.no_grad():
        matrix, (vectors, _) = DenseKernelMatrix(kernel.dense()), factors(problem)
        seconds = median_seconds(lambda: matrix.matmul(vectors), device)
        square = torch.ones(_SQUARE, _SQUARE, dtype=x.dtype, device=device)
        fastest = median_seconds(lambda: square @ square, device)
    return 2 * problem.n**2 * vectors.shape[1] / seconds, 2 * _SQUARE**3 / fastest


def stages_grid(found: list[Breakdown], where: str) -> Grid:
    """One column per size."""

    def row(title: str, cell: Callable[[Breakdown], str]) -> tuple[str, ...]:
        return title, *(cell(size) for size in found)

    def share(stage: str) -> Callable[[Breakdown], str]:
        return lambda size: f"{1e3 * size.seconds[stage]:.1f} ({100 * size.seconds[stage] / size.step:.0f} %)"

    rows = (
        *(row(stage, share(stage)) for stage in STAGES),
        row("a step", lambda size: f"{1e3 * size.step:.1f}"),
        row("over K and its gradient", lambda size: f"{size.step / size.floor:.2f}"),
        row("were products free", lambda size: f"{(size.step - size.seconds[PRODUCTS]) / size.floor:.2f}"),
        row("iterations, passes", lambda size: f"{size.iterations:.1f}, {size.passes:.1f}"),
        row("Gflop/s: products, square ones", lambda size: f"{size.rate / 1e9:.0f}, {size.fastest / 1e9:.0f}"),
    )
    headers = ("ms a step (share)", *(f"n = {size.n}" for size in found))
    notes = (f"means after the third step; a stage without those it calls; {where}",)
    return Grid("stages of a step", headers, rows, notes)
