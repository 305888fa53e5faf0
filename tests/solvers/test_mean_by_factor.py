"""Means whose iterations take longer than a factorisation in the dtype of K, and what the factor gives besides."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer import Certified
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.factorisation import factorised
from gp_rangeformer.solvers.predictive_means import mean_beside_probes, mean_by_factor
from gp_rangeformer.solvers.probes import InversePairs
from gp_rangeformer.system.linear_system import LinearSystem
from tests.preconditioner.test_vecchia import rough
from tests.system.systems import targets

N, NOISE = 500, 1e-4


def prepared(system: LinearSystem, rank: int = 20, neighbours: int = 16) -> CertifiedPrepared:
    solver = Certified(rank=rank, neighbours=neighbours, neighbours_above=0.0)
    return solver.for_predictions.prepare(system, Memory())


@pytest.mark.parametrize("noise", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_of_a_factor(noise: float, dtype: torch.dtype) -> None:
    """Quadratic forms with them are off by as much as they say, also next to little noise in float32."""
    system, _ = rough(N, noise, dtype=dtype)
    found = factorised(system, torch.float64)
    assert found is not None
    pairs = InversePairs.of_factor(system, found, Certified().probe_vectors(system, 512), 0.01, noise)
    assert pairs is not None
    assert pairs.vectors.shape == pairs.images.shape == (N, 512)
    # What neighbours leave of a column of K: of the size of the noise.
    kernel = system.to_dense(torch.float64) - system.noise.double().diag()
    dense = kernel + system.noise.double().diag()
    x = torch.linalg.solve(dense, kernel[:, ::4]).mT
    x[:, 1::2] = 0
    r = kernel[::4] - x @ dense
    expected = (r * torch.linalg.solve(dense, r.mT).mT).sum(1)
    gain, error = pairs.quadratic_forms(r @ pairs.vectors.double())
    # 512 squares of normal numbers: a standard error of (2 / 512)^1/2 of their mean, 0.0625.
    assert 0.05 < float((error / gain).mean()) < 0.075
    off = (gain - expected) / error
    assert off.abs().max() < 6
    assert 0.3 < float(off.square().mean().sqrt()) < 2  # all share their draws
    # By images, as estimates have them: b'u - x'(A u). Rounding adds a thousandth of the noise at most.
    products = kernel[::4] @ pairs.vectors.double() - x @ pairs.images.double()
    by_images, _ = pairs.quadratic_forms(products)
    assert (by_images - gain).abs().mean() < 2e-3 * noise + 0.01 * float(gain.mean())


def test_small_variances_are_those_given_neighbours() -> None:
    system, _ = rough(N, NOISE)
    vecchia = prepared(system).vecchia
    assert vecchia is not None
    found = vecchia.small_variance()
    exact = 1 / torch.linalg.inv(system.to_dense()).diagonal()  # given all others: less than given some
    assert NOISE < float(exact.quantile(0.1)) < found < float(system.diagonal().max())


def test_where_rounding_would_count_products_are_wide() -> None:
    system, _ = rough(N, NOISE, dtype=torch.float32)
    found = factorised(system, torch.float32)
    assert found is not None
    signs = Certified().probe_vectors(system, 64)
    narrow, wide = (InversePairs.of_factor(system, found, signs, 0.05, of) for of in (NOISE, 1e-12))
    assert narrow is not None
    assert wide is not None
    assert (narrow.wide, wide.wide) == (False, True)
    exact = system.to_dense(torch.float64) @ wide.vectors.double()
    off, rounded = (wide.images.double() - exact).norm(), (narrow.images.double() - exact).norm()
    assert off < rounded
    assert off <= torch.finfo(torch.float32).eps * exact.norm()


def test_a_factor_that_is_no_better_than_rounding_gives_no_pairs() -> None:
    system, _ = rough(N, NOISE)
    found = factorised(system, torch.float64)
    assert found is not None
    signs = Certified().probe_vectors(system, 64)
    assert InversePairs.of_factor(system, found, signs, 0.01, NOISE) is not None
    assert InversePairs.of_factor(system, 1.05 * found, signs, 0.01, NOISE) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rounded_factor_gives_certified_means(dtype: torch.dtype) -> None:
    system, _ = rough(N, NOISE, dtype=dtype)
    y = targets(N).to(dtype)
    found = factorised(system, dtype)
    assert found is not None
    solution = mean_by_factor(prepared(system), y, None, found)
    assert solution is not None
    assert solution.mean_error is not None
    assert solution.mean_error <= 0.01
    dense = system.to_dense(torch.float64)
    kernel = dense - system.noise.double().diag()
    off = kernel @ (solution.value - torch.linalg.solve(dense, y.double()))
    assert off.abs().max() <= solution.mean_error * NOISE**0.5


def test_a_factor_of_another_matrix_is_noticed() -> None:
    system, _ = rough(N, NOISE)
    found = factorised(system, torch.float64)
    assert found is not None
    assert mean_by_factor(prepared(system), targets(N), None, 0.3 * found) is None


def test_more_iterations_than_they_may_take() -> None:
    system, _ = rough(N, NOISE)
    own = prepared(system, rank=5, neighbours=2)
    before = system.passes
    assert mean_beside_probes(own, targets(N), None, patience=2) is None
    assert system.passes - before <= 5  # two iterations, residuals before and after, and a start
    assert mean_beside_probes(own, targets(N), None) is not None
