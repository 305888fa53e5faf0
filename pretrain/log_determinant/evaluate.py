"""The learned log determinant on UCI kernels it has never seen, along training trajectories, beside its competitors.

    python -m pretrain.log_determinant.evaluate --cache FOLDER [--sizes 1000,2500,5000,10000] [--ranks 128,400]

Two simulators that ship with the package are measured too, at n = 1000: without any file, a reader can repeat those.

Every system is solved by the certified solver as in training (float32, 32 probes, tolerance 0.01); the exact log
determinant is a float64 Cholesky factorisation of the same float32 matrix. Hyperparameters: 60 Adam steps at rate 0.1
of a Matern-3/2 ARD kernel, trained at the same n up to 2500, beyond that at 2500. Seconds: one thread unless
OMP_NUM_THREADS says otherwise.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import click
import torch
from torch import Tensor

from gp_rangeformer import datasets
from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.bench.replay import record_trajectory
from gp_rangeformer.compare import machine
from gp_rangeformer.compare.audit import Parameters, restore
from gp_rangeformer.compare.solvers import SolverSpec
from gp_rangeformer.models import build_model
from gp_rangeformer.ranges import learned
from gp_rangeformer.ranges.tail import sample_block, tail_evidence, whitened_blocks
from gp_rangeformer.solvers.base import LinearSystem
from gp_rangeformer.solvers.lanczos import lanczos_logdet
from gp_rangeformer.solvers.rangeformer import RangeFormerSolver
from pretrain.log_determinant import cache
from pretrain.log_determinant.baselines import BlockMLP, block_alone, extrapolated
from pretrain.log_determinant.train import TrainConfig, fit, split

SETS = ("pol", "elevators", "bike", "kin40k", "protein")
SIMULATED = ("robot_arm", "borehole")
STAGES = (0, 3, 8, 15, 30, 45, 60)
_LATE = 5000  # from this n on: stages 3, 15 and 60 alone
_SIMULATED_SIZE = 1000
_TRAINED_SIZE = 2500
_KERNEL = "matern32"
_PLUGIN = SolverSpec("rangeformer", "rangeformer", "float32")
_RESULT = Path(__file__).resolve().parents[1] / "results" / "log_determinant.json"
Record = dict[str, float | int | str]


def trajectory(name: str, n: int, stages: tuple[int, ...], seed: int) -> list[tuple[int, Parameters]]:
    """The model's parameters at some Adam steps of the plug-in at its defaults."""
    data = datasets.load(name, n=n, seed=seed).to(torch.float32)
    states = record_trajectory(data, _KERNEL, _PLUGIN, max(stages) + 1, lr=0.1)
    return [(step, states[step]) for step in stages]


@torch.no_grad()
def system_at(name: str, n: int, state: Parameters, seed: int) -> tuple[LinearSystem, Tensor, float]:
    """(A in float32, y - mean, exact log|A| of that matrix)."""
    data = datasets.load(name, n=n, seed=seed).to(torch.float32)
    model, likelihood = build_model(data, _KERNEL)
    restore(model, state)
    kernel: Tensor = model.covar_module(data.train_x).to_dense()  # type: ignore[assignment, union-attr]
    noise = likelihood.noise.expand(n).clone()
    dense = kernel.double()
    dense.diagonal().add_(noise.double())
    exact = float(2 * torch.linalg.cholesky(dense).diagonal().log().sum())
    mean: Tensor = model.mean_module(data.train_x)  # type: ignore[assignment]
    target = data.train_y - mean
    return LinearSystem(kernel, noise), target.unsqueeze(-1), exact


@torch.no_grad()
def measure(system: LinearSystem, target: Tensor, exact: float, rank: int, mlp: BlockMLP | None) -> Record:
    """Every estimator's z on one system, in nats per point, and the seconds of the two that compete in time."""
    n = system.size
    solver = RangeFormerSolver(rank=rank, predictor="none")
    prepared = solver.prepare(system)
    preconditioner = prepared.preconditioner
    assert preconditioner is not None
    probes = solver.probe_vectors(system)
    solution = prepared.attempt(torch.cat([target, probes], dim=1), None)
    if not solution.converged:
        raise RuntimeError(f"the solver did not converge: {solution.reason.value}")
    base = preconditioner.logdet()
    given = (system, preconditioner, probes, solution.value[:, 1:], solution.quadratic[1:])
    learned.tail(*given)  # loads the network
    started = time.perf_counter()
    estimate = learned.tail(*given)
    learned_seconds = time.perf_counter() - started
    record: Record = {"z": (exact - base) / n, "learned": estimate.value, "refusal": estimate.refusal or ""}
    assert estimate.interval is not None
    record |= {"lower": estimate.interval.lower, "upper": estimate.interval.upper, "learned_seconds": learned_seconds}
    for count in (10, 30):
        started = time.perf_counter()
        trace = lanczos_logdet(system, preconditioner, probes[:, :count])
        record |= {
            f"lanczos{count}": trace.value / n,
            f"lanczos{count}_passes": trace.passes,
            f"lanczos{count}_seconds": time.perf_counter() - started,
        }
    block = sample_block(n, torch.Generator().manual_seed(solver.seed + 3))
    evidence = tail_evidence(*given, block)
    matrix = whitened_blocks(system, preconditioner, block)[0]
    record |= {
        "quadrature": evidence.estimate,
        "block": block_alone(matrix),
        "extrapolated": min(extrapolated(matrix, n), evidence.upper),
    }
    if mlp is not None:
        ends = [torch.tensor([value]) for value in (evidence.estimate, evidence.upper)]
        given_features = (evidence.scalars.float().unsqueeze(0), evidence.tokens.float().unsqueeze(0))
        record["block_mlp"] = float(mlp(*given_features, *ends)[0, 1])
    return record


