"""What trajectories are drawn from: inputs, targets, kernels, matrices of chosen spectrum, noise, settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from gpytorch import kernels
from torch import Tensor

T = TypeVar("T")


class Dice:
    """A seeded generator with the distributions that are used here."""

    def __init__(self, *seed: int) -> None:
        self.numpy = np.random.default_rng(seed)

    def chance(self, probability: float) -> bool:
        return bool(self.numpy.random() < probability)

    def between(self, low: float, high: float) -> float:
        return float(self.numpy.uniform(low, high))

    def log_between(self, low: float, high: float) -> float:
        return 10 ** self.between(math.log10(low), math.log10(high))

    def whole(self, low: int, high: int) -> int:
        """Between ``low`` and ``high``, both included."""
        return int(self.numpy.integers(low, high + 1))

    def pick(self, *choices: T) -> T:
        return choices[int(self.numpy.integers(len(choices)))]

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.numpy.standard_normal(shape))

    def uniform(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.numpy.random(shape))


def _clustered(dice: Dice, n: int, d: int) -> Tensor:
    centres = dice.normal(dice.whole(2, 8), d)
    return centres[torch.arange(n) % len(centres)] + dice.log_between(1e-4, 0.3) * dice.normal(n, d)


def _grid(dice: Dice, n: int, d: int) -> Tensor:
    side = math.ceil(n ** (1 / d))
    axes = [torch.linspace(0, 1, side, dtype=torch.float64)] * d
    return torch.cartesian_prod(*axes).reshape(-1, d)[:n].contiguous()


def _constant_column(dice: Dice, n: int, d: int) -> Tensor:
    points = dice.normal(n, d)
    points[:, 0] = dice.between(-3, 3)
    return points


INPUTS: dict[str, Callable[[Dice, int, int], Tensor]] = {
    "uniform": lambda dice, n, d: dice.uniform(n, d),
    "gaussian": lambda dice, n, d: dice.normal(n, d),
    "clustered": _clustered,
    "duplicated": lambda dice, n, d: dice.normal(max(2, n // dice.whole(2, 20)), d).repeat(n, 1)[:n],
    "constant column": _constant_column,
    "grid": _grid,
    "isolated": lambda dice, n, d: 100 * torch.arange(n, dtype=torch.float64).unsqueeze(-1).expand(n, d),
    "offset": lambda dice, n, d: 1e3 + dice.uniform(n, d),
}


def _smooth(dice: Dice, x: Tensor) -> Tensor:
    directions = dice.normal(x.shape[1], 5) * dice.log_between(0.1, 10)
    return torch.sin((x - x.mean(0)) @ directions).sum(1) + dice.log_between(1e-3, 1) * dice.normal(len(x))


def _outlier(dice: Dice, x: Tensor) -> Tensor:
    targets = _smooth(dice, x)
    targets[dice.whole(0, len(x) - 1)] += dice.log_between(10, 1e4)
    return targets


TARGETS: dict[str, Callable[[Dice, Tensor], Tensor]] = {
    "smooth": _smooth,
    "white": lambda dice, x: dice.log_between(1e-2, 1e2) * dice.normal(len(x)),
    "constant": lambda dice, x: torch.full((len(x),), dice.log_between(0.1, 1e4), dtype=torch.float64),
    "far from zero": lambda dice, x: _smooth(dice, x) - dice.log_between(10, 1e4),
    "outlier": _outlier,
    "zero": lambda dice, x: torch.zeros(len(x), dtype=torch.float64),
}


class Given(kernels.Kernel):
    """A matrix that its user made; inputs are row numbers."""

    matrix: Tensor

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, **_: Any) -> Tensor:
        rows, columns = x1[:, 0].long(), x2[:, 0].long()
        return self.matrix[rows, columns] if diag else self.matrix[rows][:, columns]


def given_matrix(dice: Dice, n: int, noise: float) -> tuple[str, Tensor]:
    """A symmetric matrix of a chosen spectrum, or one a little off from being symmetric or semi-definite."""
    top, order = noise * dice.log_between(1, 1e6), torch.linspace(0, 1, n, dtype=torch.float64)
    name = dice.pick("geometric", "step", "polynomial", "flat", "two levels", "negative", "skew", "upper triangle")
    spectrum = {
        "step": torch.where(torch.arange(n) < dice.whole(1, n // 2), top, 0.0),
        "polynomial": top * torch.arange(1, n + 1) ** -dice.between(0.5, 3),
        "flat": torch.full((n,), top),
        "two levels": torch.where(torch.arange(n) < n // 3, top, top * dice.log_between(1e-6, 1)),
        "negative": torch.where(torch.arange(n) < dice.whole(1, n // 2), top, -noise * dice.log_between(1e-3, 0.4)),
    }.get(name, top * 10 ** (-dice.between(2, 12) * order))
    basis = torch.linalg.qr(dice.normal(n, n))[0]
    matrix = (basis * spectrum.double()) @ basis.mT
    matrix = 0.5 * (matrix + matrix.mT)
    if name == "skew":
        other = dice.normal(n, n)
        matrix += noise * dice.log_between(1e-8, 1e-1) * (other - other.mT)
    elif name == "upper triangle":
        matrix += torch.triu(torch.full_like(matrix, noise * dice.log_between(1e-8, 0.3)), 1)
    return name, matrix


def _leaf(dice: Dice, d: int) -> tuple[str, kernels.Kernel]:
    kwargs: dict[str, Any] = {}
    if dice.chance(0.3):
        kwargs["ard_num_dims"] = d
    elif dice.chance(0.1):
        kwargs["active_dims"] = (0,)
    name = dice.pick("rbf", "matern12", "matern32", "matern52", "rq", "periodic")
    if name.startswith("matern"):
        return name, kernels.MaternKernel(int(name[-2]) / 2, **kwargs)
    kinds = {"rbf": kernels.RBFKernel, "rq": kernels.RQKernel, "periodic": kernels.PeriodicKernel}
    return name, kinds[name](**kwargs)


def draw_kernel(dice: Dice, d: int) -> tuple[str, kernels.Kernel]:
    """A kernel with default hyperparameters, and its name."""
    name, first = _leaf(dice, d)
    shape = dice.pick(*["scaled"] * 6, "plain", "sum", "sum", "product", "constant", "linear", "mixture")
    if shape == "mixture":
        return shape, kernels.SpectralMixtureKernel(num_mixtures=dice.whole(1, 4), ard_num_dims=d)
    if shape == "plain":
        return name, first
    scaled = kernels.ScaleKernel(first)
    if shape == "scaled":
        return f"scaled {name}", scaled
    if shape == "constant":
        return f"constant + {name}", scaled + kernels.ConstantKernel()
    if shape == "linear":
        return f"linear + {name}", kernels.LinearKernel() + scaled
    other, second = _leaf(dice, d)
    if shape == "sum":
        return f"{name} + {other}", scaled + kernels.ScaleKernel(second)
    return f"{name} x {other}", kernels.ScaleKernel(first * second)


RANGES = {
    "lengthscale": (1e-2, 1e2),
    "outputscale": (1e-3, 300.0),
    "period_length": (0.05, 10.0),
    "alpha": (0.1, 10.0),
    "variance": (1e-3, 10.0),
    "constant": (1e-3, 100.0),
    "mixture_weights": (1e-2, 10.0),
    "mixture_means": (1e-2, 5.0),
    "mixture_scales": (1e-2, 5.0),
}


def draw_hyperparameters(dice: Dice, kernel: torch.nn.Module) -> None:
    """Give every hyperparameter of ``kernel`` a new value; half of them from the tamer middle of their range."""
    for module in kernel.modules():
        for name, (low, high) in RANGES.items():
            if f"raw_{name}" not in module._parameters:
                continue
            value = getattr(module, name)
            tame = dice.chance(0.5)
            middle = math.sqrt(low * high)
            scale = dice.log_between(middle / 5, middle * 5) if tame else dice.log_between(low, high)
            spread = torch.exp(0.5 * dice.normal(*value.shape)) if value.numel() > 1 else torch.ones(value.shape)
            setattr(module, name, (scale * spread).to(value.dtype))


def draw_noise(dice: Dice) -> float:
    return dice.log_between(1e-3, 1) if dice.chance(0.5) else dice.log_between(1e-6, 10)


def draw_settings(dice: Dice) -> dict[str, Any]:
    """Settings, and arguments of the solver, for one trajectory. Half of them differ from the defaults in little."""
    chosen: dict[str, Any] = {"seed": dice.whole(0, 10**6)}
    if dice.chance(0.65):
        chosen["min_size"] = 1
    if dice.chance(0.7):
        chosen["exact_size"] = 20
    if dice.chance(0.15):
        chosen["fused_kernels"] = "off"
    if dice.chance(0.25):
        chosen["kernel_storage"] = dice.pick("dense", "tiles", "tiles")
    if dice.chance(0.3):
        method = dice.pick("lanczos", "lanczos", "lanczos", "quadrature", "exact")
        chosen |= {"exact": True} if method == "exact" else {"logdet": method}
    if dice.chance(0.5):
        return chosen
    options: dict[str, tuple[Any, ...]] = {
        "rank": (8, 32, 150),
        "adaptive_rank": (False,),
        "num_probes": (4, 8, 64),
        "num_logdet_probes": (2, 4, 32),
        "max_passes": (3, 10, 30),
        "history": (0, 1, 2),
        "predictor": ("extrapolate", "galerkin", "previous", "none"),
        "tolerance": (0.1, 1e-3),
        "prediction_tolerance": (1e-2, 1e-5),
        "logdet_tolerance": (1e-3, 0.1),
        "landmarks": ("uniform",),
        "fused_kernels": ("tensors",),
    }
    for name, values in options.items():
        if dice.chance(0.3):
            chosen[name] = dice.pick(*values)
    return chosen
