"""Matrices to train on and matrices to be tested on.

`STRUCTURED` are the training families, `GAUSSIAN` the ablation's, `HELD_OUT` those of evaluation, which `Mixture`
refuses; `load` and `list_matrices` read Matrix Market files, also for evaluation only. Everything is float64 on the CPU
and determined by the state of the generator that is passed in.
"""

from __future__ import annotations

from pretrain.matrices.banded import Banded
from pretrain.matrices.block_tensor_train import BlockTensorTrain
from pretrain.matrices.family import GramFamily, MatrixFamily
from pretrain.matrices.gaussian import Gaussian
from pretrain.matrices.gp_kernel import GPKernel
from pretrain.matrices.held_out import Diagonal, Identity, Toeplitz
from pretrain.matrices.kronecker import Kronecker
from pretrain.matrices.laplacian import Laplacian
from pretrain.matrices.low_rank import LowRank
from pretrain.matrices.matrix_market import MatrixMarketError, list_matrices, load
from pretrain.matrices.mixture import GAUSSIAN, HELD_OUT, STRUCTURED, Mixture
from pretrain.matrices.monarch import Monarch
from pretrain.matrices.spectrum import Spectrum
from pretrain.matrices.tensor_train import TensorTrain
from pretrain.matrices.wishart import Wishart

__all__ = [
    "GAUSSIAN",
    "HELD_OUT",
    "STRUCTURED",
    "Banded",
    "BlockTensorTrain",
    "Diagonal",
    "GPKernel",
    "Gaussian",
    "GramFamily",
    "Identity",
    "Kronecker",
    "Laplacian",
    "LowRank",
    "MatrixFamily",
    "MatrixMarketError",
    "Mixture",
    "Monarch",
    "Spectrum",
    "TensorTrain",
    "Toeplitz",
    "Wishart",
    "list_matrices",
    "load",
]
