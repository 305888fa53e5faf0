"""Ways to find the leading columns of a range by products with an operator: the network, its controls, block Krylov."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.rangeformer.answer import pretrained
from gp_rangeformer.rangeformer.operator import MatrixOperator
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from gp_rangeformer.rangeformer.subspace import orthonormalise
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.baselines.untrained import untrained

# A range of the operator from T loops: orthonormal columns and their image. The generator draws what is random.
Finder = Callable[[MatrixOperator, int, torch.Generator], tuple[Tensor, Tensor]]
# Of the Krylov space called the limit: its 16 Ritz values agree with LAPACK's to four digits (pol, n = 2000, r = 128).
_LIMIT_WIDTH, _LIMIT_DEPTH = 48, 8


def finders(system: LinearSystem, loops: Sequence[int]) -> dict[str, tuple[Finder, int]]:
    """Ways to find 16 columns, with the number of loops: the network's, its control's, and classical ones."""
    model = pretrained("base", system.dtype, system.device)
    control = untrained(model.config, dtype=system.dtype)
    width, rank, floor = model.config.dim, model.config.rank, float(system.noise.min())
    kinds: dict[str, Finder] = {
        "network": partial(network, model=model, floor=floor, bfloat16=False),
        "network, bfloat16": partial(network, model=model, floor=floor, bfloat16=True),
        "untrained": partial(network, model=control, floor=floor, bfloat16=False),
        "subspace iteration": partial(subspace_iteration, width=width, rank=rank),
        "block Krylov": partial(block_krylov, width=rank, rank=rank, depth=width // rank),
    }
    found = {f"{kind}, {count}": (finder, count) for kind, finder in kinds.items() for count in loops}
    return {**found, "limit": (partial(block_krylov, width=_LIMIT_WIDTH, rank=rank, depth=0), _LIMIT_DEPTH)}


@torch.no_grad()
def network(
    operator: MatrixOperator,
    loops: int,
    generator: torch.Generator,
    *,
    model: RangeFormer,
    floor: float,
    bfloat16: bool,
) -> tuple[Tensor, Tensor]:
    """The basis of the last loop of a RangeFormer, with the image that the loop has computed."""
    lowest = torch.tensor([floor])
    output = model(operator, loops=loops, floor=lowest, generator=generator, bfloat16=bfloat16)[-1]
    return output.basis[0], output.image[0]


def subspace_iteration(
    operator: MatrixOperator, loops: int, generator: torch.Generator, *, width: int, rank: int
) -> tuple[Tensor, Tensor]:
    """The network's products without the network: ``width`` random columns, the ``rank`` best of the images, loops."""
    start = operator.matmul(_gaussian(operator, width, generator))
    basis = torch.linalg.svd(start, full_matrices=False).U[..., :rank]
    for _ in range(loops - 1):
        basis = orthonormalise(operator.matmul(basis))
    return basis[0], operator.matmul(basis)[0]


def block_krylov(
    operator: MatrixOperator, loops: int, generator: torch.Generator, *, width: int, rank: int, depth: int
) -> tuple[Tensor, Tensor]:
    """The ``rank`` leading Ritz vectors of span{Omega, A Omega, ...}: ``depth`` + loops blocks of ``width`` columns."""
    blocks = [torch.linalg.qr(_gaussian(operator, width, generator)).Q]
    images = [operator.matmul(blocks[0])]
    while len(blocks) < depth + loops and (len(blocks) + 1) * width <= operator.size:
        block, known = images[-1], torch.cat(blocks, dim=-1)
        for _ in range(2):  # twice: that keeps the basis orthonormal to rounding
            block = torch.linalg.qr(block - known @ (known.mT @ block)).Q
        blocks.append(block)
        images.append(operator.matmul(block))
    basis, image = torch.cat(blocks, dim=-1)[0], torch.cat(images, dim=-1)[0]
    core = basis.mT.double() @ image.double()
    leading = torch.linalg.eigh(0.5 * (core + core.mT)).eigenvectors.flip(1)[:, :rank].to(basis.dtype)
    return basis @ leading, image @ leading


def _gaussian(operator: MatrixOperator, width: int, generator: torch.Generator) -> Float[Tensor, "1 n k"]:
    return torch.randn(1, operator.size, width, generator=generator).to(operator.diagonal())
