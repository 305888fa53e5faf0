"""One memory per kernel module, size, dtype, device and batch element: who owns an evaluated kernel matrix."""

from __future__ import annotations

import itertools
import weakref

import torch
from linear_operator.operators import LinearOperator

from gp_rangeformer import settings
from gp_rangeformer.allocation import workspace
from gp_rangeformer.recycling.memory import Memory, MemoryStore
from gp_rangeformer.system.kernel_matrix import KernelMatrix

_store = MemoryStore()
_OWNER = "_gp_rangeformer_owner"
_owner_numbers: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_next_owner = itertools.count(1)


def clear_memory() -> None:
    """Forget the solutions and landmarks of every model, and return the memory kept for kernel matrices. The next step
    starts cold; no answer changes."""
    _store.clear()
    workspace.release()


def remembered_bytes() -> int:
    """Bytes that all memories hold now; bounded by ``settings.memory_limit`` after every call."""
    return _store.nbytes


def try_again() -> None:
    """No model pauses for its failures: who takes long steps knows that the next one lies elsewhere."""
    _store.try_again()


def owner_of(kernel: torch.nn.Module) -> int:
    """The number of a kernel module."""
    number = _owner_numbers.get(kernel)
    if number is None:
        number = _owner_numbers[kernel] = next(_next_owner)
        weakref.finalize(kernel, _store.discard, number)
    return number


def mark_owner(operator: LinearOperator, kernel: torch.nn.Module) -> None:
    """An attribute of the tensor survives what the operator does not: rebuilding from the representation tree."""
    owner = owner_of(kernel)
    for tensor in operator.representation():
        setattr(tensor, _OWNER, owner)


def owners(operator: LinearOperator) -> tuple[int, ...]:
    """The kernel modules whose evaluation the parts of ``operator`` are, as numbers; empty if unknown."""
    marks = (getattr(tensor, _OWNER, None) for tensor in operator.representation())
    return tuple(mark for mark in marks if mark is not None)


def memory_of(owners: tuple[int, ...], kernel: torch.Tensor | KernelMatrix, element: int) -> Memory:
    """The memory of batch element ``element`` of a kernel matrix of shape (*batch) n n.

    A matrix of unknown origin gets an empty one that nobody keeps: two matrices of one size may have nothing in common.
    """
    if not owners or settings.deterministic.on():
        return Memory()
    return _store.get((owners, kernel.shape[-1], kernel.dtype, str(kernel.device), element))


def trim_memory(limit: int) -> None:
    """Keep at most ``limit`` bytes of solutions and landmarks, and of memory for kernel matrices."""
    _store.trim(limit)
    workspace.keep_at_most(limit)
