"""Conjugate gradients from x0 = RangeFormer(A) b, and from starts that need no learning.

For A x = b in float64, b = A x with x ~ N(0, I) (a Gaussian b would ask for a relative residual of 1e-10 where rounding
leaves 1e-16 times the condition number). Methods:

* "zero": CG from x0 = 0.
* "diagonal": CG from x0 = D^-1 b, D the diagonal of A.
* "jacobi": CG preconditioned by D, from 0.
* "untrained": CG from the solution of an untrained RangeFormer, a randomised subspace iteration with Galerkin solves.
* "rangeformer": CG from the checkpoint's solution.

Reported until a relative residual of 1e-6 and of 1e-10: iterations; products of A with single columns, among them the
network's and one for the residual of a start that is not 0; seconds, the network's included.
All products are sparse, the network's too. A residual that CG's recurrence claims is recomputed before it counts; that
product is not charged, unless it finds the claim wrong and CG goes on from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from scipy.sparse import csr_matrix
from torch import Tensor

from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from pretrain.baselines.untrained import untrained
from pretrain.experiments.downstream.descent import Crossing, Start, conjugate_gradients, network_start
from pretrain.experiments.downstream.dot_plot import dots
from pretrain.experiments.downstream.finders import network_columns
from pretrain.experiments.downstream.matrices import named_matrix

METHODS = ("zero", "diagonal", "jacobi", "untrained", "rangeformer")
# The paper's bcsstk02, and ten more that are positive definite, n = 48 to 1138, condition numbers 5 to 10^7: stiffness
# matrices, meshes, power networks, and a matrix of primes.
SYSTEMS = (
    "bcsstk02", "bcsstk01", "bcsstk05", "nos5", "mesh1e1", "494_bus", "685_bus", "nos3", "pts5ldd03", "Trefethen_500",
    "1138_bus",
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """What is run; generated systems, named by the law of their spectrum, have ``size`` rows."""

    systems: tuple[str, ...] = SYSTEMS
    size: int = 60
    right_hand_sides: int = 5
    seeds: int = 3  # of the network's codes, for each right-hand side
    tolerances: tuple[float, ...] = (1e-6, 1e-10)
    iterations_per_row: int = 10  # the cap on CG, in units of n

    @classmethod
    def quick(cls, folder: Path | None) -> Plan:
        """Two generated systems, and the paper's where there is a folder to read it from."""
        systems = ("polynomial", "clustered", *(() if folder is None else ("bcsstk02",)))
        return cls(systems=systems, right_hand_sides=2, seeds=1)


def run(plan: Plan, model: RangeFormer, folder: Path | None) -> dict[str, Any]:
    """One row per system; the plan's files come from ``folder``."""
    control = untrained(model.config)
    rows = []
    for name in plan.systems:
        rows.append(_system(name, named_matrix(name, folder, plan.size), plan, model, control))
        print(f"cg: {name}", flush=True)
    return {
        "methods": list(METHODS),
        "network_columns": network_columns(model),
        "systems": rows,
    }


