"""The cached training set of the log-determinant tail: evidence and exact answers, one small file per shard.

    OMP_NUM_THREADS=1 python -m pretrain.log_determinant.cache FOLDER --shards 0:400 [--workers 15] [--seconds 240]
    python -m pretrain.log_determinant.cache FOLDER --shards 9000:9900 --smallest 4096 --largest 32768 --even \\
        --composite 0.2 --device cuda

A shard is a function of its seed and of the options on what it holds, is written atomically, and is skipped if it
exists: interrupt and repeat at will. On another device it is the same up to rounding, which may also move a landmark.
About 0.75 kB per system; :mod:`pretrain.log_determinant.pack` makes fewer and smaller files of them.
"""

from __future__ import annotations

import io
import math
import os
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.logdet.evidence import sample_points, tail_evidence
from gp_rangeformer.preconditioner.landmarks import rp_cholesky_landmarks, uniform_landmarks
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner, nystrom_preconditioner
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.log_determinant.systems import NOISES, RANKS, SIZES, draw_composite, draw_kernel

KERNELS_PER_SHARD = 16
PROBES = 32
_NOISES_PER_KERNEL = 4
_SIZES_PER_KERNEL = 3


@dataclass(frozen=True)
class Recipe:
    """What a shard holds, beside its seed.

    ``smallest``, ``largest``: points of a kernel matrix. ``even``: every octave of sizes as often as any other; without
    it the density in log n falls as 1 / n, which gives every size a similar share of the time. ``composite``: share of
    kernels from :func:`~pretrain.log_determinant.systems.draw_composite`.
    """

    smallest: int = 2 * SIZES[0]
    largest: int = SIZES[1]
    even: bool = False
    composite: float = 0.0
    device: str = "cpu"


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shards", default="0:100", help="first:last, the last not included")
@click.option("--smallest", default=Recipe.smallest, help="points of the smallest kernel matrix")
@click.option("--largest", default=Recipe.largest, help="points of the largest kernel matrix")
@click.option("--even", is_flag=True, help="every octave of sizes as often as any other")
@click.option("--composite", default=Recipe.composite, help="share of kernels that are sums of parts of unlike size")
@click.option("--device", default=Recipe.device, help="where the matrices are made and factorised")
@click.option("--workers", default=1, help="processes, each with OMP_NUM_THREADS threads")
@click.option("--seconds", default=math.inf, help="after these no new shard is begun")
def main(
    folder: Path,
    shards: str,
    smallest: int,
    largest: int,
    even: bool,
    composite: float,
    device: str,
    workers: int,
    seconds: float,
) -> None:
    """Fill FOLDER with shards."""
    folder.mkdir(parents=True, exist_ok=True)
    first, last = (int(end) for end in shards.split(":"))
    paths = [(folder / f"shard-{seed:06d}.npz", seed) for seed in range(first, last)]
    missing = [(path, seed) for path, seed in paths if not path.exists()]
    _run(missing, Recipe(smallest, largest, even, composite, device), workers, seconds)


def _run(missing: list[tuple[Path, int]], recipe: Recipe, workers: int, seconds: float) -> None:
    """Write the missing shards; after ``seconds`` no new one is begun."""
    deadline = time.monotonic() + seconds
    if workers == 1:
        for path, seed in missing:
            if time.monotonic() > deadline:
                break
            print(write_shard(path, seed, recipe), flush=True)
        return
    queue, running = iter(missing), set[Future[str]]()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while True:
            while len(running) < workers and time.monotonic() < deadline and (entry := next(queue, None)) is not None:
                running.add(pool.submit(write_shard, *entry, recipe))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for job in done:
                print(job.result(), flush=True)


