"""What the host reads of a device: many tensors in one transfer, and not before it needs one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors on the CPU as they are, those of a device in one operation and one transfer. Without a graph."""
    away = [index for index, tensor in enumerate(tensors) if tensor.device.type != "cpu"]
    found = list(tensors)
    if not away:
        return found
    # Wide numbers first: each then starts at a multiple of its own size.
    away.sort(key=lambda index: -tensors[index].element_size())
    parts = [_numbers(tensors[index].detach()) for index in away]
    arrived = torch.cat([part.view(torch.uint8) for part in parts]).cpu()
    pieces = arrived.split([part.numel() * part.element_size() for part in parts])
    for index, piece in zip(away, pieces, strict=True):
        numbers, shape = piece.view(tensors[index].dtype), tensors[index].shape
        found[index] = numbers.expand(shape) if _repeats(tensors[index]) else numbers.view(shape)
    return found


def _repeats(tensor: Tensor) -> bool:
    """Whether it is one number, expanded."""
    return tensor.numel() > 1 and not any(tensor.stride())


def _numbers(tensor: Tensor) -> Tensor:
    """In one dimension; of an expanded number that one alone."""
    return tensor.as_strided((1,), (1,)) if _repeats(tensor) else tensor.contiguous().view(-1)


class Reading:
    """Questions that the host has for a device: none is answered before somebody needs an answer, then all are."""

    def __init__(self) -> None:
        self._asked: list[_Question] = []

    def ask(self, *tensors: Tensor) -> Callable[[], list[Tensor]]:
        """What gives the tensors as they are now, on the CPU: nothing may write to them in between."""
        question = _Question(list(tensors))
        self._asked.append(question)

        def answer() -> list[Tensor]:
            if not question.answered:
                self._read()
            return question.tensors

        return answer

    def _read(self) -> None:
        asked, self._asked = self._asked, []
        arrived = iter(together([tensor for question in asked for tensor in question.tensors]))
        for question in asked:
            question.tensors, question.answered = [next(arrived) for _ in question.tensors], True


@dataclass
class _Question:
    tensors: list[Tensor]
    answered: bool = False
