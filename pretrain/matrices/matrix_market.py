"""Matrices of the Matrix Market and SuiteSparse collections, as dense tensors. For evaluation only."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64
from scipy.io import mminfo, mmread
from torch import Tensor

LARGEST = 5000  # 200 MB dense
# A file that stores both triangles in decimal may differ between them by rounding, which is not worth a warning.
_ROUNDING = 1e-12


class MatrixMarketError(ValueError):
    """A file or folder of matrices that cannot be used; the message gives the cause and the remedy."""


def load(path: str | Path) -> Float64[Tensor, "n n"]:
    """The symmetric part (A + A') / 2 of the matrix in a ``.mtx`` or ``.mtx.gz`` file, dense, float64 on the CPU.

    Warns if A was not symmetric to rounding. O(n^2) memory.

    :raises MatrixMarketError: if the file cannot be read, is not square, complex, larger than 5000 or not finite.
    """
    path = Path(path)
    rows, columns, field = _header(path)
    if rows != columns:
        raise MatrixMarketError(
            f"{path.name} is {rows} x {columns}: only square matrices can be evaluated, leave it out"
        )
    if field == "complex":
        raise MatrixMarketError(f"{path.name} is complex: only real symmetric matrices can be evaluated, leave it out")
    if rows > LARGEST:
        raise MatrixMarketError(
            f"{path.name} has n = {rows}, above {LARGEST}: it would not fit as a dense matrix, use a smaller one"
        )
    try:
        stored = mmread(path)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise _unreadable(path, error) from error
    matrix = torch.from_numpy(np.asarray(stored if isinstance(stored, np.ndarray) else stored.toarray(), np.float64))
    if not bool(matrix.isfinite().all()):
        raise MatrixMarketError(f"{path.name} contains NaN or infinity: repair the file or leave it out")
    asymmetry = float((matrix - matrix.mT).abs().max() / matrix.abs().max().clamp_min(torch.finfo(matrix.dtype).tiny))
    if asymmetry > _ROUNDING:
        warnings.warn(
            f"{path.name} is not symmetric (largest difference {asymmetry:.1e} of its largest entry): "
            "its symmetric part is used",
            stacklevel=2,
        )
    return (matrix + matrix.mT) / 2


def list_matrices(folder: str | Path, largest: int = LARGEST) -> list[Path]:
    """The ``.mtx`` and ``.mtx.gz`` files of square matrices up to n = ``largest``, by n, then by name.

    Reads the headers alone.

    :raises MatrixMarketError: if the folder does not exist or a header cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MatrixMarketError(f"{folder} is not a folder: pass one that contains .mtx or .mtx.gz files")
    found = []
    for path in folder.iterdir():
        if path.name.endswith((".mtx", ".mtx.gz")):
            rows, columns, _ = _header(path)
            if rows == columns <= largest:
                found.append((rows, path.name, path))
    return [path for _, _, path in sorted(found)]


def _header(path: Path) -> tuple[int, int, str]:
    """(rows, columns, field) from the header."""
    try:
        rows, columns, _, _, field, _ = mminfo(path)
    except (OSError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise _unreadable(path, error) from error
    return int(rows), int(columns), field


def _unreadable(path: Path, error: Exception) -> MatrixMarketError:
    return MatrixMarketError(
        f"cannot read {path}: {error}; not a Matrix Market file (.mtx, .mtx.gz)? check the path or fetch it again"
    )
