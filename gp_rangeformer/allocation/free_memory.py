"""How much memory is free, and how large a system fits: an allocation that cannot succeed is foreseen and explained.

On Linux a process that asks for too much is killed without a word; on CUDA it fails somewhere in the middle of a step.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

# Looking takes half a millisecond; at n = 5000 a float64 matrix takes 0.2 GB.
CHECKED_FROM = 5000
_HEAD_ROOM = 0.05
_GIB = 2**30


class InsufficientMemoryError(RuntimeError):
    """A matrix would not fit: the message says what is needed and free, the largest n that fits, and what to do."""


@contextlib.contextmanager
def because(reason: str | None) -> Iterator[None]:
    """Add to an :class:`InsufficientMemoryError` raised inside why the matrix was needed."""
    try:
        yield
    except InsufficientMemoryError as error:
        if reason is None:
            raise
        raise InsufficientMemoryError(f"{error}. It had to answer: {reason}") from None


@dataclass(frozen=True)
class Demand:
    """The bytes of ``matrices`` n x n matrices and ``columns`` n-vectors, as a function of n.

    :param matrices: how many; a part of one where processes share it.
    :param itemsize: bytes of one number.
    """

    matrices: float
    columns: int
    itemsize: int

    def bytes(self, n: int) -> int:
        return math.ceil(self.itemsize * (self.matrices * n * n + self.columns * n))

    def largest(self, free: int) -> int:
        """The largest n that fits: the positive root of itemsize (matrices n^2 + columns n) = what may be used."""
        numbers = _usable(free) / self.itemsize
        if self.matrices == 0:
            return int(numbers / max(self.columns, 1))
        return int((math.sqrt(self.columns**2 + 4 * self.matrices * numbers) - self.columns) / (2 * self.matrices))

    def shortage(self, n: int, free: int | None) -> str | None:
        """What is needed, what is free, and the largest n that fits; None if it fits with 5 % to spare, or if ``free``
        is unknown."""
        if free is None or self.bytes(n) <= _usable(free):
            return None
        return (
            f"{self.bytes(n) / _GIB:.3g} GiB needed, {free / _GIB:.3g} GiB free; the largest n that fits is "
            f"{self.largest(free)}"
        )


def _usable(free: int) -> float:
    return (1 - _HEAD_ROOM) * free


def free_bytes_for(n: int, device: torch.device) -> int | None:
    """:func:`free_bytes` for those who want to make n x n matrices; None also for a small n, which is not checked."""
    return free_bytes(device) if n >= CHECKED_FROM else None


def free_bytes(device: torch.device) -> int | None:
    """Bytes that a tensor on ``device`` may still take, or None where nothing says so.

    CUDA: what the driver has left and what torch's allocator holds unused. Linux: MemAvailable, and the least that the
    control groups of this process (containers) leave.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    found = [bytes_left for bytes_left in (_available(), *_left_in_control_groups()) if bytes_left is not None]
    return min(found, default=None)


def _available() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _left_in_control_groups() -> list[int]:
    """Limit minus use of this process's memory control group and of those that contain it, version 2 or 1.

    Inactive file pages count as use there, but are given up under pressure.
    """
    left = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit_name, usage_name = Path("/sys/fs/cgroup"), "memory.max", "memory.current"
        elif "memory" in controllers.split(","):
            root, limit_name, usage_name = (
                Path("/sys/fs/cgroup/memory"),
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
        else:
            continue
        inner = root / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if folder.is_relative_to(root):
                limit, usage = _number(folder / limit_name), _number(folder / usage_name)
                if limit is not None and usage is not None:
                    left.append(max(limit - usage + _inactive_file(folder / "memory.stat"), 0))
    return left


def _inactive_file(path: Path) -> int:
    for line in _lines(path):
        if line.startswith(("inactive_file ", "total_inactive_file ")):
            return int(line.split()[1])
    return 0


def _number(path: Path) -> int | None:
    """What the file holds, or None: no file, or "max"."""
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
