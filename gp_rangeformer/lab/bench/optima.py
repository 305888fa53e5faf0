"""Hyperparameters of converged fits, shipped as ``optima.json``: where a fit ends, not where it starts.

``python -m gp_rangeformer.lab.bench.optima`` finds them: L-BFGS on exact float64 likelihoods, from GPyTorch's start and
from where a subset of the rows leads, then :func:`~gp_rangeformer.fit.fit_mll` from whichever ends higher. A set that
the file has is gone on with from there. Names as arguments: those sets alone, the others stay as they are. A quarter of
an hour for five new sets, a minute for one that is gone on with.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import gpytorch
import numpy as np
import torch

from gp_rangeformer.fit import fit_mll
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.audit import ExactEvaluator, Parameters, restore, snapshot
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.lab.datasets import Dataset, DatasetError
from gp_rangeformer.lab.models import build_model

FILE = Path(__file__).parent / "optima.json"
KERNEL = "matern32"
SETS = ("kin40k", "pol", "protein", "bike", "elevators")
_ROWS, _SUBSET, _EVALUATIONS = 2500, 800, 150
_TOLERANCE = 1e-6  # nats per point
# In raw parameters, for L-BFGS alone: a length-scale of 6e-6 and less divides by what is nearly zero. Length-scales and
# variances end in the thousands.
_LOWEST, _HIGHEST = -12.0, 1e6


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
    """The parameters, their likelihood and what is left to gain in nats per point, and what each start led to."""
    whole = _load(name, rows)
    start = snapshot(build_model(whole, KERNEL)[0])
    led, _ = _maximise(_load(name, subset), start)
    ends = [_maximise(whole, point) for point in (start, led)]
    best, _ = max(ends, key=lambda end: end[1])
    return {**_converged(whole, best), "of_starts": [end[1] for end in ends], "rows": rows}


def _go_on(name: str, known: Mapping[str, object]) -> dict[str, object]:
    """From the file's parameters."""
    rows = int(str(known["rows"]))
    return {**known, **_converged(_load(name, rows), optimum(name))}


def _load(name: str, rows: int) -> Dataset:
    return datasets.load(name, n=rows, n_test=1, seed=0).to(torch.float64)


def _converged(dataset: Dataset, start: Parameters) -> dict[str, object]:
    """``left_to_gain``: half the Newton decrement, of the curvature in logarithms of the constrained parameters, where
    a length-scale of 1,000 is as near as one of 1."""
    model, likelihood = build_model(dataset, KERNEL)
    restore(model, start)
    fitted = fit_mll(gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model), tolerance=_TOLERANCE, levels=False)
    parameters = snapshot(model)
    return {
        "parameters": {key: tensor.tolist() for key, tensor in parameters.items()},
        "log_likelihood": ExactEvaluator(dataset, KERNEL)(parameters).value,
        "left_to_gain": fitted.decrement,
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
    bounds = [(_LOWEST, _HIGHEST)] * len(first)
    options = {"maxfun": _EVALUATIONS, "ftol": 1e-12, "gtol": 1e-6}
    found = minimize(negative, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return unpack(found.x), -float(found.fun)


def main(names: Sequence[str] = SETS) -> None:
    """Find the optima of ``names``, or go on with them, and write the file after each."""
    sets = json.loads(FILE.read_text())["sets"] if FILE.is_file() else {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            sets[name] = _go_on(name, sets[name]) if name in sets else find_optimum(name)
        print(f"{name}: {sets[name]['log_likelihood']}, {sets[name]['left_to_gain']} left to gain", flush=True)
        content = {"kernel": KERNEL, "dtype": "float64", "seed": 0, "machine": machine.describe("cpu"), "sets": sets}
        write_json(FILE, content)


if __name__ == "__main__":
    main(sys.argv[1:] or SETS)
