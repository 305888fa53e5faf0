"""What iterations ask of a preconditioner P, whatever it is made of."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.system.linear_system import LinearSystem


@runtime_checkable
class Preconditioner(Protocol):
    """Symmetric positive definite, P = C C' for some square C."""

    def solve(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """P^-1 rhs."""
        ...

    def root_solve(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """C^-1 rhs."""
        ...

    def root_solve_transposed(self, rhs: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """C^-T rhs."""
        ...

    def logdet(self) -> float:
        """log|P| in nats."""
        ...

    def least_ritz_value(self, system: LinearSystem) -> float:
        """Below this a Ritz value of P^-1 A disproves that K is positive semi-definite; 0 where P is not known to be
        below A, and only the sign can."""
        ...
