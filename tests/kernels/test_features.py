"""Random waves have the kernel for their covariance, on average and ever more closely; their sums are functions."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from gp_rangeformer.kernels import features as module
from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.expression import Scale, Stationary
from gp_rangeformer.kernels.features import RandomFunctions, SpectralFeatures, coordinates
from tests.kernels.market import KERNELS, make, points, recognised
from tests.kernels.rounding import of_sum


class Setting(NamedTuple):
    """A kernel of the market at a few points."""

    expression: object
    arguments: tuple[Tensor, ...]
    matrix: Tensor

    def draw(self, features: int, seed: int) -> SpectralFeatures:
        generator = torch.Generator().manual_seed(seed)
        return SpectralFeatures.draw(self.expression, self.arguments, features, generator)  # type: ignore[arg-type]

    def covariance(self, drawn: SpectralFeatures) -> Tensor:
        phases = coordinates(self.arguments, len(self.matrix)) @ drawn.frequencies.mT
        differences = phases[:, None] - phases[None]
        return (differences.cos() * drawn.variances).sum(-1) + drawn.constant


def setting(name: str, n: int = 12) -> Setting:
    x, kernel = points(n), make(name)
    fused = recognised(kernel, x)
    with torch.no_grad():
        arguments = embed(fused.expression, x, fused.parameters)
        return Setting(fused.expression, arguments, kernel(x).to_dense())


def rms(error: Tensor) -> float:
    return float(error.square().mean().sqrt())


@pytest.mark.parametrize("name", KERNELS)
def test_the_average_is_the_kernel(name: str) -> None:
    """Of 64 independent draws, within six standard errors, which a correct one exceeds in 1e-7 of the entries. Weights
    are divided by their sum: the bias of that is far below the floor of 1e-3 of the variance."""
    at = setting(name)
    variance = float(at.matrix[0, 0])
    drawn = torch.stack([at.covariance(at.draw(1024, seed)) for seed in range(64)])
    allowed = 6 * drawn.std(0) / 64**0.5 + 1e-3 * variance
    assert rms(allowed) < 0.04 * variance  # or nothing would be said
    assert ((drawn.mean(0) - at.matrix).abs() <= allowed).all()
    torch.testing.assert_close(drawn[0].diagonal(), at.matrix.diagonal(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["rbf", "matern12", "rq", "periodic", "sum_of_products", "product_of_sums"])
def test_the_error_falls_with_the_features(name: str) -> None:
    """As their root at least: of 16 times as many a quarter is left, and a half would be wrong."""
    at = setting(name)
    few, many = (
        rms(torch.stack([at.covariance(at.draw(count, seed)) - at.matrix for seed in range(6)]))
        for count in (128, 2048)
    )
    assert few < 0.15 * float(at.matrix[0, 0])
    assert many < few / 2.5


def test_short_waves_are_many_and_faint() -> None:
    """Of a Matern-3/2 kernel, 1 % of whose variance is in the shortest waves: these are a fifth of all, v^3 < 0.01."""
    at = setting("matern32")
    drawn = at.draw(4096, 0)
    longest_last = drawn.frequencies.norm(dim=1).argsort(descending=True)
    variances = drawn.variances[longest_last]
    share = (variances.cumsum(0) < 0.01).double().mean()
    assert float(share) == pytest.approx(0.01 ** (1 / 3), abs=0.005)
    assert float(variances.sum()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("name", ["sum_of_products", "sum", "constant"])
def test_functions_have_the_covariance_of_their_features(name: str) -> None:
    """30,000 of them: entries within five standard errors of a Gaussian's sample covariance."""
    at, count = setting(name), 30_000
    drawn = at.draw(64, 1)
    functions = RandomFunctions(drawn, count, torch.Generator().manual_seed(2), torch.float64)
    values = functions(coordinates(at.arguments, 12))
    expected = at.covariance(drawn)
    variance = expected.diagonal()
    standard_error = ((variance[:, None] * variance + expected.square()) / count).sqrt()
    assert ((values @ values.mT / count - expected).abs() < 5 * standard_error).all()
    # To rounding: a product's sums have an order that depends on how many columns it has. Waves are at most 1.
    terms = len(functions._weights)
    room = 2 * of_sum(terms + 1, torch.float64) * float(functions._weights.abs().sum(0).max() + values.abs().max())
    some = functions.some([7, 3])(coordinates(at.arguments, 12))
    torch.testing.assert_close(some, values[:, [7, 3]], rtol=0, atol=room)


def test_strips_equal_one_piece_and_gradients_are_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    at = setting("product", n=23)
    functions = RandomFunctions(at.draw(32, 0), 3, torch.Generator().manual_seed(0), torch.float64)
    z = coordinates(at.arguments, 23).requires_grad_()
    weights = torch.randn(23, 3, dtype=torch.float64)
    whole = functions(z)
    (gradient,) = torch.autograd.grad((whole * weights).sum(), z)
    monkeypatch.setattr(module, "_STRIP", 5 * 3 * 16)  # five rows
    strips = functions(z)
    torch.testing.assert_close(strips, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad((strips * weights).sum(), z)[0], gradient, rtol=1e-10, atol=1e-10)
    few = z[:4].detach().requires_grad_()
    assert torch.autograd.gradcheck(functions, few)
    assert torch.autograd.gradgradcheck(functions, few)


def test_float32_functions_are_the_float64_ones() -> None:
    at = setting("scaled_sum")
    drawn, z = at.draw(256, 0), coordinates(at.arguments, 12)
    wide, narrow = (
        RandomFunctions(drawn, 5, torch.Generator().manual_seed(0), dtype)(z)
        for dtype in (torch.float64, torch.float32)
    )
    assert narrow.dtype == torch.float32
    # A phase of some hundred radians, rounded, moves its wave by 1e-5.
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-4)


def test_more_dimensions_than_a_sobol_sequence_has() -> None:
    d = module._MOST_SOBOL + 1
    arguments = (torch.tensor(2.0), torch.zeros(1, d, dtype=torch.float64))
    drawn = SpectralFeatures.draw(Scale(Stationary("rbf")), arguments, 8, torch.Generator().manual_seed(0))
    assert drawn.frequencies.shape == (4, d)
    # |w|^2 / d is one up to sqrt(2 / d) = 0.01.
    assert float((drawn.frequencies.square().mean(1) * drawn.variances).sum()) == pytest.approx(2, abs=0.1)


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    at = setting("rq")
    first, again, other = at.draw(64, 5), at.draw(64, 5), at.draw(64, 6)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.frequencies, again.frequencies)
    assert not torch.equal(first.frequencies, other.frequencies)
