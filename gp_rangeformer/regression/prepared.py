"""A table as a GP sees it: inputs and target standardised, with what leads back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gp_rangeformer.regression.columns import Columns, learned
from gp_rangeformer.regression.errors import TableError
from gp_rangeformer.regression.kinds import as_numbers, column_of
from gp_rangeformer.regression.rows import Encode, Missing, usable
from gp_rangeformer.regression.scaling import Scaling, check_digits

if TYPE_CHECKING:
    import pandas as pd

_DAYS_PER_YEAR = 365.25


@dataclass(frozen=True, eq=False)
class Prepared:
    """``x``: n x d, ``y``: n, float64; ``notes``: what was left out, a sentence each."""

    columns: Columns
    inputs: Scaling
    outputs: Scaling
    x: Tensor
    y: Tensor
    notes: tuple[str, ...]

    @property
    def year(self) -> float | None:
        """The length of a year in x, if the only input is a date."""
        if [column.kind for column in self.columns.inputs] != ["date"]:
            return None
        return _DAYS_PER_YEAR / float(self.inputs.scale)


def prepared(frame: pd.DataFrame, target: str, drop: Sequence[str], encode: Encode, missing: Missing) -> Prepared:
    """:raises TableError: as :meth:`gp_rangeformer.regression.TableRegression.fit`."""
    found = usable(frame, target, drop=drop, encode=encode, missing=missing)
    columns, constant = learned(found.frame, target, missing)
    raw_x = columns.encoded(found.frame)
    targets = as_numbers(column_of(found.frame, target), "number")
    check_digits(target, targets)
    raw_y = torch.tensor(targets, device="cpu")[:, None]
    inputs, outputs = Scaling.of(raw_x), Scaling.of(raw_y)
    if float(outputs.scale) == 0:
        constantly = f"{float(outputs.mean):g}, over the {len(raw_y)} training rows"
        raise TableError(f"the target {target!r} is constant, {constantly}: add rows, or name another target")
    x, y = inputs.standardised(raw_x), outputs.standardised(raw_y).squeeze(1)
    if not (bool(x.isfinite().all()) and bool(y.isfinite().all())):
        raise TableError("standardising overflows float64: rescale the columns with the largest values")
    return Prepared(columns, inputs, outputs, x, y, (*found.notes, *constant))
