"""The log determinant from random right-hand sides: the quadrature that answers beside simpler ones.

    GP_RANGEFORMER_DATA=DATA python -m pretrain.experiments.probe_quadrature --matrices DIR --out pretrain/results

A range grows until 4, 16 or 32 Rademacher probes are solved to 0.009 (as the solver Direct grows it), or to 1024
columns. Errors of log|A| in nats per point, median and mean over matrices of a kind; those that the range exhausts are
left out:

* "plain": the mean of z' log(U T U') z over the probes.
* "deflated": converged Ritz pairs, to a tenth, need no probes (as without probes of one's own).
* "answer": what the model says with probes: pairs converged to a twentieth, and the certain bound as far as the
  estimate is within its standard error.
* "bound": the certain upper bound.

No weight takes part. Kernels are those of inputs of UCI sets, RBF and Matern 3/2, n = 1200, whose noise is known: the
answer lies between the bounds that follow from it.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, median

import torch
from torch import Tensor

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.pretrained import load_pretrained
from gp_rangeformer.rangeformer.quadrature import Quadrature
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from gp_rangeformer.rangeformer.subspace import GrowingRange
from pretrain.matrices import HELD_OUT, STRUCTURED, list_matrices, load

PROBES = (4, 16, 32)
SETS = ("kin40k", "elevators", "pol", "protein", "bike")
RULES = ("plain", "deflated", "answer", "bound")


def sources(folder: Path | None, n: int, largest: int) -> Iterator[tuple[str, Tensor, float | None]]:
    """(kind, matrix, known floor of its eigenvalues); fixed seeds."""
    for kind, families in (("held out", HELD_OUT), ("training family", STRUCTURED)):
        for family in families:
            for size in (n // 5, n // 2):
                yield kind, family.sample(1, size, torch.Generator().manual_seed(8_000_000 + size))[0], None
    known = datasets.available()
    for name in SETS:
        if name in known:
            x = datasets.load(name, n=n, n_test=10, seed=3).train_x.double()
            for length, noise in ((0.8, 0.1), (2.0, 0.01), (2.0, 0.1), (6.0, 0.03)):
                scaled = torch.cdist(x, x) / length
                eye = noise * torch.eye(n, dtype=torch.float64)
                yield "UCI kernel", (-0.5 * scaled.square()).exp() + eye, noise
                yield "UCI kernel", (1 + 3**0.5 * scaled) * (-(3**0.5) * scaled).exp() + eye, noise
    if folder is not None:
        for path in list_matrices(folder, largest):
            yield "matrix market", load(path), None


@torch.no_grad()
def errors(model: RangeFormer, matrix: Tensor, count: int, floor: float | None = None) -> dict[str, float] | None:
    """Of log|A| per point by rule; None where the range is everything.

    :raises torch.linalg.LinAlgError: the matrix is not positive definite.
    """
    n = len(matrix)
    truth = 2 * float(torch.linalg.cholesky(matrix).diagonal().log().sum())
    generator = torch.Generator().manual_seed(77 + count)
    probes = torch.randint(0, 2, (1, n, count), generator=generator).double().mul(2).sub(1)
    operator = DenseOperator(matrix)
    (output,) = model(
        operator,
        probes,
        isotropic=count,
        tolerance=0.009,
        columns=1024,
        floor=None if floor is None else torch.tensor(floor, dtype=torch.float64),
        generator=generator,
        last_only=True,
    )
    if output.basis.shape[-1] == n:
        return None
    found = {"answer": float(output.logdet), "bound": float(output.logdet_upper)}
    grown, _ = GrowingRange.empty(operator.diagonal()).grow(output.basis, output.image)
    values, vectors = grown.ritz()
    rest = output.image @ vectors - (output.basis @ vectors) * values.unsqueeze(-2)
    outside = (output.logdet_upper - values.log().sum(-1)) / (n - values.shape[-1])
    for rule, converged in (("plain", -1.0), ("deflated", 0.1)):
        pairs = Quadrature.of(grown, values, vectors, torch.linalg.vector_norm(rest, dim=-2), probes, converged)
        found[rule] = n * float(pairs.mean(values.log(), outside, n)[0])
    return {rule: abs(found[rule] - truth) / n for rule in RULES}


def main() -> None:
    """Write probe_quadrature.json into ``--out``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--matrices", type=Path, help="folder of .mtx or .mtx.gz files")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=1200, help="n of the UCI kernels; families have a fifth and a half")
    parser.add_argument("--largest", type=int, default=1300, help="largest n of the files")
    options = parser.parse_args()
    model = load_pretrained().double()
    cells: dict[tuple[str, int], list[dict[str, float]]] = {}
    for kind, matrix, floor in sources(options.matrices, options.size, options.largest):
        for count in PROBES:
            try:
                found = errors(model, matrix, count, floor)
            except torch.linalg.LinAlgError:
                continue
            if found is not None:
                cells.setdefault((kind, count), []).append(found)
    rows = [
        {
            "kind": kind,
            "probes": count,
            "matrices": len(cell),
            "median": {rule: median(each[rule] for each in cell) for rule in RULES},
            "mean": {rule: fmean(each[rule] for each in cell) for rule in RULES},
        }
        for (kind, count), cell in cells.items()
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / "probe_quadrature.json", {"about": __doc__, "machine": machine.describe(), "rows": rows})


if __name__ == "__main__":
    main()
