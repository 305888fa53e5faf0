"""What a GPU says of warm training steps: launches, transfers, waits and seconds. Prints JSON.

python -m tests.device_launches --facts cuda
python -m tests.device_launches --steps cuda 2000,16000
"""

from __future__ import annotations

import importlib.util
import json
import platform
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import gpytorch
import torch
from torch.profiler import ProfilerActivity, profile

from gp_rangeformer import clear_memory, collect_reports, settings
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.models import build_model

_WARM, _TIMED = 8, 7


def facts(device: str) -> dict[str, object]:
    """The machine, in words."""
    known = {"python": platform.python_version(), "torch": torch.__version__, "gpytorch": gpytorch.__version__}
    known["triton"] = str(importlib.util.find_spec("triton") is not None)
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        known |= {"gpu": properties.name, "cuda": str(torch.version.cuda), "memory": str(properties.total_memory)}
    return dict(known)


def steps(device: str, n: int) -> dict[str, object]:
    """Of the last of a few Adam steps on the borehole simulator, float32, Matern-3/2 with a scale per column."""
    data = datasets.load("borehole", n=n, n_test=10, seed=0).to(torch.float32, device)
    model, likelihood = build_model(data, "matern32")
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    seconds: list[float] = []

    def wait() -> None:
        if device == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        optimizer.zero_grad()
        wait()
        begun = time.perf_counter()
        loss = -mll(model(data.train_x), data.train_y)  # type: ignore[operator]
        loss.backward()
        wait()
        seconds.append(time.perf_counter() - begun)
        optimizer.step()

    clear_memory()
    with settings.rangeformer(), settings.min_size(1), collect_reports() as reports:
        for _ in range(_WARM + _TIMED):
            step()
        timed = seconds[_WARM:]
        kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
        with profile(activities=kinds) as profiled:
            step()
    calls = Counter({event.key: event.count for event in profiled.key_averages()})
    report = list(reports)[-1]
    return {
        "n": n,
        "seconds": statistics.median(timed),
        "solver": report.solver,
        "reason": report.reason.name,
        "iterations": report.iterations,
        "passes": report.passes,
        "launches": sum(count for key, count in calls.items() if key.startswith(("cudaLaunch", "cuLaunch"))),
        "transfers_to_host": sum(count for key, count in calls.items() if "Memcpy DtoH" in key),
        "waits": sum(
            count for key, count in calls.items() if key in ("cudaStreamSynchronize", "cudaDeviceSynchronize")
        ),
    }


if __name__ == "__main__":
    target, where, *sizes = sys.argv[1:]
    found = [steps(where, int(n)) for n in sizes[0].split(",")] if sizes else facts(where)
    Path(target).write_text(json.dumps(found, indent=1) + "\n", "utf-8")
