"""Targets far from zero on their own scale: the mean follows, and the fit is the one without the offset."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gp_rangeformer import Certified, settings
from gp_rangeformer.fit import FitResult, fit_mll
from tests.fit.models import build, value


def shifted(n: int, offset: float, dtype: torch.dtype = torch.float64) -> Any:
    mll = build(n)
    mll.model.set_train_data(targets=mll.model.train_targets + offset, strict=False)
    mll.to(dtype)
    (x,), y = mll.model.train_inputs, mll.model.train_targets
    mll.model.set_train_data(x.to(dtype), y.to(dtype), strict=False)
    return mll


def certified(mll: Any) -> FitResult:
    """By few landmarks, so that a rough solve says little of a mean that is far off."""
    with settings.rangeformer(), settings.min_size(100), settings.solver(Certified(rank=20)):
        return fit_mll(mll, levels=False)


@pytest.fixture(scope="module")
def likelihood() -> float:
    """Without an offset."""
    return certified(shifted(150, 0.0)).value


@pytest.mark.parametrize(("offset", "dtype"), [(1e3, torch.float64), (1e6, torch.float64), (1e4, torch.float32)])
def test_a_certified_fit_does_not_depend_on_it(offset: float, dtype: torch.dtype, likelihood: float) -> None:
    """The start was said to have more than any likelihood that followed, and kept."""
    mll = shifted(150, offset, dtype)
    found = certified(mll)
    assert found.converged, found.summary()
    rounded = 2e-3 if dtype == torch.float32 else 2e-4  # of targets: 1e4 has 1e-3 in float32
    assert found.value == pytest.approx(likelihood, abs=rounded)
    assert found.value == pytest.approx(value(mll.double()), abs=rounded + found.error)


def test_subsets_begin_with_the_mean_that_all_points_have() -> None:
    plain, found = (fit_mll(shifted(1000, offset)) for offset in (0.0, 1e6))
    assert not found.notes
    assert found.evaluations == plain.evaluations
    assert found.value == pytest.approx(plain.value, abs=1e-6)
