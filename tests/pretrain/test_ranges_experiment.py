"""Learned ranges beside landmarks: the sketches are K's, the products are counted, and the command runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gp_rangeformer.preconditioner.landmarks import Landmarks, rp_cholesky_landmarks
from gp_rangeformer.preconditioner.nystrom import ProposedTestMatrix, nystrom_preconditioner
from gp_rangeformer.rangeformer.answer import SystemOperator
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.experiments.ranges.bench import QUICK, rank_for
from pretrain.experiments.ranges.command import main
from pretrain.experiments.ranges.extended import Remainder, extend
from pretrain.experiments.ranges.finders import block_krylov, finders

N, RANK = 200, 16


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture
def system() -> LinearSystem:
    points = torch.rand(N, 3, generator=generator())
    distances = 3 * torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return LinearSystem((1 + distances) * (-distances).exp(), torch.full((N,), 0.01))


@pytest.fixture
def landmarks(system: LinearSystem) -> Landmarks:
    return rp_cholesky_landmarks(system, 20, generator())


def kernel(system: LinearSystem) -> Tensor:
    return system.to_dense(torch.float64) - system.noise.double().diag()


def nystrom(system: LinearSystem, landmarks: Landmarks) -> Tensor:
    columns = kernel(system)[:, landmarks.index]
    return columns @ torch.linalg.solve(columns[landmarks.index], columns.mT)


@pytest.mark.parametrize("target", ["A", "rest"])
@pytest.mark.parametrize("name", ["network, 2", "subspace iteration, 2", "block Krylov, 2"])
def test_the_sketch_of_an_extended_range_is_that_of_its_test_matrix(
    system: LinearSystem, landmarks: Landmarks, target: str, name: str
) -> None:
    extended = extend(system, landmarks, *finders(system, (2,))[name], target, seed=0)
    omega = torch.cat([torch.eye(N)[:, landmarks.index], extended.basis], dim=1).double()
    columns, core = extended.sketch(system)
    torch.testing.assert_close(columns.double(), kernel(system) @ omega, rtol=0, atol=1e-4)
    torch.testing.assert_close(core, omega.mT @ kernel(system) @ omega, rtol=0, atol=1e-3)


def test_the_remainder_is_what_the_landmarks_leave(system: LinearSystem, landmarks: Landmarks) -> None:
    rest = Remainder(system, landmarks)
    dense = system.to_dense(torch.float64) - nystrom(system, landmarks)
    torch.testing.assert_close(rest.matmul(torch.eye(N)[None])[0].double(), dense, rtol=0, atol=1e-3)
    torch.testing.assert_close(rest.diagonal()[0].double(), dense.diagonal(), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", ["network, 3", "network, bfloat16, 3", "untrained, 3", "subspace iteration, 3"])
def test_the_network_and_its_controls_multiply_the_same_columns(
    system: LinearSystem, landmarks: Landmarks, name: str
) -> None:
    extend(system, landmarks, *finders(system, (3,))[name], "rest", seed=0)
    assert system.take_counts() == (4, 64 + 3 * 16)


def test_block_krylov_multiplies_as_many_columns_as_the_network(system: LinearSystem, landmarks: Landmarks) -> None:
    extend(system, landmarks, *finders(system, (3,))["block Krylov, 3"], "rest", seed=0)
    assert system.take_counts()[1] == 64 + 3 * 16


def test_deep_block_krylov_finds_the_leading_eigenvectors(system: LinearSystem) -> None:
    basis, _ = block_krylov(SystemOperator(system), 6, generator(), width=24, rank=RANK, depth=0)
    leading = torch.linalg.eigh(system.to_dense(torch.float64)).eigenvectors[:, -RANK:]
    assert float(torch.linalg.svdvals(leading.mT @ basis.double())[-1]) > 0.999


def test_sixteen_more_columns_of_the_rest_bring_the_preconditioner_closer(
    system: LinearSystem, landmarks: Landmarks
) -> None:
    plain = nystrom_preconditioner(system, landmarks).logdet()
    extended = extend(system, landmarks, *finders(system, (2,))["network, 2"], "rest", seed=0)
    eigenvectors = torch.linalg.eigh(system.to_dense()).eigenvectors[:, -20 - RANK :].contiguous()
    best = nystrom_preconditioner(system, ProposedTestMatrix(eigenvectors)).logdet()
    assert plain + 1 < nystrom_preconditioner(system, extended).logdet() < best


def test_landmarks_for_some_seconds_follow_the_power_law_of_the_measured_ones() -> None:
    known = [(100, 1.0), (200, 4.0), (400, 16.0)]
    found = [rank_for(seconds, known) for seconds in (1.0, 2.25, 9.0, 36.0)]
    assert found == [100, 150, 300, 600]


def test_the_command_measures_every_range(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick", "--out", str(tmp_path / "ranges.json")])
    records = json.loads((tmp_path / "ranges.json").read_text())["records"]
    found = {record["method"]: record for record in records}
    assert len(found) == len(records) == 6 + 2 * (5 * len(QUICK.loops) + 1) + 4
    assert not [name for name, record in found.items() if "failure" in record]
    assert found["exact"]["iterations"] <= found["landmarks"]["iterations"]
    assert "| rest: network, bfloat16, 2 |" in capsys.readouterr().out
