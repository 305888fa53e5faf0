"""States and models on disk: what is damaged, or of another run, is named with a remedy, and never used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pretrain.experiments import leave_out, linear_systems
from pretrain.experiments.interventions import __main__ as interventions
from pretrain.experiments.model_file import read_model, write_model
from pretrain.run_state import RunError, load_state, save_state
from pretrain.tensor_file import TensorFileError

CONFIG = {"steps": 9, "sizes": (1, 2)}


def network() -> tuple[nn.Module, torch.optim.Optimizer]:
    """After one step."""
    model = nn.Linear(3, 2)
    adam = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    adam.step()
    return model, adam


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_state(tmp_path / "state.safetensors", *network(), 4, CONFIG)
    return tmp_path / "state.safetensors"


def test_a_state_comes_back(saved: Path) -> None:
    model, adam = network()
    assert load_state(saved, model, adam, CONFIG) == 4
    assert load_state(saved.with_name("none"), model, adam, CONFIG) == 0
    tensors = load_file(saved)
    assert torch.equal(model.state_dict()["weight"], tensors["model.weight"])
    assert torch.equal(adam.state_dict()["state"][1]["exp_avg"], tensors["optimiser.1.exp_avg"])


def _header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def _rewrite(path: Path, change: Callable[[str, Tensor], Tensor | None]) -> None:
    """Other tensors under the old header; None for no tensor."""
    changed = {name: change(name, value) for name, value in load_file(path).items()}
    save_file({name: value for name, value in changed.items() if value is not None}, path, _header(path))


def _flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _later(path: Path) -> None:
    header = _header(path)
    save_file(load_file(path), path, header | {"record": header["record"].replace('"step": 4', '"step": 900')})


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "cannot be read"),
    "pickle": (lambda path: torch.save({"a": 1}, path), "cannot be read"),
    "a folder": (_folder, "cannot be read"),
    "no header": (lambda path: save_file(load_file(path), path), "has no digest"),
    "flipped byte": (_flip_a_byte, "does not match its digest"),
    "later step": (_later, "does not match its digest"),
    "float16": (lambda path: _rewrite(path, lambda _, value: value.half()), "does not match its digest"),
    "NaN": (lambda path: _rewrite(path, lambda _, value: value * torch.nan), "does not match its digest"),
    "other shape": (lambda path: _rewrite(path, lambda _, value: value.reshape(-1)), "does not match its digest"),
    "no moments": (lambda path: _rewrite(path, lambda name, value: value if "model" in name else None), "digest"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_says_what_to_do(saved: Path, damage: str) -> None:
    break_it, message = DAMAGES[damage]
    model, adam = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    break_it(saved)
    with pytest.raises(RunError, match=rf"{saved} .*{message}.*: delete it and run the same command again"):
        load_state(saved, model, adam, CONFIG)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_state_of_another_run_names_what_differs(saved: Path) -> None:
    with pytest.raises(RunError, match=r"another configuration \(seed, steps\): choose another --out"):
        load_state(saved, *network(), {**CONFIG, "steps": 10, "seed": 1})
    other = nn.Linear(2, 2)
    with pytest.raises(RunError, match=r"(?s)another version of the model .*: choose another --out"):
        load_state(saved, other, torch.optim.AdamW(other.parameters()), CONFIG)


@pytest.mark.parametrize("where", ["weight", "moment"])
def test_a_state_that_is_not_finite_does_not_take_the_place_of_a_good_one(saved: Path, where: str) -> None:
    before = saved.read_bytes()
    model, adam = network()
    broken = next(model.parameters())
    (broken.data if where == "weight" else adam.state[broken]["exp_avg_sq"]).fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"not finite after step 5: train with a smaller learning rate"):
        save_state(saved, model, adam, 5, CONFIG)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("damage", ["cut short", "a folder", "no header", "flipped byte", "float16"])
def test_a_damaged_model_is_not_used_again(tmp_path: Path, damage: str) -> None:
    path, model = tmp_path / "model.safetensors", nn.Linear(3, 2)
    write_model(path, model, CONFIG)
    assert read_model(path, nn.Linear(3, 2), CONFIG) == {"steps": 9, "sizes": [1, 2]}
    assert read_model(path, nn.Linear(3, 2), {"steps": 10}) is None
    with pytest.raises(TensorFileError, match=rf"(?s){path} holds the weights of another model .*: delete it"):
        read_model(path, nn.Linear(2, 2), CONFIG)
    break_it, message = DAMAGES[damage]
    break_it(path)
    with pytest.raises(TensorFileError, match=rf"{path} .*{message}.*: delete it"):
        read_model(path, model, CONFIG)


@pytest.mark.parametrize(
    ("main", "file"),
    [
        (linear_systems.main, "full-n-9-seed0.safetensors"),
        (interventions.main, "numformer-trace-lambda_max-logdet-seed0.safetensors"),
        (leave_out.main, "all-seed0/state.safetensors"),
    ],
)
def test_the_commands_of_the_experiments_end_with_the_message(
    tmp_path: Path, main: Callable[[list[str]], None], file: str
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_bytes(b"")
    threads = torch.get_num_threads()
    with pytest.raises(SystemExit, match=rf"{tmp_path / file} cannot be read .*: delete it"):
        main(["--out", str(tmp_path)])
    torch.set_num_threads(threads)
