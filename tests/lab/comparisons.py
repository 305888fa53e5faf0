"""One small comparison, and what is looked up in it."""

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.compare import Comparison, State
from gp_rangeformer.lab.compare.result import SolverResult
from gp_rangeformer.lab.datasets import Dataset

N, STEPS = 500, 6

SOLVERS = "exact,cholesky,cg,rangeformer"


def arm(n: int = N, n_test: int = 50) -> Dataset:
    return datasets.load("robot_arm", n=n, n_test=n_test)


def result_of(comparison: Comparison, name: str) -> SolverResult:
    result = comparison.result(name)
    assert result is not None
    assert result.state is State.DONE, result.error
    return result
