"""The cached training set of the log-determinant tail: evidence and exact answers, one small file per shard.

    python -m pretrain.log_determinant.cache FOLDER --shards 0:400 --seed 0

A shard is a function of its seed alone, is written atomically, and is skipped if it exists: interrupt and repeat at
will, and run several processes over disjoint ranges. About 0.7 kB per system.
"""

from __future__ import annotations

import io
import math
import os
import time
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.ranges.landmarks import rp_cholesky_landmarks, uniform_landmarks
from gp_rangeformer.ranges.tail import sample_block, tail_evidence
from gp_rangeformer.solvers.base import LinearSystem
from gp_rangeformer.solvers.nystrom import NystromPreconditioner, nystrom_preconditioner
from pretrain.log_determinant.systems import NOISES, RANKS, SIZES, draw_kernel

KERNELS_PER_SHARD = 16
PROBES = 32
_NOISES_PER_KERNEL = 4
_SIZES_PER_KERNEL = 3


def make_shard(seed: int, largest: int = SIZES[1]) -> dict[str, np.ndarray]:
    """The systems of ``KERNELS_PER_SHARD`` kernels: scalars, tokens, the exact tail z and what each system is."""
    generator = torch.Generator().manual_seed(seed)
    records: list[dict[str, np.ndarray]] = []
    for kernel in range(KERNELS_PER_SHARD):
        records.extend(_systems_of_one_kernel(seed * KERNELS_PER_SHARD + kernel, largest, generator))
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _systems_of_one_kernel(identity: int, largest: int, generator: torch.Generator) -> list[dict[str, np.ndarray]]:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    # Small ones are cheap: the density in log n falls as n^-1, which gives every size a similar share of the time.
    n = int(1 / uniform(1 / largest, 1 / (2 * SIZES[0])))
    kernel = draw_kernel(n, generator).matrix
    low, high = (math.log(end) for end in NOISES)
    steps = [(position + uniform(0, 1)) / _NOISES_PER_KERNEL for position in range(_NOISES_PER_KERNEL)]
    levels = [math.exp(low + (high - low) * step) for step in steps]
    varying = uniform(0, 1) < 0.15
    shape = torch.ones(n, dtype=torch.float64)
    if varying:
        shape = (0.7 * torch.randn(n, generator=generator, dtype=torch.float64)).clamp(-2, 2).exp()
    sizes = sorted({n, *(int(n * 2 ** uniform(-2.5, -0.2)) for _ in range(_SIZES_PER_KERNEL - 1))})
    sizes = [size for size in sizes if size >= SIZES[0]]
    probes = torch.randint(0, 2, (n, PROBES), generator=generator).double() * 2 - 1
    plans = []
    for size in sizes:
        rank = int(math.exp(uniform(math.log(RANKS[0]), math.log(min(RANKS[1], size // 2)))))
        draw = rp_cholesky_landmarks if uniform(0, 1) < 0.7 else uniform_landmarks
        single = LinearSystem(kernel[:size, :size].float(), (levels[0] * shape[:size]).float())
        try:
            base = nystrom_preconditioner(single, draw(single, rank, generator), negligible=1e-3)
        except RuntimeError:
            continue
        plans.append((size, base, sample_block(size, generator)))
    records = []
    matrix = torch.empty_like(kernel)
    for level in levels:
        matrix.copy_(kernel).diagonal().add_(level * shape)
        # LAPACK in place: torch's own call copies the matrix and clears a triangle, which takes as long again.
        in_place, info = lapack.dpotrf(matrix.numpy().T, lower=1, overwrite_a=1, clean=0)  # type: ignore[attr-defined]
        if info:
            continue
        factor = torch.from_numpy(in_place)
        logs = 2 * factor.diagonal().log().cumsum(0)
        for size, base, block in plans:
            leading, chosen = factor[:size, :size], probes[:size]
            half = torch.linalg.solve_triangular(leading, chosen, upper=False)
            solutions = torch.linalg.solve_triangular(leading.mT, half, upper=True)
            system = LinearSystem(kernel[:size, :size].float(), (level * shape[:size]).float())
            preconditioner = _rescaled(base, system, level / levels[0])
            evidence = tail_evidence(
                system, preconditioner, chosen.float(), solutions.float(), half.square().sum(0), block
            )
            exact = (float(logs[size - 1]) - preconditioner.logdet()) / size
            records.append(
                {
                    "scalars": evidence.scalars.float().numpy(),
                    "tokens": evidence.tokens.half().numpy(),
                    "tail": np.float32(exact),
                    "upper": np.float32(evidence.upper),
                    "estimate": np.float32(evidence.estimate),
                    "kernel": np.int64(identity),
                }
            )
    return records


def _rescaled(base: NystromPreconditioner, system: LinearSystem, factor: float) -> NystromPreconditioner:
    """The preconditioner of the same landmarks at ``factor`` times the noise: the same basis, another spectrum."""
    keep = base.spectrum / factor > 1e-3
    spectrum, basis = base.spectrum[keep] / factor, base.basis[:, keep]
    gap = (system.diagonal() / system.noise).double() - (basis.square() @ spectrum.to(basis.dtype)).double()
    return replace(
        base, basis=basis, spectrum=spectrum, root_noise=base.root_noise * math.sqrt(factor), gap=gap.clamp_min(0)
    )


def load(folder: Path) -> dict[str, Tensor]:
    """Every shard of a folder, concatenated in the order of their seeds."""
    files = sorted(folder.glob("shard-*.npz"))
    if not files:
        raise FileNotFoundError(f"no shards in {folder}: make some with python -m pretrain.log_determinant.cache")
    shards = [np.load(file) for file in files]
    return {name: torch.from_numpy(np.concatenate([shard[name] for shard in shards])) for name in shards[0].files}


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shards", default="0:100", help="first:last, the last not included")
@click.option("--largest", default=SIZES[1], help="points of the largest kernel matrix")
def main(folder: Path, shards: str, largest: int) -> None:
    """Fill FOLDER with shards."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    first, last = (int(end) for end in shards.split(":"))
    for seed in range(first, last):
        path = folder / f"shard-{seed:06d}.npz"
        if path.exists():
            continue
        started = time.perf_counter()
        content = make_shard(seed, largest)
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **content)
        write_bytes(path, buffer.getvalue())
        print(f"{path.name}: {len(content['tail'])} systems, {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
