"""Landmarks and further columns, found in A = K + D or in what the landmarks leave of it, as one range."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float

from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.rangeformer.answer import SystemOperator
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.experiments.ranges.finders import Finder


@dataclass(frozen=True)
class Extended:
    """The range of columns of K and of further columns U: Omega = [identity[:, index], U]; its sketch is known.

    :param image: K U, from the product that found U.
    """

    landmarks: Landmarks
    basis: Float[Tensor, "n k"]
    image: Float[Tensor, "n k"]

    def sketch(self, system: LinearSystem) -> tuple[Float[Tensor, "n r"], Float[Tensor, "r r"]]:
        """K Omega and Omega' K Omega, the latter in float64: no pass over K."""
        columns, core = self.landmarks.sketch(system)
        cross = self.image.index_select(0, self.landmarks.index).double()
        inner = self.basis.mT.double() @ self.image.double()
        core = torch.cat([torch.cat([core.double(), cross], dim=1), torch.cat([cross.mT, inner], dim=1)])
        return torch.cat([columns, self.image], dim=1), core


class Remainder:
    """A - Q for the Q of some landmarks, as a batch of one: positive definite, its small eigenvalues those of D."""

    def __init__(self, system: LinearSystem, landmarks: Landmarks) -> None:
        columns, core = landmarks.sketch(system)
        core = core.double()
        core.diagonal().add_(2 * torch.finfo(system.dtype).eps * float(core.diagonal().sum()))
        factor = torch.linalg.cholesky(core)
        self.system = system
        self.root = torch.linalg.solve_triangular(factor, columns.mT.double(), upper=False).mT.to(system.dtype)
        self.batch, self.size = 1, system.size

    def explained(self, block: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """Q block."""
        return self.root @ (self.root.mT @ block)

    def diagonal(self) -> Float[Tensor, "1 n"]:
        rest = (self.system.diagonal() - self.root.square().sum(-1)).clamp_min(0)
        return (rest + self.system.noise).unsqueeze(0)

    def matmul(self, block: Float[Tensor, "1 n k"]) -> Float[Tensor, "1 n k"]:
        return (self.system.matmul(block[0]) - self.explained(block[0])).unsqueeze(0)


def extend(system: LinearSystem, landmarks: Landmarks, finder: Finder, loops: int, target: str, seed: int) -> Extended:
    """``landmarks`` and the columns that ``finder`` finds in A (``target`` "A") or in what they leave ("rest")."""
    generator = torch.Generator().manual_seed(seed + 5)
    if target == "A":
        basis, image = finder(SystemOperator(system), loops, generator)
    else:
        rest = Remainder(system, landmarks)
        basis, image = finder(rest, loops, generator)
        image = image + rest.explained(basis)
    return Extended(landmarks, basis, image - system.noise.unsqueeze(-1) * basis)
