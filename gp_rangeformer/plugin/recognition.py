"""Which GPyTorch kernels have a fused evaluation, and which: the one file that knows what their classes compute.

:mod:`~gp_rangeformer.plugin.covered` names the same classes, for who asks before there are points.

Everything here is exact. A kernel that is not recognised, for whatever reason, is evaluated by GPyTorch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from gpytorch.kernels import (
    AdditiveKernel,
    ConstantKernel,
    Kernel,
    MaternKernel,
    PeriodicKernel,
    ProductKernel,
    RBFKernel,
    RQKernel,
    ScaleKernel,
)
from linear_operator.operators import DenseLinearOperator, LinearOperator
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from gp_rangeformer import settings
from gp_rangeformer.kernels.expression import Constant, Expression, Kind, Product, Scale, Stationary, Sum
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.fused_batch import FusedBatch
from gp_rangeformer.kernels.native.compiler import library_on
from gp_rangeformer.plugin.callers import called_by
from gp_rangeformer.plugin.fused_operator import FusedLinearOperator
from gp_rangeformer.plugin.storage import choose_storage
from gp_rangeformer.plugin.tracing import tracing
from gp_rangeformer.torch_modes import no_autocast, transforming

_SMALLEST_ALPHA = 1e-6
_MATERN: dict[float, Kind] = {0.5: "matern12", 1.5: "matern32", 2.5: "matern52"}
# By tensor: it survives what the operator does not, rebuilding from the representation tree. Not an attribute of the
# tensor, which would be pickled with a model's caches.
_origins: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
_DEVICES = ("cpu", "cuda")  # others may lack float64, in which the sums are kept

Found = tuple[Expression, tuple[Tensor, ...]]


class _Origin(NamedTuple):
    """Of a matrix: the fused kernel, the matrix's count of changes, and the values that its scalars had then. Without
    a transform a scalar is the parameter itself, which may change; coordinates are always a new tensor."""

    fused: FusedKernel
    version: int
    scalars: tuple[Tensor, ...]

    def made(self, other: FusedKernel) -> bool:
        """Whether ``other`` is this very matrix, bit for bit. O(n d)."""
        own = self.fused
        if (own.expression, own.n, own.dtype) != (other.expression, other.n, other.dtype):
            return False
        pairs = zip((*_coordinates(own), *self.scalars), (*_coordinates(other), *_scalars(other)), strict=True)
        return all(mine.device == its.device and torch.equal(mine, its) for mine, its in pairs)


def _coordinates(fused: FusedKernel) -> tuple[Tensor, ...]:
    return tuple(argument for argument in fused.arguments if argument.dim() == 2)


def _scalars(fused: FusedKernel) -> tuple[Tensor, ...]:
    return tuple(argument.detach().clone() for argument in fused.arguments if argument.dim() < 2)


class _Declined(Exception):
    """Raised inside the walk over a kernel as soon as something is not covered."""


def recognise(kernel: Kernel, x1: Tensor) -> FusedKernel | None:
    """The fused form of ``kernel(x1, x1)``, or None where GPyTorch must evaluate it.

    Recognised are RBF, Matern, rational quadratic, periodic and constant kernels, scaled, added and multiplied in any
    nesting; their subclasses are not. A class of one's own is, if it says what its ``forward`` computes: its method
    ``fused_composition()`` returns a kernel of these, with its own parameters. ``kernel`` is taken as called with
    ``x1``: its own ``active_dims`` select from the columns of ``x1``. O(n d).

    :param x1: n x d, float32 or float64, dtype and device of the kernel's parameters; other shapes give None.
    """
    if x1.dim() != 2 or 0 in x1.shape or x1.dtype not in (torch.float32, torch.float64):
        return None
    if x1.device.type not in _DEVICES or tracing() or transforming():
        return None
    try:
        reading = _Reading(x1)
        expression, parameters = reading.called(kernel, tuple(range(x1.shape[1])))
        _require(not reading.batch())
    except _Declined:
        return None
    return FusedKernel(expression, x1, parameters)


def recognise_selected(kernel: Kernel, x: Tensor) -> FusedKernel | FusedBatch | None:
    """As :func:`recognise` for points whose active dimensions ``kernel`` has selected already, as a lazily evaluated
    kernel holds them; and for batches of points, parameters or both, on devices where those are made together.

    :param x: (*batch) n d.
    """
    if x.dim() < 2 or 0 in x.shape or x.dtype not in (torch.float32, torch.float64):
        return None
    if x.device.type not in _DEVICES or tracing() or transforming():
        return None
    try:
        reading = _Reading(x)
        expression, parameters = reading.forward(kernel, tuple(range(x.shape[-1])))
        batch = reading.batch()
    except _Declined:
        return None
    if not batch:
        return FusedKernel(expression, x, parameters)
    if 0 in batch or library_on(x.device) is None:
        return None
    scalars = iter(_of_one_number(expression))
    parameters = tuple(parameter.squeeze(-1) if next(scalars) else parameter for parameter in parameters)
    return FusedBatch.of(expression, x, parameters, batch)


def evaluate_fused(kernel: Kernel, x: Tensor) -> DenseLinearOperator | FusedLinearOperator | None:
    """``kernel(x, x)`` by its fused form, in the autograd graph, or None. The matrix remembers where it came from.

    :raises InsufficientMemoryError: as :func:`~gp_rangeformer.plugin.storage.choose_storage`.
    """
    with no_autocast():
        return _evaluated(kernel, x)


def _evaluated(kernel: Kernel, x: Tensor) -> DenseLinearOperator | FusedLinearOperator | None:
    fused = recognise(kernel, x)
    if fused is None:
        return None
    held = _held_by_a_strategy(fused)
    if held is not None:
        return DenseLinearOperator(held)
    if settings.process_group.value() is not None:
        # Who holds what is decided where all processes meet: the matrix of test points may be one process's own.
        return FusedLinearOperator.of(fused)
    storage = choose_storage(fused.n, fused.dtype, x.device)
    if not storage.dense:
        return FusedLinearOperator.of(fused, storage.note)
    return DenseLinearOperator(_remembered(fused.dense(), fused))


def _remembered(matrix: Tensor, fused: FusedKernel) -> Tensor:
    _origins[matrix] = _Origin(fused, _version(matrix), _scalars(fused))
    return matrix


def _held_by_a_strategy(fused: FusedKernel) -> Tensor | None:
    """The very matrix where a solve for predictive covariances would make it a second time.

    GPyTorch solves for the mean first and keeps that K with its prediction strategy, then detaches the training
    covariance unevaluated and solves with it: another n x n matrix, at every prediction. Only for that solve, which
    hands its matrix to nobody, and only without a graph: two graphs are freed at times of their own.
    """
    if torch.is_grad_enabled() or settings.process_group.value() is not None:
        return None
    if settings.kernel_storage.value() == "tiles":
        return None
    if not (called_by("solve", package="gp_rangeformer.plugin.hooks") and called_by("exact_predictive_covar")):
        return None
    for reference in _origins.keyrefs():
        matrix = reference()
        origin = None if matrix is None else _origins.get(matrix)
        if matrix is not None and origin is not None and origin.version == _version(matrix) and origin.made(fused):
            return _remembered(matrix.detach(), fused)
    return None


def fused_origin(operator: LinearOperator) -> FusedKernel | None:
    """The fused kernel whose :func:`evaluate_fused` gave ``operator``, if one did and nothing has changed it since."""
    if isinstance(operator, FusedLinearOperator):
        return operator.fused
    if type(operator) is not DenseLinearOperator:
        return None
    origin = _origins.get(operator.tensor)
    if origin is None:
        return None
    return origin.fused if origin.version == _version(operator.tensor) else None


def _version(matrix: Tensor) -> int:
    """Counts the changes in place. Tensors of inference mode have no count: there -1."""
    return -1 if matrix.is_inference() else matrix._version


class _Reading:
    """A walk over a kernel that is called with the points ``x``, which are (*batch) n d."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._batches: set[torch.Size] = {x.shape[:-2]}
        self._aligned: set[torch.Size] = set()  # batches that must be the whole matrix's, or none

    def batch(self) -> torch.Size:
        """Of the kernel matrix."""
        shapes = {shape for shape in self._batches if shape}
        if not shapes:
            return torch.Size()
        # Not by torch.broadcast_shapes where it can be helped: it takes as long as a small factorisation.
        whole = next(iter(shapes))
        if len(shapes) > 1:
            try:
                whole = torch.broadcast_shapes(*shapes)
            except RuntimeError as error:
                raise _Declined from error
        _require(self._aligned <= {torch.Size(), whole})
        return whole

    def called(self, kernel: Any, columns: tuple[int, ...]) -> Found:
        """``kernel(...)`` on the columns of x, which selects the kernel's active dimensions; ``forward`` does not."""
        selected = getattr(kernel, "active_dims", None)
        if selected is not None:
            # index_select, GPyTorch's way, takes a number for a list of one, and refuses what is no index or out of
            # range.
            _require(selected.dtype in (torch.int32, torch.int64) and selected.dim() <= 1)
            chosen = selected.reshape(-1).tolist()
            _require(len(chosen) > 0 and all(0 <= index < len(columns) for index in chosen))
            columns = tuple(columns[index] for index in chosen)
        return self.forward(kernel, columns)

    def forward(self, kernel: Any, columns: tuple[int, ...]) -> Found:
        """Without the kernel's own active dimensions."""
        _require(issubclass(type(kernel), Kernel))
        # A method replaced on the instance, or a hook, would be passed by.
        _require(not {"forward", "covar_dist", "__call__"} & vars(kernel).keys())
        _require(not (kernel._forward_hooks or kernel._forward_pre_hooks))
        kind = type(kernel)
        if kind is ScaleKernel:
            # Calls the forward of its base kernel: the active dimensions, which it has taken over, are selected
            # already.
            expression, parameters = self.forward(kernel.base_kernel, columns)
            return Scale(expression), (self._checked(kernel.outputscale, ((),)), *parameters)
        if kind is ConstantKernel:
            return Constant(), (self._checked(kernel.constant, ((1,),)),)
        if kind is AdditiveKernel or kind is ProductKernel:
            _require(len(kernel.kernels) > 0)
            found = [self.called(child, columns) for child in kernel.kernels]
            children = tuple(expression for expression, _ in found)
            expression = Sum(children) if kind is AdditiveKernel else Product(children)
            return expression, tuple(parameter for _, parameters in found for parameter in parameters)
        if "fused_composition" in vars(kind):
            # Of this very class, beside its forward: a subclass that computes something else may have inherited either.
            _require("forward" in vars(kind))
            return self.forward(kernel.fused_composition(), columns)
        return self._stationary(kernel, columns)

    def _stationary(self, kernel: Any, columns: tuple[int, ...]) -> Found:
        d = len(columns)
        _require(kernel.ard_num_dims in (None, d))
        per_dimension = ((1, 1), (1, d))
        kind = type(kernel)
        name: Kind
        if kind is RBFKernel:
            name, shape = "rbf", ()
        elif kind is MaternKernel and kernel.nu in _MATERN:
            name, shape = _MATERN[kernel.nu], ()
        elif kind is RQKernel:
            name, shape = "rq", (self._checked(kernel.alpha, ((1,),)),)
            # Tails that are heavier than these have no place in the profiles' arithmetic.
            _require(bool((shape[0] > _SMALLEST_ALPHA).all()))
            # GPyTorch aligns alpha with the batch of the kernel, not with that of the points.
            self._aligned.add(shape[0].shape[:-1])
        elif kind is PeriodicKernel:
            name, shape = "periodic", (self._checked(kernel.period_length, per_dimension),)
        else:
            raise _Declined
        lengthscale = self._checked(kernel.lengthscale, per_dimension)
        active_dims = None if columns == tuple(range(self._x.shape[-1])) else columns
        return Stationary(name, active_dims), (lengthscale, *shape)

    def _checked(self, parameter: Tensor, shapes: tuple[tuple[int, ...], ...]) -> Tensor:
        own = parameter.dim() - len(shapes[0])
        _require(own >= 0 and tuple(parameter.shape[own:]) in shapes)
        _require(parameter.dtype == self._x.dtype and parameter.device == self._x.device)
        self._batches.add(parameter.shape[:own])
        return parameter


def _of_one_number(expression: Expression) -> list[bool]:
    """For every parameter, whether GPyTorch holds it as one number with an axis of its own."""
    own = [name in ("alpha", "constant") for name in expression.own_names]
    return own + [single for child in expression.children for single in _of_one_number(child)]


def _require(condition: bool) -> None:
    if not condition:
        raise _Declined
