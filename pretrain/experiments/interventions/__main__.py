"""Train what is missing, evaluate everything, write ``interventions.json`` and the figures."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.lab.datasets import ENVIRONMENT_VARIABLE
from pretrain.baselines.read_out import TASKS
from pretrain.experiments import interventions
from pretrain.experiments.interventions.cost import costs
from pretrain.experiments.interventions.evaluation import Protocol, cells, evaluate, market, summarise
from pretrain.experiments.interventions.figures import cost_figure, error_figure, loop_figure
from pretrain.experiments.interventions.ladder import LADDER, Training, groups
from pretrain.experiments.interventions.training import train
from pretrain.tensor_file import TensorFileError

STEPS = 1200
COST_SIZES = (10, 20, 50, 100, 200, 500, 1000)
QUICK = Protocol(count=8, sizes=(5, 8, 10, 13), larger=(13,), loops=4, more_loops=6, loop_size=13, largest_market=50)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the ladder; ``arguments`` in place of those of the command line."""
    options = _parser().parse_args(arguments)
    protocol, seeds, steps, sizes = Protocol(), options.seeds, options.steps or STEPS, COST_SIZES
    if options.quick:
        protocol, seeds, steps, sizes = QUICK, 1, options.steps or 3, COST_SIZES[:2]
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    content: dict[str, Any] = {
        "about": interventions.__doc__,
        "machine": machine.describe(),
        "protocol": asdict(protocol),
        "matrices": None if options.matrices is None else options.matrices.name,
        "ladder": {name: asdict(LADDER[name]) for name in options.models},
    }
    for tasks in groups(tuple(options.tasks)):
        tests, files = cells(tasks, protocol), market(tasks, options.matrices, protocol)
        for name in options.models:
            for seed in range(seeds):
                start = time.perf_counter()
                path = options.out / f"{name}-{'-'.join(tasks)}-seed{seed}.safetensors"
                try:
                    model, record = train(Training(LADDER[name], tasks, seed, steps), path)
                except TensorFileError as error:
                    raise SystemExit(str(error)) from error
                results.append(
                    {
                        "rung": name,
                        "tasks": tasks,
                        "seed": seed,
                        "depth": model.config.depth,
                        **record,
                        "errors": evaluate(model, tests, files, protocol),
                    }
                )
                content.update(summary=summarise(results, protocol), results=results)
                write_json(options.out / "interventions.json", content)
                print(
                    f"{name}, {' '.join(tasks)}, seed {seed}: loss {record['final_loss']:.3g}, "
                    f"{record['milliseconds_per_step']:.0f} ms per step, {time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    content["cost"] = {name: costs(LADDER[name], sizes) for name in options.models}
    write_json(options.out / "interventions.json", content)
    figures = {
        "errors": error_figure(content["summary"]),
        "loops": loop_figure(results, protocol),
        "cost": cost_figure(content["cost"]),
    }
    for name, figure in figures.items():
        if figure is not None:
            figure.savefig(options.out / f"{name}.png", dpi=150)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=interventions.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    folder = os.environ.get(ENVIRONMENT_VARIABLE)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help=f"of each training, {STEPS} by default")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--models", nargs="+", choices=tuple(LADDER), default=tuple(LADDER))
    parser.add_argument(
        "--matrices",
        type=Path,
        default=Path(folder) / "matrix_market" if folder else None,
        help=f"folder of Matrix Market files, by default ${ENVIRONMENT_VARIABLE}/matrix_market; without: none",
    )
    parser.add_argument("--quick", action="store_true", help="3 steps, 1 seed, few matrices: checks that it runs")
    return parser


if __name__ == "__main__":
    main()