def write_shard(path: Path, seed: int, recipe: Recipe) -> str:
    """Make one shard and write it atomically; what it took."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    started = time.perf_counter()
    content = make_shard(seed, recipe)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **content)
    write_bytes(path, buffer.getvalue())
    return f"{path.name}: {len(content['tail'])} systems, {time.perf_counter() - started:.1f} s"


def make_shard(seed: int, recipe: Recipe) -> dict[str, np.ndarray]:
    """The systems of ``KERNELS_PER_SHARD`` kernels: scalars, tokens, the exact tail z and what each system is."""
    generator = torch.Generator().manual_seed(seed)
    records: list[dict[str, np.ndarray]] = []
    for kernel in range(KERNELS_PER_SHARD):
        records.extend(_systems_of_one_kernel(seed * KERNELS_PER_SHARD + kernel, recipe, generator))
    return {name: np.stack([record[name] for record in records]) for name in records[0]}


def _systems_of_one_kernel(identity: int, recipe: Recipe, generator: torch.Generator) -> list[dict[str, np.ndarray]]:
    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float64))

    device = torch.device(recipe.device)
    if recipe.even:
        n = int(math.exp(uniform(math.log(recipe.smallest), math.log(recipe.largest))))
    else:
        n = int(1 / uniform(1 / recipe.largest, 1 / recipe.smallest))
    composite = recipe.composite > 0 and uniform(0, 1) < recipe.composite
    kernel = (draw_composite if composite else draw_kernel)(n, generator, device).matrix
    low, high = (math.log(end) for end in NOISES)
    steps = [(position + uniform(0, 1)) / _NOISES_PER_KERNEL for position in range(_NOISES_PER_KERNEL)]
    levels = [math.exp(low + (high - low) * step) for step in steps]
    varying = uniform(0, 1) < 0.15
    shape = torch.ones(n, dtype=torch.float64)
    if varying:
        shape = (0.7 * torch.randn(n, generator=generator, dtype=torch.float64)).clamp(-2, 2).exp()
    sizes = sorted({n, *(int(n * 2 ** uniform(-2.5, -0.2)) for _ in range(_SIZES_PER_KERNEL - 1))})
    sizes = [size for size in sizes if size >= SIZES[0]]
    shape = shape.to(device)
    probes = torch.randint(0, 2, (n, PROBES), generator=generator).to(device).double() * 2 - 1
    plans = []
    for size in sizes:
        rank = int(math.exp(uniform(math.log(RANKS[0]), math.log(min(RANKS[1], size // 2)))))
        draw = rp_cholesky_landmarks if uniform(0, 1) < 0.7 else uniform_landmarks
        reduced = kernel[:size, :size].float()
        single = LinearSystem(reduced, (levels[0] * shape[:size]).float())
        try:
            base = nystrom_preconditioner(single, draw(single, rank, generator), negligible=1e-3)
        except RuntimeError:
            continue
        plans.append((size, reduced, base, sample_points(size, generator).to(device)))
    records = []
    matrix = torch.empty_like(kernel)
    for level in levels:
        matrix.copy_(kernel).diagonal().add_(level * shape)
        factor = _factor(matrix)
        if factor is None:
            continue
        logs = 2 * factor.diagonal().log().cumsum(0).cpu()
        for size, reduced, base, points in plans:
            leading, signs = factor[:size, :size], probes[:size]
            half = torch.linalg.solve_triangular(leading, signs, upper=False)
            solutions = torch.linalg.solve_triangular(leading.mT, half, upper=True)
            system = LinearSystem(reduced, (level * shape[:size]).float())
            preconditioner = _rescaled(base, system, level / levels[0])
            evidence = tail_evidence(
                system, preconditioner, signs.float(), solutions.float(), half.square().sum(0), points
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


def _factor(matrix: Tensor) -> Tensor | None:
    """A lower factor of ``matrix``, with anything above its diagonal, or None; may overwrite ``matrix``."""
    if matrix.device.type != "cpu":
        factor, failure = torch.linalg.cholesky_ex(matrix)
        return None if bool(failure) else factor
    # LAPACK in place: torch's own call copies the matrix and clears a triangle, which takes as long again.
    in_place, info = lapack.dpotrf(matrix.numpy().T, lower=1, overwrite_a=1, clean=0)  # type: ignore[attr-defined]
    return None if info else torch.from_numpy(in_place)


def _rescaled(base: NystromPreconditioner, system: LinearSystem, factor: float) -> NystromPreconditioner:
    """The preconditioner of the same landmarks at ``factor`` times the noise: the same basis, another spectrum."""
    keep = base.spectrum / factor > 1e-3
    spectrum, basis = base.spectrum[keep] / factor, base.basis[:, keep]
    return NystromPreconditioner.on_range(system, basis, spectrum)


if __name__ == "__main__":
    main()
