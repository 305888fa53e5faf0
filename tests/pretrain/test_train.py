"""Training runs: the loss falls, a resumed run repeats an uninterrupted one, and two processes share the work."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import Tensor

from gp_rangeformer.checkpoint import load_checkpoint
from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.rangeformer import RangeFormer, RangeFormerConfig
from pretrain import configs
from pretrain.configs import Stage, TrainConfig
from pretrain.matrices import HELD_OUT, STRUCTURED, Mixture
from pretrain.run_state import RunError
from pretrain.train import draw_batch, learning_rate_at, main, mixture_of, stage_at, train

ROOT = Path(__file__).parents[2]
TINY = TrainConfig(
    name="tiny",
    model=RangeFormerConfig(dim=16, sketch=4, width=4, heads=2, head_dim=4, loops=2),
    steps=8,
    curriculum=(Stage(0.5, 8, 8, 4), Stage(1.0, 9, 12, 4)),
    loops=(1, 2),
    warmup=2,
    log_every=2,
    checkpoint_every=2,
)


@pytest.fixture
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A figure at the end of every run takes longer than the few steps before."""
    monkeypatch.setattr("pretrain.train.plot_curves", lambda *_, **__: None)


def fabric() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


def trained(folder: Path) -> dict[str, torch.Tensor]:
    """The weights that a run has left."""
    return load_checkpoint(folder / "model", RangeFormer)[0].state_dict()


def logged_losses(path: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (path / "log.jsonl").read_text().splitlines()]


@torch.no_grad()
def fresh_errors(model: RangeFormer, config: TrainConfig) -> Tensor:
    """Of log|A| in nats per point after every loop, over batches that no training step has drawn."""
    mixture, found = mixture_of(config), []
    for step in range(config.steps, config.steps + 20):
        batch = draw_batch(config, mixture, step)
        operator = DenseOperator(batch.answers.matrices)
        codes = model.embedding.codes(operator, torch.Generator().manual_seed(batch.codes_seed))
        floor = None if batch.floor is None else batch.floor.float()
        outputs = model(operator, loops=batch.loops, width=batch.width, floor=floor, codes=codes)
        found += [(output.logdet - batch.answers.logdet).abs() / operator.size for output in outputs]
    return torch.cat(found)


def test_the_smoke_configuration_learns_what_an_untrained_network_does_not_know(tmp_path: Path) -> None:
    """On the same fresh batches its errors are smaller, in the mean and more often than not."""
    config = configs.load("smoke")
    log = train(config, tmp_path, fabric())
    trained, _ = load_checkpoint(tmp_path / "model", RangeFormer)
    torch.manual_seed(0)
    after, before = fresh_errors(trained, config), fresh_errors(RangeFormer(config.model), config)
    assert after.mean() < 0.9 * before.mean()
    assert (after < before).double().mean() > 0.5
    assert {"log.jsonl", "state.safetensors", "model.safetensors", "model.json", "curves.png"} == {
        path.name for path in tmp_path.iterdir()
    }
    _, card = load_checkpoint(tmp_path / "model", RangeFormer)
    assert card.steps == 150
    assert card.training["families"] == "structured"
    assert set(log[-1]["families"]) <= {family.name for family in STRUCTURED}
    assert log[-1]["ms_per_step"] > 0


@pytest.mark.usefixtures("without_curves")
def test_a_resumed_run_repeats_an_uninterrupted_one(tmp_path: Path) -> None:
    train(TINY, tmp_path / "whole", fabric())
    train(TINY, tmp_path / "parts", fabric(), until=3)
    train(TINY, tmp_path / "parts", fabric(), until=6)
    train(TINY, tmp_path / "parts", fabric())
    whole, parts = logged_losses(tmp_path / "whole"), logged_losses(tmp_path / "parts")
    assert len(whole) == 4
    assert parts[-1] == pytest.approx(whole[-1], rel=1e-5)
    ours, theirs = (trained(tmp_path / name) for name in ("whole", "parts"))
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("without_curves")
def test_a_run_that_was_killed_between_checkpoints_logs_every_step_once(tmp_path: Path) -> None:
    train(TINY, tmp_path, fabric(), until=4)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write(json.dumps({"step": 6, "loss": 123.0}) + "\n")  # logged, not in the checkpoint
    train(TINY, tmp_path, fabric())
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6, 8]
    assert 123.0 not in logged_losses(tmp_path)


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize("left", ["an older model", "weights without their card", "no model"])
def test_a_run_that_was_killed_after_its_last_state_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    train(TINY, tmp_path, fabric(), until=6)
    older = {path: path.read_bytes() for path in tmp_path.glob("model.*")}
    train(TINY, tmp_path, fabric())
    expected = {path: path.read_bytes() for path in older}
    if left == "weights without their card":
        older.pop(tmp_path / "model.safetensors")
    for path, content in older.items():
        path.write_bytes(content)
        if left == "no model":
            path.unlink()
    plotted: list[Path] = []
    monkeypatch.setattr("pretrain.train.plot_curves", lambda log, path, **_: plotted.append(path))
    train(TINY, tmp_path, fabric())
    assert {path: path.read_bytes() for path in expected} == expected
    assert plotted == [tmp_path / "curves.png"]


