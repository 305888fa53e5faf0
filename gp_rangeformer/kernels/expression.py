"""What a kernel is made of: an immutable tree of stationary kernels, constants, scales, sums and products.

The tree holds no tensors. Its parameters come as one flat tuple, depth first and a node's own before its children's, in
the order of :func:`parameter_names`; the values are the constrained ones (``kernel.lengthscale``, not the raw one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["rbf", "matern12", "matern32", "matern52", "rq", "periodic"]

_NAMES: dict[str, tuple[str, ...]] = {"rq": ("lengthscale", "alpha"), "periodic": ("lengthscale", "period_length")}


@dataclass(frozen=True)
class Stationary:
    """k(r) of the scaled distance r. Parameters: ``lengthscale`` 1 x 1 or 1 x d; ``alpha`` 1 (rq); ``period_length``
    1 x 1 or 1 x d (periodic, whose ``lengthscale`` is GPyTorch's: it divides sin^2 and is not squared).

    :param active_dims: the columns of x it reads, all if None.
    :raises ValueError: if ``kind`` is unknown.
    """

    kind: Kind
    active_dims: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"unknown stationary kernel {self.kind!r}: one of {', '.join(get_args(Kind))}")

    @property
    def own_names(self) -> tuple[str, ...]:
        return _NAMES.get(self.kind, ("lengthscale",))

    @property
    def children(self) -> tuple[Expression, ...]:
        return ()


@dataclass(frozen=True)
class Constant:
    """The same covariance for every pair. Parameter: ``constant`` 1."""

    own_names = ("constant",)
    children = ()


@dataclass(frozen=True)
class Scale:
    """``outputscale`` (a scalar) times the child."""

    child: Expression

    own_names = ("outputscale",)

    @property
    def children(self) -> tuple[Expression, ...]:
        return (self.child,)


@dataclass(frozen=True)
class Sum:
    """The sum of its children.

    :raises ValueError: if there are none.
    """

    children: tuple[Expression, ...]

    own_names = ()

    def __post_init__(self) -> None:
        _not_empty(self.children)


@dataclass(frozen=True)
class Product:
    """The elementwise product of its children.

    :raises ValueError: if there are none.
    """

    children: tuple[Expression, ...]

    own_names = ()

    def __post_init__(self) -> None:
        _not_empty(self.children)


Expression = Stationary | Constant | Scale | Sum | Product


def parameter_names(expression: Expression) -> tuple[str, ...]:
    """The names of the parameters in the order in which their tensors are given."""
    names = expression.own_names
    for child in expression.children:
        names += parameter_names(child)
    return names


def _not_empty(children: tuple[Expression, ...]) -> None:
    if not children:
        raise ValueError("a sum or product of kernels needs at least one")