METHODS = ("learned", "quadrature", "block", "extrapolated", "block_mlp", "lanczos10", "lanczos30")


def table(records: list[Record]) -> list[dict[str, float | str]]:
    """Per method: absolute error of z in nats per point, over the records that have it."""
    rows: list[dict[str, float | str]] = []
    for method in METHODS:
        having = [record for record in records if method in record]
        if not having:
            continue
        error = torch.tensor([abs(float(r[method]) - float(r["z"])) for r in having], dtype=torch.float64)
        row: dict[str, float | str] = {
            "method": method,
            "median": float(error.median()),
            "p95": float(error.quantile(0.95)),
            "largest": float(error.max()),
        }
        if method == "learned":
            row["coverage"] = sum(float(r["lower"]) <= float(r["z"]) <= float(r["upper"]) for r in having) / len(having)
        if f"{method}_seconds" in having[0]:
            shares = [float(r[f"{method}_seconds"]) / float(r["lanczos10_seconds"]) for r in having]
            row["seconds / lanczos10"] = float(torch.tensor(shares).median())
        rows.append(row)
    return rows


@click.command()
@click.option("--cache", "folder", type=click.Path(exists=True, path_type=Path), help="to train the block MLP on")
@click.option("--sizes", default="1000,2500,5000,10000")
@click.option("--ranks", default="128,400")
@click.option("--mlp-steps", default=10_000)
@click.option("--seed", default=0)
@click.option("--out", default=_RESULT, type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path | None, sizes: str, ranks: str, mlp_steps: int, seed: int, out: Path) -> None:
    """Measure and write OUT."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    mlp = None
    if folder is not None:
        data, held = split(cache.load(folder))
        torch.manual_seed(seed)
        mlp = BlockMLP(data["scalars"], data["tokens"].float(), hidden=192)
        run = out.with_suffix(".mlp")
        run.mkdir(exist_ok=True)
        fit(mlp, data, held, TrainConfig(steps=mlp_steps, seed=seed), run, log_every=2000)
    records: list[Record] = []
    trained: dict[tuple[str, int], list[tuple[int, Parameters]]] = {}
    wanted = [(name, int(size)) for size in sizes.split(",") for name in SETS]
    for name, n in [*wanted, *((name, _SIMULATED_SIZE) for name in SIMULATED)]:
        key = (name, min(n, _TRAINED_SIZE))
        if key not in trained:
            trained[key] = trajectory(*key, STAGES, seed)
        for step, state in trained[key]:
            if n >= _LATE and step not in (3, 15, 60):
                continue
            system, target, exact = system_at(name, n, state, seed)
            for rank in (int(value) for value in ranks.split(",")):
                labels: Record = {"data": name, "n": n, "step": step, "rank": rank}
                records.append(labels | measure(system, target, exact, rank, mlp))
        last = records[-1]
        print(f"{name} n={n}: z {last['z']:.4f}, learned {last['learned']:.4f}", flush=True)
    uci = [record for record in records if record["data"] in SETS]
    by_size = {str(n): table([r for r in uci if r["n"] == n]) for n in sorted({int(r["n"]) for r in uci})}
    simulated = table([record for record in records if record["data"] in SIMULATED])
    result = {
        "machine": machine.processor_name(),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "seed": seed,
        "uci": table(uci),
        "uci_by_size": by_size,
        "simulated": simulated,
        "records": records,
    }
    write_bytes(out, json.dumps(result, indent=1).encode())
    for title, rows in [("UCI", result["uci"]), *by_size.items(), ("simulated", simulated)]:
        print(title)
        for row in rows:
            print("  ", ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else str(v) for k, v in row.items()))


if __name__ == "__main__":
    main()
