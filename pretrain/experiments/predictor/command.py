"""Can a learned predictor of the next solutions beat linear extrapolation? Record, train, evaluate on unseen tables.

    OMP_NUM_THREADS=1 python -m pretrain.experiments.predictor --work DIR --out pretrain/results

Training runs are GP regressions on generated problems; the tables of the UCI are for evaluation alone. WORK keeps the
recorded runs, the weights and the paths, and what is there is used again. OUT/predictor.json is written after every
path, and OUT/predictor.md has its table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path as FilePath
from typing import Any

import torch
from safetensors.torch import load_file, save

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json, write_text
from pretrain.experiments.predictor.model import Learned
from pretrain.experiments.predictor.paths import Path, Problem, adam_path, generated, lbfgs_path, table
from pretrain.experiments.predictor.predictors import Damped, Hindsight, Sketched, linear, previous, span, zero
from pretrain.experiments.predictor.replay import Predictor, replay
from pretrain.experiments.predictor.train import train
from pretrain.experiments.predictor.trajectories import load_all, record_all

CLASSICAL: dict[str, Predictor] = {
    "none": zero,
    "previous": previous,
    "extrapolate": linear,
    "Galerkin over 2": span,
    "extrapolate + 0.2 Z": Damped(0.2),
    "hindsight, 4 X": Hindsight(4),
    "hindsight, 4 X and 4 Z": Hindsight(4, 4),
    "64 rows, 2 X": Sketched(2, 0, 64),
    "16 rows, 3 X and 2 Z": Sketched(3, 2, 16),
    "64 rows, 3 X and 2 Z": Sketched(3, 2, 64),
    "64 rows, 4 X and 4 Z": Sketched(4, 4, 64),
    "64 rows, 4 X and 4 Z, y apart": Sketched(4, 4, 64, apart=True),
}
_TRAINED = {"learned, 4 X": False, "learned, 4 X and 4 Z": True}


@dataclass(frozen=True)
class Plan:
    """How much of everything. ``tables`` and ``line_searches`` are names of UCI sets; without any, one generated path.

    Line searches drive the noise to its floor, where 400 landmarks no longer precondition: theirs is 0.01. ``larger``:
    tables on more points, along the hyperparameters found on ``n``.
    """

    runs: int = 160
    run_steps: int = 60
    training: int = 4000
    tables: tuple[str, ...] = ("pol", "bike", "kin40k", "elevators", "protein")
    line_searches: tuple[str, ...] = ("pol", "kin40k")
    larger: tuple[tuple[str, int], ...] = (("pol", 4000), ("kin40k", 4000))
    n: int = 2000
    rank: int = 400
    path_steps: int = 60
    repeats: int = 1  # solves of a step, of which the fastest is timed


QUICK = Plan(runs=2, run_steps=9, training=5, tables=(), line_searches=(), larger=(), rank=40, path_steps=8)


def main(arguments: Sequence[str] | None = None) -> None:
    """Record and train what is missing, then replay every path with every predictor."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=FilePath, required=True, help="folder for recorded runs, weights and paths")
    parser.add_argument("--out", type=FilePath, required=True)
    parser.add_argument("--quick", action="store_true", help="tiny, without UCI: checks that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = QUICK if options.quick else Plan()
    record_all(options.work / "runs", plan.runs, plan.run_steps)
    runs = load_all(options.work / "runs", plan.runs, plan.run_steps)
    predictors, trainings = dict(CLASSICAL), {}
    for name, corrected in _TRAINED.items():
        file = options.work / f"model-{'corrected' if corrected else 'plain'}.safetensors"
        model, trainings[name] = train(runs, file, corrected=corrected, steps=plan.training)
        predictors[name] = Learned(model)
    content: dict[str, Any] = {
        "about": __doc__,
        "machine": machine.describe(),
        "plan": asdict(plan),
        "trainings": trainings,
        "paths": [],
    }
    file = options.out / "predictor.json"
    known = _known(file, content)
    for path in _paths(plan, options.work / "paths"):
        entry = known.get(_key(path)) or _compare(path, predictors, plan)
        content["paths"].append(entry)
        write_json(file, content)
        write_text(file.with_suffix(".md"), tabulate(content["paths"]))


def _key(path: Path) -> tuple[str, str, int]:
    return path.problem.name, path.optimiser, path.problem.size


def _known(file: FilePath, content: dict[str, Any]) -> dict[tuple[str, str, int], dict[str, Any]]:
    """The paths that an earlier run of the same plan, with the same models, has compared."""
    if not file.is_file():
        return {}
    earlier = json.loads(file.read_text())
    wanted = json.loads(json.dumps({name: content[name] for name in ("machine", "plan", "trainings")}))
    if any(earlier.get(name) != value for name, value in wanted.items()):
        return {}
    return {(entry["problem"], entry["optimiser"], entry["n"]): entry for entry in earlier["paths"]}


def _paths(plan: Plan, folder: FilePath) -> Iterator[Path]:
    """Adam at 0.1 on every table, L-BFGS on some; or one generated problem that no training run has."""
    if not plan.tables:
        yield adam_path(generated(1_000_000), 0.1, plan.path_steps)
    for name in plan.tables:
        problem = table(name, plan.n)
        yield _kept(folder, problem, f"adam-{name}", lambda problem: adam_path(problem, 0.1, plan.path_steps))
    for name in plan.line_searches:
        problem = table(name, plan.n, least_noise=0.01)
        yield _kept(folder, problem, f"lbfgs-{name}", lambda problem: lbfgs_path(problem, plan.path_steps))
    for name, n in plan.larger:
        path = _kept(
            folder, table(name, plan.n), f"adam-{name}", lambda problem: adam_path(problem, 0.1, plan.path_steps)
        )
        yield Path(table(name, n), path.optimiser, path.raw)


def _kept(folder: FilePath, problem: Problem, name: str, make: Callable[[Problem], Path]) -> Path:
    file = folder / f"{name}-{problem.size}.safetensors"
    if not file.is_file():
        write_bytes(file, save({"raw": make(problem).raw}))
    return Path(problem, "Adam" if name.startswith("adam") else "L-BFGS", load_file(file)["raw"])


def _compare(path: Path, predictors: dict[str, Predictor], plan: Plan) -> dict[str, Any]:
    """Every predictor on one path."""
    bills = replay(path, predictors, rank=plan.rank, repeats=plan.repeats)
    for name, bill in bills.items():
        print(f"{path.problem.name} {path.optimiser} {name}: {bill}", flush=True)
    return {
        "problem": path.problem.name,
        "optimiser": path.optimiser,
        "n": path.problem.size,
        "steps": len(path.raw),
        "predictors": bills,
    }


def tabulate(paths: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row per predictor, a column per path; iterations / thousands of columns / seconds."""
    heads = [f"{path['problem']}, {path['optimiser']}, n = {path['n']}" for path in paths]
    lines = ["| | " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(heads)]
    for name in paths[0]["predictors"]:
        bills = [path["predictors"][name] for path in paths]
        cells = [f"{b['iterations']} / {b['columns'] / 1000:.1f} / {b['seconds']:.2f}" for b in bills]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
