"""How far a reader has to walk: the files of the package that one warm training step enters, and how often it changes
from one to another.

    python -m tests.walk
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import gp_rangeformer
from gp_rangeformer import settings
from tests.plugin.market import build

ROOT = Path(gp_rangeformer.__file__).parent
_WARM = 4  # steps before the one that is followed


@dataclass(frozen=True)
class Walk:
    """Files in the order in which they are entered: every change from one to another is an entry."""

    entered: tuple[str, ...]

    @property
    def files(self) -> list[str]:
        return list(dict.fromkeys(self.entered))

    def summary(self) -> str:
        often = Counter(self.entered)
        lines = [f"{often[name]:4d} {name}" for name in self.files]
        return "\n".join([*lines, f"{len(self.files)} files, {len(self.entered)} changes of file"])


def walk(n: int = 2000) -> Walk:
    """Of one training step of a Matern kernel, value and gradient, on the certified path with its defaults."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    problem = build("matern32", n=n, dtype=torch.float32)
    entered: list[str] = []

    def follow(frame: FrameType, event: str, _: Any) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and ROOT in path.parents:
            name = str(path.relative_to(ROOT))
            if not entered or entered[-1] != name:
                entered.append(name)

    with settings.rangeformer():
        for _ in range(_WARM):
            problem.loss().backward()
        sys.settrace(follow)
        try:
            problem.loss().backward()
        finally:
            sys.settrace(None)
            torch.set_num_threads(threads)
    return Walk(tuple(entered))


if __name__ == "__main__":
    print(walk().summary())
