"""Does a mixture of families teach something general, or does it only enlarge the support of what is interpolated?

    python -m pretrain.experiments.leave_out --out results/leave_out

RangeFormer is trained on all structured families, on all but one, and on Wishart matrices alone, with equal steps and
seeds. Each model is then tested on fresh draws of the family left out, at two sizes beyond those of training: smaller
matrices the range exhausts, and every answer is exact.
"All families" against "left out" measures what seeing the family itself is worth; "left out" against "Wishart alone"
what the other families teach about it; "untrained" is the same loop without learning.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from gp_rangeformer.checkpoint import load_checkpoint
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.rangeformer.rangeformer import RangeFormer, RangeFormerConfig
from pretrain.baselines.untrained import untrained
from pretrain.configs import Stage, TrainConfig
from pretrain.evaluate import evaluate_matrix, truth_of
from pretrain.matrices import STRUCTURED, MatrixFamily
from pretrain.run_state import RunError
from pretrain.train import train

LEFT_OUT = ("gp_kernel", "spectrum", "laplacian")
SIZES = (120, 240)
METRICS = {"logdet": "error of log|A| per point", "missed_trace": "missed trace / least", "energy": "error of a solve"}
BASE = TrainConfig(
    name="leave-out",
    model=RangeFormerConfig(dim=48, sketch=12, width=6, heads=4, loops=6),
    steps=500,
    curriculum=(Stage(1.0, 20, 48, 24),),
    loops=(2, 6),
    widths=(2, 8),
    warmup=50,
    checkpoint_every=250,
)


def trainings(steps: int) -> dict[str, TrainConfig]:
    """By name: all families, all but one, Wishart alone."""
    base = dataclasses.replace(BASE, steps=steps)
    configs = {"all": base, "wishart": dataclasses.replace(base, families="wishart")}
    return configs | {f"without {name}": dataclasses.replace(base, without=(name,)) for name in LEFT_OUT}


def test(model: RangeFormer, family: MatrixFamily, n: int, draws: int, seed: int) -> dict[str, float]:
    """Median errors over fresh draws, float64."""
    control = untrained(model.config, seed)
    matrices = family.sample(draws, n, torch.Generator().manual_seed(9_000_000 + n))
    results = [
        evaluate_matrix(
            model.double(), control, matrix, truth_of(matrix, model.config.width), model.config.loops, index
        )
        for index, matrix in enumerate(matrices)
    ]
    found = {metric: statistics.median(result["rangeformer"][metric] for result in results) for metric in METRICS}
    bare = {f"untrained {metric}": statistics.median(r["untrained"][metric] for r in results) for metric in METRICS}
    return found | bare


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, test, and write leave_out.json and leave_out.png into ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=BASE.steps)
    parser.add_argument("--draws", type=int, default=40, help="test matrices per family and size")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    families = {family.name: family for family in STRUCTURED}
    rows: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for name, config in trainings(options.steps).items():
            folder = options.out / f"{name.replace(' ', '-')}-seed{seed}"
            try:
                train(dataclasses.replace(config, seed=seed), folder, Fabric(accelerator="cpu", devices=1))
            except RunError as error:
                raise SystemExit(str(error)) from error
            model, _ = load_checkpoint(folder / "model", RangeFormer)
            tested = LEFT_OUT if name in ("all", "wishart") else config.without
            for family in tested:
                for n in SIZES:
                    errors = test(model, families[family], n, options.draws, seed)
                    rows.append({"trained on": name, "family": family, "n": n, "seed": seed, **errors})
            content = {"about": __doc__, "machine": machine.describe(), "config": dataclasses.asdict(BASE)}
            content |= {"steps": options.steps, "draws": options.draws, "rows": rows}
            write_json(options.out / "leave_out.json", json.loads(json.dumps(content)))
    draw(rows).savefig(options.out / "leave_out.png", dpi=150)


def draw(rows: list[dict[str, Any]]) -> Figure:
    """A panel per metric: grouped by family and size, a bar per training, mean over seeds with least and largest."""
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    cells = [(family, n) for family in LEFT_OUT for n in SIZES]
    for axes, (metric, label) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for position, bar in enumerate(("all", "left out", "wishart", "untrained")):
            heights, spreads = [], []
            for family, n in cells:
                trained = {"left out": f"without {family}", "untrained": "all"}.get(bar, bar)
                key = f"untrained {metric}" if bar == "untrained" else metric
                values = [
                    row[key] for row in rows if (row["trained on"], row["family"], row["n"]) == (trained, family, n)
                ]
                mean = statistics.fmean(values)
                heights.append(mean)
                spreads.append((mean - min(values), max(values) - mean))
            at = [index + 0.2 * (position - 1.5) for index in range(len(cells))]
            axes.bar(at, heights, 0.2, yerr=list(zip(*spreads, strict=True)), label=bar, capsize=2)
        axes.set_xticks(range(len(cells)), [f"{family}\nn={n}" for family, n in cells], fontsize=7)
        axes.set(title=label, yscale="log")
        axes.grid(axis="y", alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    return figure


if __name__ == "__main__":
    main()
