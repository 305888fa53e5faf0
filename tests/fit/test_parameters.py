"""From parameters to phi and back, for every kind of bound."""

from __future__ import annotations

from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.constraints import GreaterThan, Interval, LessThan, Positive

from gp_rangeformer.fit import fit_mll
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
