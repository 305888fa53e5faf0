"""The data set a model is fitted to: inputs and target standardised with the training half's statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gp_rangeformer.regression.scaling import Scaling


class DatasetError(ValueError):
    """A data set that cannot be had exactly as asked; the message gives the cause and the remedy."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A regression problem, inputs and target standardised with the training rows' mean and standard deviation.

    A feature that is constant over the training rows says nothing about the target and is 0 in both halves. The
    deviation is the population one, so `train_y` has mean 0 and mean square 1. Back to the target's own unit:
    `y * target_scale + target_mean`.

    Attributes:
        name: the name it was loaded by, or the file's name.
        train_x: n x d, float64 as loaded.
        train_y: n.
        test_x: n_test x d.
        test_y: n_test.
        feature_names: the d columns of the inputs.
        target_name: what `train_y` measures.
        target_mean: mean of the raw training target.
        target_scale: standard deviation of the raw training target.
        source: one line, where the data came from and what was left out.
        inputs: what the d inputs were standardised with; `inputs.restored(x)` are raw rows.
        test_rows: n_test numbers of rows, as their source counts them, from 1.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    feature_names: tuple[str, ...]
    target_name: str
    target_mean: float
    target_scale: float
    source: str
    inputs: Scaling
    test_rows: Tensor

    def to(self, dtype: torch.dtype, device: torch.device | str | None = None) -> Dataset:
        """The same data in another floating dtype, on another device (None: where it is).

        Raises:
            DatasetError: `dtype` is not a floating dtype, or too narrow for a value of the data.
        """
        if not dtype.is_floating_point:
            raise DatasetError(f"{dtype} would round the standardised data away: ask for a floating dtype")
        fields = ("train_x", "train_y", "test_x", "test_y")
        moved = {field: getattr(self, field).to(device=device, dtype=dtype) for field in fields}
        if not all(bool(tensor.isfinite().all()) for tensor in moved.values()):
            raise DatasetError(f"a value of {self.name} overflows {dtype}: use float32 or float64")
        return replace(self, **moved)


def standardise(
    name: str,
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    feature_names: tuple[str, ...],
    target_name: str,
    source: str,
    test_rows: Tensor | None = None,
) -> Dataset:
    (train_x, train_y), (test_x, test_y) = train, test
    inputs, outputs = Scaling.of(train_x), Scaling.of(train_y[:, None])
    target_mean, target_scale = float(outputs.mean), float(outputs.scale)
    if target_scale == 0:
        raise DatasetError(
            f"{name}: the target {target_name!r} is constant, {target_mean:g}, over the {len(train_y)} training rows: "
            "raise n, or name another target"
        )
    data = Dataset(
        name,
        inputs.standardised(train_x),
        (train_y - target_mean) / target_scale,
        inputs.standardised(test_x),
        (test_y - target_mean) / target_scale,
        feature_names,
        target_name,
        target_mean,
        target_scale,
        source,
        inputs,
        torch.arange(1, len(test_y) + 1) if test_rows is None else test_rows,
    )
    for part in (inputs.mean, inputs.scale, data.train_x, data.train_y, data.test_x, data.test_y):
        if not bool(part.isfinite().all()):
            raise DatasetError(f"{name}: standardising overflows float64: rescale the columns with the largest values")
    return data


def check_sizes(n: int | None, n_test: int | None) -> None:
    if n is not None and n < 2:
        raise DatasetError(f"n = {n}: at least 2 training rows are needed to standardise")
    if n_test is not None and n_test < 1:
        raise DatasetError(f"n_test = {n_test}: at least 1 test row is needed")


def choose(
    name: str, test: Tensor, train: Tensor, n_test: int | None, n: int | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    # Test rows first, and drawn even where all are kept: neither subset depends on the size of the other.
    test = subset(name, test, len(test) if n_test is None else min(n_test, len(test)), generator)
    return test, train if n is None else subset(name, train, n, generator)


def subset(name: str, rows: Tensor, n: int, generator: torch.Generator) -> Tensor:
    if n > len(rows):
        raise DatasetError(
            f"{name} has {len(rows)} training rows, fewer than n = {n}: lower n, or leave it out for all"
        )
    return rows[torch.randperm(len(rows), generator=generator)[:n]]
