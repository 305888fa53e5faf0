"""Four linear transformers for A x = b across sizes and condition numbers, beside k classical steps.

Repeats Vladymyrov et al., "Efficient Linear System Solver with Transformers" (2024): a full model for n = 9, a block
model for n = 9, one for n in [2, 9], and one for n in [10, 20] fine-tuned from it. The paper does not give layers,
condition number or spectra; chosen here: 4 layers, condition number 10, norm 1, eigenvalues log-uniform in between.

    python -m pretrain.experiments.linear_systems --out results/linear_systems

Checkpoints in the folder are used again if their configuration is the one asked for.
"""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json
from pretrain.baselines.classical import conjugate_gradients, exact, gradient_descent
from pretrain.baselines.linear_system_transformer import LinearSystemTransformer, LinearSystemTransformerConfig
from pretrain.experiments.model_file import read_model, write_model
from pretrain.experiments.spd_systems import random_systems
from pretrain.tensor_file import TensorFileError

Solver = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Training:
    """One model and how it is trained; the checkpoint carries all of it."""

    model: LinearSystemTransformerConfig
    smallest_size: int
    largest_size: int
    steps: int
    learning_rate: float  # of Adam, after a warm-up of 100 steps and before a cosine to 1 % of it
    parent: Training | None = None  # the training whose result this one starts from
    minutes: float | None = None  # a clock that ends the schedule instead of ``steps``
    batch: int = 128  # systems a step, all of one size
    condition: float = 10.0
    clip: float = 0.1  # norm of the gradient: one spike at 1 enters Adam's second moment for a thousand steps


@dataclass(frozen=True)
class Evaluation:
    """The held-out systems, the same for all models and seeds."""

    systems: int = 256
    sizes: tuple[int, ...] = (*range(2, 21), 24, 28, 32, 36, 40)
    conditions: tuple[float, ...] = (2.0, 5.0, 10.0, 30.0, 100.0, 1000.0)
    condition_sizes: tuple[int, ...] = (9, 20)
    seed: int = 2024


LAYERS = 4
FULL, BLOCK_9, BLOCK_SMALL, BLOCK_LARGE = "full n=9", "block n=9", "block n in [2, 9]", "block n in [10, 20]"
# Okabe and Ito's: four models, three classical solvers.
COLOURS = ("#CC79A7", "#E69F00", "#0072B2", "#009E73", "#8A8A8A", "#D55E00", "#000000")


def trainings(steps: int | None = None, minutes: float | None = None) -> dict[str, Training]:
    """The paper's four models; ``steps`` or ``minutes`` for each of them in place of the planned steps."""
    full = LinearSystemTransformerConfig(LAYERS, "full", size=9, embedding="learned", embedding_dim=27)
    block = LinearSystemTransformerConfig(LAYERS)
    planned = {
        FULL: Training(full, 9, 9, 20000, 5e-3),
        BLOCK_9: Training(block, 9, 9, 15000, 1e-2),
        BLOCK_SMALL: Training(block, 2, 9, 30000, 1e-2),
    }
    planned = {name: replace(run, steps=steps or run.steps, minutes=minutes) for name, run in planned.items()}
    planned[BLOCK_LARGE] = replace(
        planned[BLOCK_SMALL],
        smallest_size=10,
        largest_size=20,
        steps=steps or 5000,
        learning_rate=2e-3,
        parent=planned[BLOCK_SMALL],
    )
    return planned


