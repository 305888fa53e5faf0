"""From parameters to phi and back, for every kind of bound."""

from __future__ import annotations

import math
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, LessThan, Positive

from gp_rangeformer.fit import fit_mll
from gp_rangeformer.fit import parameters as parameters_of_fit
from gp_rangeformer.fit.parameters import FreeParameters
from tests.fit.models import build, data

UNTRANSFORMED: Any = None
CONSTRAINTS: dict[str, tuple[Any, float]] = {
    "none": (None, 0.3),
    "positive": (Positive(), 0.3),
    "above": (GreaterThan(1e-4), 0.3),
    "above, without a transform": (GreaterThan(0.025, transform=UNTRANSFORMED, initial_value=0.3), 0.3),
    "between": (Interval(0.1, 2.0), 0.3),
    "between decades": (Interval(1e-5, 1e5), 1e-4),
    "below": (LessThan(1.0), 0.3),
}


class Holder(gpytorch.Module):
    def __init__(self, constraint, value: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.register_parameter("raw_number", torch.nn.Parameter(torch.zeros(2, dtype=dtype)))
        if constraint is not None:
            self.register_constraint("raw_number", constraint)
            given = torch.full((2,), value, dtype=dtype)
            stored = constraint.inverse_transform(given) if constraint.enforced else given
            self.initialize(raw_number=stored)
        else:
            self.initialize(raw_number=value)

    @property
    def number(self) -> Any:
        constraint: Any = self.constraint_for_parameter_name("raw_number")
        if constraint is None or not constraint.enforced:
            return self.raw_number
        return constraint.transform(self.raw_number)


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_there_and_back(name) -> None:
    module = Holder(*CONSTRAINTS[name])
    parameters, before = FreeParameters(module), module.number.detach().clone()
    parameters.write(parameters.read())
    assert torch.allclose(module.number, before, rtol=1e-12)
    assert parameters.names == ["raw_number[0]", "raw_number[1]"]


@pytest.mark.parametrize("name", CONSTRAINTS)
@pytest.mark.parametrize("length", [-40.0, -3.0, 2.0, 40.0])
def test_no_step_leaves_the_bounds(name, length) -> None:
    constraint, value = CONSTRAINTS[name]
    module = Holder(constraint, value)
    parameters = FreeParameters(module)
    parameters.write(parameters.read() + length)
    number = module.number.detach()
    assert number.isfinite().all()
    if constraint is not None:
        assert (number >= constraint.lower_bound).all()
        assert (number <= constraint.upper_bound).all()
    assert parameters.read().isfinite().all()


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_slopes_are_the_derivatives_of_what_is_stored(name) -> None:
    module: Any = Holder(*CONSTRAINTS[name])
    parameters = FreeParameters(module)
    phi, h = parameters.read(), 1e-4
    stored = []
    for shift in (-h, 0.0, h):
        parameters.write(phi + shift)
        stored.append(module.raw_number.detach().clone())
    first, second = parameters.slopes(phi)
    # Central differences: errors h^2 times the next derivative, of order one here, and rounding over h^2.
    assert torch.allclose(first, (stored[2] - stored[0]) / (2 * h), atol=1e-7)
    assert torch.allclose(second, (stored[2] - 2 * stored[1] + stored[0]) / h**2, atol=1e-6)


@pytest.mark.parametrize(
    ("constraint", "value", "start"),
    [
        (GreaterThan(1e-4, transform=UNTRANSFORMED, initial_value=1e-4), 1e-4, 1.01e-4),
        (GreaterThan(1e-4, transform=UNTRANSFORMED, initial_value=1e-4), 1.02e-4, 1.02e-4),
        (GreaterThan(-2.0, transform=UNTRANSFORMED, initial_value=-2.0), -2.0, -1.98),
        (LessThan(5.0, transform=UNTRANSFORMED, initial_value=5.0), 5.0, 4.95),
        (Interval(1e-2, 1e2, transform=UNTRANSFORMED, initial_value=1e-2), 1e-2, 1.01e-2),
        (Interval(1e-2, 1e2, transform=UNTRANSFORMED, initial_value=1e2), 1e2, 99.0001),
    ],
)
def test_a_start_is_a_hundredth_off_a_bound(constraint, value, start) -> None:
    module = Holder(constraint, value)
    parameters = FreeParameters(module)
    parameters.write(parameters.read())
    # GPyTorch holds bounds in float32.
    assert module.number.tolist() == pytest.approx([start, start], rel=torch.finfo(torch.float32).eps)


def test_a_shared_parameter_counts_once_and_a_fixed_one_not_at_all() -> None:
    module: Any = gpytorch.Module()
    module.one, module.other = Holder(Positive(), 0.5), Holder(Positive(), 0.5)
    module.other.raw_number = module.one.raw_number
    assert FreeParameters(module).size == 2
    module.one.raw_number.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter to fit"):
        FreeParameters(module)


def test_what_does_not_change_is_not_touched() -> None:
    """Graphs from it stay alive."""
    module: Any = Holder(Positive(), 0.5)
    parameters = FreeParameters(module)
    phi = parameters.read()
    parameters.write(phi)
    loss = module.number.square().sum()
    parameters.write(phi)
    loss.backward()
    assert module.raw_number.grad is not None


def test_float32_keeps_its_dtype() -> None:
    module = Holder(Positive(), 0.5, torch.float32)
    parameters = FreeParameters(module)
    assert parameters.read().dtype == torch.float64
    parameters.write(parameters.read() + 0.1)
    assert module.raw_number.dtype == torch.float32


def test_several_bounds_of_one_parameter() -> None:
    module = Holder(Interval(torch.tensor([0.1, 0.2]), torch.tensor([1.0, 2.0])), 0.5)
    with pytest.raises(ValueError, match="several bounds"):
        FreeParameters(module)


def test_an_end_on_a_bound_is_named() -> None:
    x, _ = data(80)
    mll = build(80)
    mll.model.set_train_data(targets=(3 * x).sin().sum(-1), strict=False)  # without noise
    found = fit_mll(mll)
    assert mll.likelihood.noise.item() == pytest.approx(1e-4, rel=0.02)
    assert any("raw_noise at 0.0001" in note for note in found.notes)
    assert not fit_mll(build(80)).notes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_ends_of_what_a_fit_tries_are_named_and_can_be_stored(dtype) -> None:
    for constraint, length, shown in (
        (Positive(), -80.0, "1e-30"),
        (Positive(), 80.0, "1e+30"),
        (Interval(0.0, 1.0), -80.0, "1e-30"),
        (Positive(), -60.0, None),  # a variance of targets that are measured in units far too large
        (Positive(), 60.0, None),
        (None, 80.0, None),
    ):
        module = Holder(constraint, 0.3, dtype)
        parameters = FreeParameters(module)
        phi = parameters.read()
        phi[1] = length
        parameters.write(phi)
        assert module.number.isfinite().all()
        assert bool((module.number > 0).all())
        assert parameters.at_ends(phi) == ([] if shown is None else [f"raw_number[1] at {shown}"])


def test_a_bound_far_below_one_is_reached() -> None:
    for constraint in (GreaterThan(1e-20), Interval(1e-20, 1e20)):
        module = Holder(constraint, 0.3)
        parameters = FreeParameters(module)
        parameters.write(parameters.read() - 200)
        assert module.number.tolist() == pytest.approx([1e-20, 1e-20], rel=1e-3)
        assert len(parameters.on_bounds(parameters.read())) == 2


def with_a_noise_above_zero(scale: float) -> Any:
    """Targets in other units."""
    mll = build(60, likelihood=gpytorch.likelihoods.GaussianLikelihood(noise_constraint=Positive()))
    y = mll.model.train_targets
    mll.model.set_train_data(targets=scale * (y - y.mean()), strict=False)
    return mll


@pytest.mark.parametrize("scale", [1e-6, 1e10])
def test_units_of_the_targets_do_not_matter(scale: float) -> None:
    best = fit_mll(with_a_noise_above_zero(1.0)).value
    found = fit_mll(with_a_noise_above_zero(scale))
    assert found.converged, found.summary()
    assert found.value == pytest.approx(best - math.log(scale), abs=2e-3)
    assert not found.notes


def test_an_end_of_what_a_fit_tries_is_no_optimum(monkeypatch) -> None:
    monkeypatch.setattr(parameters_of_fit, "_SMALLEST", 1e-4)
    found = fit_mll(with_a_noise_above_zero(1e-3))
    assert any("as far as a fit goes" in note and "raw_outputscale at 0.0001" in note for note in found.notes)


def test_a_number_is_held_by_a_bound_off_which_the_gradient_leads() -> None:
    for constraint, value, inward in (
        (GreaterThan(0.01), 0.01, 1),
        (LessThan(1.0), 1.0, -1),
        (Interval(0.1, 2.0), 0.1, 1),
        (Interval(0.1, 2.0), 2.0, -1),
        (GreaterThan(0.01), 0.3, 0),
        (Positive(), 1e-9, 0),
    ):
        parameters = FreeParameters(Holder(constraint, 0.3))
        phi = parameters.read()
        (entry,) = parameters._entries
        phi[1] = entry.free(torch.tensor(value, dtype=torch.float64))
        for sign in (-1.0, 1.0):
            held = parameters.held_by_bounds(phi, torch.full((2,), sign, dtype=torch.float64))
            assert held.tolist() == [False, sign == inward]
