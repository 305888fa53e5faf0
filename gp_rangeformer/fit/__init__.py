"""How a model is trained until it has converged: a few certified evaluations instead of hundreds of steps."""

from gp_rangeformer.fit.botorch import botorch_fits, botorch_optimizer
from gp_rangeformer.fit.fit_mll import FitError, fit_mll
from gp_rangeformer.fit.laplace import LaplaceError, LaplaceMarginalLogLikelihood
from gp_rangeformer.fit.result import FitResult, Record

__all__ = [
    "FitError",
    "FitResult",
    "LaplaceError",
    "LaplaceMarginalLogLikelihood",
    "Record",
    "botorch_fits",
    "botorch_optimizer",
    "fit_mll",
]
