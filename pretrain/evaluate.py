"""Evaluate a RangeFormer checkpoint on matrices that it has never seen, beside what needs no learning.

    python -m pretrain.evaluate --checkpoint runs/base/model --matrices DIR --json evaluation.json

Held-out families (identity, diagonal, Toeplitz), fresh draws of the training families, and every .mtx(.gz) file of DIR.
For each: relative error of lambda_max, error of log|A| per point, relative residual and error (norm of A) of a solve,
and the trace that the range's best r directions miss over the least that rank r can miss, r the columns of a loop.
Beside them, at the same number of products:

* "untrained": the same loop with an untrained network, that is a block Krylov method with Galerkin solves in its range;
  its lambda_max is the largest Ritz value, its log|A| a Lanczos quadrature whose probes are the first columns.
* "bound": log|A| as the range proves it from above.
* "cg": conjugate gradients after as many iterations as there are loops; "cg_equal_columns", "jacobi_equal_columns":
  after as many products with single columns, the latter preconditioned by the diagonal.

The result file is written after every source of matrices; all numbers are medians over seeds (and draws).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import scipy.sparse.linalg
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gp_rangeformer.checkpoint import CheckpointError, load_checkpoint
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.pretrained import load_pretrained, pretrained_names
from gp_rangeformer.rangeformer.rangeformer import RangeFormer, RangeFormerOutput
from pretrain.baselines.classical import conjugate_gradients
from pretrain.baselines.untrained import untrained
from pretrain.matrices import HELD_OUT, STRUCTURED, list_matrices, load

_DENSE_SPECTRUM = 1200  # up to here the whole spectrum by LAPACK, above its ends by Lanczos


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help=f"a file, or one of {', '.join(pretrained_names())}")
    parser.add_argument("--matrices", type=Path, help="folder of .mtx or .mtx.gz files")
    parser.add_argument("--json", type=Path, help="result file")
    parser.add_argument("--sizes", default="20,50,100,200", help="n of the generated matrices")
    parser.add_argument("--draws", type=int, default=5, help="matrices per family and size")
    parser.add_argument("--seeds", type=int, default=3, help="right-hand sides and codes per matrix")
    parser.add_argument("--largest", type=int, default=5000, help="largest n of the files")
    parser.add_argument(
        "--precision",
        default="float64",
        choices=("float64", "float32"),
        help="of the model's layers and its products with A; its range is float64",
    )
    parser.add_argument("--loops", type=int, help="instead of the model's default")
    arguments = parser.parse_args()
    if arguments.checkpoint in pretrained_names():
        model = load_pretrained(arguments.checkpoint)
    else:
        try:
            model, _ = load_checkpoint(Path(arguments.checkpoint), RangeFormer)
        except CheckpointError as error:
            raise SystemExit(str(error)) from error
    loops = arguments.loops or model.config.loops
    sizes = [int(size) for size in arguments.sizes.split(",")]
    facts = {
        # Names, not paths: the file is for others to read.
        "arguments": {k: v.name if isinstance(v, Path) else v for k, v in vars(arguments).items()}
        | {"checkpoint": Path(arguments.checkpoint).name},
        "model": asdict(model.config),
        "machine": machine.describe(),
    }
    matrices = sources(sizes, arguments.draws, arguments.matrices, arguments.largest)
    rows = run(model, matrices, arguments.seeds, loops, arguments.precision, arguments.json, facts)
    Console().print(table(rows))


def sources(sizes: list[int], draws: int, folder: Path | None, largest: int) -> Iterator[tuple[str, str, Tensor]]:
    """(kind, name, matrix) of everything to evaluate on; fixed seeds."""
    for kind, families in (("held out", HELD_OUT), ("training family", STRUCTURED)):
        for family in families:
            for n in sizes:
                generator = torch.Generator().manual_seed(7_000_000 + n)
                for matrix in family.sample(draws, n, generator):
                    yield kind, f"{family.name} n={n}", matrix
    if folder is not None:
        for path in list_matrices(folder, largest):
            yield "matrix market", path.name.split(".")[0], load(path)


def run(
    model: RangeFormer,
    matrices: Iterator[tuple[str, str, Tensor]],
    seeds: int,
    loops: int,
    precision: str,
    path: Path | None,
    facts: dict[str, Any],
) -> list[dict[str, Any]]:
    """Evaluate everything, a row per (kind, name), and keep the file up to date."""
    dtype = torch.float64 if precision == "float64" else torch.float32
    model = model.to(dtype).eval()
    control = untrained(model.config, dtype=dtype)
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    skipped: list[str] = []
    for kind, name, matrix in matrices:
        try:
            truth = truth_of(matrix, model.config.width)
        except torch.linalg.LinAlgError:
            skipped.append(f"{name}: not positive definite to rounding")
            continue
        for seed in range(seeds):
            result = evaluate_matrix(model, control, matrix, truth, loops, seed)
            rows.setdefault((kind, name), []).append(result)
        if path is not None:
            write_json(
                path, {**facts, "skipped": skipped, "rows": [summary(*key, value) for key, value in rows.items()]}
            )
    return [summary(*key, value) for key, value in rows.items()]


@dataclass
class Truth:
    """Exact properties of one matrix, float64."""

    size: int
    lambda_max: float
    logdet: float
    condition: float | None  # None above the size where only the upper end of the spectrum is computed
    least_missed: float  # trace outside the best range of the model's rank
    trace: float


def truth_of(matrix: Tensor, rank: int) -> Truth:
    """By Cholesky and eigenvalues; :raises torch.linalg.LinAlgError: the matrix is not positive definite."""
    n = len(matrix)
    logdet = 2 * float(torch.linalg.cholesky(matrix).diagonal().log().sum())
    trace = float(matrix.diagonal().sum())
    if n <= max(_DENSE_SPECTRUM, rank + 1):
        spectrum = torch.linalg.eigvalsh(matrix)
        top, condition = spectrum.flip(0)[:rank], float(spectrum[-1] / spectrum[0])
    else:
        ends = scipy.sparse.linalg.eigsh(matrix.numpy(), k=rank, which="LA", return_eigenvectors=False)
        top, condition = torch.from_numpy(ends).sort(descending=True).values, None
    return Truth(n, float(top[0]), logdet, condition, max(trace - float(top.sum()), 0.0), trace)


@torch.no_grad()
def evaluate_matrix(
    model: RangeFormer,
    control: RangeFormer,
    matrix: Tensor,
    truth: Truth,
    loops: int,
    seed: int,
) -> dict[str, Any]:
    """One matrix, one right-hand side, one draw of codes. The models' dtype is that of their products with A."""
    generator = torch.Generator().manual_seed(seed)
    n = len(matrix)
    exact = torch.randn(n, generator=generator, dtype=torch.float64)
    rhs = matrix @ exact
    operator = DenseOperator(matrix.to(model.embedding.like.dtype))
    codes = model.embedding.codes(operator, generator)
    started = time.perf_counter()
    outputs = model(operator, rhs[None, :, None], loops=loops, codes=codes)
    seconds = time.perf_counter() - started
    bare = control(operator, rhs[None, :, None], loops=loops, codes=codes)
    columns = outputs[-1].basis.shape[-1]
    width = model.config.width
    over_loops = [errors(output, matrix, rhs, exact, truth, width) for output in outputs]
    root = matrix.diagonal().sqrt()
    scaled = conjugate_gradients(matrix / root / root.unsqueeze(-1), rhs / root, columns) / root
    return {
        "truth": asdict(truth),
        "rangeformer": over_loops[-1],
        "loops": over_loops,
        "untrained": errors(bare[-1], matrix, rhs, exact, truth, width),
        "cg": solve_errors(conjugate_gradients(matrix, rhs, loops), matrix, rhs, exact),
        "cg_equal_columns": solve_errors(conjugate_gradients(matrix, rhs, columns), matrix, rhs, exact),
        "jacobi_equal_columns": solve_errors(scaled, matrix, rhs, exact),
        "seconds": seconds,
    }


