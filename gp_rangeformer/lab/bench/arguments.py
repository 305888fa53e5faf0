"""What several ``gp-rangeformer bench`` commands take, and how what they are given is checked."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    from gp_rangeformer.lab.grid import Grid

A_SET = "One name from `info`; robot_arm, borehole and co2 come with the package."
DEVICES = "cpu", "cuda"


def write_markdown(outputs: Outputs, path: Path | None, grids: Sequence[Grid]) -> None:
    """The tables, where a file for them was asked for."""
    if path is not None:
        from gp_rangeformer.lab.compare.result import write_text

        text = "\n\n".join(grid.to_markdown() for grid in grids) + "\n"
        outputs.write(path, partial(write_text, path, text))


def check_dtype(dtype: str) -> None:
    if dtype not in ("float32", "float64"):
        raise typer.BadParameter(f"no dtype {dtype!r}: float32 or float64")


def check_device(device: str) -> None:
    import torch

    try:
        if torch.device(device).type not in DEVICES:
            raise RuntimeError("cpu, cuda or cuda:N")
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise typer.BadParameter(f"no device {device!r}: {str(error).splitlines()[0]}") from None
