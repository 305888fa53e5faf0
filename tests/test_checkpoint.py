"""Checkpoints: what is saved comes back, and what is missing, damaged or too new is named with a remedy."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

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


def _configure(path: Path, **changes: object) -> None:
    _edit(path, config=json.loads(path.with_suffix(".json").read_text())["config"] | changes)


def _rewrite(path: Path, change: Callable[[Tensor], Tensor]) -> None:
    """Other weights, with their digest."""
    tensors = safetensors.torch.load_file(path.with_suffix(".safetensors"))
    weights = safetensors.torch.save({name: change(value) for name, value in tensors.items()})
    path.with_suffix(".safetensors").write_bytes(weights)
    _edit(path, sha256=hashlib.sha256(weights).hexdigest())


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda path: path.with_suffix(".safetensors").unlink(), "is missing"),
    "no description": (lambda path: path.with_suffix(".json").unlink(), "is missing"),
    "flipped byte": (_flip_a_byte, "digest"),
    "cut short": (lambda path: path.with_suffix(".safetensors").write_bytes(b"abc"), "digest"),
    "not JSON": (lambda path: path.with_suffix(".json").write_text("{"), "damaged"),
    "a list": (lambda path: path.with_suffix(".json").write_text("[1]"), "damaged"),
    "no format": (lambda path: path.with_suffix(".json").write_text("{}"), "damaged"),
    "newer": (lambda path: _edit(path, format=99), "upgrade gp-rangeformer"),
    "older": (lambda path: _edit(path, format=0), "format 0, this version reads 1: restore it or train again"),
    "no number of steps": (lambda path: _edit(path, steps="many"), "damaged .steps is 'many'.: restore it"),
    "several models": (lambda path: _edit(path, model=["RangeFormer"]), "damaged .model is"),
    "unknown model": (lambda path: _edit(path, model="Other"), "holds a Other, which is not one of RangeFormer"),
    "unknown field": (lambda path: _edit(path, config={"sizes": 3}), "does not fit"),
    "other sizes": (lambda path: _edit(path, config={"dim": 32, "sketch": 4, "heads": 2}), "does not fit"),
    "no heads": (lambda path: _configure(path, heads=0), "fit .* heads .* at least 1, got 0.: train again"),
    "NaN": (
        lambda path: _rewrite(path, lambda value: value * torch.nan),
        "NaN or infinite entries: restore both files",
    ),
    "infinite": (lambda path: _rewrite(path, lambda value: value / 0), "NaN or infinite entries"),
    "too large": (lambda path: _rewrite(path, lambda value: value.double() * 1e300), "NaN or infinite entries"),
    "integers": (
        lambda path: _rewrite(path, lambda value: value.to(torch.int8)),
        "int8, not of torch.float32",
    ),
    "complex": (lambda path: _rewrite(path, lambda value: value + 1j), "complex64, not of torch.float32"),
    "surplus entry": (lambda path: _edit(path, colour="blue"), "does not fit"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_says_what_to_do(saved: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    load_checkpoint(saved, RangeFormer)
    break_it(saved)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved, RangeFormer)


def test_a_configuration_that_no_annotation_checks_is_refused_at_loading(saved: Path) -> None:
    """In a process of its own: in this one every argument is checked against its annotation."""
    paths = []
    for number, changes in enumerate(({"loops": 2.5}, {"feature_map": "x"})):
        paths.append(saved.with_name(f"model{number}"))
        for suffix in (".safetensors", ".json"):
            paths[-1].with_suffix(suffix).write_bytes(saved.with_suffix(suffix).read_bytes())
        _configure(paths[-1], **changes)
    run = subprocess.run([sys.executable, "-c", LOAD, *map(str, paths)], capture_output=True, text=True, check=True)
    sizes, feature_map = run.stdout.splitlines()
    assert "loops to be a whole number of at least 1, got 2.5): train again" in sizes
    assert "feature_map must be one of taylor, identity, softmax, got 'x'): train again" in feature_map


LOAD = """
import sys
from gp_rangeformer.checkpoint import CheckpointError, load_checkpoint
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
for path in sys.argv[1:]:
    try:
        load_checkpoint(path, RangeFormer)
    except CheckpointError as error:
        print(error)
"""


def test_weights_of_another_precision_are_rounded_to_the_model_s(saved: Path) -> None:
    before = load_checkpoint(saved, RangeFormer)[0].state_dict()
    _rewrite(saved, Tensor.double)
    after = load_checkpoint(saved, RangeFormer)[0].state_dict()
    assert all(torch.equal(value, after[name]) and after[name].dtype == torch.float32 for name, value in before.items())


def test_a_head_with_weights_that_are_not_finite_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for suffix in (".safetensors", ".json"):
        (tmp_path / "head").with_suffix(suffix).write_bytes(learned.HEAD.with_suffix(suffix).read_bytes())
    monkeypatch.setattr(learned, "HEAD", tmp_path / "head")
    learned.load_head()
    _rewrite(tmp_path / "head", lambda value: value * torch.nan)
    with pytest.raises(CheckpointError, match="NaN or infinite entries: restore both files"):
        learned.load_head()


def test_an_interrupted_write_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.with_suffix(".safetensors").read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(atomic.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(saved, RangeFormer(CONFIG))
    assert saved.with_suffix(".safetensors").read_bytes() == before
    assert len(list(saved.parent.iterdir())) == 2


def test_without_space_for_the_card_the_weights_stay_too(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = atomic._staged

    def full_disk(path: Path, content: bytes) -> str:
        if path.suffix == ".json":
            raise OSError("no space left on device")
        return staged(path, content)

    monkeypatch.setattr(atomic, "_staged", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(saved, RangeFormer(CONFIG))
    load_checkpoint(saved, RangeFormer)


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
