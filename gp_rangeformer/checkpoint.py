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
from torch import Tensor, nn

from gp_rangeformer.atomic import write_together
from gp_rangeformer.torch_modes import on_host
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


# What a model and its weights raise where a configuration or a file is not what this version writes.
_MISFITS = (TypeError, KeyError, RuntimeError, ValueError, ArithmeticError, MemoryError, safetensors.SafetensorError)
# Of a card's entries, which a file may have otherwise.
_KINDS = {"model": str, "config": dict, "training": dict, "steps": int, "seed": int, "metrics": dict, "version": str}


def check_sizes(model: str, **sizes: object) -> None:
    """Sizes of a configuration, which may come from a file.

    :raises ValueError: one is not a whole number of at least 1.
    """
    for name, value in sizes.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{model} needs {name} to be a whole number of at least 1, got {value!r}")


def save_checkpoint(
    path: Path,
    model: nn.Module,
    *,
    training: Mapping[str, Any] | None = None,
    steps: int = 0,
    seed: int = 0,
    metrics: Mapping[str, Any] | None = None,
) -> None:
    """Write ``path`` (.safetensors) and its .json together, weights first.

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
    write_together({path: weights, path.with_suffix(".json"): text.encode()})


def load_checkpoint(path: Path, *classes: type[Model]) -> tuple[Model, ModelCard]:
    """The model, in eval mode on the CPU, and its card.

    :param classes: of which the model may be.
    :raises CheckpointError: a file is missing, unreadable, damaged, of another format or of another class; weights that
        do not fit the configuration, are no floating-point numbers or not finite.
    """
    path = Path(path).with_suffix(".safetensors")
    card, digest = _read_card(path.with_suffix(".json"), path)
    weights = _content(path)
    if hashlib.sha256(weights).hexdigest() != digest:
        raise CheckpointError(f"{path} does not match the digest beside it: restore both files or train again")
    known = {one.__name__: one for one in classes}
    if card.model not in known:
        raise CheckpointError(
            f"{path} holds a {card.model}, which is not one of {', '.join(known)}: give a file of such a model"
        )
    try:
        with on_host():
            model = known[card.model].from_config(card.config)
            tensors = safetensors.torch.load(weights)
        _check_numbers(path, tensors, model)
        model.load_state_dict(tensors)
    except CheckpointError:
        raise
    except _MISFITS as error:
        raise CheckpointError(f"{path} does not fit this version of the model ({error}): train again") from error
    return model.eval(), card


def _check_numbers(path: Path, tensors: Mapping[str, Tensor], fresh: nn.Module) -> None:
    """:raises CheckpointError: weights of another kind of number than in a fresh model, or that are not finite."""
    made = fresh.state_dict()
    for name, value in tensors.items():
        if name not in made or made[name].shape != value.shape:
            continue  # which load_state_dict says better
        if value.dtype != made[name].dtype and not (value.is_floating_point() and made[name].is_floating_point()):
            fault = f"is of {value.dtype}, not of {made[name].dtype}"
        else:
            loaded = value.to(made[name].dtype)  # in which a number may be too large
            # What a fresh model has infinite as well is so by design: the ends of a range that nothing has set yet.
            if bool((loaded.isfinite() | (loaded == made[name])).all()):
                continue
            fault = "has NaN or infinite entries"
        raise CheckpointError(f"{path}: {name} {fault}: restore both files or train again")


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
        facts = json.loads(_content(described))
        form, digest = facts.pop("format"), facts.pop("sha256")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{described} is damaged ({error!r}): restore it or train again") from error
    if form != FORMAT:
        newer = isinstance(form, int) and form > FORMAT
        remedy = "upgrade gp-rangeformer" if newer else "restore it or train again"
        raise CheckpointError(f"{described} has format {form!r}, this version reads {FORMAT}: {remedy}")
    try:
        card = ModelCard(**facts)
    except TypeError as error:
        raise CheckpointError(f"{described} does not fit this version ({error}): restore it or train again") from error
    for name, kind in _KINDS.items():
        if not isinstance(value := getattr(card, name), kind):
            raise CheckpointError(f"{described} is damaged ({name} is {value!r}): restore it or train again")
    return card, digest


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read ({error.strerror}): choose one that you may read") from error
