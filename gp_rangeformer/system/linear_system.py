"""A = K + D: what solvers may ask of it, and the numbers that their certificates need."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.system import margins
from gp_rangeformer.system.kernel_matrix import DenseKernelMatrix, KernelMatrix
from gp_rangeformer.system.reading import Reading
from gp_rangeformer.system.small_cores import to_host

_NEGLIGIBLE = 0.1  # share of an error


class LinearSystem:
    """A = K + D: a symmetric positive semi-definite kernel matrix and a positive diagonal.

    Solvers speak to K only through :meth:`matmul`, :meth:`columns`, :meth:`diagonal` and, for the exact path,
    :meth:`to_dense`. ``passes`` counts products with K, ``columns_multiplied`` their columns.

    :param kernel: K, n x n, float32 or float64: a tensor, or held in another way. Only its symmetric part is meant; it
        is never modified.
    :param noise: the diagonal of D, n (expand a scalar), same dtype and device as K.
    :raises ValueError: if the shapes do not belong together.
    """

    def __init__(self, kernel: Float[Tensor, "n n"] | KernelMatrix, noise: Float[Tensor, " n"]) -> None:
        self._kernel = DenseKernelMatrix(kernel) if isinstance(kernel, Tensor) else kernel
        self.size, self.dtype, self.device = self._kernel.shape[0], self._kernel.dtype, self._kernel.device
        if noise.shape != (self.size,):
            raise ValueError(f"noise must have shape ({self.size},), got {tuple(noise.shape)}: expand a scalar")
        self.noise = noise
        self.passes = 0
        self.columns_multiplied = 0
        self.positive: Callable[[], bool] | None = None
        # What K_ij and K_ji differed by, relative to max_i A_ii: entries of the symmetric part are known to half of it,
        # or to their rounding, and the errors of all may have one sign.
        self.asymmetry = 0.0
        self.skewed = False  # whether rows of K, as it is held, still differ from its columns
        # Whose kernel matrix K is, entry by entry, where that is known.
        self.points: FusedKernel | None = None
        self._row_squares: Callable[[], list[Tensor]] | None = None
        self._last_columns: tuple[Tensor, Tensor] | None = None

    @functools.cached_property
    def trusted(self) -> bool:
        """Whether K is symmetric to the last bit, and positive semi-definite but for the rounding of its entries: what
        is not known to be has wider margins. ``positive`` tells the latter, where it is set, once it matters."""
        return self.positive is None or self.positive()

    @functools.cached_property
    def reading(self) -> Reading:
        """What the host asks of the device."""
        return Reading()

    def ask(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        """What gives the tensors on the CPU, once somebody needs them: on a device with everything else that was asked
        until then, in one transfer. Nothing may write to them in between."""
        on_cpu = self.device.type == "cpu"
        return functools.partial(list, tensors) if on_cpu else self.reading.ask(*tensors)

    @property
    def held_dense(self) -> bool:
        """Whether K is a dense matrix in the memory of this process."""
        return self._kernel.held_dense

    def matmul(self, vectors: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """A @ vectors: one pass over K."""
        self.passes += 1
        self.columns_multiplied += vectors.shape[1]
        return self._kernel.matmul(vectors).addcmul_(self.noise.unsqueeze(-1), vectors)

    def columns(self, index: Int[Tensor, " r"]) -> Float[Tensor, "n r"]:
        """K[:, index]. Those last asked for are kept: two preconditioners are made of the same landmarks."""
        if self._last_columns is None or self._last_columns[0] is not index:
            self._last_columns = index, self._kernel.columns(index)
        return self._last_columns[1]

    def diagonal(self) -> Float[Tensor, " n"]:
        """The diagonal of K, without D."""
        return self._kernel.diagonal()

    def to_dense(self, dtype: torch.dtype | None = None) -> Float[Tensor, "n n"]:
        """A as a new dense matrix: n^2 memory. The exact path needs it, nothing else does."""
        dense = self._kernel.to_dense(dtype or self.dtype)
        dense.diagonal().add_(self.noise)
        return dense

    def take_counts(self) -> tuple[int, int]:
        """(passes, columns_multiplied) since the last call of this method, which sets both to zero."""
        counts = self.passes, self.columns_multiplied
        self.passes = self.columns_multiplied = 0
        return counts

    def everywhere(self, holds: bool) -> bool:
        """As :meth:`~gp_rangeformer.system.kernel_matrix.KernelMatrix.everywhere`."""
        return self._kernel.everywhere(holds)

    def is_finite(self) -> bool:
        """Whether K and D hold no NaN and no infinity."""
        return bool(self.noise.sum(dtype=torch.float64).isfinite()) and self._kernel.is_finite()

    def wide_matmul(self, vectors: Float64[Tensor, "n k"]) -> Float64[Tensor, "n k"]:
        """A @ vectors of a few columns, every product and sum in float64: the entries of K count as they are. One pass
        over K, bound by reading it."""
        self.passes += 1
        self.columns_multiplied += vectors.shape[1]
        product, squares = self._kernel.wide_product(vectors)
        self._row_squares = self.ask(squares)
        return product.addcmul_(self.noise.double().unsqueeze(-1), vectors)

    @functools.cached_property
    def rounding_scale(self) -> float:
        """The estimated norm of the rounding error in ``rhs - A @ solution``, per column, over that of the solution.

        A row of K x sums n products k_ij x_j, each rounded with a relative error of eps and either sign: over all rows
        eps |x| times the norm of K's columns, of which the largest counts. A model, not a bound, for solutions whose
        signs alternate, as those of random probes do; what is certain of targets is summed in float64
        (:meth:`wide_matmul`). Measured errors are 0.7 to 3.9 times eps |x| |K e_j| (n = 500 to 12,000, kernels smooth
        and rough, any share of large entries), and 6 times is what this says (test_certificate.py).
        It does not depend on the order of the sum, so it holds as well where K comes in tiles, whose products are added
        up in the same dtype. Equal rows, those of points given several times, are rounded alike, and no mean over rows
        is left of what is random (:func:`margins.rounded_alike`). In float32 the columns' norms, which tell equal rows
        too, come along with a wide product, or take one pass; in float64 sqrt(max_i K_ii tr K) bounds them well enough.
        """
        if self.dtype == torch.float64:
            return self.largest_rounding_scale
        if self._row_squares is None:
            self.wide_matmul(self.noise.new_zeros(self.size, 1, dtype=torch.float64))
        assert self._row_squares is not None
        (squares,) = self._row_squares()
        norm = float(squares.amax()) ** 0.5 + self.diagonal_facts.largest_noise
        return margins.product_rounding(self.dtype, norm) * margins.rounded_alike(squares.numpy())

    @property
    def largest_rounding_scale(self) -> float:
        """What :attr:`rounding_scale` is at most, from the diagonal alone: no pass over K, all rows may be equal."""
        facts = self.diagonal_facts
        norm = (facts.largest_total * facts.total_sum) ** 0.5 + facts.largest_noise
        return margins.product_rounding(self.dtype, norm) * margins.ALL_ROUNDED_ALIKE

    @property
    def entry_error(self) -> float:
        """Relative to max_i A_ii, what the entries of K are known to: their rounding, or worse."""
        return margins.entry_error(self.dtype, self.asymmetry)

    @property
    def entry_scale(self) -> float:
        """What the rounding of K's entries adds to the norm of a residual, over that of the solution: E x for entries
        of E of at most eps max_i A_ii with signs of their own."""
        return torch.finfo(self.dtype).eps * self.size**0.5 * self.diagonal_facts.largest_total

    def skew_norms(
        self,
        vectors: Float[Tensor, "n k"],
        product: Callable[[], Float[Tensor, "n k"]],
        error: Float64[np.ndarray, " k"],
    ) -> Float64[np.ndarray, " k"]:
        """|(K - K') x| / 2 per column, on the host, or a bound of it: what the residual of K's rows as they are is off
        by from that of the symmetric part. 0 where K is symmetric to the last bit; else a pass over it, unless a bound
        is small beside the ``error`` that there is.

        :param product: gives A x, as it is known.
        """
        if not (self.skewed and isinstance(self._kernel, DenseKernelMatrix)):
            return np.zeros(vectors.shape[1])
        (length,) = to_host(torch.linalg.vector_norm(vectors, dim=0, dtype=torch.float64))
        bound = 0.5 * self.asymmetry * self.diagonal_facts.largest_total * self.size * length
        if (bound <= _NEGLIGIBLE * error).all():
            return bound
        narrow = vectors.to(self.dtype)
        mirrored = self._kernel.mirrored(narrow).addcmul_(self.noise.unsqueeze(-1), narrow)
        (norms,) = to_host(torch.linalg.vector_norm(product() - mirrored, dim=0, dtype=torch.float64))
        return 0.5 * norms

    def quadratic_margin(self, square: Float64[np.ndarray, " m"]) -> Float64[np.ndarray, " m"]:
        """What an interval of b' A^-1 b with a solution x has to allow for beside its residual. ``square``: |x|^2."""
        largest = self.diagonal_facts.largest_total
        return margins.quadratic_margin(self.size, self.dtype, self.asymmetry, largest, self.condition, square)

    def logdet_margin(self) -> float:
        """What any interval of log|A| has to allow for, in nats: the rounding of the entries of K."""
        return margins.logdet_margin(self.size, self.dtype, self.asymmetry, self.condition)

    @property
    def condition(self) -> float:
        """max_i A_ii / min_i D_ii: how much a relative error of an entry may matter. Infinite without noise."""
        facts = self.diagonal_facts
        return facts.largest_total / facts.smallest_noise if facts.smallest_noise > 0 else math.inf

    @functools.cached_property
    def diagonals(self) -> Callable[[], list[Tensor]]:
        """Gives the diagonals of K and of D, on the CPU."""
        return self.ask(self.diagonal(), self.noise)

    @functools.cached_property
    def diagonal_facts(self) -> DiagonalFacts:
        """What certificates ask of the diagonals of K and D. O(n)."""
        kernel, noise = self.diagonals()
        total, logs = kernel + noise, noise.double().log()
        found = [
            noise.amin(),
            noise.amax(),
            total.amax(),
            total.abs().sum(dtype=torch.float64),
            (kernel / noise).abs().amax(),
            logs.sum(),
            logs.std(correction=0),
            total.double().log().sum(),
        ]
        return DiagonalFacts(*(float(number) for number in found))


@dataclass(frozen=True)
class DiagonalFacts:
    """Of the noise D, of A_ii = K_ii + D_ii, of K_ii / D_ii; sums of logarithms in nats, accumulated in float64."""

    smallest_noise: float
    largest_noise: float
    largest_total: float
    total_sum: float
    largest_ratio: float
    log_noise_sum: float
    log_noise_deviation: float
    log_total_sum: float
