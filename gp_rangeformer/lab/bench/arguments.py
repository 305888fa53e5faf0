"""What several ``gp-rangeformer bench`` commands take and write."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gp_rangeformer.lab.outputs import Outputs

if TYPE_CHECKING:
    from gp_rangeformer.lab.grid import Grid

A_SET = "One name from `info`; robot_arm, borehole and co2 come with the package."


def write_markdown(outputs: Outputs, path: Path | None, grids: Sequence[Grid]) -> None:
    """The tables, where a file for them was asked for."""
    if path is not None:
        from gp_rangeformer.lab.compare.result import write_text

        text = "\n\n".join(grid.to_markdown() for grid in grids) + "\n"
        outputs.write(path, partial(write_text, path, text))
