"""The evidence about the tail of the log determinant: its symmetries, its rigorous end, and what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gp_rangeformer.logdet.evidence import TailEvidence, given_points, sample_points, tail_evidence, whitened_rows
from gp_rangeformer.logdet.features import SCALARS, TOKENS
from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from gp_rangeformer.system.linear_system import LinearSystem
from tests.system.systems import kernel_matrix, points, spectrum_matrix, system

N = 512  # halves of the block then hold 64 points, four for every token
RANK, PROBES, LEVELS = 48, 16, 7
X = points(N, 3)
KERNELS = ["rbf", "matern12", "matern32", "rational_quadratic"]


@dataclass(frozen=True)
class Gathered:
    """Evidence, and the exact tail in nats per point."""

    evidence: TailEvidence
    tail: float


def pick(n: int, count: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))[:count]


BLOCK = sample_points(N, torch.Generator().manual_seed(2))
# None of the chosen points: of a landmark nothing remains but rounding, which would order them among themselves.
LANDMARKS = torch.tensor([index for index in pick(N, N, 1).tolist() if index not in BLOCK][:RANK])
SIGNS = torch.randint(0, 2, (N, PROBES), generator=torch.Generator().manual_seed(3)).double() * 2 - 1


def gather(
    linear_system: LinearSystem, landmarks: Tensor = LANDMARKS, block: Tensor = BLOCK, signs: Tensor = SIGNS
) -> Gathered:
    """Evidence from exact solutions in the system's own precision."""
    preconditioner = nystrom_preconditioner(linear_system, Landmarks(landmarks))
    dense = linear_system.to_dense(torch.float64)
    exact = torch.linalg.solve(dense, signs)
    dtype = linear_system.dtype
    evidence = tail_evidence(
        linear_system, preconditioner, signs.to(dtype), exact.to(dtype), (signs * exact).sum(0), block
    )
    return Gathered(evidence, (float(torch.linalg.slogdet(dense).logabsdet) - preconditioner.logdet()) / len(signs))


