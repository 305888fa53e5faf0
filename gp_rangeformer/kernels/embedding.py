"""From inputs and parameters to what the tiles read: scaled coordinates, and scalars.

Every stationary kernel here is a function of |z_i - z_j|^2 for coordinates z that cost O(n d) to compute. So the tiles
need one gradient only, the one with respect to z, and autograd carries it on through the cheap map to length-scales,
periods and inputs, whatever produced those.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from gp_rangeformer.kernels.expression import Expression, Stationary, parameter_names

_SAMPLE = 1001  # points whose median is taken: 0.3 ms of 26 columns, where those of 16,000 points take 5


def embed(
    expression: Expression,
    x: Float[Tensor, "*batch n d"],
    parameters: tuple[Tensor, ...],
    leading: int | None = None,
) -> tuple[Tensor, ...]:
    """The *arguments* of the kernel matrix, differentiable in ``x`` and ``parameters``.

    Depth first, a node's own before its children's: n x D float64 coordinates of a stationary kernel (and alpha of a
    rational quadratic), the constant, the outputscale. Float64 because it costs O(n d) and keeps the sums over points
    in the gradients accurate. Batches of inputs, of parameters or of both broadcast; every argument has the batch that
    its own inputs have.

    :param leading: so many of the points say where the middle is; None for all.
    :raises ValueError: if the number of parameters is not the expression's.
    """
    names = parameter_names(expression)
    if len(parameters) != len(names):
        raise ValueError(f"the kernel has the {len(names)} parameters {names}, got {len(parameters)} tensors")
    return tuple(_arguments(expression, x, iter(parameters), leading))


def _arguments(expression: Expression, x: Tensor, parameters: Iterator[Tensor], leading: int | None) -> list[Tensor]:
    own = [next(parameters) for _ in expression.own_names]
    if isinstance(expression, Stationary):
        lengthscale, *shape = own
        columns = x if expression.active_dims is None else x[..., list(expression.active_dims)]
        if expression.kind == "periodic":
            return [_on_circles(_centred(columns, leading), lengthscale.double(), shape[0].double())]
        return [_centred(columns, leading) / lengthscale.double(), *shape]
    for child in expression.children:
        own += _arguments(child, x, parameters, leading)
    return own


def _centred(x: Float[Tensor, "*batch n d"], leading: int | None) -> Float[Tensor, "*batch n d"]:
    """Squared distances are differences of squared norms, and coordinates are rounded, which a common offset would make
    large. The middle is detached: it moves all points alike, and no distance."""
    wide = x.double()
    points = wide[..., :leading, :].detach()
    return wide - _middle(points) if points.numel() else wide


def _middle(points: Float[Tensor, "*batch n d"]) -> Float[Tensor, "*batch 1 d"]:
    """The median of every column, of a sample where there are many points. A mean is drawn away from most of them by a
    few far ones, such as a code for missing values: with a tenth at -999999, float32 has the others in steps of 0.008.
    """
    n = points.shape[-2]
    if points.device.type == "cpu":
        some = points if n <= _SAMPLE else points.index_select(-2, torch.from_numpy(_sample(n)))
        return some.median(dim=-2, keepdim=True).values
    # On a GPU that is an error under torch.use_deterministic_algorithms, and sorting is as cheap as choosing.
    middle = (n - 1) // 2
    return points.sort(dim=-2).values[..., middle : middle + 1, :]


@functools.lru_cache(maxsize=64)
def _sample(n: int) -> NDArray[np.int64]:
    """Of n rows, spread evenly and in step with no season of theirs: multiples of the golden ratio. NumPy's: a tensor
    that is kept would be of whatever mode (fake tensors, another default device) asked first."""
    return (np.arange(_SAMPLE) * ((5**0.5 - 1) / 2) % 1 * n).astype(np.int64)


def _on_circles(
    x: Float[Tensor, "*#batch n d"], lengthscale: Float[Tensor, "*#batch 1 _"], period: Float[Tensor, "*#batch 1 _"]
) -> Float[Tensor, "*batch n 2*d"]:
    """Every coordinate wound around a circle, one turn per period.

    |(cos u, sin u) - (cos v, sin v)|^2 = 4 sin^2((u - v) / 2): with radius lengthscale^-1/2 the RBF exp(-r^2 / 2) of
    the result is exp(-2 sum_i sin^2(pi (x_i - x'_i) / period_i) / lengthscale_i), GPyTorch's periodic kernel.
    """
    angle = 2 * math.pi / period * x
    radius = lengthscale.rsqrt()
    return torch.cat([angle.cos() * radius, angle.sin() * radius], dim=-1)
