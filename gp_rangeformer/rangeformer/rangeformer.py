"""RangeFormer: a looped linear-attention transformer whose tokens are the rows of a matrix, and whose range grows.

    Gamma from random codes, X = tokens(Gamma, A Gamma, diagonal)     the range embedding: one product
    U = orth(Gamma)                                                   and A U with it
    repeat T times, or until every residual meets a tolerance:
        X = block(X + W [what the range says of every row])
        P = [R / diagonal, A W_last]            proposals: Jacobi's residuals, and further directions of A
        W = orth((I - UU') P)                   one product, A W
        U = [U, W]                              every product that was ever paid is kept
    solves, Ritz values and log|A| are read off U and A U

One block for all loops, whose weights know nothing of n, of the number of loops or of a loop's columns. Everything is
equivariant to the order of the rows and exactly homogeneous in the scale of A. The answers are Galerkin's in the range
(:mod:`gp_rangeformer.rangeformer.subspace`), so that whatever is learned, the error of a solve in the norm of A falls
from loop to loop; with an untrained network the loop is a block Krylov method. The network's part is to say what the
range has not seen (:mod:`gp_rangeformer.rangeformer.heads`).

After "Understanding and Relaxing the Limitations of Transformers for Linear Algebra" (ICLR 2026).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from gp_rangeformer.checkpoint import check_sizes
from gp_rangeformer.rangeformer import arguments
from gp_rangeformer.rangeformer.attention import FeatureMap
from gp_rangeformer.rangeformer.block import Block
from gp_rangeformer.rangeformer.embedding import ROW_FEATURES, RangeEmbedding
from gp_rangeformer.rangeformer.growth import Growth
from gp_rangeformer.rangeformer.heads import RangeStatistics, ScalarHeads
from gp_rangeformer.rangeformer.operator import MatrixOperator

_RANGE_FEATURES = 4  # of Growth.row_features


@dataclass(frozen=True)
class RangeFormerConfig:
    """Sizes of a RangeFormer; none of them depends on n."""

    dim: int = 64  # width of a token
    sketch: int = 16  # columns of the range embedding
    width: int = 8  # columns that a loop adds, where no other number is asked for
    heads: int = 4
    head_dim: int = 8  # of queries and keys; the Taylor map squares it
    feature_map: FeatureMap = "taylor"
    loops: int = 16  # where no other number is asked for

    def __post_init__(self) -> None:
        check_sizes("RangeFormer", **{name: value for name, value in asdict(self).items() if name != "feature_map"})


@dataclass
class RangeFormerOutput:
    """Answers after one loop, in the units of A. Scalars are float64, one per matrix of the batch.

    Eigenvalues below 1e-12 of A's size count as so large: log|A| of a singular matrix is finite, that of zero is not.
    """

    trace: Float[Tensor, " b"]
    lambda_max: Float[Tensor, " b"]
    logdet: Float[Tensor, " b"]
    logdet_upper: Float[Tensor, " b"]  # what the range proves for positive definite A: ``logdet`` never exceeds it
    logdet_quadrature: Float[Tensor, " b"]  # the estimate that ``logdet`` starts from
    basis: Float64[Tensor, "b n k"]  # orthonormal
    image: Float64[Tensor, "b n k"]  # A basis
    solution: Float[Tensor, "*rhs"] | None = None  # of the shape of the right-hand sides, as the residual
    residual: Float[Tensor, "*rhs"] | None = None  # b - A solution, by recurrence

    def eigenpairs(self) -> tuple[Float64[Tensor, "b k"], Float64[Tensor, "b n k"]]:
        """Ritz values, descending, and vectors: the best approximations of eigenpairs within the range. O(n k^2)."""
        core = self.basis.mT @ self.image
        values, rotation = torch.linalg.eigh(0.5 * (core + core.mT))
        return values.flip(-1), self.basis @ rotation.flip(-1)


class RangeFormer(nn.Module):
    """See the module's text. About 70,000 parameters at the default configuration."""

    def __init__(self, config: RangeFormerConfig) -> None:
        super().__init__()
        self.config = config
        dim = config.dim
        self.embedding = RangeEmbedding(config.sketch)
        given = ROW_FEATURES + 2
        self.token = nn.Linear(2 * config.sketch + given, dim)
        self.state_norm = nn.RMSNorm(dim)
        self.inject = nn.Linear(given + _RANGE_FEATURES, dim)
        self.block = Block(dim, config.heads, config.head_dim, config.feature_map)
        self.scalars = ScalarHeads(dim, hidden=2 * dim)

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> RangeFormer:
        """A fresh network; the inverse of ``dataclasses.asdict(config)``."""
        return cls(RangeFormerConfig(**values))

    def forward(
        self,
        operator: MatrixOperator,
        rhs: Float[Tensor, "*rhs"] | None = None,
        *,
        loops: int | None = None,
        columns: int | None = None,
        width: int | None = None,
        tolerance: float | None = None,
        floor: Float[Tensor, "*b"] | None = None,
        codes: Float[Tensor, "b n d"] | None = None,
        generator: torch.Generator | None = None,
        isotropic: int = 0,
        last_only: bool = False,
    ) -> list[RangeFormerOutput]:
        """One output per loop, the last is the answer.

        :param rhs: right-hand sides of ``solve``, b x n x m; for a single matrix also n x m or n. None leaves solution
            and residual out.
        :param loops: T, at most; None for the configuration's, or for as many as ``columns`` or ``tolerance`` ask for.
        :param columns: of the range, at most, and never more than n.
        :param width: columns that a loop adds: a residual for each right-hand side, and from A's image of the last
            columns what fills them up. More right-hand sides than that take a column each and leave nothing to fill.
        :param tolerance: end when every residual is at most so large, relative to its right-hand side. For a single
            matrix, a right-hand side that has got there proposes no further columns.
        :param floor: a known lower bound of A's eigenvalues (the noise of a Gaussian process), one number or b.
        :param codes: the random codes of :meth:`RangeEmbedding.codes`, to repeat or permute them.
        :param isotropic: how many of the right-hand sides, the last, are random with E zz' = I. They are then the
            probes of the quadrature, instead of the codes, and log|A| is the quadrature itself: on it the network, also
            one that was trained with such probes, does not improve (pretrain/README.md).
        :param last_only: read the scalars once, at the end, instead of after every loop.
        :raises ValueError: loops < 1 or width < 1; right-hand sides, a floor or codes that do not fit the matrices or
            are not finite; a tolerance, or probes, without right-hand sides.
        :raises torch.linalg.LinAlgError: a negative entry of the diagonal, or a Ritz value that is negative beyond
            rounding.
        Cost: products with A of ``sketch`` columns and then of ``width`` a loop, and O(n k^2) for k columns in all.
        """
        size = operator.size
        if loops is None:
            loops = self.config.loops if columns is None and tolerance is None else size
        width = self.config.width if width is None else width
        most = size if columns is None else min(columns, size)
        if min(loops, width, most) < 1:
            raise ValueError(f"loops, width and columns must be at least 1, got {loops}, {width} and {most}")
        right = None if rhs is None else arguments.batched(rhs, operator)
        arguments.check_probes(isotropic, right)
        arguments.check_tolerance(tolerance, right)
        arguments.check_floor(floor, operator)
        codes = self.embedding.codes(operator, generator) if codes is None else codes
        arguments.check_codes(codes, operator, self.config.sketch)
        embedded = self.embedding(operator, codes)
        known = self._floor(floor, embedded.scale)
        given = torch.cat([embedded.features, known.to(codes).unsqueeze(1).expand(-1, size, -1)], dim=-1)
        tokens = self.token(torch.cat([embedded.projection, embedded.image.to(codes.dtype), given], dim=-1))
        growth = Growth.start(operator, embedded, right, most)
        first = growth.range.basis
        probes = None if growth.rhs is None or not isotropic else growth.rhs[..., -isotropic:]

        unsolved = growth.unsolved(tolerance)
        outputs = []
        for loop in range(loops):
            tokens = self.state_norm(tokens) + self.inject(torch.cat([given, growth.row_features().to(given)], dim=-1))
            tokens = self.block(tokens)
            growth.add(growth.directions(unsolved), width)
            unsolved = growth.unsolved(tolerance)
            solved = tolerance is not None and right is not None and not bool(unsolved.any())
            last = solved or growth.ended or loop == loops - 1
            if last or not last_only:
                output = self._read(tokens, growth, first, probes, known)
                if rhs is not None and growth.solve is not None:
                    output.solution = growth.solution().to(rhs.dtype).reshape(rhs.shape)
                    output.residual = growth.residual().to(rhs.dtype).reshape(rhs.shape)
                outputs.append(output)
            if last:
                break
        return outputs

    def _read(
        self, tokens: Tensor, growth: Growth, first: Tensor, probes: Tensor | None, floor: Tensor
    ) -> RangeFormerOutput:
        trace = growth.diagonal.sum(-1)
        ritz = growth.range.ritz()
        arguments.check_definite(growth.diagonal, ritz[0])
        statistics = RangeStatistics.of(growth.range, ritz, growth.diagonal, first, probes, floor)
        largest, logdet = self.scalars(tokens, statistics)
        logdet = logdet if probes is None else statistics.quadrature
        size, scale = tokens.shape[-2], growth.scale
        log_scale = torch.where(trace > 0, scale.log(), -torch.inf)  # of a zero matrix
        return RangeFormerOutput(
            trace=trace * scale,
            lambda_max=largest * scale,
            logdet=size * (logdet + log_scale),
            logdet_upper=size * (statistics.upper + log_scale),
            logdet_quadrature=size * (statistics.quadrature + log_scale),
            basis=growth.range.basis,
            image=growth.range.image * scale[:, None, None],
        )

    @staticmethod
    def _floor(floor: Tensor | None, scale: Tensor) -> Float64[Tensor, "b 2"]:
        if floor is None:
            return scale.new_zeros(scale.shape[0], 2)
        log = (floor.to(scale) / scale).clamp(1e-12, 1e3).log()
        return torch.stack([log, torch.ones_like(log)], dim=-1)
