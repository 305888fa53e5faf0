"""RangeFormer on a LinearSystem: what the pretrained network answers about K + D, from products and columns alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.rangeformer.pretrained import load_pretrained
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from gp_rangeformer.system.linear_system import LinearSystem


@dataclass(frozen=True)
class Answer:
    """What a network says about A: A^-1 rhs, log|A|, and the n x k range that it looked in, with A times it."""

    solution: Float[Tensor, "n m"]
    logdet: float
    range: Float[Tensor, "n k"]
    image: Float[Tensor, "n k"] | None = None


@dataclass(frozen=True)
class SystemOperator:
    """A = K + D as the network sees it: a batch of one. Products are made in the precision of the system."""

    system: LinearSystem
    batch: int = 1

    @property
    def size(self) -> int:
        return self.system.size

    def diagonal(self) -> Float[Tensor, "1 n"]:
        return (self.system.diagonal() + self.system.noise).unsqueeze(0)

    def matmul(self, block: Float[Tensor, "1 n k"]) -> Float[Tensor, "1 n k"]:
        return self.system.matmul(block.squeeze(0).to(self.system.dtype)).unsqueeze(0).to(block.dtype)


@functools.lru_cache(maxsize=4)
def pretrained(name: str, dtype: torch.dtype, device: torch.device) -> RangeFormer:
    """A shipped model in the precision and on the device of a system. Loaded once.

    :raises CheckpointError: unknown name or damaged file.
    """
    return load_pretrained(name).to(device=device, dtype=dtype).requires_grad_(False)


@torch.no_grad()
def answer(
    system: LinearSystem,
    rhs: Float[Tensor, "n m"],
    *,
    loops: int | None = None,
    columns: int | None = None,
    tolerance: float | None = None,
    probes: int = 0,
    seed: int = 0,
    name: str = "base",
) -> Answer:
    """The network's last loop for one system: log|A|, A^-1 rhs, and a range, none of them verified.

    :param loops: T; None for the model's default, or as many as ``columns`` or ``tolerance`` ask for.
    :param columns: of the range, at most; None for n.
    :param tolerance: end where every residual, relative to its right-hand side, is at most so large.
    :param probes: how many of the right-hand sides, the last, are random with E zz' = I: log|A| is then read off them.
    :param seed: of the random codes; the same seed gives the same answer.
    Cost: a pass over K with the ``sketch`` columns of the model, then one per loop with ``width`` columns, or with as
    many as right-hand sides are not solved; O(n k^2) for k columns in all.
    """
    model = pretrained(name, system.dtype, system.device)
    output = model(
        SystemOperator(system),
        rhs.unsqueeze(0) if rhs.shape[1] else None,
        loops=loops,
        columns=columns,
        tolerance=tolerance,
        floor=system.noise.min().unsqueeze(0),
        generator=torch.Generator().manual_seed(seed),
        isotropic=probes,
        last_only=True,
    )[-1]
    solution = rhs if output.solution is None else output.solution.squeeze(0)
    basis, image = (block.squeeze(0).to(system.dtype) for block in (output.basis, output.image))
    return Answer(solution, float(output.logdet), basis, image)
