"""RangeFormer: symmetries that hold by construction, bounds that hold with any weights, and sizes that are free."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import Tensor

from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.rangeformer import RangeFormer, RangeFormerConfig, RangeFormerOutput
from tests.system.systems import kernel_matrix, points, spectrum_matrix

CONFIG = RangeFormerConfig(dim=16, sketch=6, width=6, heads=2, head_dim=4, loops=3)


def random_model(seed: int = 0, **changes: object) -> RangeFormer:
    """Float64, every weight moved off its initial value: what holds here holds for any training."""
    torch.manual_seed(seed)
    model = RangeFormer(dataclasses.replace(CONFIG, **changes)).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) / max(parameter.shape[-1], 1) ** 0.5)
    return model


def matrices(n: int = 30, seed: int = 0) -> Tensor:
    """A kernel matrix with noise and one with a chosen spectrum, condition 1e3."""
    kernel = kernel_matrix(points(n, 3, seed)) + 0.05 * torch.eye(n, dtype=torch.float64)
    decay = spectrum_matrix(torch.logspace(0, -3, n, dtype=torch.float64), seed)
    return torch.stack([kernel, decay])


def ask(model: RangeFormer, a: Tensor, rhs: Tensor, codes: Tensor, loops: int = 3) -> RangeFormerOutput:
    with torch.no_grad():
        return model(DenseOperator(a), rhs, loops=loops, codes=codes)[-1]


def ingredients(model: RangeFormer, a: Tensor, m: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    rhs = torch.randn(*a.shape[:2], m, generator=generator, dtype=torch.float64)
    return rhs, model.embedding.codes(DenseOperator(a), generator)


@pytest.mark.parametrize("feature_map", ["taylor", "identity", "softmax"])
def test_permuting_rows_and_codes_permutes_the_answers(feature_map: str) -> None:
    model = random_model(feature_map=feature_map)
    a = matrices()
    rhs, codes = ingredients(model, a)
    order = torch.randperm(a.shape[-1], generator=torch.Generator().manual_seed(5))
    plain = ask(model, a, rhs, codes)
    permuted = ask(model, a[:, order][:, :, order], rhs[:, order], codes[:, order])
    for name in ("trace", "lambda_max", "logdet"):
        torch.testing.assert_close(getattr(permuted, name), getattr(plain, name), rtol=1e-8, atol=1e-8)
    for name in ("basis", "solution"):
        torch.testing.assert_close(getattr(permuted, name), getattr(plain, name)[:, order], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("factor", [1e-6, 37.0, 1e6])
def test_scaling_the_matrix_scales_the_answers(factor: float) -> None:
    model = random_model()
    a = matrices()
    rhs, codes = ingredients(model, a)
    plain, scaled = ask(model, a, rhs, codes), ask(model, factor * a, rhs, codes)
    n = a.shape[-1]
    torch.testing.assert_close(scaled.lambda_max, factor * plain.lambda_max, rtol=1e-8, atol=0)
    torch.testing.assert_close(scaled.trace, factor * plain.trace, rtol=1e-8, atol=0)
    torch.testing.assert_close(scaled.logdet, plain.logdet + n * torch.tensor(factor).double().log(), rtol=1e-7, atol=0)
    assert plain.solution is not None
    torch.testing.assert_close(scaled.solution, plain.solution / factor, rtol=1e-6, atol=1e-12 / factor)
    torch.testing.assert_close(scaled.basis, plain.basis, rtol=1e-6, atol=1e-7)


def test_scaling_a_right_hand_side_scales_its_solution_alone() -> None:
    model = random_model()
    a = matrices()
    rhs, codes = ingredients(model, a)
    factors = torch.tensor([1e3, 1.0], dtype=torch.float64)
    plain, scaled = ask(model, a, rhs, codes), ask(model, a, rhs * factors, codes)
    assert plain.solution is not None
    torch.testing.assert_close(scaled.solution, plain.solution * factors, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("columns", [(), (2,)], ids=["n", "n x m"])
def test_a_single_matrix_takes_its_right_hand_sides_unbatched(columns: tuple[int, ...]) -> None:
    model = random_model()
    a = matrices()[0]
    rhs = torch.randn(len(a), *columns, dtype=torch.float64)
    codes = model.embedding.codes(DenseOperator(a), torch.Generator().manual_seed(3))
    floor = torch.tensor(0.05, dtype=torch.float64)
    with torch.no_grad():
        single = model(DenseOperator(a), rhs, codes=codes, floor=floor)[-1]
        batched = model(DenseOperator(a[None]), rhs.reshape(1, len(a), -1), codes=codes, floor=floor[None])[-1]
    assert single.solution is not None
    assert single.residual is not None
    assert single.solution.shape == single.residual.shape == rhs.shape
    assert torch.equal(single.solution, batched.solution.reshape(rhs.shape))
    assert torch.equal(single.logdet, batched.logdet)
    torch.testing.assert_close(single.residual, rhs - a @ single.solution, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("batch", "shape", "message"),
    [
        (1, (29,), "must be 30, 30 x m or 1 x 30 x m.*got 29$"),
        (1, (2, 30), "got 2 x 30$"),
        (1, (2, 30, 1), "got 2 x 30 x 1$"),
        (1, (), "got a scalar$"),
        (2, (30,), "must be 2 x 30 x m, as the matrices are 2 x 30 x 30: got 30$"),
        (2, (30, 1), "got 30 x 1$"),
        (2, (1, 30, 1), "got 1 x 30 x 1$"),
    ],
)
def test_right_hand_sides_that_do_not_fit_are_refused_with_both_shapes(batch, shape, message) -> None:
    with pytest.raises(ValueError, match=message):
        random_model()(DenseOperator(matrices()[:batch]), torch.ones(shape, dtype=torch.float64))


def test_a_floor_for_another_number_of_matrices_is_refused() -> None:
    with pytest.raises(ValueError, match=r"one number or 2, one per matrix, got \(3,\)"):
        random_model()(DenseOperator(matrices()), floor=torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 64])
def test_one_set_of_weights_serves_every_size(n: int) -> None:
    model = random_model()
    a = matrices(n)
    rhs, codes = ingredients(model, a)
    output = ask(model, a, rhs, codes)
    assert output.basis.shape == (2, n, min(n, CONFIG.sketch + 3 * CONFIG.width))
    assert output.solution is not None
    for value in (output.lambda_max, output.logdet, output.solution):
        assert value.isfinite().all()


def test_a_range_that_is_everything_gives_exact_answers_whatever_the_weights() -> None:
    model = random_model()
    a = matrices()
    rhs, codes = ingredients(model, a)
    output = ask(model, a, rhs, codes, loops=20)
    assert output.basis.shape[-1] == a.shape[-1]
    torch.testing.assert_close(output.logdet, torch.linalg.slogdet(a).logabsdet, rtol=1e-9, atol=1e-9)
    assert output.solution is not None
    torch.testing.assert_close(a @ output.solution, rhs, rtol=0, atol=1e-9)
    torch.testing.assert_close(output.lambda_max, torch.linalg.eigvalsh(a)[:, -1], rtol=1e-9, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_the_log_determinant_stays_below_what_the_range_proves(seed: int) -> None:
    model = random_model(seed)
    a = matrices(40, seed)
    rhs, codes = ingredients(model, a)
    output = ask(model, a, rhs, codes)
    exact = torch.linalg.slogdet(a).logabsdet
    assert (output.logdet <= output.logdet_upper).all()
    assert (exact <= output.logdet_upper + 1e-9 * exact.abs()).all()


def test_a_known_floor_bounds_the_log_determinant_from_below() -> None:
    """Of K + 0.05 I nothing is below 0.05, whatever the weights say."""
    a = matrices(60)[:1]
    for seed in range(3):
        model = random_model(seed)
        rhs, codes = ingredients(model, a)
        with torch.no_grad():
            outputs = model(DenseOperator(a), rhs, codes=codes, floor=torch.tensor(0.05).double())
        for output in outputs:
            inside = output.eigenpairs()[0].log().sum()
            lower = inside + (60 - output.basis.shape[-1]) * torch.tensor(0.05).log()
            assert output.logdet.item() >= lower.item() - 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_error_of_a_solve_never_grows_over_the_loops(seed: int) -> None:
    model = random_model(seed)
    a = matrices(40, seed)
    rhs, codes = ingredients(model, a)
    exact = torch.linalg.solve(a, rhs)
    with torch.no_grad():
        outputs = model(DenseOperator(a), rhs, loops=12, codes=codes)
    energies = []
    for output in outputs:
        error = output.solution - exact
        energies.append((error * (a @ error)).sum(-2))
        torch.testing.assert_close(output.residual, rhs - a @ output.solution, rtol=0, atol=1e-6)
    for before, after in itertools.pairwise(energies):
        assert (after <= before * (1 + 1e-9) + 1e-12).all()
    assert (energies[-1] < 1e-9 * (rhs * exact).sum(-2)).all()


def test_the_basis_is_orthonormal_and_its_image_is_a_times_it() -> None:
    model = random_model()
    a = matrices(50)
    rhs, codes = ingredients(model, a)
    output = ask(model, a, rhs, codes)
    identity = torch.eye(output.basis.shape[-1], dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(output.basis.mT @ output.basis, identity, rtol=0, atol=1e-12)
    torch.testing.assert_close(output.image, a @ output.basis, rtol=1e-9, atol=1e-12)


def test_eigenpairs_are_the_ritz_pairs_of_the_range() -> None:
    model = random_model()
    a = matrices(40)
    rhs, codes = ingredients(model, a)
    values, vectors = ask(model, a, rhs, codes).eigenpairs()
    exact = torch.linalg.eigvalsh(a).flip(-1)[:, : values.shape[-1]]
    assert (values.diff(dim=-1) <= 1e-12).all()
    assert (values <= exact + 1e-12).all()
    torch.testing.assert_close(vectors.mT @ a @ vectors, torch.diag_embed(values), rtol=1e-9, atol=1e-12)


def test_the_matrix_is_only_multiplied() -> None:
    """sketch columns once, then width per loop; nothing else is asked of A than its diagonal."""

    class Counting(DenseOperator):
        columns = 0

        def matmul(self, block: Tensor) -> Tensor:
            type(self).columns += block.shape[-1]
            return super().matmul(block)

    model = random_model()
    a = matrices(50)
    rhs, codes = ingredients(model, a)
    with torch.no_grad():
        output = model(Counting(a), rhs, loops=5, codes=codes)[-1]
    assert Counting.columns == CONFIG.sketch + 5 * CONFIG.width == output.basis.shape[-1]


def test_codes_come_from_the_generator() -> None:
    model = random_model()
    a = matrices()

    def logdet(seed: int) -> Tensor:
        with torch.no_grad():
            return model(DenseOperator(a), generator=torch.Generator().manual_seed(seed))[-1].logdet

    assert torch.equal(logdet(1), logdet(1))
    assert not torch.equal(logdet(1), logdet(2))


def test_untrained_it_is_block_conjugate_gradients_beside_a_block_krylov_range() -> None:
    """The range holds A^k Gamma and A^k b, and the solution is the best one in it."""
    torch.manual_seed(0)
    model = RangeFormer(CONFIG).double()
    a = matrices(80)
    _, codes = ingredients(model, a)
    output = ask(model, a, codes[..., :0], codes, loops=3)
    start = codes
    krylov = torch.cat([torch.linalg.matrix_power(a, k) @ start for k in range(4)], dim=-1)
    krylov = krylov / krylov.norm(dim=-2, keepdim=True)
    left = krylov - output.basis @ (output.basis.mT @ krylov)
    assert (left.norm(dim=-2) < 1e-4).all()

    rhs = torch.randn(2, 80, 1, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    solved = ask(model, a, rhs, codes, loops=3)
    best = solved.basis @ torch.linalg.solve(solved.basis.mT @ a @ solved.basis, solved.basis.mT @ rhs)
    torch.testing.assert_close(solved.solution, best, rtol=1e-8, atol=1e-8)


def test_growth_ends_where_every_residual_meets_the_tolerance() -> None:
    model = random_model()
    a = matrices(200)[:1]
    rhs, codes = ingredients(model, a, m=3)
    with torch.no_grad():
        outputs = model(DenseOperator(a), rhs, codes=codes, tolerance=0.05)
    residuals = [(output.residual.norm(dim=-2) / rhs.norm(dim=-2)).max().item() for output in outputs]
    assert residuals[-1] <= 0.05 < min(residuals[:-1])
    assert outputs[-1].basis.shape[-1] < 200


def test_a_right_hand_side_that_is_solved_costs_no_further_columns() -> None:
    """The first is A times the codes: the first product has solved it, and a loop is as wide as the others."""
    model = random_model()
    a = matrices(200)[:1]
    rhs, codes = ingredients(model, a, m=10)
    rhs[..., 0] = (a @ codes)[..., 0]
    with torch.no_grad():
        outputs = model(DenseOperator(a), rhs, codes=codes, tolerance=1e-6, loops=2)
    assert [output.basis.shape[-1] for output in outputs] == [6 + 9, 6 + 2 * 9]


def test_columns_bound_the_range() -> None:
    model = random_model()
    a = matrices(100)
    rhs, codes = ingredients(model, a)
    with torch.no_grad():
        output = model(DenseOperator(a), rhs, codes=codes, columns=32)[-1]
    assert output.basis.shape[-1] == 32


def test_the_last_answer_is_the_same_whether_or_not_earlier_ones_are_read() -> None:
    model = random_model()
    a = matrices(60)
    rhs, codes = ingredients(model, a)
    with torch.no_grad():
        every = model(DenseOperator(a), rhs, codes=codes)
        (last,) = model(DenseOperator(a), rhs, codes=codes, last_only=True)
    assert len(every) == 3
    assert torch.equal(every[-1].logdet, last.logdet)
    assert torch.equal(every[-1].solution, last.solution)


def test_random_right_hand_sides_are_probes_of_the_log_determinant() -> None:
    """Untrained: a Lanczos quadrature. 64 probes, whose sample error is 0.5 * sqrt(2 / (64 * 300)) = 0.005 nats per
    point for logarithms of eigenvalues that vary by 0.5; four times that."""
    torch.manual_seed(0)
    model = RangeFormer(CONFIG).double()
    spectrum = (0.5 * torch.randn(300, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).exp()
    a = spectrum_matrix(spectrum, 2)[None]
    probes = torch.randn(1, 300, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64).sign()
    _, codes = ingredients(model, a)
    with torch.no_grad():
        output = model(DenseOperator(a), probes, codes=codes, columns=200, isotropic=64)[-1]
    error = (output.logdet_quadrature - spectrum.log().sum()).abs().item() / 300
    assert error < 0.02


def test_loops_are_free_and_impossible_ones_are_refused() -> None:
    a = DenseOperator(matrices(200))
    assert len(random_model()(a, loops=20)) == 20
    for wrong in ({"loops": 0}, {"width": 0}, {"columns": 0}):
        with pytest.raises(ValueError, match="must be at least 1"):
            random_model()(a, **wrong)


def test_a_known_floor_of_the_eigenvalues_is_heard() -> None:
    model = random_model(2)  # whose answers lie between their bounds
    a = matrices()
    _, codes = ingredients(model, a)
    silent = model(DenseOperator(a), codes=codes)[-1].logdet
    told = model(DenseOperator(a), codes=codes, floor=torch.tensor([0.05, 1e-3]).double())[-1].logdet
    assert not torch.allclose(silent, told)


def test_every_parameter_gets_a_finite_gradient() -> None:
    model = random_model().float()
    a = matrices().float()
    rhs = torch.randn(2, 30, 1)
    output = model(DenseOperator(a), rhs)[-1]
    loss = output.logdet.sum() + output.lambda_max.sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(3, 4), "n x n"),
        (torch.zeros(0, 0), "not empty"),
        (torch.ones(3, 3, dtype=torch.int64), "float32 or float64"),
        (torch.full((3, 3), float("nan")), "NaN or infinite"),
    ],
)
def test_what_is_not_a_matrix_is_refused(bad: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DenseOperator(bad)


def test_a_zero_matrix_gives_zeros_not_nan() -> None:
    output = random_model()(DenseOperator(torch.zeros(1, 10, 10).double()), torch.ones(1, 10, 1).double())[-1]
    assert output.trace.item() == 0
    assert output.lambda_max.item() < 1e-9
    assert output.solution.isfinite().all()


def test_impossible_configurations_are_refused() -> None:
    for name in ("loops", "sketch", "width"):
        changes: dict[str, int] = {name: 0}
        with pytest.raises(ValueError, match="at least 1"):
            RangeFormer(dataclasses.replace(CONFIG, **changes))
    with pytest.raises(ValueError, match="multiple of heads"):
        RangeFormer(dataclasses.replace(CONFIG, heads=3))
    with pytest.raises(ValueError, match="heads to be a whole number of at least 1, got 0"):
        dataclasses.replace(CONFIG, heads=0)
