from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.expression import Scale, Stationary
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.logdet.lanczos import lanczos_logdet
from gp_rangeformer.preconditioner.certificate import logdet_bounds
from gp_rangeformer.preconditioner.landmarks import Landmarks, rp_cholesky_landmarks
from gp_rangeformer.preconditioner.neighbours import find_neighbours
from gp_rangeformer.preconditioner.nystrom import PreconditionerError, nystrom_preconditioner
from gp_rangeformer.preconditioner.sparse_rows import SparsePattern, SparseRows
from gp_rangeformer.preconditioner.vecchia import VecchiaPreconditioner, vecchia_preconditioner
from gp_rangeformer.solvers.block_cg import block_cg
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.reason import Reason
from tests.system.systems import points, targets

N = 300
MATERN = Scale(Stationary("matern32"))


def rough(n: int = N, noise: float | Tensor = 1e-3, dtype: torch.dtype = torch.float64, x: Tensor | None = None):
    """A system whose kernel no low rank explains, and where its points are."""
    x = points(n, 3) if x is None else x
    fused = FusedKernel(MATERN, x.to(dtype), (torch.tensor(2.0, dtype=dtype), torch.ones(1, x.shape[1], dtype=dtype)))
    linear_system = LinearSystem(fused.evaluate(), torch.as_tensor(noise, dtype=dtype).expand(n).clone())
    linear_system.points = fused
    return linear_system, fused


def preconditioned(linear_system: LinearSystem, fused: FusedKernel, rank: int, count: int) -> VecchiaPreconditioner:
    generator = torch.Generator().manual_seed(0)
    landmarks = rp_cholesky_landmarks(linear_system, rank, generator)
    return vecchia_preconditioner(linear_system, fused, find_neighbours(fused, landmarks, count, generator))


def whitened(linear_system: LinearSystem, preconditioner: VecchiaPreconditioner) -> Tensor:
    """W A W', in float64."""
    n, like = linear_system.size, linear_system.noise
    half = preconditioner.root_solve_transposed(torch.eye(n, dtype=like.dtype))
    return half.double().mT @ linear_system.to_dense(torch.float64) @ half.double()