def _system(name: str, dense: Tensor, plan: Plan, model: RangeFormer, control: RangeFormer) -> dict[str, Any]:
    spectrum = torch.linalg.eigvalsh(dense)
    if float(spectrum[0]) <= 0:
        raise ValueError(f"{name} is not positive definite: conjugate gradients need that, leave it out")
    n = len(dense)
    matrix = csr_matrix(dense.numpy())
    inverse_diagonal = 1 / matrix.diagonal()
    crossings: dict[str, list[list[Crossing | None]]] = {method: [] for method in METHODS}
    starts: dict[str, list[tuple[float, float]]] = {method: [] for method in METHODS}
    for run_index in range(plan.right_hand_sides * plan.seeds):
        index, seed = divmod(run_index, plan.seeds)
        exact = torch.randn(n, generator=torch.Generator().manual_seed(1000 + index), dtype=torch.float64).numpy()
        rhs = matrix @ exact
        choices: dict[str, Callable[[], Start]] = {
            "zero": Start,
            "diagonal": lambda rhs=rhs: Start(inverse_diagonal * rhs),
            "jacobi": Start,
            "untrained": lambda rhs=rhs, seed=seed: network_start(control, matrix, rhs, seed),
            "rangeformer": lambda rhs=rhs, seed=seed: network_start(model, matrix, rhs, seed),
        }
        # In another order each time: what one method leaves in the caches is not always the next one's gain.
        for place in range(len(METHODS)):
            method = METHODS[(place + run_index) % len(METHODS)]
            diagonal = inverse_diagonal if method == "jacobi" else None
            cap = plan.iterations_per_row * n
            start, crossed = conjugate_gradients(matrix, rhs, choices[method], plan.tolerances, cap, diagonal)
            crossings[method].append(crossed)
            value = np.zeros(n) if start.value is None else start.value
            error = value - exact
            energy = math.sqrt(float(error @ (matrix @ error)) / float(exact @ rhs))
            starts[method].append((float(np.linalg.norm(rhs - matrix @ value) / np.linalg.norm(rhs)), energy))
    return {
        "name": name,
        "n": n,
        "nonzeros": int(matrix.nnz),
        "condition": float(spectrum[-1] / spectrum[0]),
        "runs": plan.right_hand_sides * plan.seeds,
        "methods": {
            method: {
                "start_residual": median(residual for residual, _ in starts[method]),
                "start_energy": median(energy for _, energy in starts[method]),
                "to": [
                    {"tolerance": tolerance, **summary([run[place] for run in crossings[method]])}
                    for place, tolerance in enumerate(plan.tolerances)
                ],
            }
            for method in METHODS
        },
    }


def summary(crossings: Sequence[Crossing | None]) -> dict[str, Any]:
    """Medians over runs; a run that never arrived counts as infinity, and a median at infinity is None."""

    def middle(price: Callable[[Crossing], float]) -> float | None:
        value = median(math.inf if crossing is None else price(crossing) for crossing in crossings)
        return value if math.isfinite(value) else None

    arrived = [crossing.iterations for crossing in crossings if crossing is not None]
    return {
        "arrived": len(arrived),
        "iterations": middle(lambda crossing: crossing.iterations),
        "iterations_range": [min(arrived), max(arrived)] if arrived else None,
        "products": middle(lambda crossing: crossing.products),
        "seconds": middle(lambda crossing: crossing.seconds),
    }


def draw(content: dict[str, Any]) -> Figure:
    """Iterations, products and seconds as multiples of those from x0 = 0; full dots 1e-6, rings 1e-10."""
    rows = sorted(content["systems"], key=lambda row: row["condition"])
    names = [f"{row['name']}  n={row['n']}  {row['condition']:.0e}" for row in rows]
    figure = Figure(figsize=(14, 1.8 + 0.42 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, what in zip(figure.subplots(1, 3, sharey=True), ("iterations", "products", "seconds"), strict=True):
        for place, style in enumerate(({}, {"facecolors": "none"})):
            values = {
                method: [
                    _ratio(row["methods"][method]["to"][place][what], row["methods"]["zero"]["to"][place][what])
                    for row in rows
                ]
                for method in METHODS
            }
            dots(axes, names, values, offset=0.24 * place - 0.12, **style)
        axes.axvline(1, color="0.7", linewidth=1, zorder=0)
        axes.set_xlabel(f"{what} / those of x0 = 0")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(
        handles[: len(METHODS)],
        labels[: len(METHODS)],
        loc="outside lower center",
        ncols=len(METHODS),
        frameon=False,
    )
    first, second = (f"{step['tolerance']:g}" for step in rows[0]["methods"]["zero"]["to"])
    figure.suptitle(f"CG to a relative residual of {first} (dots) and {second} (rings); the network is on the bill")
    return figure


def _ratio(value: float | None, reference: float | None) -> float | None:
    """None also for 0, which a logarithmic axis cannot show: an iteration that the start made superfluous."""
    return None if not value or not reference else value / reference
