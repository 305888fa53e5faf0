"""All that a step starts on a device is of fixed shapes and looks at nothing: it can be captured and replayed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from gp_rangeformer.kernels.evaluate import evaluate_arguments
from gp_rangeformer.kernels.expression import Scale, Stationary
from gp_rangeformer.preconditioner.unseen_nystrom import UnseenNystrom
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.unseen_step import start_step
from gp_rangeformer.system.linear_system import LinearSystem
from tests.device_cost import recognised
from tests.stand_in import DEVICE, DeviceTensor, Graph, StandIn

N = 400
EXPRESSION = Scale(Stationary("matern32", None))
SOLVER = Certified(rank=40, adaptive_rank=False, neighbours=0)


def static_inputs() -> list[Tensor]:
    """Outputscale, coordinates, noise and targets, on the device."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(N, 3, generator=generator, dtype=torch.float64)
    y = torch.sin(6 * x.sum(1, keepdim=True)).float()
    return [part.to(DEVICE) for part in (torch.tensor([1.0]), x / 0.4, torch.full((N,), 0.05), y)]


def started(inputs: list[Tensor], memory: Memory) -> list[Tensor]:
    """K, preconditioner, first guess, iterations, certificates and evidence: everything that the host will read."""
    scale, coordinates, noise, targets = inputs
    system = LinearSystem(evaluate_arguments(EXPRESSION, (scale, coordinates), N, torch.float32), noise)
    prepared = SOLVER.prepare(system, memory)
    energy = np.full(1 + SOLVER.num_probes, np.inf)
    energy[0] = 1.0
    assert isinstance(prepared.proposed, UnseenNystrom)
    step = start_step(prepared, prepared.proposed, targets, prepared.signs(SOLVER.num_probes), energy)
    assert step is not None
    asked = [tensor for question in system.reading._asked for tensor in question.tensors]
    return [step.value, *asked]


def move(inputs: list[Tensor], scale: float, lengthscale: float, noise: float) -> None:
    """Other hyperparameters, written into the same memory."""
    inputs[0].fill_(scale)
    inputs[1].div_(lengthscale)
    inputs[2].fill_(noise)


def warm_memory(inputs: list[Tensor]) -> Memory:
    memory = Memory()
    for _ in range(3):
        scale, coordinates, noise, targets = inputs
        kernel = evaluate_arguments(EXPRESSION, (scale, coordinates), N, torch.float32)
        SOLVER.prepare(LinearSystem(kernel, noise), memory).evaluate(targets)
    return memory


def held(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.held.clone() for tensor in tensors if isinstance(tensor, DeviceTensor)]


@pytest.mark.parametrize("place", [(1.3, 1.1, 0.04), (0.6, 0.8, 0.2)])
def test_a_captured_step_gives_the_bits_of_an_eager_one_at_other_hyperparameters(
    place: tuple[float, float, float],
) -> None:
    with StandIn() as device, recognised(), torch.no_grad():
        inputs = static_inputs()
        memory = warm_memory(inputs)
        with device.capture() as graph:
            outputs = started(inputs, memory)
        first = held(outputs)
        move(inputs, *place)
        graph.replay()
        replayed, eager = held(outputs), held(started(inputs, memory))
    assert len(replayed) == len(eager) > 5
    assert all(torch.equal(one, other) for one, other in zip(replayed, eager, strict=True))
    assert not torch.equal(first[0], replayed[0])


def test_a_step_that_looks_cannot_be_captured() -> None:
    with StandIn() as device:
        there = torch.ones(3).to(DEVICE)
        with device.capture() as graph:
            total = there.sum()
            with pytest.raises(RuntimeError, match="waits for the device"):
                float(total)
        assert isinstance(graph, Graph)
