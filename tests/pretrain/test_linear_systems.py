from __future__ import annotations

import json

import pytest
import torch

from pretrain.baselines.classical import conjugate_gradients, exact, gradient_descent
from pretrain.baselines.linear_system_transformer import LinearSystemTransformer, LinearSystemTransformerConfig
from pretrain.experiments import linear_systems
from pretrain.experiments.linear_systems import Evaluation, Training, as_solver, errors, train, trainings
from pretrain.experiments.spd_systems import random_systems

CONDITION = 10.0


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def relative_errors(approximate: torch.Tensor, solution: torch.Tensor) -> torch.Tensor:
    return (approximate - solution).norm(dim=-1) / solution.norm(dim=-1)


@pytest.mark.parametrize("n", [2, 9, 20])
def test_systems_have_norm_one_the_condition_number_and_the_solution(n) -> None:
    matrix, rhs, solution = random_systems(32, n, CONDITION, generator())
    spectrum = torch.linalg.eigvalsh(matrix)
    torch.testing.assert_close(spectrum[:, -1], torch.ones(32), rtol=1e-5, atol=0.0)
    torch.testing.assert_close(spectrum[:, 0], torch.full((32,), 1 / CONDITION), rtol=1e-4, atol=0.0)
    torch.testing.assert_close(torch.linalg.solve(matrix, rhs), solution, rtol=1e-4, atol=1e-5)


def test_gradient_descent_stays_within_its_rate_and_comes_near_it() -> None:
    matrix, rhs, solution = random_systems(256, 2, CONDITION, generator())
    worst = relative_errors(gradient_descent(matrix, rhs, 6, 1 / CONDITION, 1.0), solution).max()
    rate = ((CONDITION - 1) / (CONDITION + 1)) ** 6
    # With two eigenvalues, both ends of the interval, the rate is attained.
    assert float(worst) == pytest.approx(rate, rel=1e-4)


def test_gradient_descent_refuses_an_interval_that_reaches_zero() -> None:
    matrix, rhs, _ = random_systems(1, 3, CONDITION, generator())
    with pytest.raises(ValueError, match="0 < smallest"):
        gradient_descent(matrix, rhs, 3, 0.0, 1.0)


def test_conjugate_gradients_minimises_the_energy_norm_over_the_krylov_space() -> None:
    matrix, rhs, solution = (tensor.double() for tensor in random_systems(8, 9, CONDITION, generator()))
    matrix = (matrix + matrix.mT) / 2
    powers = [rhs]
    for _ in range(3):
        powers.append((matrix @ powers[-1].unsqueeze(-1)).squeeze(-1))
    krylov = torch.linalg.qr(torch.stack(powers, dim=-1)).Q
    best = krylov @ torch.linalg.solve(krylov.mT @ matrix @ krylov, krylov.mT @ rhs.unsqueeze(-1))
    torch.testing.assert_close(conjugate_gradients(matrix, rhs, 4), best.squeeze(-1), rtol=1e-8, atol=1e-10)
    assert float(relative_errors(best.squeeze(-1), solution).min()) > 1e-4


def test_conjugate_gradients_stays_at_a_solution_it_has_reached() -> None:
    rhs = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(conjugate_gradients(torch.eye(2).expand(2, 2, 2), rhs, 5), rhs)


def test_the_exact_solve_is_the_dense_solve() -> None:
    matrix, rhs, _ = random_systems(8, 20, CONDITION, generator())
    dense = torch.linalg.solve(matrix.double(), rhs.double()).float()
    torch.testing.assert_close(exact(matrix, rhs), dense, rtol=1e-4, atol=1e-5)


def test_a_full_model_takes_a_smaller_system_inside_one_of_its_size() -> None:
    model = LinearSystemTransformer(LinearSystemTransformerConfig(2, "full", size=5))
    matrix, rhs, _ = random_systems(4, 3, CONDITION, generator())
    padded = torch.stack([torch.block_diag(each, torch.eye(2)) for each in matrix])
    inside = model(padded, torch.cat([rhs, torch.zeros(4, 2)], dim=1))
    torch.testing.assert_close(as_solver(model)(matrix, rhs), inside[:, :3])


def test_a_size_that_a_solver_refuses_has_no_error_and_the_others_are_measured() -> None:
    model = LinearSystemTransformer(LinearSystemTransformerConfig(2, "full", size=5))
    table = errors(as_solver(model), Evaluation(4, (3, 5, 6), (10.0,), (5, 6)), CONDITION)
    assert [value is None for value in table["by_size"]] == [False, False, True]
    assert table["by_condition"]["6"] == [None]


def test_training_lowers_the_error_below_that_of_predicting_zero(tmp_path) -> None:
    run = Training(LinearSystemTransformerConfig(2), 3, 3, steps=150, learning_rate=2e-2)
    model, _ = train("block", run, 0, tmp_path / "block.safetensors", None, 1000)
    matrix, rhs, solution = random_systems(128, 3, CONDITION, torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float(relative_errors(model(matrix, rhs), solution).mean()) < 0.8


def test_a_checkpoint_of_another_configuration_is_trained_again(tmp_path) -> None:
    path = tmp_path / "block.safetensors"
    for steps in (2, 3, 3):
        run = Training(LinearSystemTransformerConfig(1), 3, 3, steps=steps, learning_rate=1e-2)
        _, record = train("block", run, 0, path, None, 1000)
        assert record["steps"] == steps


def test_fine_tuning_starts_from_the_parent(tmp_path) -> None:
    run = Training(LinearSystemTransformerConfig(1), 3, 3, steps=1, learning_rate=0.0)
    parent = LinearSystemTransformer(run.model)
    child, _ = train("child", run, 5, tmp_path / "child.safetensors", parent, 1000)
    torch.testing.assert_close(child.query_weights, parent.query_weights)
    assert child is not parent


def test_the_larger_sizes_are_fine_tuned_from_the_smaller() -> None:
    runs = trainings()
    assert runs[linear_systems.BLOCK_LARGE].parent == runs[linear_systems.BLOCK_SMALL]


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear_systems")
    linear_systems.main(["--out", str(folder), "--quick"])
    return folder


def test_a_quick_run_writes_errors_of_four_models_and_three_solvers_and_a_figure(quick_run) -> None:
    content = json.loads((quick_run / "linear_systems.json").read_text())
    assert len(content["models"]) == 4
    assert len(content["baselines"]) == 3
    exact_errors = [each["mean"] for each in content["baselines"]["exact (Cholesky, float32)"]["by_size"]]
    assert max(exact_errors) < 1e-5
    assert content["models"][linear_systems.FULL]["by_size"][-1] is None
    assert {record["parameters"] for record in content["trainings"]} == {200, 8 * 37**2 + 9 * 27}
    assert (quick_run / "linear_systems.png").read_bytes().startswith(b"\x89PNG")


def test_a_second_run_reads_the_checkpoints_and_trains_nothing(quick_run, monkeypatch) -> None:
    before = json.loads((quick_run / "linear_systems.json").read_text())

    def no_optimiser(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(torch.optim, "Adam", no_optimiser)
    linear_systems.main(["--out", str(quick_run), "--quick"])
    assert json.loads((quick_run / "linear_systems.json").read_text())["models"] == before["models"]
