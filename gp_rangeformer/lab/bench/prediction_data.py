"""A model with the hyperparameters of a converged fit, and the points that its predictions are measured at."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench.optima import KERNEL, optimum
from gp_rangeformer.lab.compare.audit import Parameters, restore
from gp_rangeformer.lab.datasets import Dataset, DatasetError
from gp_rangeformer.lab.models import Regression, build_model

_MOVED_BY = 0.1  # deviations of every column


@dataclass(frozen=True, eq=False)
class Fitted:
    """Training rows and parameters of a model.

    :param data: in the dtype of the measurement; its ``test_x`` are all points that are asked for.
    :param parameters: as :func:`~gp_rangeformer.lab.bench.optima.optimum` gives them.
    :param moved: how many of the points are no rows of the set but rows moved a little.
    """

    data: Dataset
    parameters: Parameters
    moved: int = 0

    @property
    def n(self) -> int:
        return len(self.data.train_y)

    @property
    def itemsize(self) -> int:
        return self.data.train_x.element_size()

    def build(self) -> Regression:
        """A fresh model in evaluation mode."""
        model, _ = build_model(self.data, KERNEL)
        restore(model, self.parameters)
        return model.eval()

    def widened(self) -> Fitted:
        """The same numbers in float64: parameters and data as they were rounded."""
        rounded = {name: parameter.detach().double() for name, parameter in self.build().named_parameters()}
        return replace(self, data=self.data.to(torch.float64), parameters=rounded)

    def some(self, n: int) -> Fitted:
        """With the first ``n`` training rows alone, and all points."""
        return replace(self, data=replace(self.data, train_x=self.data.train_x[:n], train_y=self.data.train_y[:n]))

    def describe_points(self) -> str:
        """What the test inputs are, in words."""
        if self.moved == 0:
            return "rows of the set that the model was not given"
        rows = len(self.data.test_x) - self.moved
        drawn = f"{self.moved} rows drawn from the whole set and moved by {_MOVED_BY} deviations of every column"
        return f"{drawn}, and {rows} rows that the model was not given" if rows else drawn


def load_fitted(
    name: str, n: int, points: int, *, dtype: torch.dtype, seed: int, data_dir: Path | None = None
) -> Fitted:
    """``n`` rows of a set and ``points`` test inputs: other rows, and where those are too few, rows moved a little.

    :raises DatasetError: no such set, none whose optimum is known, or fewer rows than ``n``.
    """
    whole = datasets.load(name, n_test=points, seed=seed, data_dir=data_dir)
    parameters = optimum(name)
    x, y = torch.cat([whole.train_x, whole.test_x]), torch.cat([whole.train_y, whole.test_y])
    if n > len(y):
        raise DatasetError(f"{name} has {len(y)} rows, fewer than n = {n}: lower --sizes")
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(y), generator=generator)
    train, others = rows[:n], rows[n : n + points]
    moved = points - len(others)
    drawn = torch.randint(len(y), (moved,), generator=generator)
    step = _MOVED_BY * torch.randn(moved, x.shape[1], generator=generator, dtype=x.dtype)
    # In any order: every block of them is of both kinds.
    order = torch.randperm(points, generator=generator)
    test_x, test_y = torch.cat([x[others], x[drawn] + step])[order], torch.cat([y[others], y[drawn]])[order]
    data = replace(whole, train_x=x[train], train_y=y[train], test_x=test_x, test_y=test_y)
    return Fitted(data.to(dtype), parameters, moved)


def blocks(points: Tensor, sizes: tuple[int, ...]) -> dict[int, tuple[slice, slice]]:
    """Two disjoint blocks of so many points for every size, and none of another size's.

    :raises ValueError: there are too few.
    """
    found, start = {}, 0
    for size in sizes:
        found[size] = slice(start, start + size), slice(start + size, start + 2 * size)
        start += 2 * size
    if start > len(points):
        raise ValueError(f"{start} points are needed, {len(points)} are there")
    return found
