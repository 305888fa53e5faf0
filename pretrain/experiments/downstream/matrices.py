"""The matrices of the experiments by name: Matrix Market files, or generated from the laws of the training spectra."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from pretrain.matrices import MatrixMarketError, Spectrum, load
from pretrain.matrices.spectrum import LAWS


def named_matrix(name: str, folder: Path | None, n: int) -> Float64[Tensor, "n n"]:
    """NAME.mtx or NAME.mtx.gz of ``folder``, float64. A name of ``LAWS`` means an n x n matrix with such a spectrum.

    :raises MatrixMarketError: there is no such file, or it cannot be read.
    """
    if name in LAWS:
        return Spectrum((name,)).sample(1, n, torch.Generator().manual_seed(n))[0]
    paths = [] if folder is None else [folder / f"{name}{suffix}" for suffix in (".mtx", ".mtx.gz")]
    for path in paths:
        if path.is_file():
            return load(path)
    raise MatrixMarketError(f"{name}.mtx or {name}.mtx.gz is not in {folder}: fetch it from the SuiteSparse collection")
