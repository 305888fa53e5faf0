"""The state of a run on disk: model and optimiser in one file, written atomically."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pretrain.tensor_file import TensorFileError, read_tensors, write_tensors


class RunError(ValueError):
    """A run that cannot begin or resume; the message says why, and what to do."""


def save_state(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, config: Mapping[str, Any]
) -> None:
    """``step`` steps are done. The old state is replaced only when the new one is complete.

    :raises FloatingPointError: a parameter, or what the optimiser knows of it, is not finite; the old state stays.
    """
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    learned = {f"model.{name}": value.detach() for name, value in model.named_parameters()}
    known = {
        f"optimiser.{index}.{name}": torch.as_tensor(value)
        for index, state in optimiser.state_dict()["state"].items()
        for name, value in state.items()
    }
    for name, value in (learned | known).items():
        if not bool(value.isfinite().all()):
            raise FloatingPointError(
                f"{name} is not finite after step {step}: train with a smaller learning rate and another --out"
            )
    write_tensors(path, tensors | known, {"step": step, "config": config})


def load_state(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, config: Mapping[str, Any]) -> int:
    """Restore both and return the steps done: none without a file.

    :raises RunError: the file cannot be read or is damaged, or the run on disk is another one.
    """
    if not path.exists():
        return 0
    try:
        tensors, record = read_tensors(path)
    except TensorFileError as error:
        raise RunError(str(error)) from error
    theirs, ours = record["config"], json.loads(json.dumps(config))
    if others := sorted(name for name in theirs | ours if theirs.get(name) != ours.get(name)):
        raise RunError(
            f"{path} belongs to a run with another configuration ({', '.join(others)}): choose another --out, or "
            "delete it"
        )
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = value
    try:
        model.load_state_dict(
            {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
        )
        optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    except (RuntimeError, ValueError) as error:
        raise RunError(f"{path} is of another version of the model ({error}): choose another --out") from error
    return record["step"]
