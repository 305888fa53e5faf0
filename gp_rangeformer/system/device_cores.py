"""Cores of block conjugate gradients that stay on an accelerator: factorised there, in float64, and never looked at.

Each function is one operation, ``torch.ops.gp_rangeformer.*``: on CUDA one Triton kernel in one program
(:mod:`gp_rangeformer.kernels.gpu.cores`), elsewhere the tensor operations below, which say what it computes. Shapes
never depend on numbers: a column that depends on those before it leaves a zero pivot, which is masked, and zero columns
from there on. Nothing waits, so that all of it can be captured in a graph.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from gp_rangeformer.kernels.gpu import operations

WIDEST = 64  # columns of a block whose cores fit into the registers of one program
# What a status holds: the least that a column has reached, as its target over what is left; iterations; a failure; the
# largest Rayleigh quotient of an inverse curvature. All of it is zero before anything is done.
REACHED, ITERATIONS, FAILURE, QUOTIENT = range(4)
NOT_PSD, NOT_FINITE = 1.0, 2.0
POWER_STEPS = 4


def resident(block: Tensor) -> bool:
    """Whether the cores of this block of columns stay beside it."""
    return block.shape[1] <= WIDEST and operations.answers_on(block.device)


def new_status(like: Tensor) -> Float64[Tensor, " four"]:
    """Nothing done yet, and everything left to do."""
    return like.new_zeros(4, dtype=torch.float64)


def masked_cholesky(
    core: Float64[Tensor, "k k"], floor: float
) -> tuple[Float64[Tensor, "k k"], Float64[Tensor, "k k"], Float64[Tensor, " k"]]:
    """L, a lower triangular M with M L = I where columns are kept, and the pivots. A column whose pivot is not above
    ``floor`` is zero in L, its row in M."""
    k = len(core)
    factor, inverse = torch.zeros_like(core), torch.eye(k, dtype=core.dtype, device=core.device)
    rows = torch.arange(k, device=core.device)
    pivots = []
    for j in range(k):
        pivot = core[j, j]
        pivots.append(pivot)
        scale = torch.where(pivot > floor, pivot.clamp_min(torch.finfo(core.dtype).tiny).rsqrt(), 0)
        column = torch.where(rows >= j, core[:, j] * scale, 0)
        core = core - torch.outer(column, column)
        factor[:, j] = column
        inverse[j] *= scale
        inverse = inverse - torch.outer(torch.where(rows > j, column, 0), inverse[j])
    return factor, inverse, torch.stack(pivots)


def conjugate(
    curvature: Float64[Tensor, "parts k k"],
    coefficients: Float64[Tensor, "k m"],
    status: Float64[Tensor, " four"],
    dtype: torch.dtype,
) -> Float[Tensor, "k m_plus_k"]:
    """[C^-1 Phi, C^-1] in ``dtype`` for the curvature C = D'A D, the sum of its parts, and the coefficients Phi:
    zeros once nothing is left to do or something has failed. Counts an iteration; notes whether C is finite and
    positive definite, and a Rayleigh quotient of C^-1."""
    return torch.ops.gp_rangeformer.conjugate(curvature, coefficients, status, dtype)


def orthonormalise(
    products: Float64[Tensor, "parts m two_m"],
    coefficients: Float64[Tensor, "m m"],
    norm: Float[Tensor, " m"],
    shares: Float64[Tensor, "2 m"],
    status: Float64[Tensor, " four"],
    dtype: torch.dtype,
) -> Float[Tensor, "m two_m"]:
    """[T, Phi'] in ``dtype`` with T'E T = I and Phi'Phi = E, from [G, E] = [W'W, W'P^-1 W], the sum of its parts.

    ``coefficients`` become Phi times what they were: of R = W coefficients by the columns of W T. ``status`` gets the
    least ratio over all columns of the first of ``shares`` times ``norm`` to |r|, and of the second of ``shares`` to
    (r'P^-1 r)^1/2, unless nothing was left to do before.
    """
    return torch.ops.gp_rangeformer.orthonormalise(products, coefficients, norm, shares, status, dtype)


def fit(
    images: Float[Tensor, "k s m"], wanted: Float[Tensor, "s m"], norm: Float[Tensor, " m"], rcond: float
) -> Float[Tensor, " k"]:
    """The c that minimise the sum over columns of |wanted - sum_k c_k images_k|^2 / norm^2; zeros if not finite."""
    return torch.ops.gp_rangeformer.fit(images, wanted, norm, rcond)


def column_sums(
    rhs: Float[Tensor, "n m"],
    solution: Float[Tensor, "n m"],
    residual: Float[Tensor, "n m"],
    correction: Float[Tensor, "n m"],
    noise: Float[Tensor, " n"],
) -> Float64[Tensor, "parts 5 m"]:
    """Of every column, in float64: r'r, r'D^-1 r, x'x, (b + r)'x and r'z, of b, x, r, z in this order. What the host is
    to add up over parts of the rows. O(n m)."""
    return torch.ops.gp_rangeformer.column_sums(rhs, solution, residual, correction, noise)


def wide_gram(left: Float[Tensor, "n k"], right: list[Tensor]) -> Float64[Tensor, "parts k m"]:
    """left' [right ...] with every product and sum in float64, to be added up over parts of the rows. O(n k m)."""
    return torch.ops.gp_rangeformer.wide_gram(left, right)


def _wide_gram(left: Tensor, right: list[Tensor]) -> Tensor:
    return (left.double().mT @ torch.cat(right, dim=1).double()).unsqueeze(0)


def _column_sums(rhs: Tensor, solution: Tensor, residual: Tensor, correction: Tensor, noise: Tensor) -> Tensor:
    b, x, r, z = (block.double() for block in (rhs, solution, residual, correction))
    squares = r.square()
    terms = squares, squares / noise.unsqueeze(-1), x.square(), (b + r) * x, r * z
    return torch.stack([term.sum(0) for term in terms]).unsqueeze(0)


def _conjugate(curvature: Tensor, coefficients: Tensor, status: Tensor, dtype: torch.dtype) -> Tensor:
    curvature = curvature.sum(0)
    core = 0.5 * (curvature + curvature.mT)
    _, root, pivots = masked_cholesky(core, 0.0)
    active = (status[REACHED] < 1) & (status[FAILURE] == 0)
    # Directions that are zero leave exact zeros.
    negative = ((pivots <= 0) & (core.diagonal() != 0)).any()
    failure = torch.where(core.isfinite().all(), NOT_PSD * negative, NOT_FINITE)
    status[FAILURE] = torch.where(active, failure, status[FAILURE])
    active = active & (failure == 0)
    inverse = root.mT @ root
    vector = inverse[inverse.diagonal().argmax()]
    for _ in range(POWER_STEPS):
        vector = inverse @ vector
        vector = vector / vector.norm().clamp_min(torch.finfo(core.dtype).tiny)
    quotient = torch.where(active, vector @ (inverse @ vector), 0)
    status[QUOTIENT] = torch.maximum(status[QUOTIENT], quotient)
    status[ITERATIONS] += active
    both = torch.cat([inverse @ coefficients, inverse], dim=1)
    return torch.where(active, both, 0).to(dtype)


def _orthonormalise(
    products: Tensor, coefficients: Tensor, norm: Tensor, shares: Tensor, status: Tensor, dtype: torch.dtype
) -> Tensor:
    gram, energy = products.sum(0).chunk(2, dim=1)
    energy = 0.5 * (energy + energy.mT)
    scale = energy.diagonal().clamp_min(0).sqrt()
    inverse_scale = torch.where(scale > 0, 1 / scale, 0)
    # Below this the Gram matrix holds rounding only: of float32 vectors (squared) or of float64 sums.
    floor = max(torch.finfo(dtype).eps ** 1.5, 1e-14)
    factor, inverse, _ = masked_cholesky(energy * inverse_scale * inverse_scale.unsqueeze(-1), floor)
    left = (coefficients * (gram @ coefficients)).sum(0).clamp_min(0).sqrt()
    allowed = (shares[0] * norm).clamp_min(torch.finfo(norm.dtype).tiny)
    root = factor.mT * scale
    new = root @ coefficients
    worst = torch.maximum(left / allowed, new.square().sum(0).sqrt() / shares[1])
    worst = torch.where(worst.isnan().any(), torch.inf, worst.amax())
    active = (status[REACHED] < 1) & (status[FAILURE] == 0)
    coefficients.copy_(torch.where(active, new, coefficients))
    status[REACHED] = torch.where(active, 1 / worst, status[REACHED])
    return torch.cat([inverse.mT * inverse_scale.unsqueeze(-1), root.mT], dim=1).to(dtype)


def _fit(images: Tensor, wanted: Tensor, norm: Tensor, rcond: float) -> Tensor:
    scale = 1 / norm.double().clamp_min(torch.finfo(norm.dtype).tiny)
    design = (images.double() * scale).flatten(1)
    target = (wanted.double() * scale).flatten()
    lengths = design.norm(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    design = design / lengths.unsqueeze(-1)
    _, inverse, _ = masked_cholesky(design @ design.mT, rcond**2)
    found = inverse.mT @ (inverse @ (design @ target)) / lengths
    return torch.where(found.isfinite().all(), found, 0).to(images.dtype)


def _example_block() -> Tensor:
    """33 columns, as many as a step of 32 probes has; one depends on others."""
    made = torch.randn(200, 33, generator=torch.Generator().manual_seed(0), device="cpu")
    made[:, 3] = made[:, 0] - 2 * made[:, 2]
    return made


def _example_core() -> tuple[Tensor, Tensor, Tensor]:
    """A Gram matrix, coefficients and a status."""
    wide = _example_block().double()
    return wide.mT @ wide, torch.eye(33, dtype=torch.float64, device="cpu"), new_status(wide)


def _conjugate_example() -> operations.Arguments:
    gram, coefficients, status = _example_core()
    return [torch.stack([gram, torch.eye(33, dtype=torch.float64, device="cpu")]), coefficients, status, torch.float32]


def _orthonormalise_example() -> operations.Arguments:
    gram, coefficients, status = _example_core()
    products, shares = torch.cat([gram, 2 * gram], dim=1), torch.full((2, 33), 0.3, dtype=torch.float64, device="cpu")
    return [products.unsqueeze(0), coefficients, torch.ones(33, device="cpu"), shares, status, torch.float32]


def _column_sums_example() -> operations.Arguments:
    made = _example_block()
    return [made, made.flip(0), made.double(), made.flip(1), torch.tensor(0.3, device="cpu").expand(200)]


def _fit_example() -> operations.Arguments:
    made = _example_block()
    return [made[:96].reshape(6, 16, 33), made[100:116], torch.ones(33, device="cpu"), 1e-6]


def _wide_gram_example() -> operations.Arguments:
    made = _example_block()
    return [made, [made, made.flip(0)]]


operations.register(
    "conjugate(Tensor curvature, Tensor coefficients, Tensor(a!) status, ScalarType dtype)",
    _conjugate,
    _conjugate_example,
)
operations.register(
    "orthonormalise(Tensor products, Tensor(a!) coefficients, Tensor norm, Tensor shares, Tensor(b!) status, "
    "ScalarType dtype)",
    _orthonormalise,
    _orthonormalise_example,
)
operations.register("wide_gram(Tensor left, Tensor[] right)", _wide_gram, _wide_gram_example)
operations.register(
    "column_sums(Tensor rhs, Tensor solution, Tensor residual, Tensor correction, Tensor noise)",
    _column_sums,
    _column_sums_example,
)
operations.register("fit(Tensor images, Tensor wanted, Tensor norm, float rcond)", _fit, _fit_example)
