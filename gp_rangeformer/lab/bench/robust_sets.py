"""Data sets of many kinds, as they are met in practice: inputs in their own units, targets that no model expects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gp_rangeformer.lab import datasets

Drawn = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Kind:
    """``draw``: n and a generator to inputs n x d and targets n, float64; rounded to ``dtype`` before anybody sees
    them. ``n`` of :data:`KINDS`, where no fewer are asked for."""

    n: int
    dtype: str
    draw: Callable[[int, Generator], Drawn]

    def data(self, n: int, seed: int) -> Drawn:
        """n x d and n, in the kind's dtype."""
        dtype = getattr(torch, self.dtype)
        x, y = self.draw(n, torch.Generator().manual_seed(seed))
        return x.to(dtype), y.to(dtype)


def _uniform(n: int, d: int, generator: Generator) -> Tensor:
    return torch.rand(n, d, generator=generator, dtype=torch.float64)


def _normal(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, generator=generator, dtype=torch.float64)


def _smooth(x: Tensor) -> Tensor:
    """Of the first two columns, in the unit cube."""
    return (5 * x[:, 0]).sin() + x[:, 1].square()


def _smooth_with_noise(n: int, generator: Generator, d: int) -> Drawn:
    x = _uniform(n, d, generator)
    return x, _smooth(x) + 0.1 * _normal(n, generator)


def _series(n: int, generator: Generator) -> Drawn:
    """Trend and season, in order, equally spaced."""
    t = torch.linspace(0, 1, n, dtype=torch.float64)
    return t[:, None], 2 * t + (2 * torch.pi * 12 * t).sin() + 0.2 * _normal(n, generator)


def _steps(n: int, generator: Generator) -> Drawn:
    x = _uniform(n, 1, generator)
    return x, (5 * x[:, 0]).floor() + 0.05 * _normal(n, generator)


def _heavy_tails(n: int, generator: Generator) -> Drawn:
    """Student's t with two degrees of freedom."""
    x = _uniform(n, 3, generator)
    squares = _normal(n, generator).square() + _normal(n, generator).square()
    return x, _smooth(x) + 0.1 * _normal(n, generator) / (squares / 2).sqrt()


def _repeated(n: int, generator: Generator, apart: float) -> Drawn:
    """Every row twice or more, with targets that are so far apart."""
    x, y = _smooth_with_noise((n + 1) // 2, generator, 3)
    again = torch.arange(n) % len(y)
    return x[again], y[again] + apart * _normal(n, generator)


def _clusters(n: int, generator: Generator) -> Drawn:
    """Five, each a thousandth as wide as they are apart."""
    centres = _uniform(5, 3, generator)
    x = centres[torch.arange(n) % 5] + 1e-3 * _uniform(n, 3, generator)
    return x, _smooth(x) + 0.1 * _normal(n, generator)


def _fifty_dimensions(n: int, generator: Generator) -> Drawn:
    """Three of them relevant."""
    x = _uniform(n, 50, generator)
    return x, _smooth(x) + 2 * x[:, 2] + 0.1 * _normal(n, generator)


def _constant_columns(n: int, generator: Generator) -> Drawn:
    x, y = _smooth_with_noise(n, generator, 4)
    x[:, 2], x[:, 3] = 0.5, 0.0
    return x, y


def _nearly_constant_columns(n: int, generator: Generator) -> Drawn:
    """One that differs in the ninth digit, one in a single row."""
    x, y = _smooth_with_noise(n, generator, 4)
    x[:, 2] = 0.5 + 1e-9 * x[:, 2]
    x[:, 3] = 0.0
    x[0, 3] = 1.0
    return x, y


def _scales(n: int, generator: Generator) -> Drawn:
    """Columns in units a million times larger and smaller, as they are: nobody has normalised them."""
    x, y = _smooth_with_noise(n, generator, 4)
    return x * torch.tensor([1e3, 1.0, 1e-3, 1e6], dtype=torch.float64), y


def _hardly_noise(n: int, generator: Generator) -> Drawn:
    x = _uniform(n, 3, generator)
    return x, _smooth(x) * (3 * x[:, 2]).cos() + 1e-6 * _normal(n, generator)


def _noise_alone(n: int, generator: Generator) -> Drawn:
    return _uniform(n, 3, generator), _normal(n, generator)


def _whole_numbers(n: int, generator: Generator) -> Drawn:
    """Inputs from 0 to 9, many rows the same."""
    x = (10 * _uniform(n, 3, generator)).floor()
    return x, _smooth(x / 10) + 0.1 * _normal(n, generator)


def _outliers(n: int, generator: Generator) -> Drawn:
    """One target in thirty is a hundred deviations of the noise away."""
    x, y = _smooth_with_noise(n, generator, 3)
    y[::30] += 10 * _normal(len(y[::30]), generator).sign()
    return x, y


def _ridge(n: int, generator: Generator) -> Drawn:
    """A wave along the diagonal, rough in each of its eight columns."""
    x = _uniform(n, 8, generator)
    return x, (4 * x.sum(1)).sin() + 0.05 * _normal(n, generator)


def _skewed(n: int, generator: Generator) -> Drawn:
    """Targets over three decades, inputs that crowd near zero."""
    x = _uniform(n, 2, generator) ** 4
    return x, (3 * _smooth(x) + 0.5 * _normal(n, generator)).exp()


def _shipped(name: str) -> Callable[[int, Generator], Drawn]:
    def draw(n: int, generator: Generator) -> Drawn:
        found = datasets.load(name, n=n, n_test=1, seed=generator.initial_seed())
        return found.train_x, found.train_y

    return draw


KINDS: dict[str, Kind] = {
    "series": Kind(200, "float64", _series),
    "steps": Kind(100, "float64", _steps),
    "heavy tails": Kind(500, "float64", _heavy_tails),
    "repeated rows and targets": Kind(200, "float64", functools.partial(_repeated, apart=0.0)),
    "repeated rows": Kind(200, "float32", functools.partial(_repeated, apart=0.3)),
    "clusters": Kind(500, "float32", _clusters),
    "50 dimensions": Kind(500, "float64", _fifty_dimensions),
    "constant columns": Kind(100, "float64", _constant_columns),
    "nearly constant columns": Kind(200, "float32", _nearly_constant_columns),
    "columns of other scales": Kind(200, "float64", _scales),
    "hardly any noise": Kind(500, "float64", _hardly_noise),
    "noise alone": Kind(500, "float32", _noise_alone),
    "few points": Kind(30, "float64", functools.partial(_smooth_with_noise, d=6)),
    "whole numbers": Kind(500, "float64", _whole_numbers),
    "outliers": Kind(60, "float64", _outliers),
    "ridge": Kind(1000, "float64", _ridge),
    "skewed": Kind(1000, "float32", _skewed),
    "co2": Kind(2000, "float64", _shipped("co2")),
    "borehole": Kind(3000, "float32", _shipped("borehole")),
    "robot_arm": Kind(1000, "float64", _shipped("robot_arm")),
}
# Sets that fits from other starts have for theirs, and rows of each.
RESTARTED = {
    "steps": 60,
    "repeated rows": 100,
    "hardly any noise": 100,
    "outliers": 100,
    "robot_arm": 300,
}
