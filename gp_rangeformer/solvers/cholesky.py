"""The exact path: one Cholesky factorisation, and the closed-form gradient from A^-1.

GPyTorch differentiates *through* the factorisation; the closed form d log|A| = tr(A^-1 dA),
d(y' A^-1 y) = -(A^-1 y)' dA (A^-1 y) needs one factorisation and one inverse instead. This path answers below the
measured crossover and whenever a certificate does not close above it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from linear_operator import settings as host_settings
from linear_operator.utils.errors import NanError, NotPSDError
from linear_operator.utils.warnings import NumericalWarning
from torch import Tensor

from gp_rangeformer.free_memory import Demand, InsufficientMemoryError
from gp_rangeformer.solvers.base import Evaluation, Interval, InverseRoot, LinearSystem, LogDet, Solution
from gp_rangeformer.solvers.host import to_host
from gp_rangeformer.solvers.reason import Reason
from gp_rangeformer.workspace import shortage


@dataclass(frozen=True)
class ExactSolver:
    """Cholesky with the host's jitter policy. O(n^3 / 3) to prepare, n^2 memory for the factor.

    :param tolerance: relative residual a solution must certify. A float32 factorisation that cannot is repeated in
        float64 (twice the time and memory of the factor), before any jitter is added.
    """

    tolerance: float = 0.01

    def prepare(self, system: LinearSystem, memory: object = None) -> ExactPrepared:
        """Factorise. ``memory`` is accepted for the common signature and not used.

        :raises NanError: K or D holds NaN or infinity.
        :raises NotPSDError: A is not positive definite even with the host's largest jitter.
        :raises InsufficientMemoryError: the dense matrix and its factor do not fit.
        """
        del memory
        dtype = system.dtype
        if dtype == torch.float32 and logdet_rounding_per_point(system) > 0.1 * self.tolerance:
            dtype = torch.float64
        prepared = _factorise(system, dtype)
        if prepared is None and dtype == torch.float32:
            # The host would add jitter here; float64 first, because jitter changes the answer.
            prepared = _factorise(system, torch.float64)
        if prepared is None:
            prepared = _factorise_with_jitter(system, torch.float64)
        return prepared._with_tolerance(self.tolerance)


def logdet_rounding_per_point(system: LinearSystem) -> float:
    """Estimated rounding error of log|A| / n in the dtype of the system: eps * max A_ii / min noise.

    First order: d log|A| = tr(A^-1 E) with entries of E of size eps A_ii and random sign; the diagonal of A^-1 is
    at most 1 / min noise. tests/solvers/test_certificate.py measures that the true error stays below.
    """
    facts = system.diagonal_facts
    if facts.smallest_noise <= 0:
        return math.inf
    return torch.finfo(system.dtype).eps * facts.largest_total / facts.smallest_noise


# n x n matrices beside K: the matrix and its factor, or the factor and the copies that LAPACK's other routines make of
# it (measured with torch 2.13 on a CPU); and numbers per row and right-hand side of a solve with its residual.
_FACTOR, _ROOT, _PER_COLUMN = 2.3, 2.2, 12


def exact_path_fits(system: LinearSystem, columns: int) -> bool:
    """Whether a factorisation and a solve with so many right-hand sides fit into free memory, as far as is known."""
    return _shortage(system, system.dtype, _FACTOR, _PER_COLUMN * columns) is None


def _shortage(system: LinearSystem, dtype: torch.dtype, matrices: float, columns: int = 0) -> str | None:
    return shortage(Demand(matrices, columns, dtype.itemsize), system.size, system.device)


def _dense(system: LinearSystem, dtype: torch.dtype) -> Tensor:
    """A, if there is room for it and its factor.

    :raises InsufficientMemoryError: if there is not.
    """
    lacking = _shortage(system, dtype, _FACTOR)
    if lacking is not None:
        raise InsufficientMemoryError(
            f"the exact path needs K + D as a dense {str(dtype).removeprefix('torch.')} matrix of n = {system.size}, "
            f"and its Cholesky factor, which do not fit on {system.device} ({lacking}). The RangeFormer solver needs "
            "neither: where it could not certify its answer, raise settings.rank, settings.max_passes, "
            "settings.tolerance or the likelihood's noise; float64 helps where rounding is the cause"
        )
    return system.to_dense(dtype)


def _factorise(system: LinearSystem, dtype: torch.dtype) -> ExactPrepared | None:
    factor, info = torch.linalg.cholesky_ex(_dense(system, dtype))
    if bool((info != 0) | ~factor.diagonal().sum().isfinite()):
        if not system.is_finite():
            raise NanError(
                "the kernel matrix or the noise holds NaN or infinity: look for NaN in the training inputs and for "
                "hyperparameters that overflowed (a smaller learning rate or a constraint helps)"
            )
        return None
    return ExactPrepared(system, factor, jitter=0.0)


def _factorise_with_jitter(system: LinearSystem, dtype: torch.dtype) -> ExactPrepared:
    """The host's policy (linear_operator.settings.cholesky_jitter, cholesky_max_tries), for the system's own dtype."""
    dense = _dense(system, dtype)
    first = host_settings.cholesky_jitter.value(system.dtype)
    added = 0.0
    for attempt in range(host_settings.cholesky_max_tries.value() or 0):
        jitter = first * 10**attempt
        dense.diagonal().add_(jitter - added)
        added = jitter
        warnings.warn(f"A not p.d., added jitter of {jitter:.1e} to the diagonal", NumericalWarning, stacklevel=2)
        factor, info = torch.linalg.cholesky_ex(dense)
        if not bool(info):
            return ExactPrepared(system, factor, jitter=jitter)
    raise NotPSDError(
        f"the {system.size} x {system.size} kernel matrix plus noise is not positive definite even with "
        f"jitter {added:.0e}: raise the likelihood's noise constraint, remove duplicated inputs, or use float64"
    )


@dataclass
class ExactPrepared:
    """A factorised system. ``factor`` may be float64 for a float32 system; answers come in the system's dtype."""

    system: LinearSystem
    factor: Float[Tensor, "n n"]
    jitter: float
    tolerance: float = 0.01

    def _with_tolerance(self, tolerance: float) -> ExactPrepared:
        self.tolerance = tolerance
        return self

    def notes(self) -> list[str]:
        """What a reader of the report should know: a promotion to float64, jitter."""
        notes = []
        if self.factor.dtype != self.system.dtype:
            notes.append("factorised in float64")
        if not self.system.held_dense:
            notes.append("the exact path formed K as a dense matrix")
        if self.jitter:
            notes.append(f"jitter {self.jitter:.0e} added to the diagonal")
        return notes

    def solve(self, rhs: Float[Tensor, "n m"]) -> Solution:
        """A^-1 rhs by two triangular solves, and one pass over K for the residual. O(n^2 m)."""
        found = self._solve_once(rhs)
        if self.factor.dtype == torch.float32 and bool((found.residual > self.tolerance).any()):
            promoted = _factorise(self.system, torch.float64)
            if promoted is not None:
                self.factor = promoted.factor
                found = self._solve_once(rhs)
        return replace(
            found, reason=Reason.CONVERGED if bool((found.residual <= self.tolerance).all()) else Reason.ROUNDING
        )

    def _solve_once(self, rhs: Float[Tensor, "n m"]) -> Solution:
        unrounded = torch.cholesky_solve(rhs.to(self.factor.dtype), self.factor)
        value = unrounded.to(self.system.dtype)
        # Also for a float64 factor: the answer and this residual are rounded to the system's dtype.
        residual, norm, length, quadratic = to_host(
            torch.linalg.vector_norm(rhs - self.system.matmul(value), dim=0),
            torch.linalg.vector_norm(rhs, dim=0),
            torch.linalg.vector_norm(value, dim=0),
            (rhs.double() * unrounded).sum(0),
        )
        error = residual + self.system.rounding_scale * length
        relative = np.divide(error, norm, out=error.copy(), where=norm > 0)
        # b' A^-1 b = b'x + r'x + r' A^-1 r with |r'x| <= |r| |x| and r' A^-1 r <= |r|^2 / min noise.
        if self.factor.dtype == torch.float64:
            room = 1e-9 * np.abs(quadratic)
        else:
            with np.errstate(divide="ignore", invalid="ignore"):  # zero noise proves nothing
                room = error * length + error**2 / self.system.diagonal_facts.smallest_noise
        ends = zip((quadratic - room).tolist(), (quadratic + room).tolist(), strict=True)
        intervals = [Interval(low, high) for low, high in ends]
        return Solution(
            value,
            torch.from_numpy(relative),
            torch.from_numpy(quadratic),
            intervals,
            iterations=0,
            passes=1,
            reason=Reason.CONVERGED,
        )

    def logdet(self) -> LogDet:
        """2 sum log diag(L): no further cost."""
        value = 2 * float(self.factor.diagonal().double().log().sum())
        # In the system's dtype also for a float64 factor: the entries of K came rounded.
        rounding = self.system.size * logdet_rounding_per_point(self.system)
        if not math.isfinite(rounding):
            rounding = 0.0  # zero noise: no margin can be stated; the backend reports the reason
        return LogDet(value, Interval(value - rounding, value + rounding))

    def inv_root(self) -> InverseRoot:
        """L^-T: an exact, dense and upper triangular root of A^-1. O(n^3 / 3).

        :raises InsufficientMemoryError: if it does not fit.
        """
        lacking = _shortage(self.system, self.factor.dtype, _ROOT)
        if lacking is not None:
            raise InsufficientMemoryError(
                f"an exact root of the inverse of n = {self.system.size} does not fit on {self.system.device} "
                f"({lacking}): predict without gpytorch.settings.fast_pred_var, or raise settings.rank or "
                "settings.prediction_tolerance so that a low-rank root serves"
            )
        identity = torch.eye(self.system.size, dtype=self.factor.dtype, device=self.factor.device)
        inverse = torch.linalg.solve_triangular(self.factor, identity, upper=False)
        return InverseRoot(inverse.mT.to(self.system.dtype), error=0.0, passes=0, reason=Reason.CONVERGED)

    def evaluate(self, rhs: Float[Tensor, "n m"], with_logdet: bool = True) -> Evaluation:
        solution = self.solve(rhs)
        dtype = self.system.dtype

        def kernel_gradient(g_inv_quad: Tensor, g_logdet: Tensor) -> Tensor:
            outer = solution.value * -g_inv_quad
            if not with_logdet or not bool(g_logdet != 0):
                return outer @ solution.value.mT
            weight = torch.cholesky_inverse(self.factor).to(dtype).mul_(g_logdet)
            return weight.addmm_(outer, solution.value.mT)

        return Evaluation(
            solution=solution,
            logdet=self.logdet() if with_logdet else None,
            kernel_gradient=kernel_gradient,
            noise_gradient=lambda g_inv_quad, g_logdet: kernel_gradient(g_inv_quad, g_logdet).diagonal().clone(),
            inv_quad=solution.quadratic.to(rhs),
            residual=float(solution.residual.max()) if rhs.shape[1] else 0.0,
        )
