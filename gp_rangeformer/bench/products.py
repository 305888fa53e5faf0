"""What a product with K costs, by precision and by how K is held: the figures behind the defaults."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median

import torch
from torch import Tensor

from gp_rangeformer.compare.instruments import synchronize
from gp_rangeformer.compare.tables import Grid
from gp_rangeformer.kernels.expression import Scale, Stationary
from gp_rangeformer.kernels.fused import FusedKernel

_REPEATS = 7
COLUMNS = 33  # y and 32 probes


@dataclass(frozen=True)
class Product:
    """One way: median seconds of a product with 33 columns, of what has to be made once in a step before, and the
    relative error against float64."""

    way: str
    seconds: float
    preparation: float
    error: float

    def per_step(self, products: float) -> float:
        """Seconds of a training step that makes so many products."""
        return self.preparation + products * self.seconds


def measure_products(n: int, *, dimensions: int = 8, device: str = "cpu", seed: int = 0) -> list[Product]:
    """A Matern-3/2 kernel of uniform points in float32, multiplied in every way that ``device`` has."""
    place = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, dimensions, generator=generator).to(place)
    vectors = torch.randn(n, COLUMNS, generator=generator).to(place)
    parameters = torch.tensor(1.0, device=place), torch.full((1, dimensions), 0.5, device=place)
    kernel = FusedKernel(Scale(Stationary("matern32")), x, parameters)
    found = []
    with torch.no_grad():
        recomputed = kernel.recomputed()
        rows = torch.arange(0, n, max(1, n // 64), device=place)  # of K, for the errors
        exact = recomputed.columns(rows).mT.double() @ vectors.double()

        def add(way: str, multiply: Callable[[], Tensor], preparation: float) -> None:
            error = torch.linalg.vector_norm(multiply()[rows].double() - exact) / torch.linalg.vector_norm(exact)
            found.append(Product(way, _seconds(multiply, place), preparation, float(error)))

        making = _seconds(kernel.dense, place)
        dense = kernel.dense()
        add("dense, float32", lambda: dense @ vectors, making)
        copying = _seconds(dense.bfloat16, place)
        low, low_vectors = dense.bfloat16(), vectors.bfloat16()
        add("dense, bfloat16 copy", lambda: low @ low_vectors, making + copying)
        if place.type == "cuda":
            add("dense, TF32", lambda: _in_tf32(dense, vectors), making)
        del dense, low
        add("recomputed", lambda: recomputed.matmul(vectors), 0.0)
    return found


def products_grid(n: int, products: list[Product], machine: str) -> Grid:
    """One row per way; what 3 and 12 products a step cost with it."""
    rows = tuple(
        (
            product.way,
            f"{1e3 * product.seconds:.2f}",
            f"{1e3 * product.preparation:.2f}",
            f"{product.error:.1e}",
            f"{1e3 * product.per_step(3):.1f}",
            f"{1e3 * product.per_step(12):.1f}",
        )
        for product in products
    )
    headers = ("K", "product, ms", "made first, ms", "error", "3 a step, ms", "12 a step, ms")
    return Grid(f"n = {n}, {COLUMNS} columns", headers, rows, (f"Matern-3/2, 8 dimensions, medians; {machine}",))


def to_json(n: int, products: list[Product]) -> dict[str, object]:
    """For a result file."""
    return {"n": n, "products": [asdict(product) for product in products]}


def _in_tf32(matrix: Tensor, vectors: Tensor) -> Tensor:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return matrix @ vectors
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    action()
    taken = []
    for _ in range(_REPEATS):
        synchronize(device)
        started = time.perf_counter()
        action()
        synchronize(device)
        taken.append(time.perf_counter() - started)
    return median(taken)
