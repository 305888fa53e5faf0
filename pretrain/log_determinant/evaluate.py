"""The learned log determinant on UCI kernels it has never seen, along training trajectories, beside its competitors.

    python -m pretrain.log_determinant.evaluate --cache FOLDER [--sizes 1000,2500,5000,10000] [--ranks 128,400]
    python -m pretrain.log_determinant.evaluate --sets kin40k,protein --sizes 16000,36000 --stages 3,15,30,60 \\
        --device cuda --no-simulated --out pretrain/results/log_determinant_large.json

Two simulators that ship with the package are measured too, at n = 1000: without any file, a reader can repeat those.

Every system is solved by the certified solver as in training (float32, 32 probes, tolerance 0.01); the exact log
determinant is a float64 Cholesky factorisation of the same float32 matrix. Hyperparameters: 60 Adam steps at rate 0.1
of a Matern-3/2 ARD kernel, trained at the same n up to 2500, beyond that at 2500. Seconds: one thread unless
OMP_NUM_THREADS says otherwise. With --evidence what the network reads is kept as well, and
:mod:`pretrain.log_determinant.rescore` puts another network's answers into the file without solving anything again.
"""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path

import click
import torch
from torch import Tensor

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench.replay import record_trajectory
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.audit import Parameters, restore
from gp_rangeformer.lab.compare.instruments import synchronize
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import build_model
from gp_rangeformer.logdet import learned
from gp_rangeformer.logdet.estimate import TailEstimate
from gp_rangeformer.logdet.evidence import TailEvidence, sample_points, tail_evidence, whitened_rows
from gp_rangeformer.logdet.lanczos import lanczos_logdet
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.log_determinant.baselines import BlockMLP, block_alone, extrapolated
from pretrain.log_determinant.evidence import Record, write_evidence
from pretrain.log_determinant.pack import load
from pretrain.log_determinant.train import TrainConfig, fit, split

SETS = ("pol", "elevators", "bike", "kin40k", "protein")
SIMULATED = ("robot_arm", "borehole")
STAGES = (0, 3, 8, 15, 30, 45, 60)
_LATE, _LATE_STAGES = 5000, (3, 15, 60)  # from this n on these stages alone
_SIMULATED_SIZE = 1000
_TRAINED_SIZE = 2500
_CPU = torch.device("cpu")
_KERNEL = "matern32"
_LARGEST_BLOCK = 256  # whose determinant is taken
_PLUGIN = SolverSpec("rangeformer", "rangeformer", "float32")
RESULT = Path(__file__).resolve().parents[1] / "results" / "log_determinant.json"


