"""A model in two processes that share K, against the same model in one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpytorch
import pytest
import torch
from torch import Tensor, distributed

from gp_rangeformer import clear_memory, settings
from gp_rangeformer.allocation import workspace
from gp_rangeformer.allocation.free_memory import InsufficientMemoryError
from gp_rangeformer.kernels.gpu.streamed import StreamedKernel
from gp_rangeformer.kernels.matrices.sharded import ProcessGroupError
from gp_rangeformer.kernels.native.compiler import native_library
from gp_rangeformer.solvers.exact import Exact
from tests.plugin.market import build, rangeformer_path

N = 600  # three tiles: one process holds 256 rows, the other 344
STORAGES = ("dense", "tiles")
SECONDS = 600  # that the two processes may take: six on two idle cores, far more where others compute too


def answers() -> dict[str, Any]:
    """Three steps of Adam, then a prediction; everything that a user sees of them."""
    clear_memory()
    torch.manual_seed(0)
    problem = build("nested", n=N)
    optimiser = torch.optim.Adam(problem.model.parameters(), lr=0.05)
    values = []
    with rangeformer_path(tolerance=1e-8, rank=30, predictor="rows") as reports, settings.solver(logdet="lanczos"):
        for _ in range(3):
            value, gradient = problem.loss_and_gradient()
            values.append(value)
            optimiser.step()
        with torch.no_grad():
            exact = problem.predict()
            found = {"mean": exact.mean, "variance": exact.variance}
            with gpytorch.settings.fast_pred_var():
                found["fast variance"] = problem.predict().variance
    with rangeformer_path(), settings.solver(Exact()):
        found["exact value"] = torch.tensor(problem.loss_and_gradient()[0])
    found |= {"values": torch.tensor(values), "gradient": gradient}
    found["parameters"] = torch.cat([parameter.detach().reshape(-1) for parameter in problem.model.parameters()])
    return {
        "numbers": found,
        "solvers": [(report.operation, report.solver) for report in reports],
        "notes": {note for report in reports for note in report.notes},
    }


def refusal(rank: int, what: str) -> str:
    """The error where the processes have different data, means, settings or losses."""
    problem = build("ard", n=300)
    if what == "threads":
        torch.set_num_threads(1 + rank)
    if what == "targets":
        problem.y = problem.y + rank
    elif what == "not a number":
        problem.y = torch.where(problem.y == problem.y[3], torch.nan if rank else 0.0, problem.y)
    elif what == "order":
        problem.x = problem.x.flip(0) if rank else problem.x
    elif what == "size":
        problem.x, problem.y = problem.x[: 300 - rank], problem.y[: 300 - rank]
    problem.model.set_train_data(problem.x, problem.y, strict=False)
    try:
        with (
            rangeformer_path(),
            settings.fused_kernels("compiled" if what != "compiler" or rank == 0 else "tensors"),
            settings.solver(seed=rank if what == "settings" else 0),
        ):
            loss = problem.loss()
            if what == "loss":
                (loss * (1 + rank)).backward()
    except ProcessGroupError as error:
        return str(error)
    finally:
        torch.set_num_threads(1)
    return ""


def shortage(rank: int) -> str:
    """The error where the second process alone has no memory for what a factorisation needs."""
    found = workspace.free_bytes_for
    if rank:
        workspace.free_bytes_for = lambda n, device: 0
    try:
        with rangeformer_path(), settings.solver(Exact()):
            build("ard", n=300).loss()
    except InsufficientMemoryError as error:
        return str(error)
    finally:
        workspace.free_bytes_for = found
    return ""


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    with settings.process_group(True):
        found: dict[str, Any] = {}
        for storage in STORAGES:
            with settings.kernel_storage(storage):
                found[storage] = answers()
        for what in ("targets", "not a number", "order", "size", "threads", "compiler", "settings", "loss"):
            found[what] = refusal(rank, what)
        found["memory"] = shortage(rank)
    distributed.barrier()
    distributed.destroy_process_group()
    torch.save(found, f"{folder}/{rank}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found. If one of them fails, what both said is the message."""
    folder = tmp_path_factory.mktemp("group")
    native_library()  # compiled before, not by both at once
    # Over the loopback: the name of the machine may lead to an interface that is down or behind a firewall.
    loopback = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
    environment = os.environ | {"GLOO_SOCKET_IFNAME": loopback, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    program = f"from {__name__} import work; work({{}}, {str(folder)!r})"
    logs = [folder / f"{rank}.log" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        with log.open("w") as output:
            command = [sys.executable, "-c", program.format(rank)]
            root = Path(__file__).parents[2]
            processes.append(subprocess.Popen(command, cwd=root, env=environment, stdout=output, stderr=output))
    codes = ended(processes)
    if codes != [0, 0]:
        said = "\n".join(f"process {rank} said:\n{log.read_text()}" for rank, log in enumerate(logs))
        pytest.fail(f"the processes ended with {codes}\n{said}", pytrace=False)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def ended(processes: list[subprocess.Popen[bytes]]) -> list[int]:
    """Exit codes. Where one has failed, or time is up, the others are made to say where they are and stop."""
    deadline = time.monotonic() + SECONDS
    try:
        while any(process.poll() is None for process in processes):
            if time.monotonic() > deadline or any(process.poll() for process in processes):
                for process in processes:
                    process.send_signal(signal.SIGABRT)
                break
            time.sleep(0.05)
        return [process.wait() for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return answers()


@pytest.mark.parametrize("storage", STORAGES)
def test_two_processes_give_the_answers_of_one(
    found: list[dict[str, Any]], alone: dict[str, Any], storage: str
) -> None:
    # One process alone predicts by a factorisation, which K in parts has none of.
    trained = [entry for entry in alone["solvers"] if entry[0] == "inv_quad_logdet"]
    assert found[0][storage]["solvers"][: len(trained)] == trained
    assert ("inv_quad_logdet", "rangeformer") in trained
    assert ("solve", "rangeformer") in found[0][storage]["solvers"]
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
    ("what", "named"),
    [
        ("targets", "right-hand sides"),
        ("not a number", "right-hand sides"),
        ("order", "kernel matrices"),
        ("size", "kernel matrices"),
        ("settings", "settings"),
        ("loss", "incoming gradients"),
    ],
)
def test_processes_with_different_data_settings_or_losses_are_refused(
    found: list[dict[str, Any]], what: str, named: str
) -> None:
    for process in found:
        assert f"different {named}: every process must run the same script with the same data" in process[what]


@pytest.mark.parametrize("what", ["threads", "compiler"])
def test_processes_that_would_divide_the_matrix_in_different_ways_are_refused(
    found: list[dict[str, Any]], what: str
) -> None:
    for process in found:
        assert "would divide K in different ways: give all of them the same number of threads" in process[what]


def test_what_does_not_fit_in_one_process_is_refused_in_both(found: list[dict[str, Any]]) -> None:
    """The other would wait for what this one does not send."""
    assert "do not fit on cpu (another process has less memory free)" in found[0]["memory"]
    assert "GiB needed, 0 GiB free" in found[1]["memory"]


@pytest.fixture
def nccl(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    torch.cuda.set_device(0)
    distributed.init_process_group("nccl", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


def step_on(device: str) -> tuple[float, Tensor, list[Any]]:
    """Value, gradient and reports of a training step in float32."""
    clear_memory()
    problem = build("ard", n=N, dtype=torch.float32)
    problem.model.to(device)
    problem.x, problem.y = problem.x.to(device), problem.y.to(device)
    problem.model.set_train_data(problem.x, problem.y, strict=False)
    with rangeformer_path(tolerance=1e-2, rank=30) as reports, settings.solver(logdet="lanczos"):
        value, gradient = problem.loss_and_gradient()
    return value, gradient.cpu(), list(reports)


@pytest.mark.cuda
@pytest.mark.usefixtures("nccl")
@pytest.mark.parametrize("storage", STORAGES)
def test_a_step_of_a_group_on_a_gpu_is_the_step_without_one(monkeypatch: pytest.MonkeyPatch, storage: str) -> None:
    with settings.kernel_storage(storage):
        value, gradient, _ = step_on("cuda")
        streamed, multiply = [], StreamedKernel.matmul

        def counting(self: StreamedKernel, vectors: Tensor, rows: slice | None = None) -> Tensor:
            streamed.append(rows)
            return multiply(self, vectors, rows)

        monkeypatch.setattr(StreamedKernel, "matmul", counting)
        with settings.process_group(True):
            shared_value, shared_gradient, reports = step_on("cuda")
    assert [report.solver for report in reports] == ["rangeformer"]
    assert any("over 1 processes" in note for report in reports for note in report.notes)
    assert bool(streamed) == (storage == "tiles")
    assert shared_value == pytest.approx(value, abs=1e-5)
    assert float((shared_gradient - gradient).norm() / gradient.norm()) < 1e-3
