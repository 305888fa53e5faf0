"""A product with a K that several processes share, beside the cost model of examples/guide/large-n.md.

    torchrun --nproc-per-node 2 -m gp_rangeformer.lab.bench.sharing --sizes 4000,8000

One thread per process unless OMP_NUM_THREADS says otherwise; gloo on CPUs, nccl on GPUs.
"""

from __future__ import annotations

import os
from typing import Annotated

import torch
import typer
from torch import distributed

from gp_rangeformer.kernels.matrices.sharded import ProcessShare
from gp_rangeformer.lab.bench.floors import COLUMNS
from gp_rangeformer.lab.bench.products import matern_kernel, median_seconds
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.plugin.storage import Storage, hold

_DIMENSIONS = 4


def measure_sharing(n: int, share: ProcessShare, device: torch.device) -> tuple[float, float]:
    """Seconds of a product with 33 columns: rows of K held, and tiles recomputed; the slowest process waits for none
    of the others, because every product ends with a collective."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, _DIMENSIONS, generator=generator).to(device)
    vectors = torch.randn(n, COLUMNS, generator=generator).to(device)
    kernel = matern_kernel(x)
    with torch.no_grad():
        rows, tiles = (hold(kernel, Storage(dense, share=share))[1] for dense in (True, False))
        held = median_seconds(lambda: rows.matmul(vectors), device, distributed.barrier)
        return held, median_seconds(lambda: tiles.matmul(vectors), device, distributed.barrier)


def main(sizes: Annotated[str, typer.Option(help="Points, separated by commas.")] = "4000,8000") -> None:
    """Print milliseconds of a product, by size; process 0 speaks."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    distributed.init_process_group("nccl" if cuda else "gloo")
    try:
        share = ProcessShare.of(None, device)
        wanted = [int(size) for size in sizes.split(",")]
        found = [(n, *measure_sharing(n, share, device)) for n in wanted]
        if distributed.get_rank() == 0:
            rows = tuple((str(n), f"{1e3 * held:.1f}", f"{1e3 * made:.1f}") for n, held, made in found)
            title = f"Product with {COLUMNS} columns, ms, {distributed.get_world_size()} processes"
            note = f"Matern-3/2, {_DIMENSIONS} dimensions, float32, medians; {machine.one_line(str(device))}"
            print(Grid(title, ("n", "rows held", "tiles recomputed"), rows, (note,)).to_markdown())
    finally:
        distributed.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
