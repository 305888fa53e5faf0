"""What one warm training step starts on a device, and how often it waits there for a number: counted on a CPU.

python -m tests.device_cost [-v]
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import nn

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.kernels.gpu import operations
from gp_rangeformer.plugin import recognition
from gp_rangeformer.report import SolveReport
from tests.plugin.market import Problem, build
from tests.stand_in import DEVICE, Counts, StandIn

_WARM = 5  # steps before the one that is counted
_STEP = 0.05  # of every raw parameter: as large as those of a fit's first iterations


def warm_step(n: int = 2000, kind: str = "matern32") -> tuple[Counts, SolveReport]:
    """Of one training step, value and gradient, as the last of a few steps of gradient descent."""
    problem = build(kind, n=n, dtype=torch.float32)
    with (
        StandIn() as device,
        recognised(),
        settings.rangeformer(),
        collect_reports() as reports,
    ):
        there = on_device(problem)
        for _ in range(_WARM):
            there.loss().backward()
            with torch.no_grad():
                for parameter in there.model.parameters():
                    parameter -= _STEP * parameter.grad.sign()
                    parameter.grad = None
        counts = device.start()
        there.loss().backward()
    return counts, reports[-1]


@contextlib.contextmanager
def recognised() -> Iterator[None]:
    """Kernels on the stand-in are recognised, and the package's own operations answer there, as on CUDA."""
    known = mock.patch.object(recognition, "_DEVICES", ("cpu", DEVICE.type))
    with known, mock.patch.object(operations, "answers_on", lambda device: device.type != "cpu"):
        yield


def on_device(problem: Problem) -> Problem:
    """The model and its data on the stand-in."""
    for module in problem.model.modules():
        own: dict[str, Any] = module._parameters
        for name, parameter in own.items():
            own[name] = None if parameter is None else nn.Parameter(parameter.detach().to(DEVICE))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(DEVICE)
    x, y, test_x = (tensor.to(DEVICE) for tensor in (problem.x, problem.y, problem.test_x))
    problem.model.set_train_data(x, y, strict=False)
    return Problem(problem.model, x, y, test_x)


if __name__ == "__main__":
    torch.set_num_threads(1)
    found, report = warm_step()
    print(report)
    print(found.summary())
    if "-v" in sys.argv:
        for (place, name), count in sorted(found.operations.items()):
            print(f"{count:5d} {place} {name}")
