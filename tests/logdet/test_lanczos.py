from __future__ import annotations

import math

import pytest
import torch

from gp_rangeformer.logdet.lanczos import FLOOR, LEVEL, lanczos_logdet, lanczos_rounding
from gp_rangeformer.preconditioner.landmarks import Landmarks, rp_cholesky_landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from gp_rangeformer.system.linear_system import LinearSystem
from tests.system.systems import kernel_matrix, points, spectrum_matrix, system

N = 400


def rademacher(n: int, p: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randint(0, 2, (n, p), generator=generator) - 1).double()


@pytest.fixture(scope="module")
def prepared():
    linear_system = system(kernel_matrix(points(N, 4)), 0.02)
    preconditioner = nystrom_preconditioner(linear_system, Landmarks(torch.arange(40)))
    exact = float(torch.logdet(linear_system.to_dense())) - preconditioner.logdet()
    assert exact > 20  # there is a tail to estimate
    return linear_system, preconditioner, exact


def test_all_coordinate_probes_give_the_exact_log_determinant(prepared) -> None:
    """With the columns of a Hadamard matrix as probes the trace is exact, so only truncation remains."""
    n = 256
    linear_system = system(kernel_matrix(points(n, 3)), 0.02)
    preconditioner = nystrom_preconditioner(linear_system, Landmarks(torch.arange(30)))
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < n:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)])
    trace = lanczos_logdet(linear_system, preconditioner, hadamard, truncation=1e-9, max_steps=60)
    exact = float(torch.logdet(linear_system.to_dense()))
    assert preconditioner.logdet() + trace.value == pytest.approx(exact, abs=n * 1e-3)


def test_gauss_and_radau_bracket_every_quadratic_form(prepared) -> None:
    linear_system, preconditioner, _ = prepared
    probe = rademacher(N, 2, seed=5)
    tight = lanczos_logdet(linear_system, preconditioner, probe, truncation=1e-12, max_steps=80)
    # With equal probes the spread over probes is zero and the interval is the bracket alone.
    same = probe[:, :1].expand(N, 2).contiguous()
    reference = lanczos_logdet(linear_system, preconditioner, same, truncation=1e-12, max_steps=80).value
    widths = []
    for steps in (3, 6, 12):
        rough = lanczos_logdet(linear_system, preconditioner, same, truncation=1e-12, max_steps=steps)
        assert rough.interval.contains(reference)
        widths.append(rough.interval.width)
    assert widths[0] > widths[1] > widths[2]
    assert tight.smallest > 1 - 1e-6


def test_the_statistical_interval_covers_at_its_stated_rate(prepared) -> None:
    linear_system, preconditioner, exact = prepared
    trials = 200
    covered = sum(
        lanczos_logdet(linear_system, preconditioner, rademacher(N, 8, seed)).interval.contains(exact)
        for seed in range(trials)
    )
    # binomial: three standard deviations around the level
    slack = 3 * math.sqrt(LEVEL * (1 - LEVEL) / trials)
    assert LEVEL - slack <= covered / trials <= min(1.0, LEVEL + slack)


def test_the_estimate_is_unbiased(prepared) -> None:
    linear_system, preconditioner, exact = prepared
    values = torch.tensor(
        [lanczos_logdet(linear_system, preconditioner, rademacher(N, 8, seed)).value for seed in range(100)]
    )
    assert abs(float(values.mean()) - exact) < 3 * float(values.std()) / 10


def test_lanczos_stops_when_truncation_no_longer_matters(prepared) -> None:
    linear_system, preconditioner, _ = prepared
    loose = lanczos_logdet(linear_system, preconditioner, rademacher(N, 8, 0), truncation=1e-2)
    tight = lanczos_logdet(linear_system, preconditioner, rademacher(N, 2, 0).expand(N, 2), truncation=1e-10)
    assert loose.passes < tight.passes <= 40


def test_a_kernel_that_is_not_psd_shows_in_the_smallest_ritz_value(prepared) -> None:
    _, preconditioner, _ = prepared
    eigenvalues = torch.linspace(0.0, 1, N, dtype=torch.float64)
    eigenvalues[0] = -5
    trace = lanczos_logdet(system(spectrum_matrix(eigenvalues), 0.02), preconditioner, rademacher(N, 4, 0))
    assert trace.smallest < 0


@pytest.mark.parametrize("noise", [1e-5, 1e-3, 1e-1])
@pytest.mark.parametrize("lengthscale", [0.02, 1.0, 4.0])
@pytest.mark.parametrize("name", ["rbf", "matern32", "matern12"])
def test_products_in_float32_move_the_estimate_by_no_more_than_is_allowed_for(name, lengthscale, noise) -> None:
    """The same entries, landmarks and probes in float32 and in float64."""
    kernel = kernel_matrix(points(N, 4), name, lengthscale).float()
    single = system(kernel, noise, torch.float32)
    double = LinearSystem(kernel.double(), single.noise.double())
    dense = double.to_dense()
    exact, share = float(torch.logdet(dense)), float(torch.linalg.inv(dense).trace()) * noise / N
    landmarks = rp_cholesky_landmarks(single, 100, torch.Generator().manual_seed(0))
    values, largest = [], 1.0
    for linear_system in (single, double):
        preconditioner, probes = nystrom_preconditioner(linear_system, landmarks), rademacher(N, 16, 0)
        trace = lanczos_logdet(linear_system, preconditioner, probes.to(linear_system.dtype), share=share)
        values.append(preconditioner.logdet() + trace.value)
        largest = max(largest, trace.largest)
        assert trace.interval.shifted(preconditioner.logdet()).contains(exact)
    moved, allowed = abs(values[0] - values[1]) / N, lanczos_rounding(single, share, largest)
    assert moved <= allowed + FLOOR
    if name == "rbf" and lengthscale == 4.0:
        # Most of A^-1 is left: 0.15 to 0.35 of what is allowed, which is no blank cheque.
        assert moved >= 0.1 * allowed
