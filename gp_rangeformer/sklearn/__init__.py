"""Exact Gaussian process regression as a scikit-learn estimator, in the place of its own."""

from gp_rangeformer.sklearn.regressor import RangeFormerRegressor

__all__ = ["RangeFormerRegressor"]
