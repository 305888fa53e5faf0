"""What a comparison ran on, for the result file and the captions of tables."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import torch

_PACKAGES = ("gp-rangeformer", "gpytorch", "linear-operator", "numpy")


def versions() -> dict[str, str]:
    """Installed versions of this package and what its numbers depend on."""
    # PyTorch's own word tells its builds apart, 2.13.0+cpu from +cu130; the metadata of some wheels does not.
    known = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {**known, **{name: _version(name) for name in _PACKAGES}}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"  # run from its source folder


def describe(device: str = "cpu") -> dict[str, object]:
    """Platform, processor, cores, threads, the accelerator that was asked for, and versions."""
    description: dict[str, object] = {
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "device": device,
    }
    if device.startswith("cuda"):
        description["accelerator"] = torch.cuda.get_device_name(device)
    return {**description, "versions": versions()}


def one_line(device: str = "cpu") -> str:
    """The description in a few words: what a reader needs to judge the seconds."""
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor_name()
    return f"{name}, {available_cores()} cores, torch {torch.__version__}, gpytorch {metadata.version('gpytorch')}"


def processor_name() -> str:
    """The processor's marketing name where /proc/cpuinfo has it, else what the platform calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def available_cores() -> int:
    """Cores that this process may use, which a container limits."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
