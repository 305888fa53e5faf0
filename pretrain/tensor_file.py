"""Tensors and a record of plain values in one safetensors file, with a digest of both: damage is noticed. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from gp_rangeformer.atomic import write_bytes


class TensorFileError(ValueError):
    """A file that cannot be used; the message says why, and what to do."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Replace or create ``path``, atomically.

    :param record: plain values; as JSON it goes into the header.
    """
    held = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(record, sort_keys=True)
    write_bytes(path, save(held, metadata={"record": text, "sha256": digest(held, text)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record.

    :raises TensorFileError: ``path`` is no such file, cannot be read, or is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, safetensors.SafetensorError) as error:
        raise TensorFileError(f"{path} cannot be read ({error}): delete it and run the same command again") from error
    if not metadata.keys() >= {"record", "sha256"}:
        raise TensorFileError(
            f"{path} has no digest (earlier versions wrote none): delete it and run the same command again"
        )
    if digest(tensors, metadata["record"]) != metadata["sha256"]:
        raise TensorFileError(
            f"{path} does not match its digest, it is damaged: delete it and run the same command again"
        )
    return tensors, json.loads(metadata["record"])


def digest(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """SHA-256 of names, types, shapes and entries, and of ``text``."""
    found = hashlib.sha256(text.encode())
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
