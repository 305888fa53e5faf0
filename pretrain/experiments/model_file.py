"""A trained model and the record of its training in one safetensors file, used again where the same is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save
from torch import nn

from gp_rangeformer.atomic import write_bytes


def write_model(path: Path, model: nn.Module, record: Mapping[str, Any]) -> None:
    """Replace or create ``path``, atomically. ``record`` holds plain values, and goes into the header as JSON."""
    write_bytes(path, save(model.state_dict(), metadata={"record": json.dumps(record)}))


def read_model(path: Path, model: nn.Module, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of ``path``, its weights loaded into ``model``; None if it is missing or its record is not as asked.

    :param asked: items that the record must have; what else it has does not matter.
    :raises RuntimeError: the record is as asked, but the weights are another model's.
    """
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["record"])
        # Through JSON, as the record was: it turns tuples into lists.
        if {key: record.get(key) for key in asked} != json.loads(json.dumps(asked)):
            return None
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a mapping)
    return record
