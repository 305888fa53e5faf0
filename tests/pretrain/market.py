"""Where the Matrix Market files are; tests that read them skip without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

_FOLDER = Path(os.environ.get("GP_RANGEFORMER_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
MARKET = _FOLDER / "matrix_market"
needs_market = pytest.mark.skipif(
    not MARKET.is_dir(),
    reason="no Matrix Market files: set GP_RANGEFORMER_DATA to a folder that contains matrix_market/",
)
