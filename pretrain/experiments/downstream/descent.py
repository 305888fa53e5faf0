"""Conjugate gradients from any start, with the price of a residual: iterations, products, seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from torch import Tensor

from gp_rangeformer.rangeformer.rangeformer import RangeFormer


@dataclass(frozen=True)
class Crossing:
    """The price of a tolerance."""

    iterations: int
    products: int
    seconds: float


class SparseOperator:
    """A sparse matrix as RangeFormer sees it, a batch of one; counts the columns it is multiplied with."""

    batch = 1

    def __init__(self, matrix: csr_matrix) -> None:
        self.matrix = matrix
        self.columns = 0
        self._diagonal = torch.from_numpy(matrix.diagonal())

    @property
    def size(self) -> int:
        return len(self._diagonal)

    def diagonal(self) -> Float[Tensor, "1 n"]:
        return self._diagonal.unsqueeze(0)

    def matmul(self, block: Float[Tensor, "1 n k"]) -> Float[Tensor, "1 n k"]:
        self.columns += block.shape[-1]
        return torch.from_numpy(self.matrix @ block.squeeze(0).numpy()).unsqueeze(0)


@dataclass(frozen=True)
class Start:
    """Where CG begins and what it cost to get there. ``value`` None: at 0, whose residual is b without a product."""

    value: np.ndarray | None = None
    products: int = 0


def conjugate_gradients(
    matrix: csr_matrix,
    rhs: np.ndarray,
    start: Callable[[], Start],
    tolerances: Sequence[float],
    cap: int,
    inverse_diagonal: np.ndarray | None = None,
) -> tuple[Start, list[Crossing | None]]:
    """The start, and what each tolerance, in descending order, cost; None where ``cap`` iterations did not reach it.

    :param start: called with the clock running.
    :param inverse_diagonal: of a diagonal preconditioner.
    """
    began = time.perf_counter()
    origin = start()
    products = origin.products
    if origin.value is None:
        solution, residual = np.zeros_like(rhs), rhs.copy()
    else:
        solution, residual = origin.value.copy(), rhs - matrix @ origin.value
        products += 1

    def preconditioned(vector: np.ndarray) -> np.ndarray:
        return vector.copy() if inverse_diagonal is None else inverse_diagonal * vector

    limits = [tolerance * float(np.linalg.norm(rhs)) for tolerance in tolerances]
    crossings: list[Crossing | None] = []
    direction = preconditioned(residual)
    energy = residual @ direction
    iterations, unpaid = 0, 0.0
    while True:
        while len(crossings) < len(limits) and np.linalg.norm(residual) <= limits[len(crossings)]:
            paused = time.perf_counter()
            actual = rhs - matrix @ solution
            if np.linalg.norm(actual) <= limits[len(crossings)]:
                crossings.append(Crossing(iterations, products, paused - began - unpaid))
                unpaid += time.perf_counter() - paused
            else:
                residual, direction, products = actual, preconditioned(actual), products + 1
                energy = residual @ direction
        if len(crossings) == len(limits) or iterations == cap:
            return origin, crossings + [None] * (len(limits) - len(crossings))
        image = matrix @ direction
        products, iterations = products + 1, iterations + 1
        step = energy / (direction @ image)
        solution += step * direction
        residual -= step * image
        towards = preconditioned(residual)
        energy, previous = residual @ towards, energy
        direction = towards + (energy / previous) * direction


def network_start(model: RangeFormer, matrix: csr_matrix, rhs: np.ndarray, seed: int) -> Start:
    """x0 from the network's last loop, with the columns it multiplied; codes from ``seed``."""
    operator = SparseOperator(matrix)
    column = torch.from_numpy(rhs)[None, :, None]
    with torch.no_grad():
        output = model(operator, column, generator=torch.Generator().manual_seed(seed))[-1]
    assert output.solution is not None
    return Start(output.solution[0, :, 0].numpy(), operator.columns)