@pytest.mark.usefixtures("without_curves")
def test_half_a_line_at_the_end_of_the_log_is_dropped_and_elsewhere_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(TINY, tmp_path, fabric(), until=4)
    log = tmp_path / "log.jsonl"
    whole = log.read_text()
    log.write_text(whole + '{"step": 6, "lo')
    train(TINY, tmp_path, fabric(), until=6)
    assert "log.jsonl: the last line is incomplete and is left out" in capsys.readouterr().out
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4, 6]
    log.write_text('{"step": 2, "lo\n' + whole)
    with pytest.raises(RunError, match=r"log.jsonl: line 1 cannot be read .*: delete it and resume"):
        train(TINY, tmp_path, fabric())


@pytest.mark.parametrize("wrong", [{"until": 0}, {"until": -5}, {"steps": 0}])
def test_a_run_of_no_steps_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    config = dataclasses.replace(TINY, steps=wrong.get("steps", TINY.steps))
    with pytest.raises(RunError, match="--steps and --until must be at least 1"):
        train(config, tmp_path / "run", fabric(), wrong.get("until"))
    assert not (tmp_path / "run").exists()


def test_a_run_that_diverges_is_told_to_begin_with_a_smaller_learning_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The remedy names an option that there is."""
    command = ["train", "--config", "smoke", "--out", str(tmp_path), "--learning-rate", "1e30"]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(configs, "load", lambda name: TINY)
    with pytest.raises(SystemExit, match=r"loss is (nan|inf) at step 1: .*smaller --learning-rate and another --out"):
        main()


@pytest.mark.usefixtures("without_curves")
def test_another_configuration_does_not_resume(tmp_path: Path) -> None:
    train(TINY, tmp_path, fabric(), until=2)
    with pytest.raises(ValueError, match="another configuration"):
        train(dataclasses.replace(TINY, learning_rate=1.0), tmp_path, fabric())


def test_a_step_depends_on_seed_step_and_process_alone() -> None:
    mixture = Mixture(STRUCTURED)
    first, again, other = (draw_batch(TINY, mixture, step, process) for step, process in ((5, 0), (5, 0), (5, 1)))
    assert torch.equal(first.answers.matrices, again.answers.matrices)
    assert not torch.equal(first.answers.matrices, other.answers.matrices)
    assert (first.loops, first.answers.matrices.shape) == (other.loops, other.answers.matrices.shape)


def test_the_floor_that_is_told_is_one() -> None:
    told = [draw_batch(TINY, Mixture(STRUCTURED), step) for step in range(12)]
    floors = [(batch.floor, batch.answers.smallest) for batch in told if batch.floor is not None]
    assert 0 < len(floors) < 12
    assert all((floor <= smallest).all() and (floor > 0).all() for floor, smallest in floors)


def test_the_curriculum_and_the_learning_rate_follow_the_steps() -> None:
    assert [stage_at(TINY, step).upper for step in (0, 3, 4, 7)] == [8, 8, 12, 12]
    rates = [learning_rate_at(TINY, step) for step in range(8)]
    assert rates[0] < rates[1] == TINY.learning_rate
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_no_configuration_trains_on_what_is_held_out() -> None:
    trained = {family.name for family in STRUCTURED}
    assert trained.isdisjoint({family.name for family in HELD_OUT} | {"identity", "diagonal", "toeplitz"})
    for name in configs.names():
        assert configs.load(name).families in ("structured", "wishart")
    with pytest.raises(ValueError, match="known: base, large, smoke"):
        configs.load("huge")


FABRIC_RUN = "fabric run --accelerator cpu --devices 2 --strategy ddp pretrain/train.py"


@pytest.mark.usefixtures("without_curves")
@pytest.mark.parametrize(
    "command", [pytest.param(FABRIC_RUN, marks=pytest.mark.big), "python -m pretrain.train --devices 2"]
)
def test_two_processes_train_one_model(tmp_path: Path, command: str) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    program, *rest = command.split()
    program = str(Path(sys.executable).with_name(program))
    arguments = [program, *rest, "--config", "smoke", "--steps", "4", "--out", str(tmp_path)]
    subprocess.run(arguments, cwd=ROOT, env=environment, check=True, timeout=240, capture_output=True)
    assert len(logged_losses(tmp_path)) == 1
    # Alone, the first process's matrices give another model: the gradient is the mean over both.
    train(dataclasses.replace(configs.load("smoke"), steps=4), tmp_path / "alone", fabric())
    together, alone = (trained(folder) for folder in (tmp_path, tmp_path / "alone"))
    assert any(not torch.allclose(together[name], alone[name]) for name in together)
