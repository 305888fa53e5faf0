"""A sum over tiles, or over rows of them, and whose part of it is computed here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from gp_rangeformer.kernels.tiles import Block


@runtime_checkable
class Share(Protocol):
    """Deals the tiles out, or the rows where they are made and used up one after another, and adds up what the
    processes made of theirs."""

    def blocks(self, blocks: Iterable[Block]) -> Iterable[Block]:
        """Those of ``blocks`` that are summed in this process."""
        ...

    def rows(self, n: int) -> slice:
        """Those of the ``n`` rows that are made in this process: neighbours, perhaps none."""
        ...

    def sum(self, part: Tensor) -> Tensor:
        """The sum of all processes' parts, the same bits in each; may overwrite ``part``."""
        ...

    def everywhere(self, holds: bool, device: torch.device) -> bool:
        """Whether something holds in every process, which then decide alike; asked by all of them."""
        ...

    def require_same(self, what: str, *tensors: Tensor) -> None:
        """Compare tensors between the processes, whose parts of different sums would be no sum."""
        ...


class Alone:
    """One process: every tile."""

    def blocks(self, blocks: Iterable[Block]) -> Iterable[Block]:
        return blocks

    def rows(self, n: int) -> slice:
        return slice(0, n)

    def sum(self, part: Tensor) -> Tensor:
        return part

    def everywhere(self, holds: bool, device: torch.device) -> bool:
        return holds

    def require_same(self, what: str, *tensors: Tensor) -> None:
        pass

    def __reduce__(self) -> str:
        """Copies and pickles are this one."""
        return "ALONE"


ALONE = Alone()
