"""Predictions of small models under the flag, and what they are held against."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import collect_reports, settings
from gp_rangeformer.report import ReportCollection
from tests.plugin.market import DIM, Problem

T = 600  # with any n here more than GPyTorch evaluates eagerly


def further_points(t: int = T, dtype: torch.dtype = torch.float64, spread: float = 1.2) -> Tensor:
    return (spread * torch.rand(t, DIM, generator=torch.Generator().manual_seed(5), dtype=torch.float64)).to(dtype)


@contextlib.contextmanager
def served(**solver: Any) -> Iterator[ReportCollection]:
    with torch.no_grad(), settings.rangeformer(), settings.solver(**solver), collect_reports() as reports:
        yield reports


@contextlib.contextmanager
def estimated(n: int = 100, **solver: Any) -> Iterator[ReportCollection]:
    """With few landmarks and many iterations' worth of work left."""
    with settings.min_size(n), served(variances="estimated", rank=20, neighbours=16, **solver) as reports:
        yield reports


def by_host(problem: Problem, x: Tensor) -> Any:
    """In float64, by Cholesky."""
    problem = copy.deepcopy(problem)
    problem.model.double()
    problem.model.set_train_data(problem.x.double(), problem.y.double(), strict=False)
    with torch.no_grad(), gpytorch.settings.max_cholesky_size(10**5):
        return problem.predict(x.double())


def noise_of(problem: Problem) -> float:
    return float(problem.likelihood.noise.detach().min())
