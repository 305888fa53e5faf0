"""A model in two processes that share K, against the same model in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gpytorch
import pytest
import torch
from torch import distributed, multiprocessing

from gp_rangeformer import clear_memory, settings
from gp_rangeformer.kernels.sharded import ProcessGroupError
from tests.backend.market import build, rangeformer_path

N = 600  # three tiles: one process holds 256 rows, the other 344
STORAGES = ("dense", "tiles")


def answers() -> dict[str, Any]:
    """Three steps of Adam, then a prediction; everything that a user sees of them."""
    clear_memory()
    torch.manual_seed(0)
    problem = build("nested", n=N)
    optimiser = torch.optim.Adam(problem.model.parameters(), lr=0.05)
    values = []
    with rangeformer_path(tolerance=1e-8, rank=30, predictor="rows") as reports, settings.logdet("lanczos"):
        for _ in range(3):
            value, gradient = problem.loss_and_gradient()
            values.append(value)
            optimiser.step()
        with torch.no_grad():
            exact = problem.predict()
            found = {"mean": exact.mean, "variance": exact.variance}
            with gpytorch.settings.fast_pred_var():
                found["fast variance"] = problem.predict().variance
    with rangeformer_path(), settings.logdet("exact"):
        found["exact value"] = torch.tensor(problem.loss_and_gradient()[0])
    found |= {"values": torch.tensor(values), "gradient": gradient}
    found["parameters"] = torch.cat([parameter.detach().reshape(-1) for parameter in problem.model.parameters()])
    return {
        "numbers": found,
        "solvers": [(report.operation, report.solver) for report in reports],
        "notes": {note for report in reports for note in report.notes},
    }


def refusal(rank: int, what: str) -> str:
    """The error where the processes have different data."""
    problem = build("ard", n=300)
    if what == "targets":
        problem.y = problem.y + rank
    elif what == "order":
        problem.x = problem.x.flip(0) if rank else problem.x
    else:
        problem.x, problem.y = problem.x[: 300 - rank], problem.y[: 300 - rank]
    problem.model.set_train_data(problem.x, problem.y, strict=False)
    try:
        with rangeformer_path():
            problem.loss()
    except ProcessGroupError as error:
        return str(error)
    return ""


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with settings.process_group(True):
        found: dict[str, Any] = {}
        for storage in STORAGES:
            with settings.kernel_storage(storage):
                found[storage] = answers()
        for what in ("targets", "order", "size"):
            found[what] = refusal(rank, what)
    distributed.barrier()
    distributed.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = str(tmp_path_factory.mktemp("group"))
    multiprocessing.spawn(work, args=(folder,), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return answers()


@pytest.mark.parametrize("storage", STORAGES)
def test_two_processes_give_the_answers_of_one(
    found: list[dict[str, Any]], alone: dict[str, Any], storage: str
) -> None:
    assert found[0][storage]["solvers"] == alone["solvers"]
    assert {("inv_quad_logdet", "rangeformer"), ("solve", "rangeformer")} <= set(alone["solvers"])
    for name, expected in alone["numbers"].items():
        ours = found[0][storage]["numbers"][name]
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("storage", STORAGES)
def test_both_processes_have_the_same_bits(found: list[dict[str, Any]], storage: str) -> None:
    for name, first in found[0][storage]["numbers"].items():
        assert torch.equal(first, found[1][storage]["numbers"][name]), name


def test_the_report_says_how_the_matrix_is_held(found: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    assert "K is held in rows over 2 processes" in found[0]["dense"]["notes"]
    assert any("K is recomputed at every product over 2 processes" in note for note in found[0]["tiles"]["notes"])
    assert not any("K is" in note for note in alone["notes"])


@pytest.mark.parametrize(
    ("what", "named"), [("targets", "right-hand sides"), ("order", "kernel matrices"), ("size", "kernel matrices")]
)
def test_processes_with_different_data_are_refused(found: list[dict[str, Any]], what: str, named: str) -> None:
    for process in found:
        assert f"different {named}: every process must run the same script with the same data" in process[what]
