"""The interval that a fit calls certain is of the parameters that the model is left with."""

from __future__ import annotations

import pytest
from gpytorch.means import ConstantMean, LinearMean
from linear_operator.utils.warnings import NumericalWarning

from gp_rangeformer import Certified, settings
from gp_rangeformer.fit import FitResult, fit_mll, last_look
from gp_rangeformer.solvers import exact, exact_batch
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
    likelihood = value(mll)
    assert found.certain is not None
    assert found.certain.lower <= likelihood <= found.certain.upper
    assert found.value == pytest.approx(likelihood, abs=1e-8)
    assert found.report is not None
    assert found.report.mll == pytest.approx(250 * found.value, abs=1e-6)


def test_so_does_that_of_a_certified_fit() -> None:
    mll = build(400)
    with settings.rangeformer(), settings.min_size(200), settings.solver(Certified(rank=100)):
        found = fit_mll(mll, max_evaluations=3)
    assert found.certain is not None
    assert found.certain.lower <= value(mll) <= found.certain.upper


def fitted_with_little_noise() -> tuple[FitResult, float]:
    """By a certified solver with few landmarks, which leaves several nats per point open."""
    mll = build(400)
    mll.likelihood.noise = 1e-3  # type: ignore[union-attr]
    mll.likelihood.raw_noise.requires_grad_(False)  # type: ignore[union-attr]
    with settings.rangeformer(), settings.min_size(200), settings.solver(Certified(rank=20)):
        found = fit_mll(mll, max_evaluations=3, levels=False)
    return found, value(mll)


def test_where_it_says_little_a_factorisation_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    found, likelihood = fitted_with_little_noise()
    assert found.certain is not None
    assert found.report is not None
    assert found.report.solver == "exact"
    assert found.error == 0
    assert found.value == pytest.approx(likelihood, abs=1e-9)
    assert found.certain.lower <= likelihood <= found.certain.upper
    monkeypatch.setattr(last_look, "_FACTORISED", 399)
    by_probes, _ = fitted_with_little_noise()
    assert by_probes.certain is not None
    assert by_probes.error > 0
    assert by_probes.certain.width > 0.1 > found.certain.width
    assert found.value == pytest.approx(by_probes.value, abs=3 * by_probes.error)
    assert len(by_probes.history) == len(found.history)


def test_a_factorisation_that_needed_jitter_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "factorised", lambda *arguments: None)
    monkeypatch.setattr(exact_batch, "_factorised", lambda *arguments: None)
    with pytest.warns(NumericalWarning, match="jitter"):
        found, likelihood = fitted_with_little_noise()
    assert found.report is not None
    assert found.report.solver == "rangeformer"
    assert found.error > 0
    assert found.value == pytest.approx(likelihood, abs=3 * found.error)
