"""What a timed run is watched with: products with K inside GPyTorch, and the high-water mark of memory."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from linear_operator.operators import AddedDiagLinearOperator

from gp_rangeformer.allocation.workspace import trim_heap

_MIB = 2**20


@dataclass
class ProductCount:
    """Products with A = K + D that GPyTorch's conjugate gradients made since the last :meth:`take`."""

    products: int = 0
    columns: int = 0
    solves: int = 0

    def take(self) -> ProductCount:
        """The counts so far, which start again at zero."""
        taken = ProductCount(self.products, self.columns, self.solves)
        self.products = self.columns = self.solves = 0
        return taken

    @property
    def iterations(self) -> int:
        """linear_cg multiplies once for the first residual, then once an iteration."""
        return self.products - self.solves


@contextlib.contextmanager
def count_products(n: int) -> Iterator[ProductCount]:
    """Count GPyTorch's products with n x n matrices K + D inside the context.

    Counted on the sum K + D, so that a kernel of several summands is one product; the methods are put back at the end.
    """
    count = ProductCount()

    def counting(original: Callable[..., Any], register: Callable[[torch.Tensor], None]) -> Callable[..., Any]:
        def method(self: AddedDiagLinearOperator, rhs: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self.shape[-1] == n:
                register(rhs)
            return original(self, rhs, *args, **kwargs)

        return method

    def product(rhs: torch.Tensor) -> None:
        count.products += 1
        count.columns += rhs.shape[-1] if rhs.dim() > 1 else 1

    def solve(rhs: torch.Tensor) -> None:
        count.solves += 1

    with contextlib.ExitStack() as stack:
        for name, register in (("_matmul", product), ("_solve", solve)):
            replacement = counting(getattr(AddedDiagLinearOperator, name), register)
            stack.enter_context(_replaced(AddedDiagLinearOperator, name, replacement))
        yield count


@contextlib.contextmanager
def _replaced(owner: type, name: str, value: object) -> Iterator[None]:
    """An attribute of a class, own or inherited, replaced and put back as it was."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)


def synchronize(device: torch.device) -> None:
    """Wait for queued work, so that a clock read next means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class PeakMemory:
    """Highest memory since :meth:`start`, above what was held then, in MiB.

    CUDA: what the allocator handed out, all of it. Linux: resident memory of the process, by the kernel's high-water
    mark, of which every reading is the sum of approximate counters: the highest of them counts. Elsewhere :meth:`peak`
    is None.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held: float | None = None
        self._highest = 0.0

    def start(self) -> None:
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        trim_heap()  # freed matrices that malloc keeps would hide the first ones of the next solver
        # "5" resets the high-water mark to what is resident now (proc(5)).
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
            self._held, self._highest = _status("VmRSS"), 0.0

    def peak(self) -> float | None:
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) / _MIB
        highest = _status("VmHWM")
        if highest is None or self._held is None:
            return None
        self._highest = max(self._highest, highest - self._held)
        return self._highest


def _status(field: str) -> float | None:
    """A memory field of /proc/self/status in MiB, None where there is none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:")), None)
