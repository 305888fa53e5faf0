"""Kronecker products, low rank plus diagonal, tensor trains and Monarch matrices have the ranks of their structure."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pretrain.matrices import (
    BlockTensorTrain,
    Kronecker,
    LowRank,
    Monarch,
    TensorTrain,
)
from pretrain.matrices.monarch import monarch_matrix
from tests.pretrain.matrices.measures import COUNT, ranks, seeded


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
