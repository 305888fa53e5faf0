"""Lower bounds of a step: the kernel matrix and one contraction of its gradient, and nothing in between.

Whatever solves with K has to evaluate it once, and whatever returns a gradient has to contract dK with some weight
once; passes, factorisations and everything else come on top.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.lab.bench.contenders import Clock, Evaluation, Problem, UnavailableError
from gp_rangeformer.lab.compare.audit import Parameters, gradient_vector, restore
from gp_rangeformer.lab.models import build_model
from gp_rangeformer.plugin.recognition import recognise

FLOOR = "floor"
HOST_FLOOR = "host floor"
COLUMNS = 33  # y and the default number of probes, whose solutions are the factors of a step's weight


def factors(problem: Problem) -> tuple[Tensor, Tensor]:
    """The n x 33 factors of the weight W = left right', standard normal from a fixed seed, in the problem's dtype."""
    generator = torch.Generator().manual_seed(0)
    left, right = torch.randn(2, problem.n, COLUMNS, generator=generator, dtype=torch.float64)
    return left.to(problem.data.train_x), right.to(problem.data.train_x)


class Floor:
    """One fused evaluation of K, kept until one contraction of its gradient with a thin weight of 33 columns has ended.

    The gradient returned is d sum(W * K) over the raw hyperparameters.

    :raises UnavailableError: the kernel has no fused form.
    """

    name = FLOOR

    def __init__(self, problem: Problem) -> None:
        self._x = problem.data.train_x
        self._model, _ = build_model(problem.data, problem.kernel)
        if recognise(self._model.covar_module, self._x) is None:
            raise UnavailableError(f"kernel {problem.kernel!r} has no fused form")
        self._left, self._right = factors(problem)

    def evaluate(self, state: Parameters) -> Evaluation:
        restore(self._model, state)
        self._model.zero_grad()
        with Clock(self._x.device) as clock:
            fused = recognise(self._model.covar_module, self._x)
            assert fused is not None
            kernel = fused.dense()
            found = zip(fused.arguments, fused.contract(self._left, self._right), strict=True)
            # O(n d): from the scaled coordinates, of which the contraction gives the gradient, to the hyperparameters.
            arguments, gradients = zip(*[pair for pair in found if pair[0].requires_grad], strict=True)
            torch.autograd.backward(arguments, gradients)
        del kernel
        return Evaluation(clock.seconds, clock.processor, None, gradient_vector(self._model), system=clock.system)


class HostFloor:
    """GPyTorch's own kernel evaluated densely, and its backward for the weight of :class:`Floor`, given as n x n.

    The product that makes the weight dense is outside the time; its memory counts.
    """

    name = HOST_FLOOR

    def __init__(self, problem: Problem) -> None:
        self._x = problem.data.train_x
        self._model, _ = build_model(problem.data, problem.kernel)
        self._left, self._right = factors(problem)

    def evaluate(self, state: Parameters) -> Evaluation:
        restore(self._model, state)
        self._model.zero_grad()
        weight = self._left @ self._right.mT
        with settings.rangeformer(False), Clock(self._x.device) as clock:
            self._model.covar_module(self._x).to_dense().backward(weight)
        return Evaluation(clock.seconds, clock.processor, None, gradient_vector(self._model), system=clock.system)