@click.command()
@click.option("--cache", "folder", type=click.Path(exists=True, path_type=Path), help="to train the block MLP on")
@click.option("--sets", default=",".join(SETS))
@click.option("--sizes", default="1000,2500,5000,10000")
@click.option("--ranks", default="128,400")
@click.option("--stages", default=None, help="Adam steps; without it seven of them, three from n = 5000 on")
@click.option("--simulated/--no-simulated", default=True, help="the two simulators too")
@click.option("--device", default="cpu")
@click.option("--mlp-steps", default=10_000)
@click.option("--seed", default=0)
@click.option("--evidence", "kept", default=None, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--out", default=RESULT, type=click.Path(dir_okay=False, path_type=Path))
def main(
    folder: Path | None,
    sets: str,
    sizes: str,
    ranks: str,
    stages: str | None,
    simulated: bool,
    device: str,
    mlp_steps: int,
    seed: int,
    kept: Path | None,
    out: Path,
) -> None:
    """Measure and write OUT."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    place = torch.device(device)
    mlp = None if folder is None else trained_mlp(folder, out, steps=mlp_steps, seed=seed)
    records: list[Record] = []
    evidence: list[TailEvidence] = []
    left_out: list[str] = []
    wanted = [(name, n) for n in _numbers(sizes) for name in sets.split(",")]
    trained: dict[tuple[str, int], list[tuple[int, Parameters]]] = {}
    for name, n in [*wanted, *((name, _SIMULATED_SIZE) for name in SIMULATED if simulated)]:
        started = time.perf_counter()
        key = (name, min(n, _TRAINED_SIZE))
        if key not in trained:
            trained[key] = trajectory(*key, STAGES if stages is None else _numbers(stages), seed, place)
        for step, state in trained[key]:
            if stages is None and n >= _LATE and step not in _LATE_STAGES:
                continue
            system, target, exact = system_at(name, n, state, seed, place)
            for rank in _numbers(ranks):
                try:
                    record, read = measure(system, target, exact, rank, mlp)
                except NotConverged as error:
                    left_out.append(f"{name} n={n} step {step} rank {rank}: {error}")
                    print(f"left out: {left_out[-1]}", flush=True)
                    continue
                records.append({"data": name, "n": n, "step": step, "rank": rank, **record})
                evidence.append(read)
        if not records:
            continue
        last, took = records[-1], time.perf_counter() - started
        print(f"{name} n={n}: z {last['z']:.4f}, learned {last['learned']:.4f}, {took:.1f} s", flush=True)
    if kept is not None:
        write_evidence(kept, evidence)
    described = {
        "machine": machine.one_line(device),
        "threads": torch.get_num_threads(),
        "dtype": "float32",
        "seed": seed,
        "left_out": left_out,
    }
    write_result(out, described, records)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(value) for value in text.split(","))


def trained_mlp(folder: Path, out: Path, *, steps: int, seed: int) -> BlockMLP:
    """The MLP on block features after the same training as the network, which resumes beside ``out``."""
    data, held = split(load(folder))
    torch.manual_seed(seed)
    mlp = BlockMLP(data["scalars"], data["tokens"].float(), hidden=192)
    run = out.with_suffix(".mlp")
    run.mkdir(exist_ok=True)
    fit(mlp, data, held, TrainConfig(steps=steps, seed=seed), run, log_every=2000)
    return mlp


def trajectory(
    name: str, n: int, stages: tuple[int, ...], seed: int, device: torch.device = _CPU
) -> list[tuple[int, Parameters]]:
    """The model's parameters at some Adam steps of the plug-in at its defaults."""
    states = record_trajectory(_data(name, n, seed, device), _KERNEL, _PLUGIN, max(stages) + 1, lr=0.1)
    return [(step, states[step]) for step in stages]


@functools.lru_cache(maxsize=2)
def _data(name: str, n: int, seed: int, device: torch.device) -> Dataset:
    return datasets.load(name, n=n, seed=seed).to(torch.float32, device)


@torch.no_grad()
def system_at(
    name: str, n: int, state: Parameters, seed: int, device: torch.device = _CPU
) -> tuple[LinearSystem, Tensor, float]:
    """(A in float32, y - mean, exact log|A| of that matrix)."""
    data = _data(name, n, seed, device)
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


class NotConverged(RuntimeError):
    """The solver did not reach its tolerance, so that there is no evidence; the message says why."""


@torch.no_grad()
def measure(
    system: LinearSystem, target: Tensor, exact: float, rank: int, mlp: BlockMLP | None
) -> tuple[Record, TailEvidence]:
    """Every estimator's z on one system, in nats per point, the seconds of the two that compete in time, and what the
    network read."""
    n = system.size
    solver = Certified(rank=rank, adaptive_rank=False, predictor="none", max_passes=1000)
    prepared = solver.prepare(system)
    preconditioner = prepared.preconditioner
    assert preconditioner is not None
    probes = solver.probe_vectors(system)
    solution = prepared.attempt(torch.cat([target, probes], dim=1), None)
    if not solution.converged:
        raise NotConverged(solution.reason.value)
    base = preconditioner.logdet()
    given = (system, preconditioner, probes, solution.value[:, 1:], solution.quadratic[1:])

    def clock() -> float:
        synchronize(system.device)
        return time.perf_counter()

    chosen = sample_points(n, torch.Generator().manual_seed(solver.seed + 3)).to(system.device)
    learned.read(tail_evidence(*given, chosen))  # loads the network
    started = clock()
    evidence = tail_evidence(*given, chosen)
    estimate = learned.read(evidence)
    learned_seconds = clock() - started
    record: Record = {"z": (exact - base) / n, **answer(estimate), "learned_seconds": learned_seconds}
    for count in (10, 30):
        started = clock()
        trace = lanczos_logdet(system, preconditioner, probes[:, :count])
        record |= {
            f"lanczos{count}": trace.value / n,
            f"lanczos{count}_passes": trace.passes,
            f"lanczos{count}_seconds": clock() - started,
        }
    block = chosen[: min(_LARGEST_BLOCK, n // 4)]
    matrix = whitened_rows(system, preconditioner, block, len(block))[0][0].cpu()
    record |= {
        "quadrature": evidence.estimate,
        "block": block_alone(matrix),
        "extrapolated": min(extrapolated(matrix, n), evidence.upper),
    }
    return record | ({} if mlp is None else {"block_mlp": mlp_answer(mlp, evidence)}), evidence


def answer(estimate: TailEstimate) -> Record:
    """The network's part of a record."""
    assert estimate.interval is not None
    ends = {"lower": estimate.interval.lower, "upper": estimate.interval.upper}
    return {"learned": estimate.value, "refusal": estimate.refusal or "", **ends}


@torch.no_grad()
def mlp_answer(mlp: BlockMLP, evidence: TailEvidence) -> float:
    """Its z in nats per point."""
    ends = [torch.tensor([value]) for value in (evidence.estimate, evidence.upper)]
    return float(mlp(evidence.scalars.float().unsqueeze(0), evidence.tokens.float().unsqueeze(0), *ends)[0, 1])


def write_result(out: Path, described: dict[str, object], records: list[Record]) -> None:
    """Write the result file atomically and print its tables."""
    tables = summary(records)
    by_size = {title.removeprefix("n = "): rows for title, rows in tables.items() if title.startswith("n = ")}
    parts = {"uci": tables["uci"], "uci_by_size": by_size, "simulated": tables["simulated"]}
    write_bytes(out, json.dumps({**described, **parts, "records": records}, indent=1).encode())
    for title, rows in tables.items():
        print(title)
        for row in rows:
            print("  ", ", ".join(f"{k} {v:.4f}" if isinstance(v, float) else str(v) for k, v in row.items()))


def summary(records: list[Record]) -> dict[str, list[dict[str, float | str]]]:
    """The tables of a result file."""
    uci = [record for record in records if record["data"] in SETS]
    sizes = sorted({int(record["n"]) for record in uci})
    return {
        "uci": table(uci),
        **{f"n = {n}": table([record for record in uci if record["n"] == n]) for n in sizes},
        "simulated": table([record for record in records if record["data"] in SIMULATED]),
    }


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


if __name__ == "__main__":
    main()
