"""GPyTorch's conjugate gradients over KeOps kernels (Charlier et al. 2021) as a contender: K is never stored."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from typing import Any

import gpytorch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from gpytorch.kernels import keops as keops_kernels

from gp_rangeformer.lab.bench.contenders import ModelContender, Problem, UnavailableError
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.models import Regression

NAME = "keops"


def keops_contender(problem: Problem) -> ModelContender:
    """The model of the problem with its kernel's KeOps twin, under the settings of the contender ``cg``.

    KeOps compiles its formulas at the first call on a machine (15 s on one core) and keeps them on disk. What it prints
    about that goes to stderr, out of the tables' way.

    :raises UnavailableError: pykeops is not installed, or GPyTorch has no KeOps kernel for this one.
    """
    if importlib.util.find_spec("pykeops") is None:
        raise UnavailableError("pykeops is not installed: pip install pykeops (it needs a C++ compiler)")
    # GPyTorch answers with Cholesky up to this size, and evaluates blocks with fewer rows densely: at 0, as for the
    # contender cg, the preconditioner's single rows would be KeOps formulas, and raise.
    usual: Any = gpytorch.settings.max_cholesky_size.value()
    largest = min(usual, problem.n - 1)
    return ModelContender(
        SolverSpec(NAME, "cg", problem.dtype),
        problem.data,
        problem.kernel,
        change=_with_keops_kernel,
        further=lambda: _conditions(largest),
    )


@contextlib.contextmanager
def _conditions(max_cholesky_size: int) -> Iterator[None]:
    with gpytorch.settings.max_cholesky_size(max_cholesky_size), contextlib.redirect_stdout(sys.stderr):
        yield


def _with_keops_kernel(model: Regression) -> None:
    scaled = model.covar_module
    base = scaled.base_kernel if type(scaled) is ScaleKernel else scaled
    twin: Kernel
    if type(base) is MaternKernel:
        twin = keops_kernels.MaternKernel(nu=base.nu, ard_num_dims=base.ard_num_dims)
    elif type(base) is RBFKernel:
        twin = keops_kernels.RBFKernel(ard_num_dims=base.ard_num_dims)
    else:
        raise UnavailableError(f"no KeOps kernel for {type(base).__name__}")
    model.covar_module = ScaleKernel(twin) if type(scaled) is ScaleKernel else twin