def train(
    name: str, run: Training, seed: int, path: Path, start: LinearSystemTransformer | None, log_every: int
) -> tuple[LinearSystemTransformer, dict[str, Any]]:
    """Train from ``start`` or from scratch and write the checkpoint; or read it, if ``path`` has this configuration.

    :returns: the model, and the record of its training: configuration, seed, steps, seconds, loss.
    """
    asked = {"training": asdict(run), "seed": seed}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LinearSystemTransformer(run.model)
    known = read_model(path, model, asked)
    if known is not None:
        print(f"{name}, seed {seed}: {path.name} is there", flush=True)
        return model, known
    if start is not None:
        model.load_state_dict(start.state_dict())
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=run.learning_rate)
    began, step, losses = time.perf_counter(), 0, []
    while (progress := _progress(run, step, time.perf_counter() - began)) < 1:
        rate = run.learning_rate * min(1.0, (step + 1) / 100) * (0.01 + 0.99 * (1 + math.cos(math.pi * progress)) / 2)
        for group in optimiser.param_groups:
            group["lr"] = rate
        n = int(torch.randint(run.smallest_size, run.largest_size + 1, (), generator=generator))
        matrix, rhs, solution = random_systems(run.batch, n, run.condition, generator)
        loss = (model(matrix, rhs) - solution).square().sum(-1).mean()
        optimiser.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip)
        if math.isfinite(float(norm)):
            optimiser.step()
        step += 1
        losses.append(loss.item())
        if step % log_every == 0:
            milliseconds = 1e3 * (time.perf_counter() - began) / step
            recent = fmean(losses[-log_every:])
            print(f"{name}, seed {seed}, step {step}: loss {recent:.3e}, {milliseconds:.1f} ms a step", flush=True)
    record = {
        "model": name,
        **asked,
        "steps": step,
        "seconds": time.perf_counter() - began,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "final_loss": fmean(losses[-200:]),
    }
    print(
        f"{name}, seed {seed}: {step} steps in {record['seconds']:.0f} s, loss {record['final_loss']:.3e}", flush=True
    )
    write_model(path, model, record)
    return model, record


def _progress(run: Training, step: int, seconds: float) -> float:
    return step / run.steps if run.minutes is None else seconds / (60 * run.minutes)


def as_solver(model: LinearSystemTransformer) -> Solver:
    """The model for every size it can be given. A full model takes smaller systems as diag(A, I), (b, 0).

    :raises ValueError: from a full model whose size is below n.
    """
    size = model.config.size

    @torch.no_grad()
    def solve(matrix: Tensor, rhs: Tensor) -> Tensor:
        n = rhs.shape[-1]
        if size is None or n >= size:
            return model(matrix, rhs)
        padded = torch.eye(size).repeat(len(rhs), 1, 1)
        padded[:, :n, :n] = matrix
        return model(padded, torch.nn.functional.pad(rhs, (0, size - n)))[:, :n]

    return solve


def errors(solver: Solver, evaluation: Evaluation, trained_condition: float) -> dict[str, Any]:
    """Mean over systems of |solver(A, b) - x| / |x|, by size and by condition; None if not served, NaN if it overflows.

    Systems are drawn from the evaluation's seed and their size and condition, so every solver meets the same ones.
    """

    def error(n: int, condition: float) -> float | None:
        generator = torch.Generator().manual_seed(evaluation.seed + 10_000 * n + round(condition))
        matrix, rhs, solution = random_systems(evaluation.systems, n, condition, generator)
        try:
            approximate = solver(matrix, rhs)
        except ValueError:
            return None
        return float(((approximate - solution).norm(dim=-1) / solution.norm(dim=-1)).mean())

    return {
        "by_size": [error(n, trained_condition) for n in evaluation.sizes],
        "by_condition": {str(n): [error(n, c) for c in evaluation.conditions] for n in evaluation.condition_sizes},
    }


def baselines(condition: float) -> dict[str, Solver]:
    """As many steps as the models have layers, and the exact solve."""
    return {
        f"gradient descent, {LAYERS} steps": lambda a, b: gradient_descent(a, b, LAYERS, 1 / condition, 1.0),
        f"conjugate gradients, {LAYERS} steps": lambda a, b: conjugate_gradients(a, b, LAYERS),
        "exact (Cholesky, float32)": exact,
    }


