"""Matrices with a chosen spectrum have the law, the condition number and the basis that they promise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from pretrain.matrices import (
    Spectrum,
)
from pretrain.matrices.spectrum import LAWS, haar
from tests.pretrain.matrices.measures import diagonals, seeded, spectra


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
