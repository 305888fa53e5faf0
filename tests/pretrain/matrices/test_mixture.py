"""Mixtures draw the families they name, at the frequencies asked for, and never a held-out one."""

from __future__ import annotations

import math

import pytest
import torch

from pretrain.matrices import (
    HELD_OUT,
    STRUCTURED,
    Banded,
    BlockTensorTrain,
    Gaussian,
    GPKernel,
    Kronecker,
    Laplacian,
    LowRank,
    MatrixFamily,
    Mixture,
    Spectrum,
    TensorTrain,
    Wishart,
)
from tests.pretrain.matrices.measures import each, off_diagonal, seeded


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
