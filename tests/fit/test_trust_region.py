"""Steps of a quadratic model: the best within the radius, and on the right side of a wall."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gp_rangeformer.fit.trust_region import QuadraticModel

SEEDS = st.integers(0, 10_000)


def model(seed: int, size: int = 5, floor: float = 1e-3) -> QuadraticModel:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    gradient = torch.randn(size, generator=generator, dtype=torch.float64)
    return QuadraticModel(gradient, root @ root.mT + floor * torch.eye(size, dtype=torch.float64))


@given(SEEDS)
@settings(max_examples=30, deadline=None)
def test_without_a_radius_it_is_newtons(seed) -> None:
    quadratic = model(seed)
    step = quadratic.step(math.inf)
    assert torch.allclose(quadratic.curvature @ step.value, quadratic.gradient, atol=1e-8)
    assert math.isclose(step.promised, 0.5 * float(quadratic.gradient @ step.value), rel_tol=1e-8)


@given(SEEDS, st.floats(1e-3, 3.0))
@settings(max_examples=30, deadline=None)
def test_no_random_step_within_the_radius_gains_more(seed, radius) -> None:
    quadratic = model(seed)
    step = quadratic.step(radius)
    assert step.length <= radius * (1 + 1e-9)
    others = torch.randn(200, 5, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)
    others *= radius * torch.rand(200, 1, generator=torch.Generator().manual_seed(seed + 2), dtype=torch.float64)
    others /= others.norm(dim=1, keepdim=True).clamp_min(radius) / radius
    assert max(quadratic.gain(other) for other in others) <= step.promised + 1e-12


@given(SEEDS, st.floats(0.0, 1.0))
@settings(max_examples=30, deadline=None)
def test_a_wall_is_not_crossed(seed, room) -> None:
    quadratic = model(seed)
    wall = torch.randn(5, generator=torch.Generator().manual_seed(seed + 3), dtype=torch.float64)
    bounded = replace(quadratic, wall=wall, room=room)
    step = bounded.step(math.inf)
    assert float(wall @ step.value) <= room + 1e-9
    assert step.promised <= quadratic.newton_decrement() + 1e-12
    # Along the wall nothing is left to gain.
    slope = quadratic.gradient - quadratic.curvature @ step.value
    along = slope - wall * (slope @ wall) / (wall @ wall)
    if float(wall @ step.value) > room - 1e-9:
        assert along.norm() <= 1e-7 * quadratic.gradient.norm()


def test_flat_directions_do_not_send_it_to_infinity() -> None:
    flat = QuadraticModel(torch.ones(2, dtype=torch.float64), torch.zeros(2, 2, dtype=torch.float64))
    step = flat.step(1.0)
    assert step.value.isfinite().all()
    assert step.length <= 1 + 1e-9


@given(SEEDS)
@settings(max_examples=20, deadline=None)
def test_a_seen_curvature_replaces_the_models_own_along_the_step(seed) -> None:
    quadratic = model(seed)
    step = quadratic.step(1.0).value
    own = float(step @ quadratic.curvature @ step)
    corrected = quadratic.corrected(step, 2 * own, 1.0, 4.0)
    assert math.isclose(float(step @ corrected.curvature @ step), 2 * own, rel_tol=1e-9)
    limited = quadratic.corrected(step, 100 * own, 1.0, 4.0)
    assert math.isclose(float(step @ limited.curvature @ step), 4 * own, rel_tol=1e-9)
    assert torch.linalg.eigvalsh(limited.curvature).min() > 0


def test_curvature_that_is_rounding_promises_nothing() -> None:
    """Beside one of targets ten decades above the kernel's scale it has either sign."""
    curvature = torch.diag(torch.tensor([1e19, -1e3], dtype=torch.float64))
    gradient = torch.tensor([1e19, 1e3], dtype=torch.float64)
    step = QuadraticModel(gradient, curvature).step(math.inf)
    assert step.promised == pytest.approx(0.5e19, rel=1e-6)
    assert step.length < 2
