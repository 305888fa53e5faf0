"""Hyperparameters of a Gaussian process learned from the network's own log|K| and solves, nothing verified.

An RBF kernel with one length-scale, outputscale and noise, float64, Adam, several times from the same start:

* "exact": GPyTorch with Cholesky factorisations.
* "direct": GPyTorch with ``settings.solver(Direct())``: log determinants, solves for y and for the gradient's probes
  are the network's last loop. Its gradient is made of those solves, so that an error of log|K| shows in the value alone
  and moves no hyperparameter.

Predictive means of the latter are by the network's solve ("rmse") and by Cholesky ("rmse_by_cholesky"). Along its
trajectory the likelihood is evaluated exactly at the same hyperparameters: the difference is the bias. Seconds per step
are those of value, gradient and Adam alone.

"length_scale" is the paper's own setting, as we read it: only the length-scale is learned, here from values of the
likelihood, so that the network's log|K| decides (outputscale and noise as "exact" has found them). The paper reports
test RMSEs of 0.87978 (network) and 0.87996 (Cholesky), a difference of 0.0002.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, get_args

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gp_rangeformer.lab.datasets import Dataset, available, load
from gp_rangeformer.lab.models import Regression, hyperparameters
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from pretrain.experiments.downstream.gp_training import (
    Method,
    directly,
    exact_value,
    exactly,
    find_length_scale,
    rmse,
    train,
)

METHODS: tuple[Method, ...] = get_args(Method)
COLOURS: dict[Method, str] = {"exact": "#000000", "direct": "#0072B2"}


@dataclass(frozen=True)
class Plan:
    """``problems`` are (data set, n); sets whose files are not there are left out and named in the result."""

    problems: tuple[tuple[str, int], ...] = (
        ("borehole", 500),
        ("borehole", 1000),
        ("elevators", 1000),
        ("kin40k", 2000),
    )
    test_rows: int = 1000
    steps: int = 40
    learning_rate: float = 0.1
    seeds: int = 2  # of the data, and of the network's codes and the gradient's probes

    @classmethod
    def quick(cls, folder: Path | None) -> Plan:
        """One small simulated problem; ``folder`` is of no use here."""
        return cls(problems=(("borehole", 40),), test_rows=20, steps=3, seeds=1)


def run(plan: Plan, model: RangeFormer, folder: Path | None) -> dict[str, Any]:
    """One row per problem; ``folder`` is not read: the data sets find their own."""
    known, rows, missing = available(), [], []
    for name, n in plan.problems:
        if name not in known:
            missing.append(name)
            continue
        datasets = [load(name, n=n, n_test=plan.test_rows, seed=seed) for seed in range(plan.seeds)]
        seeds = [_seed(dataset, plan, seed, model) for seed, dataset in enumerate(datasets)]
        rows.append({"name": name, "n": n, "summary": {m: summary(m, seeds) for m in METHODS}, "seeds": seeds})
        print(f"gp: {name}, n={n}", flush=True)
    return {"problems": rows, "missing": missing, "paper": {"network": 0.87978, "cholesky": 0.87996}}


def _seed(dataset: Dataset, plan: Plan, seed: int, network: RangeFormer) -> dict[str, Any]:
    results: dict[str, Any] = {}
    models: dict[Method, Regression] = {}
    for method in METHODS:
        model, trajectory = train(
            dataset, method, network, steps=plan.steps, learning_rate=plan.learning_rate, seed=seed
        )
        models[method] = model
        by_cholesky, own = errors(model, dataset, method, network, seed)
        results[method] = {
            **asdict(trajectory),
            "rmse": own,
            "rmse_by_cholesky": by_cholesky,  # at the hyperparameters reached: their share of a difference
            "reached": hyperparameters(model),
            "value": exact_value(model),  # the exact likelihood of what was reached
        }
    results["length_scale"] = {}
    for method in METHODS:
        model = models["exact"]
        found = find_length_scale(model, method, network, seed)
        by_cholesky, own = errors(model, dataset, method, network, seed)
        results["length_scale"][method] = {**asdict(found), "rmse": own, "rmse_by_cholesky": by_cholesky}
    return results


def errors(model: Regression, dataset: Dataset, method: Method, network: RangeFormer, seed: int) -> tuple[float, float]:
    """Test RMSEs of predictive means by Cholesky, and by the method itself."""
    with exactly():
        by_cholesky = rmse(model, dataset)
    if method == "exact":
        return by_cholesky, by_cholesky
    with directly(network, seed):
        return by_cholesky, rmse(model, dataset)


def summary(method: str, seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """Over seeds: means, except for seconds and residuals, which are medians over all steps."""
    runs, exact = [seed[method] for seed in seeds], [seed["exact"] for seed in seeds]

    def every(what: str) -> list[Any]:
        return [value for run in runs for value in run[what]]

    # "exact" has no exact values beside its own.
    pairs = zip(every("values"), every("exact_values"), strict=True) if method != "exact" else ()
    biases = [value - truth for value, truth in pairs if truth is not None]
    lost = [a["value"] - b["value"] for a, b in zip(exact, runs, strict=True) if None not in (a["value"], b["value"])]
    return {
        "rmse": fmean(run["rmse"] for run in runs),
        "rmse_by_cholesky": fmean(run["rmse_by_cholesky"] for run in runs),
        "rmse_differences": [run["rmse"] - other["rmse"] for run, other in zip(runs, exact, strict=True)],
        "likelihood_lost": fmean(lost) if lost else None,  # nats per point, at the hyperparameters reached
        "bias": fmean(biases) if biases else None,  # nats per point, the network's value minus the exact one
        "bias_range": [min(biases), max(biases)] if biases else None,
        "residual": median(every("residuals")) if every("residuals") else None,
        "residual_largest": max(every("residuals"), default=None),
        "steps_inside_interval": fmean(every("inside")) if every("inside") else None,
        "seconds_per_step": median(every("seconds")) if every("seconds") else None,
        "stopped": [run["stopped"] for run in runs if run["stopped"]],
    }


def draw(content: dict[str, Any]) -> Figure:
    """Per problem: likelihood as optimised and as it is and hyperparameters (first seed), and the bias of all seeds."""
    rows = content["problems"]
    figure = Figure(figsize=(5 * max(len(rows), 1), 9.5), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(3, max(len(rows), 1), squeeze=False)
    for (top, middle, bottom), row in zip(grid.T, rows, strict=False):
        for method in METHODS:
            colour, first = COLOURS[method], row["seeds"][0][method]
            top.plot(first["values"], color=colour, label=method)
            top.plot(_numbers(first["exact_values"]), color=colour, linestyle="--")
            for seed in row["seeds"] if method != "exact" else ():
                pairs = zip(seed[method]["values"], _numbers(seed[method]["exact_values"]), strict=True)
                middle.plot([value - truth for value, truth in pairs], color=colour)
            for name, style in (("lengthscale", "-"), ("outputscale", "--"), ("noise", ":")):
                path = [step[name] for step in first["parameters"]]
                bottom.plot(path, color=colour, linestyle=style, label=name if method == "exact" else None)
        top.set(title=f"{row['name']}, n={row['n']}", ylabel="log p(y) / n\n(dashed: exact, same parameters)")
        middle.axhline(0, color="0.7", linewidth=1)
        middle.set_ylabel("bias of log p(y) / n, nats")
        bottom.set(yscale="log", xlabel="step")
    for axes in (grid[0, 0], grid[2, 0]):
        axes.legend(frameon=False, fontsize="small")
    return figure


def _numbers(values: list[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]
