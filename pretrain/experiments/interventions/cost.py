"""Seconds and memory of one forward pass over the size of the matrix."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from pretrain.baselines.numformer import NumFormer, NumFormerConfig
from pretrain.experiments.interventions.ladder import Model, Rung

# The scores of one block take 4 heads x n^4 x 4 bytes: 100 MB at n = 50, 1.6 GB at n = 100, 26 GB at n = 200.
_LARGEST_ENTRIES = 50
_REPEATS = 3


def costs(rung: Rung, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """One record per size: seconds (median of 3) and the peak of what is allocated, in bytes, beyond A and the weights.

    Batch 1, float32, three scalar tasks, the loops of training, weights that are not trained: cost does not depend on
    them. A NumFormer gets position tables that are large enough, and is not run above n = 50.
    """
    records = []
    for size in sizes:
        if rung.kind == "entries" and size > _LARGEST_ENTRIES:
            records.append({"n": size, "fits": False})
            continue
        tasks = ("trace", "lambda_max", "logdet")
        model = NumFormer(NumFormerConfig(tasks, largest=size)) if rung.kind == "entries" else rung.build(tasks, seed=0)
        generator = torch.Generator().manual_seed(size)
        matrix = torch.randn(1, size, size, generator=generator)
        matrix = matrix + matrix.mT
        peak = _peak_bytes(model, matrix)
        seconds = median(_seconds(model, matrix) for _ in range(_REPEATS))
        records.append({"n": size, "fits": True, "seconds": seconds, "peak_bytes": peak})
    return records


@torch.no_grad()
def _seconds(model: Model, matrix: torch.Tensor) -> float:
    start = time.perf_counter()
    model(matrix)
    return time.perf_counter() - start


@torch.no_grad()
def _peak_bytes(model: Model, matrix: torch.Tensor) -> int:
    """The largest running sum of allocations and releases that torch's profiler saw on the CPU."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        model(matrix)
    results: Any = record.profiler
    events = [event for event in results.kineto_results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak
