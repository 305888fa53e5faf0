"""scikit-learn's own checks of an estimator."""

from __future__ import annotations

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from gp_rangeformer.sklearn import RangeFormerRegressor


# What the checks fit on (constant targets, no noise) ends on bounds and says so.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks([RangeFormerRegressor()])
def test_scikit_learn_accepts_the_estimator(estimator, check) -> None:
    check(estimator)
