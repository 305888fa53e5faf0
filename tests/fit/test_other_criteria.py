"""Fits of what is not the likelihood itself: GPyTorch's leave-one-out criterion, and a subclass that adds a penalty."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from gpytorch.mlls import ExactMarginalLogLikelihood, LeaveOneOutPseudoLikelihood
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.fit import fit_mll
from tests.fit.models import build, by_lbfgs, value


class Penalised(ExactMarginalLogLikelihood):
    """A mean that costs something: its optimum is not that of the likelihood."""

    def forward(self, function_dist: Any, target: Tensor, *params: Any, **kwargs: Any) -> Tensor:
        model: Any = self.model
        return super().forward(function_dist, target, *params, **kwargs) - 3 * model.mean_module.constant.square().sum()


@pytest.mark.parametrize("flag", [True, False], ids=["flag", "host"])
@pytest.mark.parametrize(
    ("kind", "named"), [(LeaveOneOutPseudoLikelihood, "leave-one-out log p(y)/n"), (Penalised, "Penalised")]
)
def test_they_end_where_lbfgs_ends_and_are_called_by_their_names(kind: Any, named: str, flag: bool) -> None:
    plain = build(150)
    # Left free, leave-one-out sends it to 1e7 on these data, where no value is known to four digits.
    plain.model.covar_module.raw_outputscale.requires_grad_(False)
    mll = kind(plain.likelihood, plain.model)
    reference = by_lbfgs(copy.deepcopy(mll))
    with settings.rangeformer(flag):
        result = fit_mll(mll)
    assert result.method == "secants"
    assert result.criterion == named
    assert result.summary().startswith(f"{named} {result.value:.4f}")
    assert named in result.table().splitlines()[0]
    assert result.value == pytest.approx(value(mll), abs=1e-6)
    assert result.value >= reference - 1e-3


class Counting(ExactMarginalLogLikelihood):
    """It maximises what its class does."""

    calls = 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return super().__call__(*arguments, **options)


def test_a_subclass_that_maximises_the_same_is_fitted_alike() -> None:
    plain = build(150)
    mll = Counting(plain.likelihood, plain.model)
    result = fit_mll(mll)
    assert result.method == "average information"
    assert result.summary().startswith("log p(y)/n")
    assert mll.calls == result.evaluations[150] + 1  # the value at the last mean
