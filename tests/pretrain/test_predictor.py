"""The predictors of the next solution: what they find, what they are charged, and that the command runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path as FilePath

import pytest
import torch
from safetensors.torch import load_file

from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.experiments.predictor import trajectories
from pretrain.experiments.predictor.command import QUICK, main
from pretrain.experiments.predictor.model import STEPS, Learned, MixingTransformer, tokens
from pretrain.experiments.predictor.paths import Path, adam_path, generated
from pretrain.experiments.predictor.predictors import Hindsight, Sketched, linear, mix
from pretrain.experiments.predictor.replay import Past, Situation, walk
from pretrain.experiments.predictor.train import best_residual, residual

SEED = 2  # n = 263: small, and a Matern-1/2 kernel, which leaves iterations to save


@pytest.fixture(scope="module")
def path() -> Path:
    return adam_path(generated(SEED), 0.1, 12)


@pytest.fixture(scope="module")
def situation(path: Path) -> Situation:
    *_, last = walk(path, {"extrapolate": linear}, rank=30)
    return last["extrapolate"][0]


def left(situation: Situation, proposal: torch.Tensor) -> torch.Tensor:
    """|B - A X| / |B| per column."""
    error = situation.rhs - situation.system.matmul(proposal)
    return error.norm(dim=0) / situation.rhs.norm(dim=0)


def permuted(situation: Situation, order: torch.Tensor) -> Iterator[Past]:
    for item in situation.past:
        new = Past(item.solution[order], item.residual[order], item.rows[:, order], item.preconditioner)
        new.__dict__["correction"] = item.correction[order]
        yield new


def test_hindsight_leaves_less_than_any_other_mixture(situation: Situation) -> None:
    least = left(situation, Hindsight(4, 4)(situation)).square().mean()
    plain = linear(situation)
    assert plain is not None
    sketched = Sketched(4, 4, 64)(situation)
    assert least < 0.9 * left(situation, plain).square().mean()
    assert least <= left(situation, sketched).square().mean()


def test_a_few_rows_find_nearly_the_coefficients_of_hindsight(situation: Situation) -> None:
    least = left(situation, Hindsight(4, 4)(situation)).square().mean().sqrt()
    assert left(situation, Sketched(4, 4, 64)(situation)).square().mean().sqrt() < 1.1 * least


def test_rows_are_booked_as_their_share_of_a_pass(situation: Situation) -> None:
    before = situation.columns
    Sketched(2, 1, 32)(situation)
    m, n = situation.rhs.shape[1], situation.system.size
    assert situation.columns - before == pytest.approx(3 * m * 32 / n)


def test_a_few_rows_with_corrections_save_three_iterations_in_ten(path: Path) -> None:
    totals = {"linear": 0, "sketched": 0}
    for index, found in enumerate(walk(path, {"linear": linear, "sketched": Sketched(4, 4, 64)}, rank=30)):
        for name, (_, step) in found.items():
            assert step.converged
            totals[name] += step.iterations if index >= STEPS else 0
    assert 0 < totals["sketched"] <= 0.7 * totals["linear"]


def test_the_recorded_form_is_the_residual_of_any_mixture(situation: Situation) -> None:
    solutions, corrections = torch.tensor([1.7, -0.4, -0.5, 0.2]), torch.tensor([0.3, -0.1, 0.05, 0.2])
    form = trajectories.residual_form(situation)[None]
    found = residual(form, solutions[None].double(), corrections[None].double())
    mixed = mix(situation.past, solutions.tolist(), corrections.tolist())
    torch.testing.assert_close(found[0].float(), left(situation, mixed).square().mean().sqrt(), rtol=1e-4, atol=0)


def test_the_best_residual_is_that_of_hindsight(situation: Situation) -> None:
    found = best_residual(trajectories.residual_form(situation)[None].float(), corrected=True)
    hindsight = left(situation, Hindsight(4, 4)(situation)).square().mean().sqrt()
    # The form's coefficients of X sum to one, those of hindsight need not.
    assert hindsight <= found[0] * 1.001
    assert found[0] < 1.2 * hindsight


def test_tokens_do_not_depend_on_scale_or_on_the_order_of_the_points(situation: Situation) -> None:
    order = torch.randperm(situation.system.size, generator=torch.Generator().manual_seed(0))
    rhs, rows = situation.rhs[order], situation.rows[:, order]
    moved = Situation(
        situation.system, situation.preconditioner, rhs, tuple(permuted(situation, order)), situation.index, rows
    )
    torch.testing.assert_close(tokens(moved), tokens(situation), rtol=1e-3, atol=1e-3)
    scaled = []
    for item in situation.past:
        new = Past(2 * item.solution, 6 * item.residual, 3 * item.rows, item.preconditioner)
        new.__dict__["correction"] = 2 * item.correction
        scaled.append(new)
    system = LinearSystem(3 * situation.system.columns(torch.arange(len(rhs))), 3 * situation.system.noise)
    larger = Situation(
        system, situation.preconditioner, 6 * situation.rhs, tuple(scaled), situation.index, 3 * situation.rows
    )
    torch.testing.assert_close(tokens(larger), tokens(situation), rtol=1e-3, atol=1e-3)


def test_an_untrained_model_extrapolates_linearly(situation: Situation) -> None:
    proposal, plain = Learned(MixingTransformer(corrected=False))(situation), linear(situation)
    assert proposal is not None
    assert plain is not None
    torch.testing.assert_close(proposal, plain)


def test_a_trained_model_sums_its_coefficients_of_solutions_to_one(situation: Situation) -> None:
    torch.manual_seed(0)
    model = MixingTransformer(corrected=True)
    torch.nn.init.normal_(next(model.head[1].parameters()))
    solutions, corrections = model(tokens(situation)[None])
    torch.testing.assert_close(solutions.sum(), torch.tensor(1.0))
    assert not torch.allclose(corrections, model.start[1])


def test_a_run_that_was_recorded_is_not_recorded_again(tmp_path: FilePath, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []
    monkeypatch.setattr(trajectories, "record", lambda seed, steps: seeds.append(seed) or {"tokens": torch.ones(steps)})
    trajectories.record_all(tmp_path, 1, 3)
    trajectories.record_all(tmp_path, 2, 3)
    assert seeds == [0, 1]
    assert load_file(tmp_path / "0001-3.safetensors")["tokens"].shape == (3,)


def test_the_command_bills_every_predictor(tmp_path: FilePath) -> None:
    main(["--work", str(tmp_path / "work"), "--out", str(tmp_path), "--quick"])
    (entry,) = json.loads((tmp_path / "predictor.json").read_text())["paths"]
    assert entry["steps"] == QUICK.path_steps
    assert {"none", "extrapolate", "learned, 4 X", "learned, 4 X and 4 Z"} <= set(entry["predictors"])
    bills = entry["predictors"]
    assert bills["none"]["iterations"] > bills["previous"]["iterations"] > bills["extrapolate"]["iterations"]
    assert len((tmp_path / "predictor.md").read_text().splitlines()) == 2 + len(bills)
