"""RangeFormer: a weight-tied transformer block, looped over the rows of a matrix, that proposes ranges.

    X = A Gamma                      range embedding: one token per row, one product
    repeat T times:
        U = orth(U W1 + A U W2 + X W3)     the range, r columns
        Y = A U                            one product with r columns ("operator mode")
        X = block(norm(X) + W [X_0, U, Y, row features])
    heads read X and (U, Y)

Everything is equivariant to the order of the rows and exactly homogeneous in the scale of A; the number of loops is
free at inference. The heads use what the range proves (:mod:`gp_rangeformer.rangeformer.heads`) and solve inside it
(:mod:`gp_rangeformer.rangeformer.subspace`): the network's part is to make the range good and to guess what lies
outside.

After "Understanding and Relaxing the Limitations of Transformers for Linear Algebra" (ICLR 2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.rangeformer.attention import FeatureMap
from gp_rangeformer.rangeformer.block import Block
from gp_rangeformer.rangeformer.embedding import Embedded, RangeEmbedding
from gp_rangeformer.rangeformer.heads import RangeStatistics, ScalarHeads
from gp_rangeformer.rangeformer.operator import MatrixOperator
from gp_rangeformer.rangeformer.subspace import SolveState, galerkin_correction, orthonormalise


@dataclass(frozen=True)
class RangeFormerConfig:
    """Sizes of a RangeFormer; none of them depends on n."""

    dim: int = 64  # width of a token and of the range embedding
    rank: int = 16  # columns of the range
    heads: int = 4
    head_dim: int = 8  # of queries and keys; the Taylor map squares it
    feature_map: FeatureMap = "taylor"
    loops: int = 8  # default number of loops
    tied: bool = True  # one block for all loops; False: ``loops`` different blocks, and no more loops than that
    operator: bool = True  # the loop sees A U; False: it thinks about the embedding alone, only the heads multiply by A


@dataclass
class RangeFormerOutput:
    """Answers after one loop, in the units of A. Scalars are float64, one per matrix of the batch."""

    trace: Float[Tensor, " b"]
    lambda_max: Float[Tensor, " b"]
    logdet: Float[Tensor, " b"]
    logdet_upper: Float[Tensor, " b"]  # what the range proves for positive definite A: ``logdet`` never exceeds it
    basis: Float[Tensor, "b n r"]  # orthonormal, nested: its first k columns are the range of rank k
    image: Float[Tensor, "b n r"]  # A basis
    scores: Float[Tensor, "b n"]  # sampling probabilities of the rows
    solution: Float[Tensor, "*rhs"] | None = None  # of the shape of the right-hand sides, as the residual
    residual: Float[Tensor, "*rhs"] | None = None  # b - A solution, by recurrence

    def eigenpairs(self) -> tuple[Float[Tensor, "b r"], Float[Tensor, "b n r"]]:
        """Ritz values, descending, and vectors: the best approximations of eigenpairs within the range. O(n r^2)."""
        core = self.basis.mT.double() @ self.image.double()
        values, rotation = torch.linalg.eigh(0.5 * (core + core.mT))
        return values.flip(-1), self.basis @ rotation.flip(-1).to(self.basis.dtype)


class RangeFormer(nn.Module):
    """See the module's text. About 90,000 parameters at the default configuration."""

    def __init__(self, config: RangeFormerConfig) -> None:
        super().__init__()
        if config.loops < 1 or not 1 <= config.rank <= config.dim:
            raise ValueError(f"RangeFormer needs loops >= 1 and 1 <= rank <= dim, got {config}")
        self.config = config
        dim, rank = config.dim, config.rank
        self.embedding = RangeEmbedding(dim)
        features = self.embedding.features + 2
        self.token = nn.Linear(2 * dim + features, dim)
        self.inject = nn.Linear(2 * dim + 2 * rank + features, dim)
        self.blocks = nn.ModuleList(
            Block(dim, config.heads, config.head_dim, config.feature_map)
            for _ in range(1 if config.tied else config.loops)
        )
        self.state_norm = nn.RMSNorm(dim)
        # Initially the range is a subspace iteration started from A Gamma: U <- orth(A U + X W3), with W3 = 0.
        self.first_range = nn.Linear(dim, rank, bias=False)
        self.keep = nn.Parameter(torch.zeros(rank, rank))
        self.power = nn.Parameter(torch.eye(rank))
        self.propose = nn.Linear(dim, rank, bias=False)
        nn.init.zeros_(self.propose.weight)
        self.scalars = ScalarHeads(dim, rank, hidden=2 * dim)
        self.score = nn.Linear(dim, 1)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> RangeFormer:
        """A fresh network; the inverse of ``dataclasses.asdict(config)``."""
        # Files from before the log determinant's head had one of its own say that they hold none.
        own = {name: value for name, value in values.items() if name != "tail"}
        return cls(RangeFormerConfig(**own))

    def forward(
        self,
        operator: MatrixOperator,
        rhs: Float[Tensor, "*rhs"] | None = None,
        *,
        loops: int | None = None,
        floor: Float[Tensor, "*b"] | None = None,
        codes: Float[Tensor, "b n d"] | None = None,
        generator: torch.Generator | None = None,
        bfloat16: bool = False,
    ) -> list[RangeFormerOutput]:
        """One output per loop, the last is the answer.

        :param rhs: right-hand sides of ``solve``, b x n x m; for a single matrix also n x m or n. None leaves solution
            and residual out.
        :param loops: T; any number for a tied model.
        :param floor: a known lower bound of A's eigenvalues (the noise of a Gaussian process), one number or b.
        :param codes: the random codes of :meth:`RangeEmbedding.codes`, to repeat or permute them.
        :param bfloat16: run the transformer's own layers in bfloat16; products with A and everything that is solved
            from them keep their precision. For float32 models.
        :raises ValueError: loops < 1, or more loops than an untied model has blocks; right-hand sides or a floor that
            do not fit the matrices.
        Cost: one product with dim columns, then per loop one with ``rank + m`` columns, and O(n dim^2).
        """
        loops = self.config.loops if loops is None else loops
        if loops < 1 or (not self.config.tied and loops > len(self.blocks)):
            raise ValueError(f"loops must be at least 1, and at most {self.config.loops} for an untied model: {loops}")
        right = None if rhs is None else _batched(rhs, operator)
        if floor is not None and floor.shape not in ((), (operator.batch,)):
            raise ValueError(f"floor must be one number or {operator.batch}, one per matrix, got {tuple(floor.shape)}")
        codes = self.embedding.codes(operator, generator) if codes is None else codes
        embedded = self.embedding(operator, codes)
        scale = embedded.scale
        diagonal = operator.diagonal().double()
        mean_eigenvalue = (diagonal.mean(-1) / scale).to(codes.dtype)
        known = self._floor(floor, scale)
        size = operator.size
        features = torch.cat([embedded.features, known.unsqueeze(1).expand(-1, size, -1)], dim=-1)
        given = torch.cat([embedded.projection, embedded.image, features], dim=-1)
        tokens = self.token(given)
        first = basis = orthonormalise(self.first_range(embedded.image))
        solve = None if right is None else SolveState.start(right.to(codes.dtype))

        outputs = []
        for loop in range(loops):
            image = operator.matmul(basis) / scale[:, None, None]
            # Columns of unit length have entries of size n^-1/2; tokens want entries of size 1.
            products = size**0.5 * torch.cat([basis, image], dim=-1)
            products = products if self.config.operator else torch.zeros_like(products)
            with torch.autocast(codes.device.type, torch.bfloat16, enabled=bfloat16):
                tokens = self.state_norm(tokens) + self.inject(torch.cat([given, products], dim=-1))
                tokens = self.blocks[0 if self.config.tied else loop](tokens)
            tokens = tokens.to(codes.dtype)
            if solve is not None:
                solve = galerkin_correction(operator, solve, basis, image, scale)
            output = self._read(tokens, basis, image, embedded, mean_eigenvalue, known)
            if solve is not None and rhs is not None:
                # The state solves (A / scale) x = b.
                output.solution = (solve.solution / scale[:, None, None]).reshape(rhs.shape)
                output.residual = solve.residual.reshape(rhs.shape)
            outputs.append(output)
            iterated = basis @ self.keep + image @ self.power if self.config.operator else first
            basis = orthonormalise(iterated + self.propose(tokens) / size**0.5)
        return outputs

    def _read(
        self,
        tokens: Tensor,
        basis: Tensor,
        image: Tensor,
        embedded: Embedded,
        mean_eigenvalue: Tensor,
        floor: Tensor,
    ) -> RangeFormerOutput:
        statistics = RangeStatistics.of(basis, image, embedded, mean_eigenvalue)
        largest, logdet = self.scalars(tokens, statistics, floor)
        scale = embedded.scale
        scale64 = scale.double()
        size = basis.shape[-2]
        return RangeFormerOutput(
            trace=size * mean_eigenvalue.double() * scale64,
            lambda_max=largest * scale64,
            logdet=size * (logdet + scale64.log()),
            logdet_upper=size * (statistics.logdet_per_point_bound() + scale64.log()),
            basis=basis,
            image=image * scale[:, None, None],
            scores=self.score(tokens).squeeze(-1).softmax(-1),
        )

    @staticmethod
    def _floor(floor: Tensor | None, scale: Tensor) -> Tensor:
        if floor is None:
            return torch.zeros(scale.shape[0], 2, dtype=scale.dtype, device=scale.device)
        log = (floor.to(scale) / scale).clamp(1e-12, 1e3).log()
        return torch.stack([log, torch.ones_like(log)], dim=-1)


def _batched(rhs: Float[Tensor, "*rhs"], operator: MatrixOperator) -> Float[Tensor, "b n m"]:
    """``rhs`` as b x n x m. A single matrix takes a vector or a block as it is."""
    batch, size = operator.batch, operator.size
    block = rhs.unsqueeze(-1) if batch == 1 and rhs.dim() == 1 else rhs
    block = block.unsqueeze(0) if batch == 1 and block.dim() == 2 else block
    if block.dim() != 3 or block.shape[:2] != (batch, size):
        wanted = f"{size}, {size} x m or 1 x {size} x m" if batch == 1 else f"{batch} x {size} x m"
        raise ValueError(
            f"right-hand sides must be {wanted}, as the matrices are {batch} x {size} x {size}: got "
            f"{' x '.join(map(str, rhs.shape)) or 'a scalar'}"
        )
    return block
