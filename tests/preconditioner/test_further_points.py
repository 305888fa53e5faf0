"""Points given landmarks and neighbours, against dense float64 conditioning on exactly these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gp_rangeformer import Certified, settings
from gp_rangeformer.kernels.cross import CrossKernel
from gp_rangeformer.preconditioner.further_points import (
    ConditionalImages,
    FurtherPoints,
    condition_each,
    condition_further,
)
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.system.linear_system import LinearSystem
from tests.kernels.market import make, points, recognised

N, T, R, K = 160, 30, 12, 9


@pytest.fixture(autouse=True, params=[True, False], ids=["compiled", "tensors"])
def made_both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    with settings.fused_kernels("compiled" if request.param else "tensors"):
        yield


class Setting(NamedTuple):
    system: LinearSystem
    cross: CrossKernel
    vecchia: VecchiaPreconditioner
    a: Tensor
    b: Tensor


def setting(name: str = "scale") -> Setting:
    x, others = points(N), points(T, seed=4)
    fused = recognised(make(name), x)
    noise = torch.linspace(0.01, 0.1, N, dtype=torch.float64)
    system = LinearSystem(fused.evaluate(), noise)
    system.points = fused
    solver = Certified(rank=R, neighbours=8, neighbours_above=0.0, adaptive_rank=False)
    prepared = solver.prepare(system, Memory())
    assert prepared.vecchia is not None
    cross = CrossKernel(fused.expression, x, others, tuple(p.detach() for p in fused.parameters))
    return Setting(system, cross, prepared.vecchia, fused.evaluate() + noise.diag(), cross.dense().mT)


def weights_of(found: FurtherPoints, order: Tensor, landmarks: Tensor, root: Tensor, explained: Tensor) -> Tensor:
    """All of x, n x t."""
    t = len(found.weights)
    x = torch.zeros(N, t, dtype=torch.float64)
    for j in range(t):
        there = found.neighbours[j] >= 0
        places = found.neighbours[j][there].long()
        x[order[places], j] = found.weights[j][there]
        left = found.explained[j] - found.weights[j][there] @ explained[places]
        if len(landmarks):
            x[landmarks, j] = torch.linalg.solve_triangular(root.mT, left.unsqueeze(-1), upper=True).squeeze(-1)
    return x


@pytest.mark.parametrize("name", ["scale", "sum_of_products", "rq"])
def test_are_conditioned_on_these_points_and_no_others(name: str) -> None:
    own = setting(name)
    noise = own.system.noise.amin()
    found = condition_further(own.cross, own.vecchia, own.system.noise, noise, K)
    x = weights_of(found, own.vecchia.order, own.vecchia.landmarks, own.vecchia.root, own.vecchia.explained)
    left = own.b - own.a @ x
    scale = float(own.b.abs().max())
    assert left[x != 0].abs().max() < 1e-9 * scale  # r is zero where x is not
    assert ((x != 0).sum(0) == R + K).all()
    variances = own.cross.prior() + noise - (own.b * x).sum(0)
    torch.testing.assert_close(found.variances, variances, rtol=1e-8, atol=1e-10)
    exact = own.cross.prior() + noise - (own.b * torch.linalg.solve(own.a, own.b)).sum(0)
    assert (found.variances >= exact - 1e-10).all()
    for j in range(T):
        others = own.vecchia.order[found.neighbours[j].long()]
        rest = torch.ones(N, dtype=torch.bool)
        rest[others] = rest[own.vecchia.landmarks] = False
        assert own.b[others, j].min() >= own.b[rest, j].max() - 1e-12  # the nearest ones


def test_products_with_weights() -> None:
    own = setting()
    found = condition_further(own.cross, own.vecchia, own.system.noise, own.system.noise.amin(), K)
    x = weights_of(found, own.vecchia.order, own.vecchia.landmarks, own.vecchia.root, own.vecchia.explained)
    block = torch.randn(N, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = ConditionalImages.of(own.vecchia, block)
    torch.testing.assert_close(found.weighted(images), x.mT @ block, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("with_landmarks", [True, False])
def test_a_point_is_never_given_itself(with_landmarks: bool) -> None:
    own = setting()
    fused, vecchia = own.system.points, own.vecchia
    assert fused is not None
    if with_landmarks:
        chosen, explained, landmarks = vecchia.order, vecchia.explained, vecchia.landmarks
        images = ConditionalImages.of
    else:
        chosen, landmarks = torch.arange(N), vecchia.landmarks[:0]
        explained = own.a.new_empty(N, 0)
    asked = torch.tensor([0, 5, 100])
    found = condition_each(fused, own.system.noise, chosen, explained, asked, K)
    x = weights_of(found, chosen, landmarks, vecchia.root, explained)
    for j, place in enumerate(chosen[asked].tolist()):
        assert x[place, j] == 0
        assert (x[:, j] != 0).sum() == len(landmarks) + K
        precision = -x[:, j] / found.variances[j]
        precision[place] = 1 / found.variances[j]
        left = torch.eye(N, dtype=torch.float64)[place] - own.a @ precision
        assert left[precision != 0].abs().max() < 1e-9
        assert 1 / found.variances[j] <= torch.linalg.inv(own.a)[place, place] + 1e-9
    block = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    images = ConditionalImages.of(vecchia, block) if with_landmarks else ConditionalImages.without_landmarks(block)
    torch.testing.assert_close(found.weighted(images), x.mT @ block, rtol=1e-8, atol=1e-8)


def test_the_largest_weights() -> None:
    """Of every point that is last in the order, given the landmarks and its own earlier neighbours."""
    own = setting()
    vecchia, largest = own.vecchia, 0.0
    for place in range(max(0, len(vecchia.order) - 128), len(vecchia.order)):
        near = vecchia.pattern.neighbours[place]
        given = torch.cat([vecchia.landmarks, vecchia.order[near[near >= 0].long()]])
        column = own.a[given, vecchia.order[place]]
        largest = max(largest, float(torch.linalg.solve(own.a[given][:, given], column).abs().sum()))
    assert vecchia.largest_weights == pytest.approx(largest, rel=1e-8)