def assert_same(found: TailEvidence, expected: TailEvidence, tolerance: float) -> None:
    torch.testing.assert_close(found.scalars, expected.scalars, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(found.tokens, expected.tokens, rtol=tolerance, atol=tolerance)
    assert found.upper == pytest.approx(expected.upper, rel=tolerance)
    assert found.estimate == pytest.approx(expected.estimate, rel=tolerance)


@pytest.mark.parametrize("factor", [1e-4, 3e5])
def test_the_scale_of_the_system_does_not_matter(factor: float) -> None:
    kernel, noise = kernel_matrix(X), torch.linspace(0.01, 0.1, N, dtype=torch.float64)
    found = gather(system(factor * kernel, factor * noise)).evidence
    assert_same(found, gather(system(kernel, noise)).evidence, 1e-8)


def test_the_order_of_the_points_does_not_matter() -> None:
    kernel, noise = kernel_matrix(X), torch.linspace(0.01, 0.1, N, dtype=torch.float64)
    order = pick(N, N, 5)
    place = order.argsort()
    permuted = system(kernel[order][:, order], noise[order])
    found = gather(permuted, place[LANDMARKS], place[BLOCK], SIGNS[order]).evidence
    assert_same(found, gather(system(kernel, noise)).evidence, 1e-8)


def test_other_probes_and_another_block_are_seen() -> None:
    linear_system = system(kernel_matrix(X), 0.02)
    first = gather(linear_system).evidence
    assert not torch.equal(gather(linear_system, signs=SIGNS.flip(0)).evidence.scalars, first.scalars)
    other = sample_points(N, torch.Generator().manual_seed(9))
    assert not torch.equal(gather(linear_system, block=other).evidence.tokens, first.tokens)


def test_evidence_makes_no_pass_over_the_kernel_matrix() -> None:
    linear_system = system(kernel_matrix(X), 0.02)
    gather(linear_system)
    assert linear_system.take_counts() == (0, 0)


@pytest.mark.parametrize("noise", [1e-3, 0.02, 0.5])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_exact_tail_and_the_first_estimate_lie_between_zero_and_the_upper_end(kernel: str, noise: float) -> None:
    found = gather(system(kernel_matrix(X, kernel), noise))
    assert 0 < found.tail <= found.evidence.upper
    assert 0 < found.evidence.estimate <= found.evidence.upper
    assert found.evidence.definite


@pytest.mark.parametrize("negligible_rank", [20, RANK])
def test_nothing_is_left_where_the_range_holds_the_kernel_matrix(negligible_rank: int) -> None:
    spectrum = torch.zeros(N, dtype=torch.float64)
    spectrum[:negligible_rank] = torch.linspace(5, 1, negligible_rank, dtype=torch.float64)
    found = gather(system(spectrum_matrix(spectrum), 0.1), pick(N, RANK, 1))
    assert found.tail == pytest.approx(0, abs=1e-9)
    assert 0 <= found.evidence.estimate <= found.evidence.upper < 1e-9
    assert bool(found.evidence.scalars.isfinite().all() and found.evidence.tokens.isfinite().all())


def test_noise_that_differs_from_point_to_point_keeps_the_bounds() -> None:
    noise = (3 * torch.randn(N, generator=torch.Generator().manual_seed(6), dtype=torch.float64)).clamp(-6, 6).exp()
    found = gather(system(kernel_matrix(X), 0.01 * noise))
    assert bool(found.evidence.scalars.isfinite().all() and found.evidence.tokens.isfinite().all())
    assert 0 < found.tail <= found.evidence.upper


@pytest.mark.parametrize("kernel", ["matern12", "matern32"])
def test_float32_gives_the_evidence_of_float64(kernel: str) -> None:
    """Measured: 4e-4 in the scalars. Rounding may move points between groups: means over all of them are compared."""
    double = gather(system(kernel_matrix(X, kernel), 0.02)).evidence
    single = gather(system(kernel_matrix(X, kernel), 0.02, torch.float32)).evidence
    assert single.scalars.dtype == single.tokens.dtype == torch.float64
    torch.testing.assert_close(single.scalars, double.scalars, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(single.tokens.mean(0), double.tokens.mean(0), rtol=1e-3, atol=1e-3)
    assert single.upper == pytest.approx(double.upper, abs=1e-3)
    assert single.estimate == pytest.approx(double.estimate, abs=1e-4)


def test_a_dominant_negative_direction_is_noticed() -> None:
    noise = 0.1
    spectrum = torch.zeros(N, dtype=torch.float64)
    spectrum[:20] = 1
    kernel = spectrum_matrix(spectrum)
    assert gather(system(kernel, noise)).evidence.definite
    direction = torch.ones(N, 1, dtype=torch.float64)
    direction[LANDMARKS] = 0  # where no landmark sees it
    direction /= direction.norm()
    # A itself stays positive definite, and 20 times smaller there than any P allows.
    assert not gather(system(kernel - 0.95 * noise * direction @ direction.mT, noise)).evidence.definite


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_learning_curve_falls_from_the_diagonal_towards_the_tail(kernel: str) -> None:
    found = gather(system(kernel_matrix(X, kernel), 0.02))
    schur = found.evidence.tokens[:, :LEVELS]
    assert float(schur.diff(dim=-1).max()) <= 1e-12
    means = schur.mean(0)
    assert float(means[-1]) < 0.95 * float(means[0])
    assert found.tail < float(means[-1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_difference_of_the_other_two_learning_curves_rises(kernel: str) -> None:
    linear_system = system(kernel_matrix(X, kernel), 0.02)
    blocks = [sample_points(N, torch.Generator().manual_seed(seed)) for seed in range(8)]
    tokens = torch.stack([gather(linear_system, block=block).evidence.tokens for block in blocks])
    means = tokens[..., LEVELS : 2 * LEVELS].mean((0, 1))
    assert float(means.diff().min()) > 0


def test_chosen_points_are_distinct_and_a_fifth_of_them_or_fewer_are_given() -> None:
    counts = []
    for n in (256, 1023, 5000, 20_000):
        chosen = sample_points(n, torch.Generator().manual_seed(0))
        assert len(chosen.unique()) == len(chosen)
        assert int(chosen.max()) < n
        counts.append((given_points(n), len(chosen) - given_points(n)))
    assert counts == [(32, 64), (127, 255), (128, 1024), (256, 2500)]


def test_features_are_what_their_names_say() -> None:
    linear_system = system(kernel_matrix(X), 0.02)
    evidence = gather(linear_system).evidence
    preconditioner = nystrom_preconditioner(linear_system, Landmarks(LANDMARKS))
    asked, gap, spectrum = BLOCK[given_points(N) :], preconditioner.gap, preconditioner.spectrum
    scalars = dict(zip(SCALARS, evidence.scalars.tolist(), strict=True))
    tokens = dict(zip(TOKENS, evidence.tokens.mean(0).tolist(), strict=True))
    expected = {
        "log_size": math.log(N),
        "log_rank_share": math.log(RANK / N),
        "upper": evidence.upper,
        "log_mean_gap": math.log1p(float(gap.mean())),
        "log_gap_0.25": math.log1p(float(gap.quantile(0.25))),
        "range_logdet": float(spectrum.log1p().sum()) / N,
        "log_eigenvalue_0": math.log1p(float(spectrum.max())),
        "log_eigenvalue_1": math.log1p(float(spectrum.min())),
        "log_estimate": math.log(evidence.estimate),
        "estimate_share": evidence.estimate / evidence.upper,
        "leverage": 1 - scalars["range_share"],
    }
    assert {name: scalars[name] for name in expected} == pytest.approx(expected, rel=1e-4)
    # Groups of equal size: the mean of their means is that of all points.
    assert tokens["schur_0"] == pytest.approx(float(gap[asked].log1p().mean()), rel=1e-9)
    assert tokens["leverage"] == pytest.approx(float(preconditioner.leverage[asked].mean()), rel=1e-9)
    assert tokens["difference_0"] + tokens["ranged_0"] == pytest.approx(
        float((1 + linear_system.diagonal()[asked] / linear_system.noise[asked]).log().mean()), rel=1e-9
    )


def test_rows_of_some_points_are_those_of_the_whole_matrices() -> None:
    linear_system = system(kernel_matrix(X), torch.linspace(0.01, 0.1, N, dtype=torch.float64))
    preconditioner = nystrom_preconditioner(linear_system, Landmarks(LANDMARKS))
    few, diagonals = whitened_rows(linear_system, preconditioner, BLOCK, 20)
    whole, all_diagonals = whitened_rows(linear_system, preconditioner, BLOCK, len(BLOCK))
    torch.testing.assert_close(few, whole[:, :20], rtol=1e-12, atol=1e-12)
    assert torch.equal(diagonals, all_diagonals)
    torch.testing.assert_close(diagonals, whole.diagonal(dim1=-2, dim2=-1), rtol=1e-10, atol=1e-10)
    root = linear_system.noise.sqrt()[BLOCK]
    torch.testing.assert_close(
        whole[1], linear_system.to_dense()[BLOCK][:, BLOCK] / root / root.unsqueeze(-1), rtol=1e-10, atol=1e-10
    )
    schur, full, ranged = whole
    torch.testing.assert_close(full - ranged, schur - torch.eye(len(BLOCK)), rtol=1e-8, atol=1e-8)
