"""Floors and peers: what each computes is what the exact answer, or GPyTorch's autograd, says it is."""

from __future__ import annotations

import importlib
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.kernels import keops as keops_kernels

from gp_rangeformer import settings
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench import with_keops
from gp_rangeformer.lab.bench.contenders import Clock, Problem, UnavailableError
from gp_rangeformer.lab.bench.entrants import FLOORS, parse_peers
from gp_rangeformer.lab.bench.floors import COLUMNS, Floor, HostFloor, factors
from gp_rangeformer.lab.bench.with_gpflash import GpflashContender
from gp_rangeformer.lab.bench.with_keops import keops_contender
from gp_rangeformer.lab.compare.audit import (
    ExactEvaluator,
    Parameters,
    gradient_vector,
    relative_error,
    restore,
    snapshot,
)
from gp_rangeformer.lab.compare.solvers import SolverError
from gp_rangeformer.lab.models import build_model

N = 150


def problem_of(kernel: str, dtype: str = "float64") -> Problem:
    return Problem(datasets.load("borehole", n=N, n_test=1), kernel, dtype)


def state_of(problem: Problem) -> Parameters:
    """Away from the start, where all lengthscales are equal and the mean is 0."""
    generator = torch.Generator().manual_seed(5)
    start = snapshot(build_model(problem.data, problem.kernel)[0])
    return {name: value + 0.4 * torch.randn(value.shape, generator=generator) for name, value in start.items()}


@pytest.mark.parametrize("kernel", ["matern32", "rq"])
def test_the_floors_contraction_is_the_plug_ins_gradient_for_that_weight(kernel: str) -> None:
    problem = problem_of(kernel)
    state = state_of(problem)
    model: Any = build_model(problem.data, kernel)[0]
    restore(model, state)
    left, right = factors(problem)
    with settings.rangeformer():
        matrix = model.covar_module(problem.data.train_x).to_dense()
    (matrix * (left @ right.mT)).sum().backward()
    found = Floor(problem).evaluate(state)
    assert left.shape == right.shape == (N, COLUMNS)
    assert found.value is None
    assert relative_error(found.gradient, gradient_vector(model)) < 1e-12


def test_the_host_floor_does_the_same_task_as_the_floor() -> None:
    problem = problem_of("matern32")
    state = state_of(problem)
    own, host = Floor(problem).evaluate(state), HostFloor(problem).evaluate(state)
    assert own.gradient.norm() > 0
    assert relative_error(host.gradient, own.gradient) < 1e-8


def test_a_kernel_without_a_fused_form_has_no_floor() -> None:
    with pytest.raises(UnavailableError, match="no fused form"):
        Floor(problem_of("linear+rbf"))


@pytest.mark.parametrize("kernel", ["matern32", "matern52", "rbf"])
def test_gpflash_agrees_with_the_exact_value_and_gradient(kernel: str) -> None:
    pytest.importorskip("gpflash")
    problem = problem_of(kernel)
    state = state_of(problem)
    exact = ExactEvaluator(problem.dataset, kernel)(state)
    found = GpflashContender(problem).evaluate(state)
    assert found.covered is not None
    assert found.value == pytest.approx(exact.value, abs=1e-8)
    assert relative_error(found.gradient[found.covered], exact.gradient[found.covered]) < 1e-7


def test_gpflash_covers_everything_but_the_mean() -> None:
    pytest.importorskip("gpflash")
    problem = problem_of("matern32")
    found = GpflashContender(problem).evaluate(state_of(problem))
    model, _ = build_model(problem.data, "matern32")
    names = [name for name, parameter in model.named_parameters() for _ in range(parameter.numel())]
    assert found.covered is not None
    assert {name for name, here in zip(names, found.covered, strict=True) if not here} == {"mean_module.raw_constant"}


def test_gpflash_says_which_kernels_it_has() -> None:
    with pytest.raises(UnavailableError, match="matern32, matern52, rbf"):
        GpflashContender(problem_of("matern12"))


