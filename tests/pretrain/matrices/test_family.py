"""What holds for every family: symmetry, definiteness, scale, determinism; and the draws they share."""

from __future__ import annotations

import pytest
import torch

from pretrain.matrices import (
    GAUSSIAN,
    STRUCTURED,
    GramFamily,
    MatrixFamily,
)
from pretrain.matrices.draws import in_groups, log_uniform
from pretrain.matrices.einsum import factorisations
from tests.pretrain.matrices.measures import (
    ALL,
    COUNT,
    DEFINITE,
    GRAMS,
    diagonals,
    each,
    off_diagonal,
    relative,
    seeded,
    toeplitz_part,
)


@each(ALL)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 16, 30])
def test_any_size_gives_finite_exactly_symmetric_double_matrices(family: MatrixFamily, n: int):
    matrices = family.sample(5, n, seeded(n))
    assert matrices.shape == (5, n, n)
    assert matrices.dtype == torch.float64
    assert matrices.isfinite().all()
    assert torch.equal(matrices, matrices.mT)


@each(DEFINITE)
@pytest.mark.parametrize("n", [1, 2, 7, 30])
def test_definite_families_have_condition_numbers_up_to_1e8(family: MatrixFamily, n: int):
    values = torch.linalg.eigvalsh(family.sample(COUNT, n, seeded(n)))
    assert values[:, 0].min() > 0
    assert (values[:, -1] / values[:, 0]).max() < 1.1e8


@each(ALL)
def test_the_seed_determines_the_matrices(family: MatrixFamily):
    assert torch.equal(family.sample(6, 9, seeded(1)), family.sample(6, 9, seeded(1)))


@each(ALL)
def test_no_two_matrices_of_a_batch_are_the_same(family: MatrixFamily):
    flat = family.sample(COUNT, 9, seeded()).reshape(COUNT, -1)
    assert len(flat.unique(dim=0)) == COUNT


@each(DEFINITE)
def test_the_mean_diagonal_is_log_uniform_over_1e_minus_2_to_1e2(family: MatrixFamily):
    scale = diagonals(family.sample(400, 6, seeded())).mean(-1).log10()
    assert scale.abs().max() <= 2 + 1e-12
    # quartiles of U(-2, 2); their standard error at 400 draws is below 0.1
    quartiles = scale.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64))
    torch.testing.assert_close(quartiles, torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64), atol=0.4, rtol=0)


@each(ALL)
@pytest.mark.parametrize(("count", "n"), [(0, 4), (4, 0), (-1, 4)])
def test_empty_requests_are_refused(family: MatrixFamily, count: int, n: int):
    with pytest.raises(ValueError, match=f"cannot sample {count} matrices of size {n}"):
        family.sample(count, n, seeded())


@each((*STRUCTURED, GAUSSIAN))
@pytest.mark.parametrize("n", [8, 9, 13])
def test_no_training_family_yields_a_diagonal_or_a_toeplitz_matrix(family: MatrixFamily, n: int):
    matrices = family.sample(COUNT, n, seeded(n))
    assert relative(off_diagonal(matrices), matrices).min() > 1e-4
    assert relative(matrices - toeplitz_part(matrices), matrices).min() > 1e-4


@each(GRAMS)
def test_gram_families_add_a_positive_shift_to_the_gram_of_their_root(family: GramFamily):
    root = family.root(8, 14, seeded(3))
    gram, matrices = root @ root.mT, family.sample(8, 14, seeded(3))
    scale = (off_diagonal(matrices) * off_diagonal(gram)).sum((1, 2)) / off_diagonal(gram).square().sum((1, 2))
    shift = diagonals(matrices / scale[:, None, None] - gram)
    torch.testing.assert_close(off_diagonal(matrices), scale[:, None, None] * off_diagonal(gram))
    torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), rtol=0, atol=1e-10 * float(gram.max()))
    assert shift.mean(-1).min() > 0


def test_grouped_draws_return_to_the_places_that_chose_them():
    choice = torch.tensor([2, 0, 2, 1, 0])
    drawn = in_groups(choice, lambda option, members: 10.0 * option + members.double())
    assert drawn.tolist() == [20, 1, 22, 13, 4]


def test_log_uniform_numbers_have_a_uniform_logarithm():
    logs = log_uniform(1e-3, 1e1, (4000,), seeded()).log10().sort().values
    torch.testing.assert_close(logs, torch.linspace(-3, 1, 4000, dtype=torch.float64), atol=0.12, rtol=0)


def test_factorisations_are_those_of_the_next_number_that_has_one():
    assert factorisations(7, 2) == ((2, 4), (4, 2))
    assert factorisations(12, 3) == ((2, 2, 3), (2, 3, 2), (3, 2, 2))
