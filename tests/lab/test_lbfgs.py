"""L-BFGS goes on in float64 where float32 has no factor."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from linear_operator.utils.errors import NotPSDError

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare.lbfgs import maximise
from gp_rangeformer.lab.models import build_model


class _FailsInFloat32(gpytorch.mlls.ExactMarginalLogLikelihood):
    """At its fifth evaluation, and whenever asked again in float32."""

    calls = 0

    def __call__(self, *arguments, **options):
        self.calls += 1
        if self.calls >= 5 and self.model.train_targets.dtype == torch.float32:
            raise NotPSDError("no factor")
        return super().__call__(*arguments, **options)


def mll_of(kind: type, dtype: torch.dtype):
    dataset = datasets.load("robot_arm", n=80, n_test=1, seed=0).to(dtype)
    model, likelihood = build_model(dataset, "matern32")
    return kind(likelihood, model)


def test_what_has_no_factor_in_float32_goes_on_in_float64() -> None:
    values: list[float] = []
    mll = mll_of(_FailsInFloat32, torch.float32)
    inputs = mll.model.train_inputs[0]
    value, reason = maximise(mll, values.append)
    assert "in float64 from evaluation 5 on" in reason
    assert values[4] == pytest.approx(max(values[:4]), abs=1e-4)  # from the best so far
    whole = maximise(mll_of(gpytorch.mlls.ExactMarginalLogLikelihood, torch.float64), lambda value: None)[0]
    assert value == pytest.approx(whole, abs=1e-3)
    # As it was handed over, but for the parameters.
    assert {parameter.dtype for parameter in mll.parameters()} == {torch.float32}
    assert mll.model.train_inputs[0] is inputs
    assert mll.model.train_targets.dtype == torch.float32


def test_what_fails_at_once_fails() -> None:
    class Never(_FailsInFloat32):
        calls = 10

    with pytest.raises(NotPSDError):
        maximise(mll_of(Never, torch.float32), lambda value: None)
