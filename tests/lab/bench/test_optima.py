"""The shipped ends of fits: they fit their models, and are found anew by the command that wrote them."""

from __future__ import annotations

import json

import gpytorch
import pytest
import torch

from gp_rangeformer.lab.bench import optima
from gp_rangeformer.lab.bench.optima import FILE, SETS, find_optimum, main, optimum
from gp_rangeformer.lab.bench.peer_run import Plan, run
from gp_rangeformer.lab.bench.resumed import PlanError
from gp_rangeformer.lab.compare.audit import ExactEvaluator, restore, snapshot
from gp_rangeformer.lab.datasets import Dataset, DatasetError, load
from gp_rangeformer.lab.datasets.dataset import standardise
from gp_rangeformer.lab.models import build_model, hyperparameters


def of_inputs(d: int) -> Dataset:
    x, y = torch.randn(20, d, dtype=torch.float64), torch.randn(20, dtype=torch.float64)
    names = tuple(f"x{i}" for i in range(d))
    return standardise("any", (x, y), (x[:1], y[:1]), names, "y", "random")


@pytest.mark.parametrize("name", SETS)
def test_an_optimum_is_that_of_a_model_and_has_the_small_noise_of_one(name: str) -> None:
    parameters = optimum(name)
    (d,) = (value.shape[-1] for key, value in parameters.items() if key.endswith("raw_lengthscale"))
    model, _ = build_model(of_inputs(d), "matern32")
    restore(model, parameters)
    found = hyperparameters(model)
    assert 1e-4 <= found["noise"] < 0.2 < 0.6931
    assert all(value > 0 for key, value in found.items() if key != "mean")


@pytest.mark.parametrize("name", SETS)
def test_hardly_anything_is_left_to_gain_from_a_stored_one(name: str) -> None:
    assert 0 <= json.loads(FILE.read_text())["sets"][name]["left_to_gain"] < 1e-4


@pytest.mark.parametrize("name", SETS)
def test_a_model_in_float32_holds_a_stored_one(name: str) -> None:
    parameters = optimum(name)
    (d,) = (value.shape[-1] for key, value in parameters.items() if key.endswith("raw_lengthscale"))
    dataset = of_inputs(d).to(torch.float32)
    model, likelihood = build_model(dataset, "matern32")
    restore(model, parameters)
    value = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)(model(dataset.train_x), dataset.train_y)
    value.backward()  # type: ignore[union-attr]
    assert all(p.isfinite().all() and p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_a_set_without_one_is_refused_by_name() -> None:
    with pytest.raises(DatasetError, match=r"no optimum of 'robot_arm'.*kin40k"):
        optimum("robot_arm")


@pytest.mark.parametrize(
    ("at", "kernel", "error", "message"),
    [
        ("optimum", "rbf", PlanError, "optima are known of the kernel matern32, not of rbf"),
        ("optimum", None, DatasetError, "no optimum of 'robot_arm'"),
        ("end", None, PlanError, "--at 'end': start or optimum"),
    ],
)
def test_a_run_from_an_optimum_that_is_not_there_is_refused_before_it_starts(at, kernel, error, message) -> None:
    plan = Plan("robot_arm", kernel, "exact", 4, 0, "float32", "cpu", at)
    with pytest.raises(error, match=message):
        run(plan, [200], patience=60.0, audit_largest=0)


def test_an_optimum_is_found_and_a_run_starts_there(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    found = find_optimum("robot_arm", rows=120, subset=60)
    dataset = load("robot_arm", n=120, n_test=1, seed=0).to(torch.float64)
    parameters = {key: torch.tensor(value).double() for key, value in found["parameters"].items()}  # type: ignore[attr-defined]
    at = ExactEvaluator(dataset, "matern32")(parameters)
    assert at.value == pytest.approx(found["log_likelihood"], abs=1e-9)
    assert at.gradient.norm() < 1e-3
    assert found["left_to_gain"] < 1e-6  # type: ignore[operator]
    path = tmp_path / "optima.json"
    path.write_text(json.dumps({"sets": {"robot_arm": found}}))
    monkeypatch.setattr(optima, "FILE", path)
    (size,) = run(
        Plan("robot_arm", None, "exact", 4, 0, "float64", "cpu", "optimum"), [120], patience=60.0, audit_largest=0
    )
    assert FILE.is_file()
    assert size.row("exact") is not None


def test_a_known_set_is_gone_on_with_and_the_others_stay(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    dataset = load("robot_arm", n=100, n_test=1, seed=0).to(torch.float64)
    model, _ = build_model(dataset, "matern32")
    start = {key: value.tolist() for key, value in snapshot(model).items()}
    known = {"parameters": start, "log_likelihood": -9.0, "left_to_gain": 9.0, "of_starts": [-9.0], "rows": 100}
    path = tmp_path / "optima.json"
    path.write_text(json.dumps({"sets": {"robot_arm": known, "other": {"rows": 1}}}))
    monkeypatch.setattr(optima, "FILE", path)
    main(["robot_arm"])
    sets = json.loads(path.read_text())["sets"]
    assert sets["other"] == {"rows": 1}
    assert sets["robot_arm"]["left_to_gain"] < 1e-6
    assert sets["robot_arm"]["log_likelihood"] == pytest.approx(
        ExactEvaluator(dataset, "matern32")(optimum("robot_arm")).value
    )
    assert sets["robot_arm"]["of_starts"] == [-9.0]
