"""What other work on the machine costs a training step: alone, beside busy processes, and with threads that sleep.

    python -m gp_rangeformer.lab.guide.contention --json examples/guide/results/contention.json

OpenMP's threads wait for each other in loops of nothing. Where there are fewer free cores than threads they wait for
one that is not running: many short parallel stretches then take far longer than few long ones.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide.results import Contention

QUIET, ONE, BUSY = "quiet", "one busy process", "two busy processes"
PASSIVE = "two busy processes, OMP_WAIT_POLICY=PASSIVE"
BUSY_PROCESSES = {QUIET: 0, ONE: 1, BUSY: 2, PASSIVE: 2}
SOLVERS = {"flag": "RangeFormer", "cg": "GPyTorch CG", "cholesky": "GPyTorch Cholesky"}
_MODULE = "gp_rangeformer.lab.guide.contention"
_WARM_UP, _MOST = 3, 40


class Plan(NamedTuple):
    """``patience``: seconds after which no further step of a solver is begun, once one counts."""

    n: int = 2000
    dimensions: int = 8
    threads: int = 2
    patience: float = 8.0


def measure(plan: Plan) -> list[dict[str, Any]]:
    """Mean seconds per step of every solver under all conditions, each condition in a process of its own."""
    rows = []
    for conditions, busy in BUSY_PROCESSES.items():
        environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads)}
        if conditions == PASSIVE:
            environment["OMP_WAIT_POLICY"] = "PASSIVE"
        with _busy(busy), tempfile.TemporaryDirectory() as folder:
            # In a file: other libraries print what they like.
            steps = Path(folder) / "steps.json"
            command = [sys.executable, "-m", _MODULE, "--steps-only", json.dumps(plan), "--json", str(steps)]
            subprocess.run(command, env=environment, check=True)
            rows += [{"conditions": conditions, **row} for row in json.loads(steps.read_text("utf-8"))]
    return rows


@contextlib.contextmanager
def _busy(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def time_steps(plan: Plan) -> list[dict[str, Any]]:
    """Value, gradient and Adam update, in this process: means after the third step."""
    import gpytorch
    import torch

    from gp_rangeformer import settings

    class Model(gpytorch.models.ExactGP):
        def __init__(self, x: Any, y: Any, likelihood: Any) -> None:
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ConstantMean()
            kernel = gpytorch.kernels.MaternKernel(1.5, ard_num_dims=plan.dimensions)
            self.covar_module = gpytorch.kernels.ScaleKernel(kernel)

        def forward(self, x: Any) -> Any:
            mean: Any = self.mean_module(x)
            return gpytorch.distributions.MultivariateNormal(mean, self.covar_module(x))

    torch.set_num_threads(plan.threads)
    torch.manual_seed(0)
    x = torch.rand(plan.n, plan.dimensions)
    y = torch.sin(3 * x.sum(1)) + 0.1 * torch.randn(plan.n)
    contexts: dict[str, Any] = {
        "flag": settings.rangeformer,
        "cg": contextlib.nullcontext,
        "cholesky": lambda: gpytorch.settings.max_cholesky_size(10**5),
    }
    rows = []
    for name, context in contexts.items():
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        model: Any = Model(x, y, likelihood).train()
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        seconds: list[float] = []
        with context():
            while len(seconds) <= _WARM_UP or (sum(seconds) < plan.patience and len(seconds) < _MOST):
                started = time.perf_counter()
                optimizer.zero_grad()
                loss: Any = mll(model(x), y)
                (-loss).backward()
                optimizer.step()
                seconds.append(time.perf_counter() - started)
        later = seconds[_WARM_UP:]
        rows.append({"solver": name, "seconds": sum(later) / len(later), "steps": len(later)})
    return rows


def grid(found: Contention, where: str) -> Grid:
    """One row per solver, one column per condition."""
    rows = []
    for name, title in SOLVERS.items():
        cells = (found.seconds[conditions, name] for conditions in BUSY_PROCESSES)
        rows.append((title, *(f"{seconds:.3f} ({steps})" for seconds, steps in cells)))
    notes = (
        f"mean over so many steps after the third; n = {found.n:,}, Matern-3/2, {found.dtype}, {found.threads} "
        f"threads; {where}",
    )
    return Grid("Busy machines", ("seconds a step (steps)", *BUSY_PROCESSES), tuple(rows), notes)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(prog=f"python -m {_MODULE}", description="Steps beside busy processes.")
    parser.add_argument("--json", type=Path, help="Write the result to this file.")
    parser.add_argument("--plan", default="{}", help="Other sizes, as JSON.")
    parser.add_argument("--steps-only", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps_only is not None:
        options.json.write_text(json.dumps(time_steps(Plan(*json.loads(options.steps_only)))), "utf-8")
        return
    from gp_rangeformer.lab.compare import machine
    from gp_rangeformer.lab.compare.result import write_json

    plan = Plan(**json.loads(options.plan))
    rows = measure(plan)
    for row in rows:
        print(f"{row['conditions']}: {row['solver']} {row['seconds']:.3f} s a step, mean of {row['steps']}")
    if options.json is not None:
        content = {**plan._asdict(), "dtype": "float32", "kernel": "matern32", "rows": rows}
        write_json(options.json, {"machine": machine.describe(), **content})


if __name__ == "__main__":
    main()
