"""Products with a sparse triangular matrix and its transpose, whose pattern stays while its numbers change."""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Int64
from torch import Tensor

from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.kernels.native.neighbours import sparse_product, sparse_solve
from gp_rangeformer.kernels.tiles import spans

_GATHERED = 2**24  # numbers that tensor operations gather at a time


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows one after another: where each starts, the columns, and where the numbers are in the padded rows."""

    starts: Int64[Tensor, " rows1"]
    columns: Int32[Tensor, " q"]
    places: Int64[Tensor, " q"]


@dataclass(frozen=True, eq=False)
class SparsePattern:
    """Row i has numbers on ``neighbours[i]`` (-1: none) and on i: k + 1 of them, i's own last."""

    neighbours: Int32[Tensor, "n k"]

    @functools.cached_property
    def rows(self) -> _Rows:
        columns, there = self._columns()
        starts = _starts(there.sum(1))
        return _Rows(starts, columns[there].int(), there.flatten().nonzero().squeeze(-1))

    @functools.cached_property
    def transposed(self) -> _Rows:
        columns, there = self._columns()
        places = there.flatten().nonzero().squeeze(-1)
        ordered, order = columns[there].long().sort(stable=True)
        starts = _starts(torch.bincount(ordered, minlength=len(columns)))
        places = places[order]
        return _Rows(starts, (places // columns.shape[1]).int(), places)

    def _columns(self) -> tuple[Tensor, Tensor]:
        n = len(self.neighbours)
        own = torch.arange(n, dtype=torch.int32, device=self.neighbours.device).unsqueeze(-1)
        columns = torch.cat([self.neighbours, own], dim=1)
        return columns, columns >= 0

    @property
    def nbytes(self) -> int:
        """With what is derived from it."""
        n, k = self.neighbours.shape
        return 4 * n * k + 2 * (8 * (n + 1) + 12 * n * (k + 1))


class SparseRows:
    """The matrix with these numbers.

    :param numbers: in the places of ``pattern``, n x (k + 1).
    """

    def __init__(self, pattern: SparsePattern, numbers: Float[Tensor, "n k1"]) -> None:
        flat = numbers.flatten()
        self._rows, self._transposed = pattern.rows, pattern.transposed
        self._numbers, self._of_transposed = flat[self._rows.places], flat[self._transposed.places]

    def matmul(self, vectors: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """G @ vectors. 2 n (k + 1) m flops."""
        return _product(self._rows, self._numbers, vectors)

    def matmul_transposed(self, vectors: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """G' @ vectors. The same cost."""
        return _product(self._transposed, self._of_transposed, vectors)

    def solve(self, vectors: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """G^-1 @ vectors. The same cost, row after row."""
        library = library_on(vectors.device)
        rows, numbers = self._rows, self._numbers
        if library is not None:
            return sparse_solve(library, rows.starts, rows.columns, numbers, vectors)
        return torch.linalg.solve_triangular(self._dense(), vectors, upper=False)

    def _dense(self) -> Float[Tensor, "n n"]:
        """n^2 memory: for small n, and where nothing compiles."""
        n, counts = len(self._rows.starts) - 1, self._rows.starts.diff()
        own = torch.arange(n, device=counts.device).repeat_interleave(counts)
        return self._numbers.new_zeros(n, n).index_put((own, self._rows.columns.long()), self._numbers)


def _starts(counts: Tensor) -> Int64[Tensor, " rows1"]:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _product(rows: _Rows, numbers: Tensor, vectors: Tensor) -> Tensor:
    library = library_on(vectors.device)
    if library is not None:
        return sparse_product(library, rows.starts, rows.columns, numbers, vectors)
    n = len(vectors)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        matrix = torch.sparse_csr_tensor(rows.starts, rows.columns.long(), numbers, size=(n, n), device=vectors.device)
        return matrix @ vectors


def product_of_padded(
    columns: Int32[Tensor, "t k"], numbers: Float[Tensor, "t k"], vectors: Float[Tensor, "n s"]
) -> Float[Tensor, "t s"]:
    """sum_a numbers[i, a] vectors[columns[i, a]], over the columns that are there (-1: none). 2 t k s flops."""
    there = columns >= 0
    starts = _starts(there.sum(1))
    library = library_on(vectors.device)
    if library is not None:
        return sparse_product(library, starts, columns[there], numbers[there], vectors)
    out = vectors.new_zeros(len(columns), vectors.shape[1])
    for piece in spans(0, len(columns), max(1, _GATHERED // max(1, columns.shape[1] * vectors.shape[1]))):
        chosen = vectors[columns[piece].clamp_min(0).long()]
        weights = torch.where(there[piece], numbers[piece], torch.zeros_like(numbers[piece]))
        out[piece] = torch.einsum("tk,tks->ts", weights, chosen)
    return out