def errors(
    output: RangeFormerOutput, matrix: Tensor, rhs: Tensor, exact: Tensor, truth: Truth, width: int
) -> dict[str, float]:
    """What is wrong with one loop's output for one matrix; see the module's text for the units."""
    n = truth.size
    assert output.solution is not None
    missed = truth.trace - float(output.eigenpairs()[0][0, :width].sum())
    return {
        "lambda_max": abs(float(output.lambda_max) / truth.lambda_max - 1),
        "logdet": abs(float(output.logdet) - truth.logdet) / n,
        "logdet_bound": (float(output.logdet_upper) - truth.logdet) / n,
        "missed_trace": missed / truth.least_missed if truth.least_missed > 1e-12 * truth.trace else 1.0,
        **solve_errors(output.solution[0, :, 0].double(), matrix, rhs, exact),
    }


def solve_errors(solution: Tensor, matrix: Tensor, rhs: Tensor, exact: Tensor) -> dict[str, float]:
    """Relative residual, and relative error in the norm of A."""
    error = solution - exact
    energy = float(error @ (matrix @ error)) / float(rhs @ exact)
    return {"residual": float((rhs - matrix @ solution).norm() / rhs.norm()), "energy": max(energy, 0.0) ** 0.5}


def summary(kind: str, name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the results of one source."""

    def medians(key: str) -> dict[str, float]:
        return {what: statistics.median(result[key][what] for result in results) for what in results[0][key]}

    conditions = [r["truth"]["condition"] for r in results if r["truth"]["condition"] is not None]
    return {
        "kind": kind,
        "name": name,
        "n": results[0]["truth"]["size"],
        "condition": statistics.median(conditions) if conditions else None,
        "evaluations": len(results),
        **{key: medians(key) for key in ("rangeformer", "untrained", "cg", "cg_equal_columns", "jacobi_equal_columns")},
        "over_loops": [
            # A range of all n columns ends the loops: what it said last is what further ones would have said.
            {
                what: statistics.median(_at(each["loops"], loop)[what] for each in results)
                for what in results[0]["loops"][0]
            }
            for loop in range(max(len(result["loops"]) for result in results))
        ],
        "seconds": statistics.median(result["seconds"] for result in results),
    }


def _at(loops: list[dict[str, float]], loop: int) -> dict[str, float]:
    return loops[min(loop, len(loops) - 1)]


def table(rows: list[dict[str, Any]]) -> Table:
    """Model / control, side by side."""
    view = Table(title="medians; model | without learning at the same products")
    for column in (
        "kind",
        "matrix",
        "condition",
        "lambda_max",
        "log|A| per point",
        "missed trace",
        "solve, norm of A",
        "CG",
    ):
        view.add_column(column, justify="left" if column in ("kind", "matrix") else "right")
    for row in rows:
        pairs = [
            f"{row['rangeformer'][what]:.2g} | {row['untrained'][what]:.2g}"
            for what in ("lambda_max", "logdet", "missed_trace", "energy")
        ]
        condition = "-" if row["condition"] is None else f"{row['condition']:.0e}"
        view.add_row(row["kind"], row["name"], condition, *pairs, f"{row['cg_equal_columns']['energy']:.2g}")
    return view


if __name__ == "__main__":
    main()
