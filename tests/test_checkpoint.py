"""Checkpoints: what is saved comes back, and what is missing, damaged or too new is named with a remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gp_rangeformer import atomic
from gp_rangeformer.checkpoint import CheckpointError, load_checkpoint, read_card, save_checkpoint
from gp_rangeformer.logdet import learned
from gp_rangeformer.logdet.network import LogDetTail
from gp_rangeformer.rangeformer import pretrained
from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.pretrained import load_pretrained
from gp_rangeformer.rangeformer.rangeformer import RangeFormer, RangeFormerConfig
from gp_rangeformer.version import own_version

CONFIG = RangeFormerConfig(dim=16, sketch=4, width=4, heads=2, loops=2)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_checkpoint(tmp_path / "model", RangeFormer(CONFIG), training={"families": ["a"]}, steps=7, seed=3)
    return tmp_path / "model"


def test_a_saved_model_comes_back_with_its_card(tmp_path: Path) -> None:
    model = RangeFormer(CONFIG)
    save_checkpoint(tmp_path / "m", model, training={"families": ["a"]}, steps=7, seed=3, metrics={"loss": 0.5})
    restored, card = load_checkpoint(tmp_path / "m", RangeFormer)
    assert isinstance(restored, RangeFormer)
    assert not restored.training
    assert restored.config == CONFIG
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), restored.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name
    assert (card.steps, card.seed, card.training, card.metrics) == (7, 3, {"families": ["a"]}, {"loss": 0.5})
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["m.json", "m.safetensors"]


def test_a_package_that_was_never_installed_saves_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])  # where the installed packages' metadata is looked for
    assert own_version() == "unknown"
    save_checkpoint(tmp_path / "m", RangeFormer(CONFIG))
    assert read_card(tmp_path / "m").version == "unknown"


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.with_suffix(".safetensors").read_bytes())
    content[-5] ^= 1
    path.with_suffix(".safetensors").write_bytes(content)


def _edit(path: Path, **changes: object) -> None:
    file = path.with_suffix(".json")
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda path: path.with_suffix(".safetensors").unlink(), "is missing"),
    "no description": (lambda path: path.with_suffix(".json").unlink(), "is missing"),
    "flipped byte": (_flip_a_byte, "digest"),
    "cut short": (lambda path: path.with_suffix(".safetensors").write_bytes(b"abc"), "digest"),
    "not JSON": (lambda path: path.with_suffix(".json").write_text("{"), "damaged"),
    "a list": (lambda path: path.with_suffix(".json").write_text("[1]"), "damaged"),
    "no format": (lambda path: path.with_suffix(".json").write_text("{}"), "damaged"),
    "newer": (lambda path: _edit(path, format=99), "upgrade gp-rangeformer"),
    "unknown model": (lambda path: _edit(path, model="Other"), "holds a Other, which is not one of RangeFormer"),
    "unknown field": (lambda path: _edit(path, config={"sizes": 3}), "does not fit"),
    "other sizes": (lambda path: _edit(path, config={"dim": 32, "sketch": 4, "heads": 2}), "does not fit"),
    "surplus entry": (lambda path: _edit(path, colour="blue"), "does not fit"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_says_what_to_do(saved: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    load_checkpoint(saved, RangeFormer)
    break_it(saved)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved, RangeFormer)


def test_an_interrupted_write_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.with_suffix(".safetensors").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(atomic.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(saved, RangeFormer(CONFIG))
    assert saved.with_suffix(".safetensors").read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 2


def test_other_modules_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="Linear has no config"):
        save_checkpoint(tmp_path / "m", torch.nn.Linear(1, 1))


def test_the_shipped_model_loads_without_a_network_and_solves() -> None:
    model = load_pretrained("base")
    a = torch.eye(20) + 0.1 * torch.ones(20, 20)
    with torch.no_grad():
        output = model(DenseOperator(a), torch.ones(1, 20, 1), generator=torch.Generator().manual_seed(0))[-1]
    assert output.residual is not None
    assert output.residual.norm() < 1e-3
    assert output.lambda_max.item() == pytest.approx(3.0, rel=0.05)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(CheckpointError, match="no pretrained model named 'huge'; known: base"):
        load_pretrained("huge")


def test_the_shipped_weights_stay_below_ten_megabytes() -> None:
    folders = {pretrained.WEIGHTS, learned.HEAD.parent}
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) < 10e6


def test_a_checkpoint_of_another_class_is_not_taken_for_the_one_that_was_asked_for(saved: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a RangeFormer, which is not one of LogDetTail"):
        load_checkpoint(saved, LogDetTail)


def test_a_file_of_a_former_model_says_that_it_has_to_be_trained_again(saved: Path) -> None:
    config = json.loads(saved.with_suffix(".json").read_text())["config"]
    _edit(saved, config=config | {"rank": 16})
    with pytest.raises(CheckpointError, match="train again"):
        load_checkpoint(saved, RangeFormer)