@pytest.mark.parametrize("how", ["compiled", "tensors"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_point_is_whitened_given_its_neighbours(how, dtype) -> None:
    """W A W' has a unit diagonal, and P^-1 = W' W."""
    with settings.fused_kernels(how):
        linear_system, fused = rough(dtype=dtype, noise=0.05)
        preconditioner = preconditioned(linear_system, fused, 20, 12)
        matrix = whitened(linear_system, preconditioner)
        # Entries of A are at most 2.05, its inverse at most 20: what rounding does to g' A g = 1 with |g|^2 <= 20.
        slack = 20 * 2.05 * 20 * torch.finfo(dtype).eps
        assert (matrix.diagonal() - 1).abs().max() < slack
        rhs = targets(N, 5).to(dtype)
        once = preconditioner.root_solve_transposed(preconditioner.root_solve(rhs))
        assert torch.equal(preconditioner.solve(rhs), once)


def test_compiled_code_and_tensor_operations_agree() -> None:
    found = []
    for how in ("compiled", "tensors"):
        with settings.fused_kernels(how):
            linear_system, fused = rough()
            landmarks = Landmarks(torch.arange(10))
            neighbours = find_neighbours(fused, landmarks, 9, torch.Generator().manual_seed(3))
            preconditioner = vecchia_preconditioner(linear_system, fused, neighbours)
            found.append((neighbours.pattern.neighbours, preconditioner.solve(targets(N, 4)), preconditioner.logdet()))
    (one, solved, logdet), (other, also_solved, also_logdet) = found
    assert torch.equal(one, other)
    torch.testing.assert_close(solved, also_solved, rtol=1e-9, atol=1e-9 * float(solved.abs().max()))
    assert logdet == pytest.approx(also_logdet, rel=1e-12)


def test_neighbours_are_the_nearest_earlier_points() -> None:
    _, fused = rough()
    neighbours = find_neighbours(fused, Landmarks(torch.arange(10)), 7, torch.Generator().manual_seed(0))
    assert sorted(neighbours.order.tolist()) == list(range(10, N))
    x = points(N, 3)[neighbours.order]
    distance = torch.cdist(x, x)
    for i, near in enumerate(neighbours.pattern.neighbours.tolist()):
        expected = distance[i, :i].argsort()[:7].sort().values.tolist()
        assert near == expected + [-1] * (7 - len(expected))


def test_all_earlier_points_make_it_exact() -> None:
    linear_system, fused = rough(60)
    preconditioner = preconditioned(linear_system, fused, 10, 59)
    dense = linear_system.to_dense()
    rhs = targets(60, 3)
    torch.testing.assert_close(dense @ preconditioner.solve(rhs), rhs, rtol=1e-9, atol=1e-9)
    assert preconditioner.logdet() == pytest.approx(float(torch.logdet(dense)), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("noise", [1e-4, 1e-2, 1.0])
@pytest.mark.parametrize("rank", [5, 100])
def test_the_log_determinant_is_bounded_from_above_and_tighter(rank, noise, dtype) -> None:
    linear_system, fused = rough(noise=noise, dtype=dtype)
    nystrom = nystrom_preconditioner(
        linear_system, rp_cholesky_landmarks(linear_system, rank, torch.Generator().manual_seed(0))
    )
    exact = float(torch.logdet(linear_system.to_dense(torch.float64)))
    without = logdet_bounds(linear_system, nystrom)
    uppers = []
    for count in (1, 4, 16, 64):
        bounds = logdet_bounds(linear_system, nystrom, preconditioned(linear_system, fused, rank, count))
        assert bounds.contains(exact)
        assert bounds.lower == without.lower
        uppers.append(bounds.upper)
    assert uppers == sorted(uppers, reverse=True)
    if noise < 1:
        assert uppers[-1] - exact < 0.2 * (without.upper - exact)


def test_noise_of_every_point_duplicates_and_few_points_are_no_trouble() -> None:
    x = points(120, 2, duplicates=0.5)
    x[:, 1] = 3.0  # a constant column
    noise = torch.logspace(-4, 0, 120, dtype=torch.float64)
    linear_system, fused = rough(120, noise, x=x)
    for rank, count in ((1, 1), (30, 8), (100, 200)):
        preconditioner = preconditioned(linear_system, fused, rank, min(count, 119 - rank))
        values = torch.linalg.eigvalsh(whitened(linear_system, preconditioner))
        assert values[0] > 0
        assert preconditioner.logdet() >= float(torch.logdet(linear_system.to_dense())) - 1e-8


def test_rounding_that_exceeds_the_noise_leaves_a_positive_preconditioner() -> None:
    """Coincident points in float32, with a noise that is lost in the rounding of the entries."""
    x = points(100, 2)
    x[50:] = x[:50]
    linear_system, fused = rough(100, 1e-9, torch.float32, x)
    for how in ("compiled", "tensors"):
        with settings.fused_kernels(how):
            preconditioner = preconditioned(linear_system, fused, 10, 30)
            rhs = targets(100, 8).float()
            assert (rhs * preconditioner.solve(rhs)).sum(0).min() > 0
            assert math.isfinite(preconditioner.logdet())


def test_it_takes_fewer_iterations_where_low_rank_saturates() -> None:
    linear_system, fused = rough(1000, 1e-3)
    rank = 50
    nystrom = nystrom_preconditioner(
        linear_system, rp_cholesky_landmarks(linear_system, rank, torch.Generator().manual_seed(0))
    )
    rhs = targets(1000, 8)
    stop = 0.01 * torch.linalg.vector_norm(rhs, dim=0)
    iterations = []
    for preconditioner in (nystrom, preconditioned(linear_system, fused, rank, 32)):
        never = torch.full_like(stop, math.inf)
        found = block_cg(
            linear_system, preconditioner, torch.zeros_like(rhs), rhs, stop_norm=stop, stop_energy=never, max_passes=200
        )
        assert found.reason is Reason.CONVERGED
        left = torch.linalg.vector_norm(rhs - linear_system.matmul(found.value), dim=0)
        assert (left <= 1.001 * stop).all()
        iterations.append(found.iterations)
    assert 3 * iterations[1] < iterations[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lanczos_covers_the_log_determinant_and_needs_fewer_passes(dtype) -> None:
    linear_system, fused = rough(600, 1e-3, dtype)
    dense = linear_system.to_dense(torch.float64)
    exact = float(torch.logdet(dense))
    share = float(torch.linalg.inv(dense).trace()) * 1e-3 / 600
    landmarks = rp_cholesky_landmarks(linear_system, 40, torch.Generator().manual_seed(0))
    nystrom = nystrom_preconditioner(linear_system, landmarks)
    vecchia = preconditioned(linear_system, fused, 40, 32)
    covered = 0
    for seed in range(40):
        generator = torch.Generator().manual_seed(seed)
        probes = (torch.randint(0, 2, (600, 8), generator=generator) * 2 - 1).to(dtype)
        trace = lanczos_logdet(linear_system, vecchia, probes, share=share)
        covered += trace.interval.shifted(vecchia.logdet()).contains(exact)
        if seed == 0:
            plain = lanczos_logdet(linear_system, nystrom, probes, share=share)
            assert 2 * trace.passes < plain.passes
            assert 2 * trace.interval.width < plain.interval.width
    # Binomial, 95 %: fewer than 33 of 40 are seen once in a thousand times.
    assert covered >= 33


def test_a_matrix_that_is_not_finite_is_refused() -> None:
    linear_system, fused = rough(50)
    broken = LinearSystem(torch.full((50, 50), math.nan, dtype=torch.float64), linear_system.noise)
    neighbours = find_neighbours(fused, Landmarks(torch.arange(5)), 4, torch.Generator().manual_seed(0))
    with pytest.raises(PreconditionerError, match="not finite"):
        vecchia_preconditioner(broken, fused, neighbours)


def test_sparse_rows_multiply_as_the_dense_matrix() -> None:
    pattern = SparsePattern(torch.tensor([[-1, -1], [0, -1], [0, 1], [1, 2]], dtype=torch.int32))
    numbers = torch.tensor([[0.0, 0, 1], [2, 0, 3], [4, 5, 6], [7, 8, 9]], dtype=torch.float64)
    dense = torch.tensor([[1.0, 0, 0, 0], [2, 3, 0, 0], [4, 5, 6, 0], [0, 7, 8, 9]], dtype=torch.float64)
    for how in ("compiled", "tensors"):
        with settings.fused_kernels(how):
            for width in (1, 7, 33, 70):
                vectors = targets(4, width)
                rows = SparseRows(pattern, numbers)
                torch.testing.assert_close(rows.matmul(vectors), dense @ vectors)
                torch.testing.assert_close(rows.matmul_transposed(vectors), dense.mT @ vectors)


def test_a_pattern_says_how_much_memory_it_takes() -> None:
    _, fused = rough()
    neighbours = find_neighbours(fused, Landmarks(torch.arange(10)), 7, torch.Generator().manual_seed(0))
    pattern = neighbours.pattern
    tensors: list[Tensor] = [neighbours.order, pattern.neighbours]
    for rows in (pattern.rows, pattern.transposed):
        tensors += [getattr(rows, field.name) for field in dataclasses.fields(rows)]
    actual = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert actual <= neighbours.nbytes <= 1.1 * actual
    assert neighbours.count == 7
