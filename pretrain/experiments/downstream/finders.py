"""Methods that find r = ``rank`` columns whose span keeps as much as possible of a symmetric matrix.

* "gaussian": Q = orth(A Omega), Omega ~ N(0, I) (Halko, Martinsson and Tropp 2011).
* "gaussian + 1 power step": orth(A^2 Omega), orthonormalised in between.
* "subspace iteration": as many power steps as the network has loops.
* "oversampled": orth(A Omega) with half as many columns as the network multiplies, since the projection takes the other
  half; the best r directions inside.
* "block Krylov": span{A Omega, ..., A^q Omega} with r columns each and the network's number of columns; the best r
  directions inside (Musco and Musco 2015).
* "rpcholesky": r columns of A itself, chosen by randomly pivoted Cholesky, as in a Nystrom approximation; no product.
* "untrained": the best r directions of an untrained RangeFormer's range.
* "rangeformer": those of the checkpoint's.

All but the network's are float64 and dense; each returns the image of its range too, as an SVD needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64
from scipy.sparse.linalg import svds
from torch import Tensor

from gp_rangeformer.preconditioner.landmarks import rp_cholesky_landmarks
from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from gp_rangeformer.system.linear_system import LinearSystem

_DENSE_NORM = 200  # up to here the spectral norm by LAPACK, above by Lanczos
_LANCZOS_TOLERANCE = 1e-6  # relative, of that norm


@dataclass(frozen=True)
class Found:
    """A range, most important columns first, its image under A, and how many columns A was multiplied with."""

    basis: Float64[Tensor, "n c"]  # orthonormal, a network's to 1e-6
    image: Float64[Tensor, "n c"]
    columns: int


Finder = Callable[[Tensor, torch.Generator], Found]


def finders(model: RangeFormer, control: RangeFormer) -> dict[str, Finder]:
    """The methods by name, ours last; ``control`` is the untrained one."""
    rank, loops = model.config.width, model.config.loops
    spent = network_columns(model)
    return {
        "gaussian": lambda matrix, generator: subspace_iteration(matrix, rank, 0, generator),
        "gaussian + 1 power step": lambda matrix, generator: subspace_iteration(matrix, rank, 1, generator),
        "subspace iteration": lambda matrix, generator: subspace_iteration(matrix, rank, loops, generator),
        "oversampled": lambda matrix, generator: oversampled(matrix, rank, spent // 2, generator),
        "block Krylov": lambda matrix, generator: block_krylov(matrix, rank, spent // rank - 1, generator),
        "rpcholesky": lambda matrix, generator: pivoted_columns(matrix, rank, generator),
        "untrained": lambda matrix, generator: network_range(control, matrix, generator),
        "rangeformer": lambda matrix, generator: network_range(model, matrix, generator),
    }


def subspace_iteration(matrix: Float64[Tensor, "n n"], rank: int, steps: int, generator: torch.Generator) -> Found:
    """orth(A^(1 + steps) Omega), orthonormalised after each product."""
    basis = _sketch(len(matrix), rank, generator)
    for _ in range(1 + steps):
        basis = torch.linalg.qr(matrix @ basis).Q
    return Found(basis, matrix @ basis, (2 + steps) * basis.shape[1])


def oversampled(matrix: Float64[Tensor, "n n"], rank: int, width: int, generator: torch.Generator) -> Found:
    """The best ``rank`` directions of orth(A Omega), Omega with ``width`` columns."""
    basis = torch.linalg.qr(matrix @ _sketch(len(matrix), width, generator)).Q
    return _best(basis, matrix @ basis, rank, basis.shape[1])


def block_krylov(matrix: Float64[Tensor, "n n"], rank: int, depth: int, generator: torch.Generator) -> Found:
    """The best ``rank`` directions of span{A Omega, ..., A^depth Omega}."""
    block = torch.linalg.qr(matrix @ _sketch(len(matrix), rank, generator)).Q
    width = block.shape[1]
    blocks, images = [block], [matrix @ block]
    while len(blocks) < depth and (len(blocks) + 1) * width <= len(matrix):
        block = images[-1]
        basis = torch.cat(blocks, dim=1)
        # Twice: that keeps the basis orthonormal to rounding.
        for _ in range(2):
            block = torch.linalg.qr(block - basis @ (basis.mT @ block)).Q
        blocks.append(block)
        images.append(matrix @ block)
    return _best(torch.cat(blocks, dim=1), torch.cat(images, dim=1), rank, width)


def pivoted_columns(matrix: Float64[Tensor, "n n"], rank: int, generator: torch.Generator) -> Found:
    """orth of columns of A; nothing is multiplied but the projection."""
    system = LinearSystem(matrix, torch.full_like(matrix[0], torch.finfo(matrix.dtype).tiny))
    columns, _ = rp_cholesky_landmarks(system, rank, generator, num_blocks=rank).sketch(system)
    basis = torch.linalg.qr(columns).Q
    return Found(basis, matrix @ basis, basis.shape[1])


@torch.no_grad()
def network_range(model: RangeFormer, matrix: Float64[Tensor, "n n"], generator: torch.Generator) -> Found:
    """The best directions of the last loop's range, by the images that the loops have computed."""
    output = model(DenseOperator(matrix), generator=generator, last_only=True)[-1]
    basis, image = output.basis.squeeze(0), output.image.squeeze(0)
    return _best(basis, image, model.config.width, 0)


def network_columns(model: RangeFormer) -> int:
    """That the default number of loops multiplies A with."""
    return model.config.sketch + model.config.loops * model.config.width


def projection_errors(matrix: Float64[Tensor, "n n"], basis: Float64[Tensor, "n k"]) -> tuple[float, float]:
    """|A - Q Q'A| in the spectral and the Frobenius norm."""
    # A network's basis is orthonormal to 1e-6 alone, and its dependent columns are short.
    basis = torch.linalg.qr(basis).Q
    missed = matrix - basis @ (basis.mT @ matrix)
    frobenius = float(torch.linalg.matrix_norm(missed))
    if len(matrix) <= _DENSE_NORM:
        return float(torch.linalg.matrix_norm(missed, ord=2)), frobenius
    first = np.random.default_rng(0).standard_normal(len(matrix))
    largest = svds(missed.numpy(), 1, tol=_LANCZOS_TOLERANCE, v0=first, return_singular_vectors=False)  # type: ignore[arg-type]
    return float(np.asarray(largest).max()), frobenius


def ritz_vectors(basis: Float64[Tensor, "n c"], image: Float64[Tensor, "n c"]) -> Float64[Tensor, "c c"]:
    """Eigenvectors of Q'A Q, image = A Q, by descending modulus of the eigenvalue. O(n c^2)."""
    core = basis.mT @ image
    values, vectors = torch.linalg.eigh((core + core.mT) / 2)
    return vectors[:, values.abs().argsort(descending=True)]


def _sketch(n: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.randn(n, min(width, n), generator=generator, dtype=torch.float64)


def _best(basis: Tensor, image: Tensor, rank: int, before: int) -> Found:
    """The best ``rank`` Ritz vectors; ``before`` columns were multiplied besides the image's."""
    vectors = ritz_vectors(basis, image)[:, :rank]
    return Found(basis @ vectors, image @ vectors, before + basis.shape[1])
