"""Coordinates about a middle that most of the points are near."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.cross import CrossKernel
from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.expression import Stationary
from gp_rangeformer.kernels.fused import FusedKernel
from tests.kernels.market import points

CODE = -999999.0  # for a missing value
KIND = Stationary("matern32")
LENGTHSCALE = torch.ones(1, 1)


def with_codes(n: int, share: float) -> Tensor:
    x = points(n, torch.float32)
    x[: int(share * n), 1] = CODE
    return x


@pytest.mark.parametrize("share", [0.003, 0.1, 0.4])
def test_codes_for_missing_values_do_not_coarsen_the_other_points(share: float) -> None:
    """About the mean those are at 3,000 to 400,000, which float32 has in steps of 0.0002 to 0.03."""
    x = with_codes(400, share)
    with settings.fused_kernels("compiled"):
        found = FusedKernel(KIND, x, (LENGTHSCALE,)).dense()
    r = 3**0.5 * torch.cdist(x.double(), x.double(), compute_mode="donot_use_mm_for_euclid_dist")
    torch.testing.assert_close(found.double(), (1 + r) * (-r).exp(), rtol=0, atol=1e-6)


def test_many_points_are_sampled_in_step_with_no_season() -> None:
    x = points(7007)
    x[::7, 1] = CODE
    (coordinates,) = embed(KIND, x, (LENGTHSCALE.double(),))
    assert float(coordinates[1::7].abs().max()) < 10


def test_another_default_device_moves_no_middle() -> None:
    """Nor is what was made under it kept for later."""
    x = points(5009) + 7
    with torch.device("meta"):
        (under,) = embed(KIND, x, (LENGTHSCALE.double(),))
    (after,) = embed(KIND, x, (LENGTHSCALE.double(),))
    expected = x.double() - x.double().median(0).values
    for found in (under, after):
        assert (found - expected).abs().max() < 0.5


def test_every_batch_has_its_own_middle() -> None:
    x = torch.stack([points(100), points(100, seed=1) + 1e8])
    (coordinates,) = embed(KIND, x, (LENGTHSCALE.double(),))
    for found, own in zip(coordinates, x, strict=True):
        assert torch.equal(found, embed(KIND, own, (LENGTHSCALE.double(),))[0])
        assert float(found.abs().max()) < 10


def test_a_middle_is_a_point_and_moves_no_distance() -> None:
    x = points(100).requires_grad_()
    (coordinates,) = embed(KIND, x, (LENGTHSCALE.double(),))
    assert bool((coordinates == 0).any(0).all())
    (gradient,) = torch.autograd.grad(coordinates.sum(), x)
    assert torch.equal(gradient, torch.ones_like(x))


def test_points_asked_for_leave_the_middle_of_the_others() -> None:
    x, asked = with_codes(200, 0.1), 1e6 + points(300, torch.float32, seed=1)
    (coordinates,) = CrossKernel(KIND, x, asked, (LENGTHSCALE,)).arguments
    assert torch.equal(coordinates[:200], embed(KIND, x, (LENGTHSCALE,))[0])


def test_no_points_have_no_middle() -> None:
    assert embed(KIND, torch.empty(0, 2), (LENGTHSCALE,))[0].shape == (0, 2)
