"""The report of one training step, for the README's first screen: the CO2 record that the package ships.

python -m gp_rangeformer.lab.guide.report_line --json examples/guide/results/report.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import gpytorch
import torch

from gp_rangeformer import clear_memory, last_report, settings
from gp_rangeformer.lab import datasets, models
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json

STEPS = 10


def report_of_a_step(n: int | None = None) -> str:
    """The summary of the last of ten Adam steps in float64.

    :param n: rows of the record; None: all of them.
    """
    data = datasets.load("co2", n=n, n_test=1).to(torch.float64, "cpu")
    model, likelihood = models.build_model(data, models.default_kernel(data))
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.1)
    clear_memory()
    for _ in range(STEPS):
        optimizer.zero_grad()
        with settings.rangeformer():
            loss = -mll(model(data.train_x), data.train_y)  # type: ignore[operator]
            loss.backward()
        optimizer.step()
    return last_report().summary()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the line, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m gp_rangeformer.lab.guide.report_line")
    parser.add_argument("--json", type=Path, help="Write the result to this file.")
    options = parser.parse_args(arguments)
    summary = report_of_a_step()
    print(summary)
    if options.json is not None:
        write_json(options.json, {"machine": machine.describe(), "dataset": "co2", "step": STEPS, "summary": summary})


if __name__ == "__main__":
    main()
