"""Hyperparameters of converged fits, shipped as ``optima.json``: where a fit ends, not where it starts.

``python -m gp_rangeformer.lab.bench.optima`` finds them anew: L-BFGS on exact float64 likelihoods, from GPyTorch's
start and from where a subset of the rows leads, whichever ends higher; a quarter of an hour for the five sets.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.audit import ExactEvaluator, Parameters, snapshot
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.lab.datasets import Dataset, DatasetError
from gp_rangeformer.lab.models import build_model

FILE = Path(__file__).parent / "optima.json"
KERNEL = "matern32"
SETS = ("kin40k", "pol", "protein", "bike", "elevators")
_ROWS, _SUBSET, _EVALUATIONS = 2500, 800, 150


def optimum(name: str) -> Parameters:
    """The raw parameters of a converged ``matern32`` model of this set, for
    :func:`~gp_rangeformer.lab.compare.audit.restore`.

    :raises DatasetError: a set that has none.
    """
    known = json.loads(FILE.read_text())["sets"]
    if name not in known:
        raise DatasetError(f"no optimum of {name!r} is known: choose one of {', '.join(known)}")
    return {key: torch.tensor(value, dtype=torch.float64) for key, value in known[name]["parameters"].items()}


def find_optimum(name: str, rows: int = _ROWS, subset: int = _SUBSET) -> dict[str, object]:
    """The parameters, their likelihood in nats per point, and what each start led to."""
    whole = datasets.load(name, n=rows, n_test=1, seed=0).to(torch.float64)
    part = datasets.load(name, n=subset, n_test=1, seed=0).to(torch.float64)
    model, _ = build_model(whole, KERNEL)
    start = snapshot(model)
    led, _ = _maximise(part, start)
    ends = [_maximise(whole, point) for point in (start, led)]
    parameters, value = max(ends, key=lambda end: end[1])
    return {
        "parameters": {key: tensor.tolist() for key, tensor in parameters.items()},
        "log_likelihood": value,
        "of_starts": [end[1] for end in ends],
        "rows": rows,
    }


def _maximise(dataset: Dataset, start: Parameters) -> tuple[Parameters, float]:
    """From ``start`` to where L-BFGS ends, in the raw parameters."""
    from scipy.optimize import minimize

    evaluator = ExactEvaluator(dataset, KERNEL)
    shapes = {name: tensor.shape for name, tensor in start.items()}

    def unpack(vector: np.ndarray) -> dict[str, torch.Tensor]:
        parts = torch.from_numpy(vector.copy()).split([shape.numel() for shape in shapes.values()])
        return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}

    def negative(vector: np.ndarray) -> tuple[float, np.ndarray]:
        found = evaluator(unpack(vector))
        return -found.value, found.gradient.numpy()

    first = torch.cat([tensor.double().flatten() for tensor in start.values()]).numpy()
    options = {"maxfun": _EVALUATIONS, "ftol": 1e-12, "gtol": 1e-6}
    found = minimize(negative, first, jac=True, method="L-BFGS-B", bounds=[(-12, 12)] * len(first), options=options)
    return unpack(found.x), -float(found.fun)


def main(names: Sequence[str] = SETS) -> None:
    """Find the optima and write the file."""
    sets = {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sets[name] = find_optimum(name)
        print(f"{name}: {sets[name]['of_starts']}", flush=True)
        content = {"kernel": KERNEL, "dtype": "float64", "seed": 0, "machine": machine.describe("cpu"), "sets": sets}
        write_json(FILE, content)


if __name__ == "__main__":
    main()
