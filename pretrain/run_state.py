"""The state of a run on disk, without pickle: model and optimiser as one safetensors file, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_state(
    path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, step: int, config: dict[str, Any]
) -> None:
    """``step`` steps are done. The old state is replaced only when the new one is complete."""
    tensors = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for index, state in optimiser.state_dict()["state"].items():
        for name, value in state.items():
            tensors[f"optimiser.{index}.{name}"] = torch.as_tensor(value).detach().cpu().contiguous()
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata={"step": str(step), "config": json.dumps(config, sort_keys=True)})
    os.replace(temporary, path)


def load_state(path: Path, model: nn.Module, optimiser: torch.optim.Optimizer, config: dict[str, Any]) -> int:
    """Restore both and return the steps done.

    :raises ValueError: the run on disk has another configuration.
    """
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if json.loads(metadata["config"]) != json.loads(json.dumps(config)):
            raise ValueError(f"{path} belongs to a run with another configuration: choose another --out, or delete it")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    model.load_state_dict({name.removeprefix("model."): v for name, v in tensors.items() if name.startswith("model.")})
    states: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimiser."):
            _, index, key = name.split(".", 2)
            states.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": states, "param_groups": optimiser.state_dict()["param_groups"]})
    return int(metadata["step"])
