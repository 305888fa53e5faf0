"""Training matrices have the structure, the spectrum and the determinism that their families promise."""

from __future__ import annotations

import gzip
import math
import os
from pathlib import Path

import gpytorch
import pytest
import torch
from torch import Tensor

from pretrain.matrices import (
    GAUSSIAN,
    HELD_OUT,
    STRUCTURED,
    Banded,
    BlockTensorTrain,
    Diagonal,
    Gaussian,
    GPKernel,
    GramFamily,
    Identity,
    Kronecker,
    Laplacian,
    LowRank,
    MatrixFamily,
    MatrixMarketError,
    Mixture,
    Monarch,
    Spectrum,
    TensorTrain,
    Toeplitz,
    Wishart,
    list_matrices,
    load,
)
from pretrain.matrices.draws import in_groups, log_uniform
from pretrain.matrices.einsum import factorisations
from pretrain.matrices.gp_kernel import PROFILES, on_circles
from pretrain.matrices.laplacian import GRAPHS
from pretrain.matrices.monarch import monarch_matrix
from pretrain.matrices.spectrum import LAWS, haar

ALL = (*STRUCTURED, GAUSSIAN, *HELD_OUT)
DEFINITE = (*STRUCTURED, *HELD_OUT)
GRAMS = tuple(family for family in STRUCTURED if isinstance(family, GramFamily))
COUNT = 50

