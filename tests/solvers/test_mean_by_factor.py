"""Means whose iterations take longer than a factorisation in the dtype of K, and what the factor gives besides."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer import Certified
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified_prepared import CertifiedPrepared
from gp_rangeformer.solvers.exact import factorised
from gp_rangeformer.solvers.prediction import mean_beside_probes, mean_by_factor
from gp_rangeformer.solvers.probes import InversePairs
from gp_rangeformer.system.linear_system import LinearSystem
from tests.preconditioner.test_vecchia import rough
from tests.system.systems import targets

N, NOISE = 500, 1e-4


def prepared(system: LinearSystem, rank: int = 20, neighbours: int = 16) -> CertifiedPrepared:
    solver = Certified(rank=rank, neighbours=neighbours, neighbours_above=0.0)
    return solver.for_predictions.prepare(system, Memory())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pairs_of_a_factor(dtype: torch.dtype) -> None:
    """Their images are A times them, and quadratic forms with them are off by as much as they say."""
    system, _ = rough(N, NOISE, dtype=dtype)
    found = factorised(system, dtype)
    assert found is not None
    pairs = InversePairs.of_factor(system, found.factor, Certified().probe_vectors(system, 512))
    assert pairs.vectors.shape == pairs.images.shape == (N, 512)
    dense = system.to_dense(torch.float64)
    # A product's rounding: n^1/2 eps |A||u|, entry by entry.
    room = N**0.5 * torch.finfo(dtype).eps * (dense.abs() @ pairs.vectors.double().abs())
    assert ((pairs.images.double() - dense @ pairs.vectors.double()).abs() <= room).all()
    r = torch.randn(400, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = (r * torch.linalg.solve(dense, r.mT).mT).sum(1)
    gain, error = pairs.quadratic_forms(r @ pairs.vectors.double())
    # 512 squares of normal numbers: a standard error of (2 / 512)^1/2 of their mean, 0.0625.
    assert 0.05 < float((error / gain).mean()) < 0.075
    off = (gain - expected) / error
    assert off.abs().max() < 6
    assert 0.3 < float(off.square().mean().sqrt()) < 2  # the 400 share their draws


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rounded_factor_gives_certified_means(dtype: torch.dtype) -> None:
    system, _ = rough(N, NOISE, dtype=dtype)
    y = targets(N).to(dtype)
    found = factorised(system, dtype)
    assert found is not None
    solution = mean_by_factor(prepared(system), y, None, found.factor)
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
    assert mean_by_factor(prepared(system), targets(N), None, 0.3 * found.factor) is None


def test_more_iterations_than_they_may_take() -> None:
    system, _ = rough(N, NOISE)
    own = prepared(system, rank=5, neighbours=2)
    before = system.passes
    assert mean_beside_probes(own, targets(N), None, patience=2) is None
    assert system.passes - before <= 5  # two iterations, residuals before and after, and a start
    assert mean_beside_probes(own, targets(N), None) is not None
