"""What a product with K costs and is worth, by precision and by how K is held: the figures behind the defaults."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from gp_rangeformer.kernels.expression import Scale, Stationary
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.lab.bench.contenders import Clock
from gp_rangeformer.lab.bench.floors import COLUMNS
from gp_rangeformer.lab.grid import Grid

_REPEATS = 7
_LARGEST_SOLVED = 4000  # exact float64 solves
NOISES = (0.1, 0.01, 0.001)  # relative to k(x, x)


@dataclass(frozen=True)
class Product:
    """One way to multiply with K.

    :param seconds: median of a product with 33 columns; ``preparation``: of what has to be made once in a step before.
    :param error: relative, against float64.
    :param left: the relative residual of A X = B that is left where X solves exactly with the rounded K, for every
        noise of :data:`NOISES`. Refinement with such inner solves gains that factor a round, and nothing at 1. None
        where K is not rounded, or n too large.
    """

    way: str
    seconds: float
    preparation: float
    error: float
    left: tuple[float, ...] | None = None

    def per_step(self, products: float) -> float:
        """Seconds of a training step that makes so many products."""
        return self.preparation + products * self.seconds


def measure_products(n: int, *, dimensions: int = 8, device: str = "cpu", seed: int = 0) -> list[Product]:
    """A Matern-3/2 kernel of uniform points in float32, multiplied in every way that ``device`` has."""
    place = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, dimensions, generator=generator).to(place)
    vectors = torch.randn(n, COLUMNS, generator=generator).to(place)
    kernel, precise = matern_kernel(x), matern_kernel(x.double())
    found = []
    with torch.no_grad():
        recomputed = kernel.recomputed()
        rows = torch.arange(0, n, max(1, n // 64), device=place)  # of K, for the errors
        exact = precise.recomputed().columns(rows).mT @ vectors.double()
        dense = kernel.dense()

        def add(way: str, multiply: Callable[[], Tensor], preparation: float, rounded: Tensor | None = None) -> None:
            error = torch.linalg.vector_norm(multiply()[rows].double() - exact) / torch.linalg.vector_norm(exact)
            left = None
            if rounded is not None and n <= _LARGEST_SOLVED:
                left = _residuals_left(precise.dense(), rounded.double(), vectors.double())
            found.append(Product(way, median_seconds(multiply, place), preparation, float(error), left))

        making = median_seconds(kernel.dense, place)
        add("dense, float32", lambda: dense @ vectors, making, dense)
        copying = median_seconds(dense.bfloat16, place)
        low, low_vectors = dense.bfloat16(), vectors.bfloat16()
        add("dense, bfloat16 copy", lambda: low @ low_vectors, making + copying, low)
        if place.type == "cuda":
            add("dense, TF32", lambda: _in_tf32(dense, vectors), making, _rounded_to_tf32(dense))
        del dense, low
        add("recomputed", lambda: recomputed.matmul(vectors), 0.0)
    return found


def products_grid(n: int, products: list[Product], where: str) -> Grid:
    """One row per way; what 3 and 12 products a step cost with it."""
    rows = tuple(
        (
            product.way,
            f"{1e3 * product.seconds:.2f}",
            f"{1e3 * product.preparation:.2f}",
            f"{1e3 * product.per_step(3):.1f}",
            f"{1e3 * product.per_step(12):.1f}",
            f"{product.error:.1e}",
            *(("-",) * len(NOISES) if product.left is None else (f"{residual:.2g}" for residual in product.left)),
        )
        for product in products
    )
    noises = tuple(f"left, {noise:g}" for noise in NOISES)
    headers = ("K", "product, ms", "made first", "3 a step", "12 a step", "error", *noises)
    notes = (
        f"Matern-3/2 with length-scale 0.5, points uniform in the unit cube, k(x, x) = 1; medians; {where}",
        "left, s: relative residual that an exact solve with the rounded K leaves at noise s; at 1 refinement stalls",
    )
    return Grid(f"n = {n}, {COLUMNS} columns", headers, rows, notes)


def to_json(n: int, products: list[Product]) -> dict[str, object]:
    """For a result file."""
    return {"n": n, "products": [asdict(product) for product in products]}


def matern_kernel(x: Tensor) -> FusedKernel:
    """Matern-3/2 with k(x, x) = 1 and a length-scale of 0.5 in every dimension of the n x d points."""
    parameters = x.new_tensor(1.0), x.new_full((1, x.shape[1]), 0.5)
    return FusedKernel(Scale(Stationary("matern32")), x, parameters)


def _residuals_left(kernel: Tensor, rounded: Tensor, rhs: Tensor) -> tuple[float, ...]:
    left = []
    for noise in NOISES:
        system = rounded.clone()
        system.diagonal().add_(noise)
        solution = torch.linalg.solve(system, rhs)
        residual = rhs - kernel @ solution - noise * solution
        left.append(float(torch.linalg.vector_norm(residual) / torch.linalg.vector_norm(rhs)))
    return tuple(left)


def _rounded_to_tf32(matrix: Tensor) -> Tensor:
    """To nearest in 10 bits of mantissa, as the tensor cores read float32."""
    dropped = 13
    bits = matrix.view(torch.int32)
    return ((bits + (1 << (dropped - 1))) & ~((1 << dropped) - 1)).view(torch.float32)


def _in_tf32(matrix: Tensor, vectors: Tensor) -> Tensor:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return matrix @ vectors
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def median_seconds(
    action: Callable[[], object], device: torch.device, before: Callable[[], object] = lambda: None
) -> float:
    """Of seven runs after one that is not counted; ``before`` runs ahead of each, outside the time."""
    action()
    taken = []
    for _ in range(_REPEATS):
        before()
        with Clock(device) as clock:
            action()
        taken.append(clock.seconds)
    return median(taken)
