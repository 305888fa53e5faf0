"""Many systems at once by the exact path: values, weights, and what is looked at singly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from gp_rangeformer.preconditioner.certificate import FEW_COLUMNS
from gp_rangeformer.solvers import exact_batch
from gp_rangeformer.solvers.exact import FACTORISED_IN_FLOAT64, Exact
from gp_rangeformer.system.reason import Reason
from tests.solvers.systems_together import DTYPES, TOLERANCE, Batch, batch, rounding, truth
from tests.system.systems import spectrum_matrix

dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@dtypes
@pytest.mark.parametrize("m", range(FEW_COLUMNS + 1))
@pytest.mark.parametrize("n", [1, 2, 60, 150])
def test_values_residuals_and_intervals_are_those_of_one_system_after_the_other(n, m, dtype) -> None:
    given = batch(n, m, dtype)
    found, single = given.answered(), given.one_by_one()
    allowed = 4 * rounding(given)
    assert found.inv_quad.shape == (3, m)
    assert found.logdet is not None
    assert found.logdet_interval is not None
    for element, one in enumerate(single):
        assert one.logdet is not None
        np.testing.assert_allclose(found.inv_quad[element], one.solution.quadratic.numpy(), rtol=allowed)
        assert found.logdet[element] == pytest.approx(one.logdet.value, rel=allowed, abs=n * allowed)
        weight = one.weight.solutions
        torch.testing.assert_close(found.weight.solutions[element], weight, rtol=0, atol=allowed * _largest(weight))
    # What is left of a residual is rounding, which may differ; what is counted beside it may not.
    counted = max(
        float((system.entry_scale * one.weight.solutions.double().norm(dim=0) / rhs.double().norm(dim=0)).max())
        for system, one, rhs in zip(given.systems(), single, given.rhs, strict=True)
    ) if m else 0.0  # fmt: skip
    largest = max(one.residual for one in single)
    assert found.residual >= counted * (1 - allowed)
    assert found.residual == pytest.approx(largest, rel=0.5)
    quadratic = [interval for one in single for interval in one.solution.inv_quad]
    logdets = [one.logdet.rigorous for one in single if one.logdet is not None]
    size = float(np.abs(found.inv_quad).sum()) + n
    for whole, parts in ((found.inv_quad_interval, quadratic), (found.logdet_interval, logdets)):
        assert whole.width == pytest.approx(sum(part.width for part in parts), rel=0.5, abs=allowed**2)
        assert whole.lower == pytest.approx(sum(part.lower for part in parts), abs=allowed * size)
        assert whole.upper == pytest.approx(sum(part.upper for part in parts), abs=allowed * size)


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_small_float32_systems_are_not_multiplied_one_by_one(at_once, monkeypatch) -> None:
    """500 of 20 points took a hundred times as long as their product."""
    monkeypatch.setattr(exact_batch, "multiply_wide", None)
    monkeypatch.setattr(exact_batch, "_WIDE_NUMBERS", at_once * 60**2)
    given = batch(60, 1, torch.float32)
    found, single = given.answered(), given.one_by_one()
    for element, one in enumerate(single):
        np.testing.assert_allclose(found.inv_quad[element], one.solution.quadratic.numpy(), rtol=4 * rounding(given))


def _largest(tensor: Tensor) -> float:
    return float(tensor.abs().max()) if tensor.numel() else 0.0


@dtypes
@pytest.mark.parametrize("m", [0, 1, 3])
@pytest.mark.parametrize("with_logdet", [True, False])
def test_the_weight_is_that_of_every_system(with_logdet, m, dtype) -> None:
    given = batch(40, m, dtype)
    found, single = given.answered(with_logdet=with_logdet), given.one_by_one(with_logdet=with_logdet)
    generator = torch.Generator().manual_seed(3)
    g_inv_quad = torch.randn(3, m, generator=generator, dtype=torch.float64).to(dtype)
    g_logdet = torch.tensor([0.7, 0.0, -1.3], dtype=dtype)
    dense = found.weight.dense(g_inv_quad, g_logdet)
    assert found.weight.thin(g_inv_quad, g_logdet) is None
    assert dense.shape == given.kernel.shape
    for element, one in enumerate(single):
        expected = one.weight.dense(g_inv_quad[element], g_logdet[element])
        allowed = 4 * rounding(given) * max(1.0, _largest(expected))
        torch.testing.assert_close(dense[element], expected, rtol=0, atol=allowed)
    torch.testing.assert_close(dense, dense.mT, rtol=0, atol=4 * rounding(given) * _largest(dense))


@dtypes
def test_without_a_log_determinant_none_is_said_and_no_factor_is_kept(dtype) -> None:
    given = batch(30, 2, dtype)
    found = given.answered(with_logdet=False)
    assert found.logdet is None
    assert found.logdet_interval is None
    assert found.weight.factor is None
    inv_quad, logdet = found.outputs(given.rhs)
    assert inv_quad.dtype == logdet.dtype == dtype
    assert inv_quad.shape == (3, 2)
    assert torch.equal(logdet, torch.zeros(3, dtype=dtype))


@dtypes
def test_outputs_are_new_tensors_in_the_dtype_that_is_asked_for(dtype) -> None:
    given = batch(30, 2, dtype)
    found = given.answered()
    first, second = found.outputs(given.rhs), found.outputs(given.rhs)
    for own, other, expected in zip(first, second, truth(given)[:2], strict=True):
        assert own.dtype == dtype
        torch.testing.assert_close(own.double(), expected, rtol=4 * rounding(given), atol=30 * rounding(given))
        own.zero_()
        assert bool((other != 0).all())


def test_float32_is_promoted_for_all_where_one_system_asks_for_it() -> None:
    calm = batch(80, 1, torch.float32, 0.3)
    noise = calm.noise.clone()
    noise[1] = 1e-3
    mixed = calm._replace(noise=noise)
    assert calm.answered().factorised_in == torch.float32
    found = mixed.answered()
    assert found.factorised_in == torch.float64
    assert found.weight.factor is not None
    assert found.weight.factor.dtype == torch.float64
    assert found.weight.solutions.dtype == torch.float32
    assert found.logdet is not None
    # The rounding of float64, not that of float32.
    np.testing.assert_allclose(found.logdet, truth(mixed).logdet.numpy(), rtol=4 * rounding(mixed, torch.float64))
    promoted = [FACTORISED_IN_FLOAT64 in Exact(TOLERANCE).prepare(system).notes() for system in mixed.systems()]
    assert promoted == [False, True, False]


def test_float64_is_factorised_in_float64_whatever_the_noise() -> None:
    for noise in (1.0, 1e-8):
        assert batch(50, 1, noise=noise).answered().factorised_in == torch.float64


def changed(part: str, value: float | Callable[[Tensor], Tensor], where: tuple[int, ...]) -> Callable[[Batch], Batch]:
    def change(given: Batch) -> Batch:
        tensor = getattr(given, part).clone()
        tensor[where] = value
        if part == "kernel" and len(where) == 3:
            tensor[where[0], where[2], where[1]] = value
        return given._replace(**{part: tensor})

    return change


INDEFINITE = spectrum_matrix(torch.linspace(-3, 1, 30, dtype=torch.float64))

REFUSED: dict[str, Callable[[Batch], Batch]] = {
    **{
        f"{part}_{value}_{place}": changed(part, float(value), where)
        for value in ("nan", "inf", "-inf")
        for part, place, where in (
            ("kernel", "off_diagonal", (1, 3, 7)),
            ("kernel", "last_row", (1, 29, 0)),
            ("kernel", "diagonal", (1, 5, 5)),
            ("kernel", "last_diagonal", (2, 29, 29)),
            ("noise", "one", (0, 4)),
            ("rhs", "one", (2, 29, 0)),
            ("rhs", "first", (0, 0, 1)),
        )
    },
    "zero_noise": changed("noise", 0.0, (1, 29)),
    "negative_noise": changed("noise", -1e-3, (1, 0)),
    "all_noise_zero": lambda given: given._replace(noise=torch.zeros_like(given.noise)),
    "negative_direction": lambda given: given._replace(
        kernel=torch.stack([given.kernel[0], INDEFINITE.to(given.kernel), given.kernel[2]])
    ),
    "negative_last_pivot": changed("kernel", -1.0, (2, 29, 29)),
}


@dtypes
@pytest.mark.parametrize("name", REFUSED)
def test_one_system_that_is_not_well_leaves_all_to_be_looked_at_singly(name, dtype) -> None:
    well = batch(30, 2, dtype)
    assert well.evaluate() is not None
    assert REFUSED[name](well).evaluate() is None
    if not name.startswith("rhs"):
        assert REFUSED[name](well)._replace(rhs=well.rhs[..., :0]).evaluate() is None


@dtypes
def test_more_than_a_few_columns_are_looked_at_singly(dtype) -> None:
    assert batch(30, FEW_COLUMNS, dtype).evaluate() is not None
    assert batch(30, FEW_COLUMNS + 1, dtype).evaluate() is None


def test_a_residual_above_the_tolerance_is_looked_at_singly() -> None:
    """There float64 is tried, and what the dtype cannot hold is said."""
    given = batch(150, 1, torch.float32, 1e-5, ("rbf", "rbf"))
    residual = given.answered(0.9).residual
    assert given.evaluate(2 * residual) is not None
    assert given.evaluate(0.5 * residual) is None
    solution = given.one_by_one(0.5 * residual)[0].solution
    assert solution.reason is Reason.ROUNDING


def test_the_worst_system_and_column_decide() -> None:
    given = batch(60, 2)
    noise = given.noise.clone()
    noise[2] = 1e-6
    worse = given._replace(noise=noise)
    alone = [Batch(*(part[e : e + 1] for part in worse)).answered().residual for e in range(3)]
    assert worse.answered().residual == pytest.approx(max(alone), rel=0.5)
    between = (max(alone) * sorted(alone)[1]) ** 0.5
    assert worse.evaluate(between) is None


@dtypes
def test_a_column_of_zeros_is_solved_by_zeros(dtype) -> None:
    given = batch(20, 2, dtype)
    given.rhs[1, :, 0] = 0
    found = given.answered()
    assert found.inv_quad[1, 0] == 0
    assert torch.equal(found.weight.solutions[1, :, 0], torch.zeros(20, dtype=dtype))
    assert 0 < found.residual < TOLERANCE
    nothing = given._replace(rhs=torch.zeros_like(given.rhs)).answered()
    assert nothing.residual == 0
    assert nothing.inv_quad_interval.contains(0.0)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_targets_of_any_size_are_answered_in_float32(scale) -> None:
    """Their squares are beyond what the dtype holds."""
    given = batch(20, 1, torch.float32)
    scaled = given._replace(rhs=scale * given.rhs)
    found, exact = scaled.answered(), truth(scaled)
    np.testing.assert_allclose(found.inv_quad, exact.inv_quad.numpy(), rtol=1e-4)
    assert found.inv_quad_interval.contains(float(exact.inv_quad.sum()))


@dtypes
def test_what_is_given_is_left_as_it_is_however_it_lies_in_memory(dtype) -> None:
    given = batch(40, 2, dtype)
    expected = given.answered()
    columns_first = Batch(given.kernel.mT.contiguous().mT, given.noise.mT.contiguous().mT, given.rhs.mT.contiguous().mT)
    for laid_out in (given, columns_first):
        before = [part.clone() for part in laid_out]
        found = laid_out.answered()
        assert all(torch.equal(own, other) for own, other in zip(laid_out, before, strict=True))
        np.testing.assert_allclose(found.inv_quad, expected.inv_quad, rtol=4 * rounding(given))
    shared = Batch(given.kernel[:1].expand(3, 40, 40), given.noise[:1].expand(3, 40), given.rhs)
    copied = Batch(*(part.clone() for part in shared))
    np.testing.assert_array_equal(shared.answered().inv_quad, copied.answered().inv_quad)
    assert torch.equal(shared.kernel[2], given.kernel[0])


@dtypes
def test_an_element_has_the_same_answer_in_every_company(dtype) -> None:
    given = batch(70, 1, dtype)
    whole = given.answered()
    for element in range(3):
        alone = Batch(*(part[element : element + 1] for part in given)).answered()
        np.testing.assert_allclose(alone.inv_quad[0], whole.inv_quad[element], rtol=4 * rounding(given))
        assert alone.logdet is not None
        assert whole.logdet is not None
        assert alone.logdet[0] == pytest.approx(whole.logdet[element], rel=4 * rounding(given))


@dtypes
def test_the_same_call_gives_the_same_bits(dtype) -> None:
    given = batch(64, 2, dtype)
    first, second = given.answered(), given.answered()
    assert first.weight.factor is not None
    assert second.weight.factor is not None
    assert torch.equal(first.weight.factor, second.weight.factor)
    assert torch.equal(first.weight.solutions, second.weight.solutions)
    np.testing.assert_array_equal(first.inv_quad, second.inv_quad)
    assert first.residual == second.residual
    assert first.logdet_interval == second.logdet_interval
