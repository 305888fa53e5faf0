"""Random functions with a kernel's covariance: sums of waves whose frequencies come from its spectral density.

Rahimi and Recht, "Random features for large-scale kernel machines" (2007); sines and cosines in pairs, whose variance
is the kernel's own at every point, after Sutherland and Schneider, "On the error of random Fourier features" (2015).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.kernels.expression import Constant, Expression, Kind, Product, Scale, Stationary, Sum
from gp_rangeformer.kernels.tiles import spans
from gp_rangeformer.torch_modes import differentiated, no_autocast

# Numbers that one strip's waves take.
_STRIP, _STRIP_CUDA = 2**21, 2**26
# Frequencies are drawn at the level v^c of their lengths' tails, v uniform, and weigh c v^(c - 1): more short waves, of
# smaller variance. Those are what data leave: of kin40k (n = 1500, 1024 waves, noise 1e-5 of the variance) the error of
# posterior variances is 31 % with c = 1, 8, 6, 5 and 4 % with 2, 3, 4 and 6; of four other models it falls to a third
# and is level from 3 on, where the error of k itself is 0.6 to 1.3 times that of c = 1.
_EMPHASIS = 3.0
# Beyond this level there is a 10^-8 of the variance; of Matern-1/2, at waves of 10^-8 length-scales.
_LAST_LEVEL = 1e-8
_MATERN_NU: dict[Kind, float] = {"matern12": 0.5, "matern32": 1.5, "matern52": 2.5}
_RESOLUTION = 2.0**-30  # of torch's Sobol points
_MOST_SOBOL = torch.quasirandom.SobolEngine.MAXDIM


@dataclass(frozen=True)
class SpectralFeatures:
    """k(x, x') = sum_i variances_i cos(w_i' (z - z')) + constant on average over the frequencies w, for the joined
    :func:`coordinates` z of x; for z = z' it always is.

    ``frequencies``: p x D; ``variances``: p; both on the coordinates' device.
    """

    frequencies: Float64[Tensor, "p D"]
    variances: Float64[Tensor, " p"]
    constant: float

    @classmethod
    def draw(
        cls, expression: Expression, arguments: tuple[Tensor, ...], features: int, generator: torch.Generator
    ) -> SpectralFeatures:
        """Two features a frequency, shared out among the products of stationary kernels that the expression multiplies
        out to: half of them equally, half by variance. So the mean square error of k is at most twice that of the best
        share (by variance), and a faint part has its waves too.

        Frequencies are a scrambled Sobol sequence, mapped to each density: measured with 1024 of them, the mean square
        error of k is that of twice as many independent ones (Matern-3/2, 8 dimensions), seven times as many (RBF) or
        fifty (1 dimension).

        :param arguments: of :func:`~gp_rangeformer.kernels.embedding.embed`.
        :param features: about so many; at least two for every product.
        :param generator: on the CPU, so that every device gets the same.
        """
        reading = _Reading(arguments)
        terms = reading.terms(expression)
        waves = [term for term in terms if term.leaves]
        constant = math.fsum(term.variance for term in terms if not term.leaves)
        total = math.fsum(term.variance for term in waves)
        frequencies, variances = [torch.zeros(0, reading.width, dtype=torch.float64, device="cpu")], []
        for term in waves:
            share = 0.5 / len(waves) + 0.5 * term.variance / total
            own, weights = _frequencies(term, max(1, round(share * features / 2)), reading.width, generator)
            frequencies.append(own)
            variances.append(term.variance * weights)
        device = arguments[0].device
        joined = torch.cat(variances) if variances else torch.zeros(0, dtype=torch.float64, device="cpu")
        return cls(torch.cat(frequencies).to(device), joined.to(device), constant)


class RandomFunctions:
    """Independent functions f_1, ..., f_s of zero mean, with the covariance of shared features.

    :param generator: on the CPU. The same weights for either dtype, up to rounding.
    :param dtype: of the values, and of the phases.
    """

    def __init__(self, features: SpectralFeatures, count: int, generator: torch.Generator, dtype: torch.dtype) -> None:
        p, device = len(features.variances), features.variances.device
        weights = torch.randn(2 * p + 1, count, generator=generator, dtype=torch.float64, device="cpu").to(device)
        deviations = features.variances.sqrt().repeat(2)[:, None]
        self._hold(
            features.frequencies.to(dtype),
            (weights[:-1] * deviations).to(dtype),
            (weights[-1] * features.constant**0.5).to(dtype),
        )

    def _hold(self, frequencies: Tensor, weights: Tensor, offsets: Tensor) -> None:
        self._frequencies: Float[Tensor, "p D"] = frequencies
        self._weights: Float[Tensor, "2*p s"] = weights  # of cosines, then of sines
        self._offsets: Float[Tensor, " s"] = offsets

    def some(self, index: list[int]) -> RandomFunctions:
        """Some of the functions, in any order."""
        chosen = RandomFunctions.__new__(RandomFunctions)
        chosen._hold(self._frequencies, self._weights[:, index], self._offsets[index])
        return chosen

    def __call__(self, z: Float64[Tensor, "t D"]) -> Float[Tensor, "t s"]:
        """Their values, in the graph of ``z``. t p (2 D + 4 s) flops and as many sines and cosines, the same again for
        a backward pass; never more than a strip of the waves in memory, but for derivatives with ``create_graph``."""
        with no_autocast():
            points = z.to(self._frequencies.dtype)
            return _Waves.apply(points, self._frequencies, self._weights) + self._offsets  # type: ignore[operator]


def coordinates(arguments: tuple[Tensor, ...], n: int) -> Float64[Tensor, "n D"]:
    """The coordinates of all stationary kernels, side by side, in the graph of ``arguments``; none for constants."""
    found = [argument for argument in arguments if argument.dim() == 2]
    return torch.cat([arguments[0].new_zeros(n, 0, dtype=torch.float64), *found], dim=1)


class _Leaf(NamedTuple):
    """A stationary kernel: the columns of its coordinates among all, and the shape of a rational quadratic."""

    kind: Kind
    columns: slice
    alpha: float | None

    @property
    def dimensions(self) -> int:
        return self.columns.stop - self.columns.start

    @property
    def levels(self) -> int:
        """How many levels its frequencies' lengths have."""
        return 2 if self.kind == "rq" else 1

    def lengths(self, levels: list[Float64[Tensor, " p"]]) -> Float64[Tensor, " p"]:
        """Of frequencies, which have all directions: so many of them are longer.

        Gaussian: |w|^2 is chi^2 with d degrees of freedom. Rational quadratic: (1 + q / (2 alpha))^-alpha is the mean
        of exp(-q g / 2) over g = Gamma(alpha) / alpha, which multiplies |w|^2. Matern: Student's t with 2 nu degrees
        of freedom, |w|^2 = 2 nu (1 - b) / b with b = Beta(nu, d / 2).
        """
        from scipy.special import betaincinv, gammainccinv

        first, half = levels[0].numpy(), self.dimensions / 2
        if self.kind in _MATERN_NU:
            nu = _MATERN_NU[self.kind]
            beta = betaincinv(nu, half, first)
            squares = 2 * nu * (1 - beta) / beta
        else:
            squares = 2 * gammainccinv(half, first)
            if self.alpha is not None:
                squares = squares * gammainccinv(self.alpha, levels[1].numpy()) / self.alpha
        return torch.from_numpy(squares).sqrt()


class _Term(NamedTuple):
    """A product of stationary kernels, times ``variance``; of none, a constant."""

    variance: float
    leaves: tuple[_Leaf, ...]


class _Reading:
    """A walk over an expression and its arguments. ``width``: of the coordinates that it has met."""

    def __init__(self, arguments: tuple[Tensor, ...]) -> None:
        self._arguments: Iterator[Tensor] = (argument.detach() for argument in arguments)
        self.width = 0

    def terms(self, expression: Expression) -> list[_Term]:
        """The expression, multiplied out."""
        if isinstance(expression, Stationary):
            start = self.width
            self.width += next(self._arguments).shape[-1]
            alpha = float(next(self._arguments)) if expression.kind == "rq" else None
            return [_Term(1.0, (_Leaf(expression.kind, slice(start, self.width), alpha),))]
        if isinstance(expression, Constant):
            return [_Term(float(next(self._arguments)), ())]
        if isinstance(expression, Scale):
            scale = float(next(self._arguments))
            return [_Term(scale * term.variance, term.leaves) for term in self.terms(expression.child)]
        children = [self.terms(child) for child in expression.children]
        if isinstance(expression, Sum):
            return [term for terms in children for term in terms]
        assert isinstance(expression, Product)
        return [_product(factors) for factors in itertools.product(*children)]


def _product(factors: tuple[_Term, ...]) -> _Term:
    """Frequencies of a product are sums of its factors'; here each has coordinates of its own."""
    leaves = tuple(leaf for factor in factors for leaf in factor.leaves)
    return _Term(math.prod(factor.variance for factor in factors), leaves)


def _frequencies(
    term: _Term, count: int, width: int, generator: torch.Generator
) -> tuple[Float64[Tensor, "p D"], Float64[Tensor, " p"]]:
    """From the spectral density of a product, zero in coordinates that are not its own; and weights of sum one."""
    own = sum(leaf.dimensions for leaf in term.leaves)
    number = sum(leaf.levels for leaf in term.leaves)
    uniform = _uniform(count, own + number, generator)
    # Of several levels each is emphasised less: the product of their weights scatters no more than the weight of one.
    emphasis = 1 + (_EMPHASIS - 1) / number
    levels = uniform[:, own:].pow(emphasis).clamp_min(_LAST_LEVEL)
    weights = uniform[:, own:].prod(1).pow(emphasis - 1)
    normal = torch.special.ndtri(uniform[:, :own])
    frequencies = torch.zeros(count, width, dtype=torch.float64, device="cpu")
    at, level = 0, 0
    for leaf in term.leaves:
        directions = torch.nn.functional.normalize(normal[:, at : at + leaf.dimensions], dim=1, eps=0)
        lengths = leaf.lengths(list(levels[:, level : level + leaf.levels].unbind(1)))
        frequencies[:, leaf.columns] = lengths[:, None] * directions
        at, level = at + leaf.dimensions, level + leaf.levels
    return frequencies, weights / weights.sum()


def _uniform(count: int, dimensions: int, generator: torch.Generator) -> Float64[Tensor, "p d"]:
    """Points of a unit cube, away from its sides: each uniform, all of them evenly spread."""
    seed = int(torch.randint(2**31, (1,), generator=generator, device="cpu"))
    if dimensions > _MOST_SOBOL:
        own = torch.Generator().manual_seed(seed)
        return torch.rand(count, dimensions, generator=own, dtype=torch.float64, device="cpu").clamp_min(
            0.5 * _RESOLUTION
        )
    # Given a seed, the engine draws from a generator of its own.
    engine = torch.quasirandom.SobolEngine(dimensions, scramble=True, seed=seed)
    return engine.draw(count, dtype=torch.float64) + 0.5 * _RESOLUTION


class _Waves(torch.autograd.Function):
    """[cos(z w'), sin(z w')] @ weights, by strips of z. In the graph of z alone."""

    @staticmethod
    def forward(ctx, z: Tensor, frequencies: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(z, frequencies, weights)
        out = z.new_empty(len(z), weights.shape[1])
        for rows, _, waves in _strips(z, frequencies):
            torch.matmul(waves, weights, out=out[rows])
        return out

    @staticmethod
    def backward(ctx, g_out: Tensor):  # type: ignore[override]
        z, frequencies, weights = ctx.saved_tensors
        p = len(frequencies)
        if differentiated(g_out):
            phases = z @ frequencies.mT
            slopes = torch.cat([-phases.sin(), phases.cos()], dim=1)
            halves = (g_out @ weights.mT) * slopes
            return (halves[:, :p] + halves[:, p:]) @ frequencies, None, None
        g_z = torch.empty_like(z)
        with no_autocast():
            for rows, phases, waves in _strips(z, frequencies):
                g_waves = g_out[rows].to(weights.dtype) @ weights.mT
                torch.mul(g_waves[:, p:], waves[:, :p], out=phases)
                phases.addcmul_(g_waves[:, :p], waves[:, p:], value=-1)
                torch.matmul(phases, frequencies, out=g_z[rows])
        return g_z, None, None


def _strips(z: Tensor, frequencies: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """(rows of z, their phases, their cosines beside their sines), overwritten by the next."""
    t, p = len(z), len(frequencies)
    numbers = _STRIP if z.device.type == "cpu" else _STRIP_CUDA
    width = min(t, max(1, numbers // max(3 * p, 1)))
    all_phases, all_waves = z.new_empty(width, p), z.new_empty(width, 2 * p)
    for rows in spans(0, t, max(width, 1)):
        size = rows.stop - rows.start
        phases, waves = all_phases[:size], all_waves[:size]
        torch.matmul(z[rows], frequencies.mT, out=phases)
        torch.cos(phases, out=waves[:, :p])
        torch.sin(phases, out=waves[:, p:])
        yield rows, phases, waves