_FOLDER = Path(os.environ.get("GP_RANGEFORMER_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data")
MARKET = _FOLDER / "matrix_market"
needs_market = pytest.mark.skipif(
    not MARKET.is_dir(),
    reason="no Matrix Market files: set GP_RANGEFORMER_DATA to a folder that contains matrix_market/",
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def each(families):
    return pytest.mark.parametrize("family", families, ids=lambda family: family.name)


def ranks(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_rank(matrices, rtol=1e-10)


def spectra(matrices: Tensor) -> Tensor:
    """Eigenvalues, largest first, largest equal to 1."""
    values = torch.linalg.eigvalsh(matrices).flip(-1)
    return values / values[:, :1]


def diagonals(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1)


def off_diagonal(matrices: Tensor) -> Tensor:
    return matrices - torch.diag_embed(diagonals(matrices))


def toeplitz_part(matrices: Tensor) -> Tensor:
    """The nearest Toeplitz matrices: every diagonal replaced by its mean."""
    n = matrices.shape[-1]
    nearest = torch.zeros_like(matrices)
    for offset in range(-(n - 1), n):
        along = matrices.diagonal(offset, -2, -1)
        nearest.diagonal(offset, -2, -1).copy_(along.mean(-1, keepdim=True).expand_as(along))
    return nearest


def relative(difference: Tensor, matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(difference) / torch.linalg.matrix_norm(matrices)


# every family


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


# shared draws


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


# Kronecker


@pytest.mark.parametrize(("n", "parts", "size"), [(25, 2, 5), (27, 3, 3), (125, 3, 5)])
def test_kronecker_products_rearrange_to_rank_one(n: int, parts: int, size: int):
    matrices = Kronecker(factors=(parts,)).sample(4, n, seeded())
    # Van Loan and Pitsianis: A x B with its blocks as rows, at the first split and at the last.
    for left in (size, n // size):
        right = n // left
        blocks = matrices.reshape(4, left, right, left, right).transpose(2, 3).reshape(4, left**2, right**2)
        assert ranks(blocks).tolist() == [1] * 4


def test_a_size_without_factorisation_is_a_leading_block_of_a_kronecker_product():
    matrices = Kronecker(factors=(2,)).sample(12, 7, seeded())
    # of 8 = 2 x 4: rows 0-2 and 4-6 are equal up to a factor; of 8 = 4 x 2: the 2 x 2 blocks are.
    two_by_four = torch.stack([matrices[:, :3, :3], matrices[:, 4:, 4:], matrices[:, :3, 4:]], 1).reshape(12, 3, 9)
    four_by_two = matrices[:, :6, :6].reshape(12, 3, 2, 3, 2).transpose(2, 3).reshape(12, 9, 4)
    either = torch.stack([ranks(two_by_four) == 1, ranks(four_by_two) == 1])
    assert either.any(0).all()
    assert either.any(1).all(), "both factorisations are drawn"


# low rank


def test_low_rank_off_diagonal_blocks_have_at_most_the_largest_rank():
    family, n = LowRank(), 24
    found = ranks(family.sample(COUNT, n, seeded())[:, : n // 2, n // 2 :])
    assert found.max() == family.largest_rank(n) == 6
    assert found.min() == 1


def test_the_added_diagonal_is_constant_in_about_half_of_the_low_rank_matrices():
    # U U' + s I has n - r equal smallest eigenvalues
    values = torch.linalg.eigvalsh(LowRank().sample(200, 24, seeded()))
    constant = (values[:, 17] - values[:, 0]) < 1e-9 * values[:, -1]
    assert 70 < constant.sum() < 130


# tensor trains and Monarch


def test_unfoldings_of_a_two_core_tensor_train_have_at_most_its_rank():
    root = TensorTrain(cores=(2,)).root(20, 25, seeded())
    unfolding = root.reshape(20, 5, 5, 5, 5).transpose(2, 3).reshape(20, 25, 25)
    assert set(ranks(unfolding).tolist()) == {2, 3, 4}


def test_both_unfoldings_of_a_three_core_tensor_train_have_its_rank():
    root = TensorTrain(cores=(3,)).root(20, 27, seeded())
    tensor = root.reshape(20, 3, 3, 3, 3, 3, 3).permute(0, 1, 4, 2, 5, 3, 6)
    first, second = ranks(tensor.reshape(20, 9, 81)), ranks(tensor.reshape(20, 81, 9))
    assert torch.equal(first, second)
    assert set(first.tolist()) == {2, 3, 4}


def blocks(root: Tensor, size: int) -> Tensor:
    """The size x size grid of size x size blocks of a root with n = size^2."""
    return root.reshape(-1, size, size, size, size).transpose(2, 3)


def test_blocks_of_a_block_tensor_train_have_its_rank():
    found = ranks(blocks(BlockTensorTrain().root(20, 49, seeded()), 7)).reshape(20, -1)
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert set(found[:, 0].tolist()) == {2, 3, 4}


def test_blocks_of_a_monarch_root_have_rank_one_though_the_root_has_full_rank():
    root = Monarch().root(4, 49, seeded())
    assert (ranks(blocks(root, 7)) == 1).all()
    assert (ranks(root) == 49).all()


def test_the_monarch_einsum_is_block_diagonal_times_permutation_times_block_diagonal():
    p, q = 3, 4
    generator = seeded()
    left = torch.randn(1, q, p, p, generator=generator, dtype=torch.float64)
    right = torch.randn(1, p, q, q, generator=generator, dtype=torch.float64)
    interleave = torch.eye(p * q, dtype=torch.float64)[torch.arange(p * q).reshape(p, q).T.reshape(-1)]
    product = torch.block_diag(*left[0]) @ interleave @ torch.block_diag(*right[0])
    torch.testing.assert_close(monarch_matrix(left, right)[0], product)


# spectrum


def places(law: str, n: int = 30, count: int = 20) -> Tensor:
    """log(lambda_i) / log(lambda_n), from 0 to 1."""
    logs = spectra(Spectrum(laws=(law,)).sample(count, n, seeded())).log()
    # eigenvalues are known to 1e-16 of the largest: the few well conditioned and the worst draws are too coarse
    return (logs / logs[:, -1:])[(logs[:, -1] < -1) & (logs[:, -1] > -14)]


def test_exponential_eigenvalues_are_equally_spaced_in_logarithm():
    found = places("exponential")
    torch.testing.assert_close(found, torch.linspace(0, 1, 30).double().expand_as(found), atol=1e-6, rtol=0)


def test_polynomial_eigenvalues_are_a_power_of_their_rank():
    found = places("polynomial")
    expected = torch.arange(1, 31).double().log() / math.log(30)
    torch.testing.assert_close(found, expected.expand_as(found), atol=1e-6, rtol=0)


def test_step_eigenvalues_take_two_values():
    found = places("step")
    assert torch.minimum(found.abs(), (1 - found).abs()).max() < 1e-6
    assert len((found < 0.5).sum(-1).unique()) > 5


def test_log_uniform_eigenvalues_have_a_uniform_logarithm():
    found = places("log_uniform", n=60, count=40)
    torch.testing.assert_close(found.mean(0), torch.linspace(0, 1, 60).double(), atol=0.05, rtol=0)


def test_clustered_eigenvalues_leave_wide_gaps_between_at_most_five_clusters():
    gaps = places("clustered", n=60, count=40).diff(dim=-1)
    largest = gaps.sort(dim=-1, descending=True).values
    assert largest[:, :4].sum(-1).median() > 0.8


def test_sigmoid_eigenvalues_fall_fastest_in_between():
    steps = places("sigmoid").diff(dim=-1)
    assert (steps.argmax(-1) > 2).all()
    assert (steps.argmax(-1) < 26).all()
    assert (steps[:, [0, -1]].amax(-1) < steps.amax(-1)).all()


def test_heavy_tailed_eigenvalues_are_pareto():
    # log Pareto is exponential: of n, the mean place is (H_n - 1) / H_n of the way from the largest to the smallest,
    # where log-uniform eigenvalues have 1/2
    found = places("heavy_tail", n=60, count=60).mean()
    harmonic = sum(1 / i for i in range(1, 61))
    assert found == pytest.approx((harmonic - 1) / harmonic, abs=0.05)


@pytest.mark.parametrize("law", LAWS)
def test_the_condition_number_is_log_uniform_over_1_to_1e8_under_every_law(law: str):
    values = spectra(Spectrum(laws=(law,)).sample(300, 10, seeded()))
    condition = -values[:, -1].log10().sort(descending=True).values
    torch.testing.assert_close(condition, torch.linspace(0, 8, 300).double(), atol=0.8, rtol=0)


def test_haar_bases_are_orthogonal_with_mean_zero_diagonals():
    bases = haar(2000, 3, seeded())
    torch.testing.assert_close(bases @ bases.mT, torch.eye(3).double().expand(2000, 3, 3))
    # without the sign correction the first diagonal entry of Householder's Q is never positive: its mean is -1/2
    assert diagonals(bases).mean(0).abs().max() < 0.06


# Gaussian process kernels


@pytest.mark.parametrize("kind", PROFILES)
def test_every_kernel_is_positive_semidefinite_with_unit_diagonal_under_the_noise(kind: str):
    matrices = GPKernel(kernels=(kind,)).draw(COUNT, 25, seeded())
    noise = diagonals(matrices) - 1
    torch.testing.assert_close(noise, noise[:, :1].expand_as(noise))
    assert noise.min() > 0.99e-4
    assert noise.max() < 1
    assert torch.linalg.eigvalsh(matrices - torch.diag_embed(noise)).min() > -1e-10


@pytest.mark.parametrize(
    ("kind", "kernel"),
    [
        ("rbf", gpytorch.kernels.RBFKernel()),
        ("matern12", gpytorch.kernels.MaternKernel(nu=0.5)),
        ("matern32", gpytorch.kernels.MaternKernel(nu=1.5)),
        ("matern52", gpytorch.kernels.MaternKernel(nu=2.5)),
        ("rq", gpytorch.kernels.RQKernel()),
    ],
)
def test_kernel_profiles_agree_with_gpytorch(kind: str, kernel: gpytorch.kernels.Kernel):
    kernel = kernel.double()
    kernel.lengthscale = torch.tensor(1.0)
    if isinstance(kernel, gpytorch.kernels.RQKernel):
        kernel.alpha = torch.tensor(0.7, dtype=torch.float64)
    r = torch.linspace(0, 4, 30).double()
    expected = kernel(torch.zeros(1, 1).double(), r[:, None]).to_dense()
    shape = torch.full((1, 1, 1), 0.7).double()
    torch.testing.assert_close(PROFILES[kind](r[None, None], shape)[0], expected.detach())


def test_the_periodic_kernel_agrees_with_gpytorch():
    x = torch.linspace(0, 4, 30).double()[:, None]
    kernel = gpytorch.kernels.PeriodicKernel().double()
    kernel.lengthscale, kernel.period_length = torch.tensor(1.0), torch.tensor(1.3, dtype=torch.float64)
    one = torch.ones(1, 1, 1).double()
    distances = torch.cdist(wound := on_circles(x[None], 1.3 * one, one), wound)
    torch.testing.assert_close(PROFILES["periodic"](distances, one)[0], kernel(x).to_dense().detach())


def test_periodic_matrices_are_not_those_of_the_rbf_with_the_same_draws():
    periodic, rbf = (GPKernel(kernels=(kind,)).draw(20, 12, seeded()) for kind in ("periodic", "rbf"))
    assert torch.equal(diagonals(periodic), diagonals(rbf))
    assert relative(periodic - rbf, rbf).min() > 1e-3


@pytest.mark.parametrize(
    ("kind", "power", "expected"),
    [
        # singles and products: exponents of RBFs add up; not sums
        ("rbf", 1, 3 / 4),
        # singles, and products in one dimension, where distances add up
        ("matern12", 2, 1 / 2 + 1 / 4 * 1 / 4),
    ],
)
def test_a_quarter_of_the_kernels_are_sums_and_a_quarter_products(kind: str, power: int, expected: float):
    # squared Euclidean distances in up to 4 dimensions have rank at most 6
    distances = off_diagonal(GPKernel(kernels=(kind,)).draw(400, 16, seeded()).log() ** power)
    found = (torch.linalg.matrix_rank(distances, rtol=1e-8) <= 6).double().mean()
    assert float(found) == pytest.approx(expected, abs=0.07)


# Laplacians


@pytest.mark.parametrize("graph", GRAPHS)
def test_laplacian_rows_sum_to_the_shift_and_weights_are_positive(graph: str):
    matrices = Laplacian(graphs=(graph,)).draw(COUNT, 20, seeded())
    sums = matrices.sum(-1)
    torch.testing.assert_close(sums, sums[:, :1].expand_as(sums), atol=1e-10, rtol=1e-6)
    assert sums.min() > 0
    assert off_diagonal(matrices).max() <= 0


@pytest.mark.parametrize("graph", GRAPHS)
def test_every_vertex_of_a_sparse_graph_has_a_neighbour(graph: str):
    linked = off_diagonal(Laplacian(graphs=(graph,)).sample(COUNT, 60, seeded())) < 0
    degrees = linked.sum(-1).double()
    assert degrees.min() >= 1
    assert 2 < degrees.mean() < 9


def test_preferential_attachment_has_hubs_and_erdos_renyi_has_not():
    def hubs(graph: str) -> float:
        linked = off_diagonal(Laplacian(graphs=(graph,)).sample(COUNT, 100, seeded())) < 0
        degrees = linked.sum(-1).double()
        return float((degrees.amax(-1) / degrees.mean(-1)).mean())

    assert hubs("preferential") > 1.5 * hubs("erdos_renyi")


def test_neighbours_in_a_geometric_graph_share_neighbours():
    def clustering(graph: str) -> float:
        linked = (off_diagonal(Laplacian(graphs=(graph,)).sample(COUNT, 100, seeded())) < 0).double()
        paths = linked @ linked
        return float((paths * linked).sum() / off_diagonal(paths).sum())

    assert clustering("geometric") > 3 * clustering("erdos_renyi")


# banded, Wishart, Gaussian


def test_banded_matrices_are_zero_outside_bands_of_every_allowed_width():
    family, n = Banded(), 20
    offset = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    width = ((family.sample(COUNT, n, seeded()) != 0) * offset).amax((1, 2))
    assert set(width.tolist()) == set(range(1, family.largest_bandwidth(n) + 1)) == {1, 2, 3, 4, 5}


def test_wishart_roots_have_n_to_4n_columns_and_the_identity_as_mean():
    root = Wishart().root(2000, 5, seeded())
    columns = (root != 0).any(1).sum(-1)
    assert set(columns.tolist()) == set(range(5, 21))
    mean = (root @ root.mT).mean(0)
    torch.testing.assert_close(mean, torch.eye(5).double(), atol=0.06, rtol=0)


def test_gaussian_matrices_are_marked_and_are_indefinite_on_the_semicircle():
    matrices = Gaussian().draw(20, 200, seeded())
    values = torch.linalg.eigvalsh(matrices)
    assert not Gaussian.definite
    assert (values[:, 0] + 2).abs().max() < 0.2
    assert (values[:, -1] - 2).abs().max() < 0.2


# held out


def test_the_identity_is_a_positive_multiple_of_the_identity():
    matrices = Identity().sample(COUNT, 6, seeded())
    assert torch.equal(matrices, matrices[:, :1, :1] * torch.eye(6).double())


def test_diagonal_matrices_are_diagonal_but_not_constant():
    matrices = Diagonal().sample(COUNT, 6, seeded())
    assert not off_diagonal(matrices).any()
    assert (diagonals(matrices).std(-1) > 0).all()


def test_toeplitz_matrices_are_constant_along_diagonals_but_not_diagonal():
    matrices = Toeplitz().sample(COUNT, 12, seeded())
    assert relative(matrices - toeplitz_part(matrices), matrices).max() < 1e-14
    assert relative(off_diagonal(matrices), matrices).median() > 0.1


# mixtures


def test_a_mixture_says_which_family_each_matrix_came_from():
    families = (Banded(), Kronecker(), Laplacian())
    matrices, index = Mixture(families).sample(60, 12, seeded())
    far_from_the_diagonal_is_zero = ~matrices[:, :8, 11].any(-1)
    negative = off_diagonal(matrices).amax((1, 2)) <= 0
    assert set(index.tolist()) == {0, 1, 2}
    assert far_from_the_diagonal_is_zero[index == 0].all()
    assert not far_from_the_diagonal_is_zero[index == 1].any()
    assert torch.equal(negative, index == 2)


def test_weights_set_the_frequency_of_the_families():
    _, index = Mixture((Banded(), Kronecker(), Gaussian()), weights=(3.0, 0.0, 1.0)).sample(2000, 2, seeded())
    frequency = index.bincount(minlength=3) / 2000
    assert frequency[1] == 0
    assert float(frequency[0]) == pytest.approx(0.75, abs=0.04)


def test_the_seed_determines_what_a_mixture_draws():
    one, other = (Mixture(STRUCTURED).sample(20, 9, seeded(4)) for _ in range(2))
    assert torch.equal(one[0], other[0])
    assert torch.equal(one[1], other[1])


@each(HELD_OUT)
def test_a_mixture_refuses_held_out_families(family: MatrixFamily):
    with pytest.raises(ValueError, match=rf"^{family.name}: held out for evaluation"):
        Mixture((Banded(), family))


@pytest.mark.parametrize(
    ("families", "weights", "cause"),
    [
        ((), None, "at least one family"),
        (STRUCTURED, (1.0,), "1 weights for 10 families"),
        ((Banded(),), (0.0,), "positive sum"),
        ((Banded(), Wishart()), (2.0, -1.0), "at least 0"),
        ((Banded(),), (math.inf,), "finite"),
    ],
)
def test_a_mixture_refuses_weights_that_are_not_frequencies(families, weights, cause: str):
    with pytest.raises(ValueError, match=cause):
        Mixture(families, weights)


def test_a_mixture_refuses_empty_requests():
    with pytest.raises(ValueError, match="cannot sample 0 matrices of size 4"):
        Mixture(STRUCTURED).sample(0, 4, seeded())


@pytest.mark.parametrize(
    ("build", "cause"),
    [
        (lambda: Kronecker(factors=(1, 2)), "at least 2 factors"),
        (lambda: TensorTrain(cores=()), "at least 2 cores"),
        (lambda: TensorTrain(largest_rank=1), "largest_rank must be at least 2"),
        (lambda: BlockTensorTrain(largest_rank=1), "largest_rank must be at least 2"),
        (lambda: LowRank(largest_fraction=0.0), r"in \(0, 1\]"),
        (lambda: Banded(largest_fraction=1.5), r"in \(0, 1\]"),
        (lambda: Spectrum(laws=("linear",)), "laws must be some of exponential"),
        (lambda: GPKernel(kernels=("linear",)), "kernels must be some of rbf"),
        (lambda: Laplacian(graphs=()), "graphs must be some of geometric"),
    ],
)
def test_families_refuse_options_outside_their_range(build, cause: str):
    with pytest.raises(ValueError, match=cause):
        build()


# Matrix Market


def market_file(folder: Path, name: str, header: str, body: str) -> Path:
    path, text = folder / name, f"%%MatrixMarket matrix {header}\n% a comment\n{body}\n"
    if name.endswith(".gz"):
        with gzip.open(path, "wt") as stream:
            stream.write(text)
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["small.mtx", "small.mtx.gz"])
def test_a_stored_lower_triangle_is_loaded_as_the_full_matrix(tmp_path: Path, name: str):
    path = market_file(tmp_path, name, "coordinate real symmetric", "2 2 3\n1 1 4\n2 1 -1\n2 2 3")
    assert torch.equal(load(path), torch.tensor([[4.0, -1.0], [-1.0, 3.0]], dtype=torch.float64))


def test_an_unsymmetric_matrix_is_replaced_by_its_symmetric_part_with_a_warning(tmp_path: Path):
    path = market_file(tmp_path, "skewed.mtx", "array real general", "2 2\n4\n2\n0\n3")
    with pytest.warns(UserWarning, match=r"skewed\.mtx is not symmetric"):
        matrix = load(path)
    assert torch.equal(matrix, torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("header", "body", "cause"),
    [
        ("array real general", "2 1\n1\n2", r"is 2 x 1: only square"),
        ("array complex general", "1 1\n1 2", "is complex"),
        ("array real general", "1 1\nnan", "contains NaN"),
        ("coordinate real symmetric", "5001 5001 1\n1 1 1", r"n = 5001, above 5000"),
        ("coordinate real symmetric", "2 2 3\n1 1 4\n", "cannot read .*fetch it again"),
        ("coordinate real symmetric", "no size", "cannot read"),
    ],
)
def test_files_that_are_no_real_finite_square_matrix_are_refused(tmp_path: Path, header: str, body: str, cause: str):
    path = market_file(tmp_path, "bad.mtx", header, body)
    with pytest.raises(MatrixMarketError, match=cause):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(MatrixMarketError, match=r"cannot read .*absent\.mtx"):
        load(tmp_path / "absent.mtx")


def test_a_truncated_archive_is_refused(tmp_path: Path):
    whole = market_file(tmp_path, "cut.mtx.gz", "array real general", "40 40\n" + "\n".join(map(str, range(1600))))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(MatrixMarketError, match="cannot read"):
        load(whole)


def test_matrices_are_listed_by_size_from_their_headers_alone(tmp_path: Path):
    sizes = {"a.mtx": 30, "b.mtx.gz": 4, "c.mtx": 12, "d.mtx": 31}
    for name, n in sizes.items():
        market_file(tmp_path, name, "coordinate real symmetric", f"{n} {n} 1\nnot a number")
    market_file(tmp_path, "wide.mtx", "coordinate real general", "2 3 1\n1 1 1")
    (tmp_path / "notes.txt").write_text("nothing")
    assert [path.name for path in list_matrices(tmp_path, largest=30)] == ["b.mtx.gz", "c.mtx", "a.mtx"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(MatrixMarketError, match="is not a folder"):
        list_matrices(tmp_path / "absent")


@needs_market
def test_the_collection_loads_as_positive_definite_matrices_in_order_of_size():
    matrices = [load(path) for path in list_matrices(MARKET, largest=150)]
    assert len(matrices) > 5
    assert [len(matrix) for matrix in matrices] == sorted(len(matrix) for matrix in matrices)
    assert all(torch.linalg.eigvalsh(matrix)[0] > 0 for matrix in matrices)
