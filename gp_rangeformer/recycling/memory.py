"""What earlier optimiser steps leave behind for the next one: landmarks and solutions. It may be wrong without harm.

The right-hand sides [y, probes] hardly change while the hyperparameters move a little, so the next solution almost lies
in the span of the last ones. Everything here is a proposal: the solver computes the residual of whatever comes out.
Random draws alone are not: they are what their key says.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.preconditioner.effort import Trial
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.neighbours import Neighbours
from gp_rangeformer.preconditioner.sparse_rows import SparsePattern


@dataclass
class Memory:
    """The memory of one model (one kernel module, one size, one dtype, one batch element).

    Readers take a snapshot of immutable tuples, writers replace them: two threads can only cost each other time.
    """

    landmarks: Landmarks | None = None
    neighbours: Neighbours | None = None  # of those landmarks
    neighbour_count: int | None = None  # that the last steps found worthwhile, where that is adaptive
    trial: Trial | None = None  # what there was before the last neighbours came
    neighbour_bar: float = 0.0  # iterations up to which neighbours were found not to pay
    rank: int | None = None  # landmarks that the last steps found worthwhile, where that is adaptive
    iterations: tuple[float, ...] = ()  # of the last warm steps with that effort, a log determinant's passes included
    solved_in: tuple[int, ...] = ()  # iterations of the last training steps' solves
    solutions: tuple[Float[Tensor, "n m"], ...] = ()  # oldest first
    whitened_by: SparsePattern | None = None  # whose W'z the remembered solutions of probes are beside; None: A^-1 z
    corrections: tuple[Float[Tensor, "n m"], ...] = ()  # P^-1 residual of the last solutions, oldest first
    baseline_iterations: float | None = None  # of the first converged step after the landmarks were drawn
    failures: int = 0  # in a row
    pause: int = 0  # calls that the exact path answers without another attempt
    tail_calls: int = 0  # log determinants that a tail estimator was asked for
    tail_objection: str | None = None  # what the last check of the tail estimator by Lanczos found
    num_probes: int | None = None  # that the gradient was found to need, where that is more than were asked for
    gradient_calls: int = 0  # training steps whose gradient could be checked
    exact_steps: int = 0  # that the exact path answers, because probes leave the gradient too uncertain
    gradient_spread: float = 0.0  # relative standard error of tr(A^-1) over the probes at the last check
    gradient_place: Tensor | None = None  # the parameters at the last check
    gradient_error: Any = None  # what the last check of the gradient found
    draws: dict[str, tuple[Hashable, Tensor]] = field(default_factory=dict, repr=False)
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def drawn(self, name: str, key: Hashable, draw: Callable[[], Tensor]) -> Tensor:
        """The tensor that ``draw`` made for ``name`` when its ``key`` was the same: random choices that depend on
        seeds and sizes only, and need not be made again in every step."""
        known = self.draws.get(name)
        if known is not None and known[0] == key:
            return known[1]
        # Also for steps with a gradient, which may not save tensors that were made in inference mode.
        with torch.inference_mode(False):
            tensor = _outside_inference(draw())
        self.draws[name] = key, tensor
        return tensor

    def remember(
        self, solution: Float[Tensor, "n m"], history: int, correction: Float[Tensor, "n m"] | None = None
    ) -> None:
        """Append a solution and keep the last ``history``, and of the corrections one less. Another shape ends both."""
        with self.lock:
            self.solutions = _appended(self.solutions, solution, history)
            if correction is not None:
                self.corrections = _appended(self.corrections, correction, history - 1)

    def forget_solutions(self, whitened_by: SparsePattern | None) -> None:
        """Those that follow are of other probes."""
        with self.lock:
            self.solutions, self.corrections, self.whitened_by = (), (), whitened_by

    def recall(self, rhs: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n m"], ...]:
        """The remembered solutions of the shape and dtype of ``rhs``, oldest first."""
        return _like(self.solutions, rhs)

    def recall_corrections(self, rhs: Float[Tensor, "n m"]) -> tuple[Float[Tensor, "n m"], ...]:
        """The remembered corrections of the shape and dtype of ``rhs``, oldest first."""
        return _like(self.corrections, rhs)

    def recall_column(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n 1"] | None:
        """Of the last solution the column of the targets, where ``rhs`` may be those again."""
        last = self.solutions[-1:]
        columns = _like(tuple(block[:, :1] for block in last if block.dim() == 2), rhs)
        return columns[0] if columns else None

    def take_tail_check(self, every: int) -> bool:
        """Whether this call of a tail estimator is one that Lanczos checks: the first and every ``every``-th."""
        with self.lock:
            due = self.tail_calls % every == 0
            self.tail_calls += 1
            return due

    def take_gradient_check(self, every: int) -> bool:
        """Whether this training step's gradient is one that is checked: the first and every ``every``-th."""
        with self.lock:
            due = self.gradient_calls % every == 0
            self.gradient_calls += 1
            return due

    def record_failure(self) -> None:
        """A solve did not certify: draw new landmarks, and spare the next 1, 3, 7, ... 31 calls a vain attempt."""
        self.forget_landmarks()
        with self.lock:
            self.failures += 1
            self.pause = 2 ** min(self.failures, 5) - 1

    def forget_landmarks(self) -> None:
        with self.lock:
            self.landmarks = self.neighbours = None
            self.baseline_iterations = None

    @property
    def nbytes(self) -> int:
        tensors = [*self.solutions, *self.corrections, *(tensor for _, tensor in list(self.draws.values()))]
        if self.landmarks is not None:
            tensors.append(self.landmarks.index)
        pattern = self.neighbours.nbytes if self.neighbours is not None else 0
        return pattern + sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _appended(kept: tuple[Tensor, ...], new: Tensor, count: int) -> tuple[Tensor, ...]:
    return (*_like(kept, new), _outside_inference(new.detach()))[-count:] if count > 0 else ()


