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

CONFIG = RangeFormerConfig(dim=16, rank=6, heads=2, head_dim=4, loops=3)


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
@pytest.mark.parametrize("operator", [True, False])
def test_permuting_rows_and_codes_permutes_the_answers(feature_map: str, operator: bool) -> None:
    model = random_model(feature_map=feature_map, operator=operator)
    a = matrices()
    rhs, codes = ingredients(model, a)
    order = torch.randperm(a.shape[-1], generator=torch.Generator().manual_seed(5))
    plain = ask(model, a, rhs, codes)
    permuted = ask(model, a[:, order][:, :, order], rhs[:, order], codes[:, order])
    for name in ("trace", "lambda_max", "logdet"):
        torch.testing.assert_close(getattr(permuted, name), getattr(plain, name), rtol=1e-8, atol=1e-8)
    for name in ("basis", "scores", "solution"):
        torch.testing.assert_close(getattr(permuted, name), getattr(plain, name)[:, order], rtol=1e-6, atol=1e-8)


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
    torch.testing.assert_close(scaled.basis, plain.basis, rtol=1e-6, atol=1e-8)


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
    assert output.basis.shape == (2, n, CONFIG.rank)
    assert output.solution is not None
    for value in (output.lambda_max, output.logdet, output.scores, output.solution):
        assert value.isfinite().all()


def test_a_range_that_is_everything_gives_exact_answers_whatever_the_weights() -> None:
    model = random_model()
    a = matrices(n=CONFIG.rank)
    rhs, codes = ingredients(model, a)
    output = ask(model, a, rhs, codes)
    torch.testing.assert_close(output.logdet, torch.linalg.slogdet(a).logabsdet, rtol=1e-3, atol=1e-3)
    assert output.solution is not None
    torch.testing.assert_close(a @ output.solution, rhs, rtol=0, atol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_the_log_determinant_stays_below_what_the_range_proves(seed: int) -> None:
    model = random_model(seed)
    a = matrices(40, seed)
    rhs, codes = ingredients(model, a)
    output = ask(model, a, rhs, codes)
    exact = torch.linalg.slogdet(a).logabsdet
    assert (output.logdet <= output.logdet_upper).all()
    assert (exact <= output.logdet_upper + 1e-6 * exact.abs()).all()


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
    assert (energies[-1] < 0.5 * (rhs * exact).sum(-2)).all()


def test_the_basis_is_orthonormal_and_its_image_is_a_times_it() -> None:
    model = random_model()
    a = matrices(50)
    rhs, codes = ingredients(model, a)
    output = ask(model, a, rhs, codes)
    identity = torch.eye(CONFIG.rank, dtype=torch.float64).expand(2, -1, -1)
    torch.testing.assert_close(output.basis.mT @ output.basis, identity, rtol=0, atol=1e-3)
    torch.testing.assert_close(output.image, a @ output.basis, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(output.scores.sum(-1), torch.ones(2, dtype=torch.float64))


def test_eigenpairs_are_the_ritz_pairs_of_the_range() -> None:
    model = random_model()
    a = matrices(40)
    rhs, codes = ingredients(model, a)
    values, vectors = ask(model, a, rhs, codes, loops=8).eigenpairs()
    exact = torch.linalg.eigvalsh(a).flip(-1)[:, : CONFIG.rank]
    assert (values.diff(dim=-1) <= 1e-9).all()
    assert (values <= exact + 1e-6).all()
    torch.testing.assert_close(vectors.mT @ a @ vectors, torch.diag_embed(values), rtol=1e-3, atol=1e-3)


def test_bfloat16_layers_change_the_proposals_and_not_what_holds_for_any_proposal() -> None:
    model = random_model().float()
    a = matrices(40).float()
    rhs, codes = (value.float() for value in ingredients(model, a))
    with torch.no_grad():
        plain = model(DenseOperator(a), rhs, codes=codes)[-1]
        low = model(DenseOperator(a), rhs, codes=codes, bfloat16=True)[-1]
    assert low.solution is not None
    assert low.residual is not None
    assert low.solution.dtype == low.basis.dtype == torch.float32
    assert not torch.equal(low.basis, plain.basis)
    torch.testing.assert_close(low.residual, rhs - a @ low.solution, rtol=0, atol=1e-4)
    torch.testing.assert_close(low.logdet, plain.logdet, rtol=0.1, atol=5.0)


def test_untrained_it_is_a_randomised_subspace_iteration() -> None:
    torch.manual_seed(0)
    model = RangeFormer(dataclasses.replace(CONFIG, loops=4)).double()
    a = matrices()
    rhs, codes = ingredients(model, a)
    basis = ask(model, a, rhs, codes, loops=4).basis
    by_hand = torch.linalg.matrix_power(a, 4) @ model.first_range(model.embedding.mix(codes)).detach()
    for found, expected in zip(basis, by_hand, strict=True):
        q, _ = torch.linalg.qr(expected)
        torch.testing.assert_close(q @ (q.mT @ found), found, rtol=0, atol=1e-2)


def test_the_matrix_is_only_multiplied() -> None:
    """dim columns once, then rank + m per loop; nothing else is asked of A than its diagonal."""

    class Counting(DenseOperator):
        columns = 0

        def matmul(self, block: Tensor) -> Tensor:
            type(self).columns += block.shape[-1]
            return super().matmul(block)

    model = random_model()
    a = matrices()
    rhs, codes = ingredients(model, a)
    with torch.no_grad():
        model(Counting(a), rhs, loops=5, codes=codes)
    assert Counting.columns == CONFIG.dim + 5 * (CONFIG.rank + rhs.shape[-1])


def test_codes_come_from_the_generator() -> None:
    model = random_model()
    a = matrices()

    def logdet(seed: int) -> Tensor:
        with torch.no_grad():
            return model(DenseOperator(a), generator=torch.Generator().manual_seed(seed))[-1].logdet

    assert torch.equal(logdet(1), logdet(1))
    assert not torch.equal(logdet(1), logdet(2))


def test_loops_are_free_for_a_tied_model_and_bounded_for_an_untied_one() -> None:
    a = DenseOperator(matrices())
    assert len(random_model()(a, loops=20)) == 20
    untied = random_model(tied=False)
    assert len(untied.blocks) == CONFIG.loops
    assert len(untied(a)) == CONFIG.loops
    with pytest.raises(ValueError, match="at most 3"):
        untied(a, loops=4)
    with pytest.raises(ValueError, match="at least 1"):
        untied(a, loops=0)


def test_a_known_floor_of_the_eigenvalues_is_heard() -> None:
    model = random_model()
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
    loss = output.logdet.sum() + output.lambda_max.sum() + output.scores.log().sum() + output.solution.square().sum()
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
    assert output.scores.isfinite().all()


def test_impossible_configurations_are_refused() -> None:
    for changes in ({"rank": 17}, {"rank": 0}, {"loops": 0}):
        with pytest.raises(ValueError, match="rank <= dim"):
            RangeFormer(dataclasses.replace(CONFIG, **changes))
    with pytest.raises(ValueError, match="multiple of heads"):
        RangeFormer(dataclasses.replace(CONFIG, heads=3))