def summarise(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation, least and largest over seeds of what :func:`errors` returned."""
    sizes = runs[0]["by_condition"]
    return {
        "by_size": [_moments(values) for values in zip(*(run["by_size"] for run in runs), strict=True)],
        "by_condition": {
            n: [_moments(values) for values in zip(*(run["by_condition"][n] for run in runs), strict=True)]
            for n in sizes
        },
    }


def _moments(values: Sequence[float | None]) -> dict[str, float] | None:
    known = torch.tensor([value for value in values if value is not None], dtype=torch.float64)
    if len(known) < len(values):
        return None
    std = known.std(correction=min(1, len(known) - 1))
    return {"mean": float(known.mean()), "std": float(std), "min": float(known.min()), "max": float(known.max())}


def draw(content: dict[str, Any]) -> Figure:
    """Relative error over n, and over the condition number at two sizes; bands reach from best to worst seed."""
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    evaluation, lines = content["evaluation"], {**content["models"], **content["baselines"]}
    for colour, (name, result) in zip(COLOURS, lines.items(), strict=True):
        style = {"color": colour, "linewidth": 1.8 if name in content["models"] else 1.1}
        _curve(left, evaluation["sizes"], result["by_size"], {**style, "label": name, "marker": ".", "markersize": 5})
        for n, dashes in zip(evaluation["condition_sizes"], ("-", "--"), strict=True):
            _curve(right, evaluation["conditions"], result["by_condition"][str(n)], {**style, "linestyle": dashes})
    trained = content["condition"]
    left.set(xlabel="n", ylabel="mean relative error of x", title=f"condition number {trained:g}", yscale="log")
    solid, dashed = evaluation["condition_sizes"]
    right.set(xlabel="condition number", xscale="log", title=f"n = {solid} (solid) and n = {dashed} (dashed)")
    right.axvline(trained, color="0.8", linewidth=1, zorder=0)
    # Predicting zero has error 1: what lies far above needs no resolution.
    left.set_ylim(1e-7, 1e2)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure


def _curve(axes: Any, abscissae: Sequence[float], moments: Sequence[Any], style: dict[str, Any]) -> None:
    shown = [(at, each["mean"], each["min"], each["max"]) for at, each in zip(abscissae, moments, strict=True) if each]
    if shown:
        at, mean, least, largest = (torch.tensor(values) for values in zip(*shown, strict=True))
        axes.plot(at, mean, **style)
        axes.fill_between(at, least, largest, color=style["color"], alpha=0.18, linewidth=0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, evaluate, and write linear_systems.json and linear_systems.png into ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="for all models and seeds together")
    length.add_argument("--steps", type=int, help="for each model")
    parser.add_argument("--quick", action="store_true", help="20 steps, 1 seed, few systems: checks that it runs")
    parser.add_argument("--log-every", type=int, default=1000)
    options = parser.parse_args(arguments)
    evaluation, seeds, steps = Evaluation(), options.seeds, options.steps
    if options.quick:
        evaluation, seeds, steps = Evaluation(16, (2, 9, 12), (2.0, 10.0), (9, 12)), 1, 20
    runs = trainings(steps, options.minutes and options.minutes / (4 * seeds))
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    records = []
    for seed in range(seeds):
        models: dict[Training, LinearSystemTransformer] = {}
        for name, run in runs.items():
            path = options.out / f"{re.sub('[^a-z0-9]+', '-', name).strip('-')}-seed{seed}.safetensors"
            start = None if run.parent is None else models[run.parent]
            try:
                models[run], record = train(name, run, seed, path, start, options.log_every)
            except TensorFileError as error:
                raise SystemExit(str(error)) from error
            records.append(record)
            results[name].append(errors(as_solver(models[run]), evaluation, run.condition))
    condition = runs[FULL].condition
    classical = {name: errors(solver, evaluation, condition) for name, solver in baselines(condition).items()}
    content = {
        "machine": machine.describe(),
        "condition": condition,
        "layers": LAYERS,
        "evaluation": asdict(evaluation),
        "trainings": records,
        "models": {name: {**summarise(each), "seeds": each} for name, each in results.items()},
        "baselines": {name: summarise([each]) for name, each in classical.items()},
    }
    write_json(options.out / "linear_systems.json", content)
    draw(content).savefig(options.out / "linear_systems.png", dpi=150)


if __name__ == "__main__":
    main()
