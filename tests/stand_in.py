"""A device that a CPU plays: code that asks where a tensor lives takes its way for accelerators, and is counted.

A tensor of the stand-in says that it lives on ``DEVICE`` and holds a CPU tensor. As on an accelerator, operations that
mix it with tensors of the CPU are errors (but for single numbers), and reading a number is a transfer. Every operation
that is no view counts as one start, also those that the package registers itself (``gp_rangeformer::``): on a GPU each
of them is a single kernel.
"""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

import gp_rangeformer

# The one type of device besides CPUs whose backward passes a build without accelerators runs.
DEVICE = torch.device("meta")
_ROOT = Path(gp_rangeformer.__file__).parent
# Operations that wait for the device besides those that hand over a number: shapes that depend on data, and
# decompositions that look at what they found.
WAITING = {
    "_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "multinomial", "_linalg_eigh",
    "_linalg_solve_ex", "linalg_qr", "_linalg_check_errors",
}  # fmt: skip
_HANDS = {"small_cores.py"}  # who only carries out what others ask for
# No work either: memory, and a view that autograd may take for its own.
_ALLOCATING = {
    "detach", "alias", "empty", "empty_strided", "new_empty", "new_empty_strided", "empty_like", "_unsafe_view",
}  # fmt: skip


class DeviceTensor(Tensor):
    """``held``: the CPU tensor with its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        """Nothing more: ``__new__`` made it."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"DeviceTensor({self.held})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError("the stand-in's tensors are to be used inside `with StandIn():`")


@dataclass
class Counts:
    """By the innermost function of the package that asked: operations that are no views, and waits for the device."""

    starts: Counter[str] = field(default_factory=Counter)
    transfers: Counter[str] = field(default_factory=Counter)
    operations: Counter[tuple[str, str]] = field(default_factory=Counter)
    views: int = 0

    def summary(self) -> str:
        starts, transfers = self.starts.total(), self.transfers.total()
        lines = [f"{starts} operations besides {self.views} views, {transfers} transfers"]
        lines += [f"{count:5d} {place}" for place, count in self.starts.most_common()]
        lines += [f"{count:5d} transfers {place}" for place, count in self.transfers.most_common()]
        return "\n".join(lines)


@dataclass
class Graph:
    """Operations with the memory that they read and write."""

    operations: list[Any]

    def replay(self) -> None:
        """The same operations on the same memory, whatever it holds now."""
        for func, args, kwargs, found in self.operations:
            again = func(*_aliases(args), **kwargs)
            for old, new in zip(tree_flatten(found)[0], tree_flatten(again)[0], strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class StandIn(TorchDispatchMode):
    """Inside, tensors can be made on ``DEVICE`` and computed with. ``counts``: of what happened since :meth:`start`."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()
        self.captured: list[Any] | None = None

    @contextlib.contextmanager
    def capture(self) -> Iterator[Graph]:
        """Keeps every operation inside, as a CUDA graph does; those that wait are errors."""
        graph = Graph([])
        self.captured = graph.operations
        try:
            yield graph
        finally:
            self.captured = None

    def start(self) -> Counts:
        """Counts from here on."""
        self.counts = Counts()
        return self.counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func._schema.name.split("::")[1]
        given = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
        here = [tensor for tensor in given if isinstance(tensor, DeviceTensor)]
        if any(tensor.device == DEVICE for tensor in given if not isinstance(tensor, DeviceTensor)):
            raise RuntimeError(f"{func} meets a tensor that PyTorch made past the stand-in, without numbers")
        target = kwargs.get("device")
        target = None if target is None else torch.device(target)
        made_there = (target == DEVICE) if target is not None else bool(here)
        moved = name == "_to_copy" and target is not None and made_there != bool(here)
        if here and not moved:
            self._refuse_mixtures(func, given)
        if here:
            self._count(func, name, args, to_host=moved)
        elif made_there:
            self._count(func, name, args, to_host=False)
        if target is not None:
            kwargs["device"] = torch.device("cpu") if made_there else target
        known = {id(tensor.held): tensor for tensor in here}
        plain_args, plain_kwargs = tree_map_only(DeviceTensor, lambda tensor: tensor.held, (args, kwargs))
        given_args = _aliases(plain_args)
        found = func(*plain_args, **plain_kwargs)
        if self.captured is not None and (here or made_there):
            if name in WAITING or moved:
                raise RuntimeError(f"{func} waits for the device, or comes from the CPU: a graph cannot hold it")
            self.captured.append((func, given_args, plain_kwargs, _aliases(found)))
        if moved and not made_there:
            return found.clone()
        if not made_there:
            return found
        # What was written in place is what was given.
        return tree_map_only(
            Tensor, lambda tensor: known[id(tensor)] if id(tensor) in known else _wrapped(tensor), found
        )

    def _refuse_mixtures(self, func: Any, given: list[Tensor]) -> None:
        # Indices of the CPU may be used there; copies are transfers.
        if func in (torch.ops.aten.copy_.default, torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default):
            return
        for tensor in given:
            if not isinstance(tensor, DeviceTensor) and tensor.dim():
                raise RuntimeError(f"{func} mixes tensors of the CPU and of the device")

    def _count(self, func: Any, name: str, args: Any, *, to_host: bool) -> None:
        place = _place()
        waits = name in WAITING or to_host
        if name == "index" and any(isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]):
            waits = True
        if name == "copy_" and isinstance(args[0], DeviceTensor) != isinstance(args[1], DeviceTensor):
            waits = not isinstance(args[0], DeviceTensor)
        if waits:
            self.counts.transfers[place] += 1
        if name == "_local_scalar_dense":
            return
        if func.is_view or name in _ALLOCATING:
            self.counts.views += 1
        else:
            self.counts.starts[place] += 1
            self.counts.operations[place, name] += 1


def _wrapped(tensor: Tensor) -> Tensor:
    return tensor if isinstance(tensor, DeviceTensor) else DeviceTensor(tensor)


def _aliases(values: Any) -> Any:
    """The same memory in tensors of their own, whose shapes no later operation changes."""
    return tree_map_only(Tensor, lambda tensor: tensor.detach(), values)


def _place() -> str:
    """The innermost function of the package on the stack, or of whoever calls PyTorch."""
    frame, other = sys._getframe(1), ""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if _ROOT in path.parents and path.name not in _HANDS:
            return f"{path.relative_to(_ROOT)}:{frame.f_code.co_name}"
        if not other and "torch" not in path.parts and path != Path(__file__) and path.suffix == ".py":
            other = f"({path.parent.name}/{path.name}:{frame.f_code.co_name})"
        frame = frame.f_back
    return other or "(autograd)"
