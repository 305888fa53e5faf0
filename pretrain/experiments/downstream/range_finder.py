"""Randomised low rank with RangeFormer's range: how much of A do r columns keep, and what did they cost?

For symmetric A and an orthonormal Q of r = ``rank`` columns the error is |A - Q Q'A| over that of the best Q, in the
spectral and the Frobenius norm. The methods are those of :mod:`finders`.

Every method also multiplies A by what it found, as a singular value decomposition needs; columns and seconds contain
that. k < r columns are the first k of Q ("nested": a range of rank k inside the one of rank r), or the best k
directions inside Q by its Ritz vectors ("ritz").
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from jaxtyping import Float64
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from pretrain.baselines.untrained import untrained
from pretrain.experiments.downstream.dot_plot import dots
from pretrain.experiments.downstream.finders import Finder, finders, projection_errors, ritz_vectors
from pretrain.experiments.downstream.matrices import named_matrix
from pretrain.matrices.gp_kernel import PROFILES
from pretrain.matrices.spectrum import haar

_SMALLEST_EXCESS = 1e-5  # that the figure shows: below are rounding and the tolerance of the spectral norm

# Decays lambda_i of Q' diag(lambda) Q, i = 1..n.
DECAYS: dict[str, Callable[[Tensor], Tensor]] = {
    "1/i": lambda i: 1 / i,
    "1/i^2": lambda i: i**-2,
    "exp(-i/8)": lambda i: (-i / 8).exp(),
}
# Length-scales for uniform points of the unit cube.
KERNELS = {"matern32": 0.5, "rbf": 0.5}


@dataclass(frozen=True)
class Plan:
    """``matrices`` are names of DECAYS (``decay_size`` rows), KERNELS (``kernel_size``) or Matrix Market files."""

    matrices: tuple[str, ...] = (*DECAYS, *KERNELS, "494_bus", "bcsstk06")
    decay_size: int = 500
    kernel_size: int = 1000
    seeds: int = 10

    @classmethod
    def quick(cls, folder: Path | None) -> Plan:
        """A decay and a kernel, and a file where there is a folder to read it from."""
        matrices = ("1/i^2", "rbf", *(() if folder is None else ("bcsstk01",)))
        return cls(matrices, decay_size=40, kernel_size=50, seeds=1)


def make_matrix(name: str, plan: Plan, folder: Path | None) -> Float64[Tensor, "n n"]:
    """Symmetric, always the same for a plan.

    :raises MatrixMarketError: a file that is not there or cannot be read.
    """
    generator = torch.Generator().manual_seed(0)
    if name in DECAYS:
        n = plan.decay_size
        basis = haar(1, n, generator)[0]
        matrix = (basis.mT * DECAYS[name](torch.arange(1, n + 1, dtype=torch.float64))) @ basis
        return (matrix + matrix.mT) / 2
    if name in KERNELS:
        points = torch.rand(plan.kernel_size, 3, generator=generator, dtype=torch.float64) / KERNELS[name]
        distances = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        return PROFILES[name](distances.unsqueeze(0), torch.ones(1, 1, 1, dtype=torch.float64)).squeeze(0)
    return named_matrix(name, folder, plan.decay_size)


def run(plan: Plan, model: RangeFormer, folder: Path | None) -> dict[str, Any]:
    """One row per matrix; ratios are means over seeds, seconds medians. The methods take turns in going first."""
    methods = finders(model, untrained(model.config))
    rows = []
    for name in plan.matrices:
        rows.append(_matrix(name, make_matrix(name, plan, folder), plan, methods, model.config.width))
        print(f"svd: {name}", flush=True)
    return {"methods": list(methods), "rank": model.config.width, "matrices": rows}


def _matrix(name: str, matrix: Tensor, plan: Plan, methods: dict[str, Finder], rank: int) -> dict[str, Any]:
    spectrum = torch.linalg.eigvalsh(matrix).abs().sort(descending=True).values
    ranks = sorted({max(rank // 4, 1), max(rank // 2, 1), rank})
    best = {k: (float(spectrum[k]), float(spectrum[k:].square().sum().sqrt())) for k in ranks}
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
    names = list(methods)
    for seed in range(plan.seeds):
        for place in range(len(names)):
            method = names[(place + seed) % len(names)]
            generator = torch.Generator().manual_seed(seed)
            started = time.perf_counter()
            found = methods[method](matrix, generator)
            seconds = time.perf_counter() - started
            rotated = found.basis @ ritz_vectors(found.basis, found.image)
            errors = {}
            for order, basis in (("nested", found.basis), ("ritz", rotated)):
                for k in ranks:
                    if order == "ritz" and k == rank:
                        spectral, frobenius = errors["nested", k]  # the same range
                    else:
                        absolute = projection_errors(matrix, basis[:, :k])
                        spectral, frobenius = (error / least for error, least in zip(absolute, best[k], strict=True))
                    errors[order, k] = spectral, frobenius
            results[method].append({"errors": errors, "seconds": seconds, "columns": found.columns})
    return {
        "name": name,
        "n": len(matrix),
        "best": [{"k": k, "spectral": spectral, "frobenius": frobenius} for k, (spectral, frobenius) in best.items()],
        "methods": {
            method: {
                "columns": runs[0]["columns"],
                "seconds": median(run["seconds"] for run in runs),
                **{
                    order: [
                        {
                            "k": k,
                            "spectral": fmean(run["errors"][order, k][0] for run in runs),
                            "frobenius": fmean(run["errors"][order, k][1] for run in runs),
                        }
                        for k in ranks
                    ]
                    for order in ("nested", "ritz")
                },
            }
            for method, runs in results.items()
        },
    }


def draw(content: dict[str, Any]) -> Figure:
    """Excess of the error at rank r over the optimum in both norms, and seconds."""
    rows = content["matrices"]
    names = [f"{row['name']}  n={row['n']}" for row in rows]
    figure = Figure(figsize=(14, 1.8 + 0.5 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, sharey=True)
    for axes, norm in ((left, "spectral"), (middle, "frobenius")):
        values = {
            method: [max(row["methods"][method]["nested"][-1][norm] - 1, _SMALLEST_EXCESS) for row in rows]
            for method in content["methods"]
        }
        dots(axes, names, values)
        axes.set_xlabel(f"excess of the {norm} error over the best rank {content['rank']}")
    dots(right, names, {name: [row["methods"][name]["seconds"] for row in rows] for name in content["methods"]})
    right.set_xlabel("seconds, projection included")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure
