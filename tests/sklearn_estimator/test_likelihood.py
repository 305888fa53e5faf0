"""The likelihood at hyperparameters that are asked for."""

from __future__ import annotations

import numpy as np
import pytest

from tests.sklearn_estimator.problem import KERNEL, NEW, X, Y, both, both_paths


@both_paths
@pytest.mark.parametrize("eval_gradient", [False, True])
def test_the_kernel_moves_with_theta_where_it_is_not_to_be_cloned(eval_gradient) -> None:
    """As scikit-learn's; predictions are of the fit all the same."""
    theirs, ours = both(kernel=KERNEL)
    theta, found = KERNEL.theta + 0.3, []
    for estimator in (theirs, ours):
        estimator.fit(X, Y[:, 0])
        before = estimator.predict(NEW)
        assert estimator.log_marginal_likelihood(theta, eval_gradient, clone_kernel=True) is not None
        np.testing.assert_array_equal(estimator.kernel_.theta, KERNEL.theta)
        answer = estimator.log_marginal_likelihood(theta, eval_gradient, clone_kernel=False)
        found.append(np.hstack(answer if eval_gradient else [answer]))
        np.testing.assert_allclose(estimator.kernel_.theta, theta)
    np.testing.assert_allclose(found[1], found[0], rtol=1e-7)
    np.testing.assert_array_equal(ours.predict(NEW), before)