def test_a_missing_gpflash_is_a_reason_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, *arguments: Any) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UnavailableError, match="pip install gpflash"):
        GpflashContender(problem_of("matern32"))


def test_a_missing_keops_is_a_reason_that_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_keops.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UnavailableError, match="pip install pykeops"):
        keops_contender(problem_of("matern32"))


@pytest.mark.parametrize("kernel", ["matern32", "rbf"])
def test_the_keops_model_computes_the_same_likelihood(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Where pykeops is not installed, GPyTorch evaluates its KeOps kernels without it.
    monkeypatch.setattr(with_keops.importlib.util, "find_spec", lambda name: object())
    problem = problem_of(kernel)
    state = state_of(problem)
    exact = ExactEvaluator(problem.dataset, kernel)(state)
    found = keops_contender(problem).evaluate(state)
    assert found.value == pytest.approx(exact.value, abs=0.05)
    assert relative_error(found.gradient, exact.gradient) < 0.3
    assert found.passes > 0


def test_keops_is_used_for_the_whole_matrix_and_not_for_single_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[Any] = []

    def watching(self: Any, *arguments: Any, **options: Any) -> Any:
        sizes.append(gpytorch.settings.max_cholesky_size.value())
        return original(self, *arguments, **options)

    original = keops_kernels.MaternKernel.forward
    monkeypatch.setattr(keops_kernels.MaternKernel, "forward", watching)
    monkeypatch.setattr(with_keops.importlib.util, "find_spec", lambda name: object())
    problem = problem_of("matern32")
    keops_contender(problem).evaluate(state_of(problem))
    # GPyTorch writes blocks of at least so many rows as KeOps formulas, and those of one row break its preconditioner.
    assert sizes
    assert all(1 < size < N for size in sizes)


def test_what_keops_prints_is_kept_out_of_the_tables(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def printing(self: Any, *arguments: Any, **options: Any) -> Any:
        print("[KeOps] Generating code")
        return original(self, *arguments, **options)

    original = keops_kernels.MaternKernel.forward
    monkeypatch.setattr(keops_kernels.MaternKernel, "forward", printing)
    monkeypatch.setattr(with_keops.importlib.util, "find_spec", lambda name: object())
    problem = problem_of("matern32")
    keops_contender(problem).evaluate(state_of(problem))
    written = capsys.readouterr()
    assert "[KeOps] Generating code" in written.err
    assert written.out == ""


def test_a_kernel_without_a_keops_twin_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(with_keops.importlib.util, "find_spec", lambda name: object())
    with pytest.raises(UnavailableError, match="RQKernel"):
        keops_contender(problem_of("rq"))


def test_the_floors_always_run() -> None:
    assert parse_peers("exact,gpflash")[:2] == FLOORS
    assert [entrant.name for entrant in parse_peers("gpflash,cg")[2:]] == ["gpflash", "cg"]


@pytest.mark.parametrize("name", ["cholesky", "exact", "gpflash"])
def test_factorisations_are_expected_to_grow_with_the_third_power(name: str) -> None:
    assert parse_peers(name)[-1].growth == 3
    assert parse_peers("rangeformer")[-1].growth == 2


@pytest.mark.parametrize(
    ("names", "said"), [("", "no solver named"), ("svgp", "gpflash"), ("cg,cg", "twice"), ("keops:a=1", "no solver")]
)
def test_solvers_that_cannot_be_named_so_are_refused(names: str, said: str) -> None:
    with pytest.raises(SolverError, match=said):
        parse_peers(names)


def test_a_contender_says_how_much_of_a_processor_it_had() -> None:
    problem = problem_of("matern32")
    for entrant in parse_peers("exact"):
        found = entrant.build(problem).evaluate(state_of(problem))
        assert 0 < found.processor <= 1.1 * found.seconds * torch.get_num_threads() + 1e-3


def test_a_clock_counts_what_is_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.5])
    monkeypatch.setattr("gp_rangeformer.lab.bench.contenders.time.perf_counter", lambda: next(times))
    with Clock(torch.device("cpu")) as clock:
        pass
    assert clock.seconds == 2.5
