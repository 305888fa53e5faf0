"""The preconditioner that is built without a look: the other one's numbers, and nothing is believed that is wrong."""

from __future__ import annotations

import functools
import gc
import weakref

import pytest
import torch
from torch import Tensor

from gp_rangeformer.plugin.fitted_model import preconditioners_of
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from gp_rangeformer.preconditioner.unseen_nystrom import UnseenNystrom
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from tests.system.systems import kernel_matrix, points

N = 200
X = points(N, 2)
LANDMARKS = torch.arange(0, N, 5)


def system(kernel: Tensor, noise: float = 0.05, dtype: torch.dtype = torch.float64) -> LinearSystem:
    return LinearSystem(kernel.to(dtype), torch.full((N,), noise, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_is_the_other_preconditioner(dtype: torch.dtype) -> None:
    one, other = (system(kernel_matrix(X), dtype=dtype) for _ in range(2))
    seen, unseen = nystrom_preconditioner(one, Landmarks(LANDMARKS)), UnseenNystrom(other, Landmarks(LANDMARKS))
    assert unseen.failure is None
    rhs = torch.randn(N, 3, generator=torch.Generator().manual_seed(1), dtype=dtype)
    # Directions below a thousandth of the noise are dropped by one of them.
    close = functools.partial(torch.testing.assert_close, rtol=1e-3, atol=2e-3)
    close(unseen.solve(rhs), seen.solve(rhs))
    close(unseen.eigen.solve(rhs), seen.solve(rhs))
    assert unseen.logdet() == pytest.approx(seen.logdet(), abs=0.1)
    assert unseen.facts.mean_gap == pytest.approx(seen.facts.mean_gap, abs=1e-3)
    whitened, chosen = rhs / one.noise.sqrt().unsqueeze(-1), torch.arange(7, 90, 3)
    for its, own in zip(unseen.seen(other, whitened, chosen)(), seen.seen(one, whitened, chosen)(), strict=True):
        close(its, own)


def negative() -> Tensor:
    return -kernel_matrix(X)


def with_a_nan() -> Tensor:
    kernel = kernel_matrix(X)
    kernel[3, 5] = kernel[5, 3] = torch.nan
    return kernel


def smaller_off_the_landmarks() -> Tensor:
    """Positive definite on the proposed range, and nowhere else: its diagonal is less than what the range explains."""
    kernel = kernel_matrix(X)
    kernel.diagonal()[torch.isin(torch.arange(N), LANDMARKS, invert=True)] = 0
    return kernel


WRONG = {"negative": negative, "not finite": with_a_nan, "a negative diagonal of K - Q": smaller_off_the_landmarks}


@pytest.mark.parametrize("wrong", WRONG)
def test_nothing_rests_on_one_that_is_wrong(wrong: str) -> None:
    linear_system, memory = system(WRONG[wrong]()), Memory(landmarks=Landmarks(LANDMARKS))
    prepared = CertifiedPrepared(
        Certified(), linear_system, memory, UnseenNystrom(linear_system, Landmarks(LANDMARKS)), None, memory.landmarks
    )
    assert prepared.attempt(torch.ones(N, 1, dtype=torch.float64), None).reason is Reason.NOT_PSD
    assert prepared.preconditioner is None
    assert prepared.failure is Reason.NOT_PSD
    assert memory.landmarks is None


def test_noise_of_zero_is_called_so() -> None:
    linear_system = system(kernel_matrix(X), noise=0.0)
    prepared = CertifiedPrepared(
        Certified(), linear_system, Memory(), UnseenNystrom(linear_system, Landmarks(LANDMARKS)), None
    )
    assert prepared.preconditioner is None
    assert prepared.failure is Reason.ZERO_NOISE


def test_what_a_fitted_model_keeps_of_it_does_not_hold_the_kernel_matrix() -> None:
    linear_system, landmarks = system(kernel_matrix(X)), Landmarks(LANDMARKS)
    preconditioner = UnseenNystrom(linear_system, landmarks)
    prepared = CertifiedPrepared(Certified(), linear_system, Memory(), preconditioner, None, landmarks)
    kept = preconditioners_of(prepared)
    known = weakref.ref(linear_system)
    del linear_system, preconditioner, prepared
    gc.collect()
    assert kept is not None
    assert known() is None
