"""What is said of many systems at once holds: residuals and intervals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.system.margins import entry_error
from tests.solvers.systems_together import TOLERANCE, Batch, batch, truth
from tests.solvers.test_exact_batch import dtypes
from tests.system.systems import kernel_matrix, points, targets


@pytest.mark.parametrize("noise", [1.0, 1e-2, 1e-3, 1e-5])
@pytest.mark.parametrize("n", [1, 2, 30, 120, 257])
def test_intervals_hold_the_float64_value_of_float32_systems(n, noise) -> None:
    for m in (1, 2):
        given = batch(n, m, torch.float32, noise)
        found = given.answered(0.9)  # in float32 and, where that would be too uncertain, in float64
        exact = truth(given)
        assert found.logdet_interval is not None
        assert found.logdet_interval.contains(float(exact.logdet.sum()))
        assert found.inv_quad_interval.contains(float(exact.inv_quad.sum()))
        assert found.logdet_interval.width < len(given.rhs) * n  # it says something


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("equal", [False, True], ids=["apart", "equal_points"])
def test_intervals_hold_it_where_roundings_have_one_sign(equal, offset) -> None:
    """Equal points, or constant targets far from zero: errors do not average out."""
    x = points(100, 1, duplicates=0.5) if equal else points(100, 1)
    kernel = torch.stack([scale * kernel_matrix(x, "rbf", 3.0) for scale in (1e-3, 1.0, 1e3)]).float()
    noise = torch.tensor([1e-4, 0.07, 3.0]).unsqueeze(-1).expand(3, 100)
    given = Batch(kernel, noise, (targets(100).expand(3, 100, 1) + offset).float())
    found, exact = given.answered(), truth(given)
    assert found.logdet_interval is not None
    assert found.logdet_interval.contains(float(exact.logdet.sum()))
    assert found.inv_quad_interval.contains(float(exact.inv_quad.sum()))


@pytest.mark.parametrize("n", [30, 120, 257])
def test_a_float32_quadratic_form_errs_by_the_square_of_its_residual(n) -> None:
    """b'x + r'x is off by r' A^-1 r, which is at most |r|^2 / noise; b'x alone would be by |r| |x|."""
    given = batch(n, 2, torch.float32, 1.0)
    found, exact = given.answered(), truth(given)
    kernel, noise, rhs = (part.double() for part in given)
    x = found.weight.solutions.double()
    left = rhs - kernel @ x - noise.unsqueeze(-1) * x
    allowed = left.square().sum(-2) / noise.amin(-1, keepdim=True)
    error = (torch.from_numpy(found.inv_quad) - exact.inv_quad).abs()
    assert found.factorised_in == torch.float32
    assert bool((error <= allowed + n * torch.finfo(torch.float64).eps * exact.inv_quad).all())
    assert float(allowed.max()) < torch.finfo(torch.float32).eps ** 1.5


def test_the_interval_of_a_quadratic_form_counts_what_its_residual_may_hide() -> None:
    given = batch(257, 1, torch.float32, 1e-4)
    found = given.answered(0.9)
    single = [interval for one in given.one_by_one(0.9) for interval in one.solution.inv_quad]
    assert found.factorised_in == torch.float32
    assert found.inv_quad_interval.width == pytest.approx(sum(interval.width for interval in single), rel=1e-3)


@dtypes
@pytest.mark.parametrize("noise", [1e-1, 1e-5])
def test_the_residual_is_a_claim_that_holds(noise, dtype) -> None:
    given = batch(100, 2, dtype, noise)
    found = given.answered()
    kernel, noises, rhs = (part.numpy().astype(np.longdouble) for part in given)
    x = found.weight.solutions.numpy().astype(np.longdouble)
    left = rhs - kernel @ x - noises[..., None] * x
    relative = np.sqrt((left**2).sum(1)) / np.sqrt((rhs**2).sum(1))
    assert float(relative.max()) <= found.residual
    assert found.residual < TOLERANCE


@dtypes
@pytest.mark.parametrize("relative", [0.0, 3.0, 100.0])
def test_an_asymmetry_widens_what_is_said_as_for_one_system(relative, dtype) -> None:
    symmetric = batch(50, 1, dtype)
    asymmetry = relative * torch.finfo(dtype).eps
    largest = symmetric.kernel.diagonal(dim1=-2, dim2=-1).amax()
    given = symmetric._replace(kernel=symmetric.kernel + torch.ones(50, 50, dtype=dtype).triu(1) * asymmetry * largest)
    found = given.answered(asymmetry=asymmetry)
    intervals, logdets, residuals = [], [], []
    for system, rhs in zip(given.systems(), given.rhs, strict=True):
        system.asymmetry, system.skewed = asymmetry, relative > 0
        one = Exact(TOLERANCE).prepare(system).evaluate(rhs)
        assert one.logdet is not None
        intervals.append(one.solution.inv_quad[0])
        logdets.append(one.logdet.rigorous)
        residuals.append(one.residual)
    assert found.logdet_interval is not None
    assert found.residual == pytest.approx(max(residuals), rel=0.5)
    assert found.inv_quad_interval.width == pytest.approx(sum(i.width for i in intervals), rel=0.5)
    assert found.logdet_interval.width == pytest.approx(sum(i.width for i in logdets), rel=1e-6)
    plain = symmetric.answered()
    assert plain.logdet_interval is not None
    if relative > 1:
        assert found.residual > plain.residual
        assert found.inv_quad_interval.width > plain.inv_quad_interval.width
        assert found.logdet_interval.width > plain.logdet_interval.width


@dtypes
def test_intervals_with_an_asymmetry_hold_the_value_of_the_symmetric_part(dtype) -> None:
    """Which triangle a factorisation reads makes no difference then."""
    given = batch(60, 1, dtype)
    largest = (given.kernel.diagonal(dim1=-2, dim2=-1) + given.noise).amax(-1)
    asymmetry = 1e-5
    step = 0.49 * asymmetry * largest[:, None, None] * torch.ones(60, 60, dtype=dtype)
    uneven = given.kernel + step.triu(1) - step.tril(-1)  # all of one sign
    found = given._replace(kernel=uneven).answered(asymmetry=asymmetry)
    exact = truth(given)
    assert found.logdet_interval is not None
    assert found.logdet_interval.contains(float(exact.logdet.sum()))
    assert found.inv_quad_interval.contains(float(exact.inv_quad.sum()))
    assert entry_error(dtype, asymmetry) == asymmetry
