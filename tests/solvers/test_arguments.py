"""Numbers that are no Python numbers, but as good, make a solver; what it keeps is Python's."""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from gp_rangeformer import Certified, settings

TAKEN = [
    ("rank", np.int64(50), 50),
    ("num_probes", np.uint8(8), 8),
    ("seed", np.int32(0), 0),
    ("tolerance", np.float32(0.25), 0.25),
    ("prediction_error", Fraction(1, 8), 0.125),
    ("gradient_tolerance", np.float64("inf"), float("inf")),
    ("landmark_refresh", np.int64(3), 3.0),
]


@pytest.mark.parametrize(("name", "given", "kept"), TAKEN)
def test_numbers_of_numpy_are_taken_and_kept_as_pythons(name: str, given: Any, kept: Any) -> None:
    with settings.solver(**{name: given}):
        solver = settings.solver.value()
    found = getattr(solver, name)
    assert (found, type(found)) == (kept, type(kept))
    assert solver == Certified(**{name: kept})
    assert json.dumps(found) == json.dumps(kept)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("rank", np.float64(50.0)),
        ("rank", np.bool_(True)),
        ("rank", np.int64(0)),
        ("seed", np.int64(-1)),
        ("tolerance", np.float32("nan")),
        ("tolerance", np.float32(1.5)),
        ("gradient_tolerance", np.float32("nan")),
        ("gradient_tolerance", np.bool_(True)),
        ("rank", torch.tensor(50)),
        ("tolerance", torch.tensor(0.1)),
        ("tolerance", 0.1 + 0j),
    ],
)
def test_what_is_no_such_number_is_still_refused_by_name(name: str, bad: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} of Certified must be"):
        settings.solver(**{name: bad})
