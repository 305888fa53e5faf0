"""A trained model and the record of its training in one safetensors file, used again where the same is asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pretrain.tensor_file import TensorFileError, read_tensors, write_tensors


def write_model(path: Path, model: nn.Module, record: Mapping[str, Any]) -> None:
    """Replace or create ``path``, atomically. ``record`` holds plain values."""
    write_tensors(path, model.state_dict(), record)


def read_model(path: Path, model: nn.Module, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of ``path``, its weights loaded into ``model``; None if it is missing or its record is not as asked.

    :param asked: items that the record must have; what else it has does not matter.
    :raises TensorFileError: a damaged file, or the record is as asked, but the weights are another model's.
    """
    if not path.exists():
        return None
    tensors, record = read_tensors(path)
    # Through JSON, as the record was: it turns tuples into lists.
    if {key: record.get(key) for key in asked} != json.loads(json.dumps(asked)):
        return None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise TensorFileError(
            f"{path} holds the weights of another model ({error}): delete it and run the same command again"
        ) from error
    return record
