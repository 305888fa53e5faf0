"""Checkpoints: NAME.safetensors with the weights, NAME.json with everything a reader wants to know about them.

No pickle: loading a checkpoint runs no code. The JSON holds the digest of the weights, so that a damaged or mismatched
pair is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import safetensors
import safetensors.torch
from torch import nn

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.version import own_version

FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not meant for this version; the message says what to do."""


class Configured(Protocol):
    """A module that its configuration, a dataclass of plain values, describes."""

    config: Any

    @classmethod
    def from_config(cls, values: Mapping[str, Any]) -> Any:
        """A fresh module for ``dataclasses.asdict(config)``."""
        ...


Model = TypeVar("Model", bound=Configured)


@dataclass
class ModelCard:
    """How the weights came to be. Plain values only; written next to them as JSON."""

    model: str
    config: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)  # distribution, sizes, optimiser
    steps: int = 0
    seed: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    version: str = ""  # of gp_rangeformer, when trained


def save_checkpoint(
    path: Path,
    model: nn.Module,
    *,
    training: Mapping[str, Any] | None = None,
    steps: int = 0,
    seed: int = 0,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write ``path`` (.safetensors) and its .json, each atomically, weights first.

    :param model: with a ``config`` that it can be made again from (:class:`Configured`).
    :raises CheckpointError: a model without one.
    """
    name, config = type(model).__name__, getattr(model, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type) or not hasattr(model, "from_config"):
        raise CheckpointError(f"{name} has no config to be made again from: only models that have one can be saved")
    values = dataclasses.asdict(config)
    card = ModelCard(name, values, dict(training or {}), steps, seed, dict(metrics or {}), own_version())
    path = path.with_suffix(".safetensors")
    weights = safetensors.torch.save({key: value.contiguous().cpu() for key, value in model.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(card), "sha256": digest}, indent=1)
    write_bytes(path, weights)
    write_bytes(path.with_suffix(".json"), text.encode())


def load_checkpoint(path: Path, *classes: type[Model]) -> tuple[Model, ModelCard]:
    """The model, in eval mode on the CPU, and its card.

    :param classes: of which the model may be.
    :raises CheckpointError: a file is missing, unreadable, damaged, of a newer format or of another class.
    """
    path = Path(path).with_suffix(".safetensors")
    card, digest = _read_card(path.with_suffix(".json"), path)
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != digest:
        raise CheckpointError(f"{path} does not match the digest beside it: restore both files or train again")
    known = {one.__name__: one for one in classes}
    if card.model not in known:
        raise CheckpointError(f"{path} holds a {card.model}, which is not one of {', '.join(known)}")
    try:
        model = known[card.model].from_config(card.config)
        model.load_state_dict(safetensors.torch.load(weights))
    except (TypeError, KeyError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} does not fit this version of the model ({error}): train again") from error
    return model.eval(), card


def read_card(path: Path) -> ModelCard:
    """The card alone.

    :raises CheckpointError: as :func:`load_checkpoint`.
    """
    path = Path(path).with_suffix(".safetensors")
    return _read_card(path.with_suffix(".json"), path)[0]


def _read_card(described: Path, weights: Path) -> tuple[ModelCard, str]:
    """The card, and the digest of the weights that belong to it."""
    for file in (weights, described):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: a checkpoint is a .safetensors file and the .json next to it")
    try:
        facts = json.loads(described.read_text())
        form, digest = facts.pop("format"), facts.pop("sha256")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{described} is damaged ({error!r}): restore it or train again") from error
    if form != FORMAT:
        raise CheckpointError(f"{described} has format {form}, this version reads {FORMAT}: upgrade gp-rangeformer")
    try:
        return ModelCard(**facts), digest
    except TypeError as error:
        raise CheckpointError(f"{described} does not fit this version ({error}): restore it or train again") from error