def _outside_inference(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that autograd can save where it was made in inference mode."""
    if not tensor.is_inference():
        return tensor
    with torch.inference_mode(False):
        return tensor.clone()


def _like(tensors: tuple[Tensor, ...], other: Tensor) -> tuple[Tensor, ...]:
    return tuple(tensor for tensor in tensors if tensor.shape == other.shape and tensor.dtype == other.dtype)


class MemoryStore:
    """All memories of the process, the least recently used dropped first when ``limit`` bytes are exceeded."""

    def __init__(self) -> None:
        self._memories: OrderedDict[Hashable, Memory] = OrderedDict()
        # Re-entrant: a kernel may be collected, and discard called, while this thread holds it.
        self._lock = threading.RLock()

    def get(self, key: Hashable) -> Memory:
        with self._lock:
            memory = self._memories.setdefault(key, Memory())
            self._memories.move_to_end(key)
            return memory

    def trim(self, limit: int) -> None:
        """Drop memories, oldest use first, until at most ``limit`` bytes remain."""
        with self._lock:
            total = self._nbytes()
            while total > limit and self._memories:
                _, dropped = self._memories.popitem(last=False)
                total -= dropped.nbytes

    def discard(self, owner: Hashable) -> None:
        """Drop every memory whose key starts with ``owner`` (its kernel module is gone)."""
        with self._lock:
            for key in [key for key in self._memories if isinstance(key, tuple) and owner in key[0]]:
                del self._memories[key]

    def try_again(self) -> None:
        """After failures the next calls are attempted all the same."""
        with self._lock:
            for memory in self._memories.values():
                memory.pause = 0

    def clear(self) -> None:
        with self._lock:
            self._memories.clear()

    def _nbytes(self) -> int:
        return sum(memory.nbytes for memory in list(self._memories.values()))

    @property
    def nbytes(self) -> int:
        with self._lock:
            return self._nbytes()

    def __len__(self) -> int:
        return len(self._memories)
