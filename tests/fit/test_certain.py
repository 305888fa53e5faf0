"""The interval that a fit calls certain is of the parameters that the model is left with."""

from __future__ import annotations

import pytest
from gpytorch.means import ConstantMean, LinearMean

from gp_rangeformer import Certified, settings
from gp_rangeformer.fit import fit_mll
from tests.fit.models import DIMENSIONS, build, value

MEANS = {"constant": lambda: ConstantMean(), "linear": lambda: LinearMean(DIMENSIONS)}


@pytest.mark.parametrize("most", [2, 3, None], ids=["two", "three", "all"])
@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("mean", MEANS)
def test_it_holds_the_likelihood_of_the_mean_that_was_fitted_last(mean: str, flag: bool, most: int | None) -> None:
    """The mean is fitted to the other parameters after an evaluation, whose report is of the one before."""
    mll = build(250, mean=MEANS[mean]())
    with settings.rangeformer(flag):
        found = fit_mll(mll, max_evaluations=most)
    exact = value(mll)
    assert found.certain is not None
    assert found.certain.lower <= exact <= found.certain.upper
    assert found.value == pytest.approx(exact, abs=1e-8)
    assert found.report is not None
    assert found.report.mll == pytest.approx(250 * found.value, abs=1e-6)


def test_so_does_that_of_a_certified_fit() -> None:
    mll = build(400)
    with settings.rangeformer(), settings.min_size(200), settings.solver(Certified(rank=100)):
        found = fit_mll(mll, max_evaluations=3)
    assert found.certain is not None
    assert found.certain.lower <= value(mll) <= found.certain.upper
