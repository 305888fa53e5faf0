"""Checkpoints: NAME.safetensors with the weights, NAME.json with everything a reader wants to know about them.

No pickle: loading a checkpoint runs no code. The JSON holds the digest of the weights, so that a damaged or mismatched
pair is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import nn

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.model.linear_system_transformer import LinearSystemTransformer, LinearSystemTransformerConfig
from gp_rangeformer.model.rangeformer import RangeFormer, RangeFormerConfig

FORMAT = 1
_WEIGHTS = Path(__file__).parent / "weights"
_MODELS: dict[str, tuple[Any, Callable[[dict[str, Any]], Any]]] = {
    "RangeFormer": (RangeFormer, RangeFormerConfig.from_dict),
    "LinearSystemTransformer": (LinearSystemTransformer, lambda values: LinearSystemTransformerConfig(**values)),
}


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or not meant for this version; the message says what to do."""


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

    :param model: one of the models of this package, with its ``config``.
    :raises CheckpointError: a model of another class.
    """
    from gp_rangeformer import __version__

    name = type(model).__name__
    if name not in _MODELS:
        raise CheckpointError(f"{name} is not one of {', '.join(_MODELS)}: only these can be saved")
    config = dataclasses.asdict(model.config)  # type: ignore[arg-type]
    card = ModelCard(name, config, dict(training or {}), steps, seed, dict(metrics or {}), __version__)
    path = path.with_suffix(".safetensors")
    weights = safetensors.torch.save({key: value.contiguous().cpu() for key, value in model.state_dict().items()})
    digest = hashlib.sha256(weights).hexdigest()
    text = json.dumps({"format": FORMAT, **dataclasses.asdict(card), "sha256": digest}, indent=1)
    write_bytes(path, weights)
    write_bytes(path.with_suffix(".json"), text.encode())


def load_checkpoint(path: Path) -> tuple[nn.Module, ModelCard]:
    """The model, in eval mode on the CPU, and its card.

    :raises CheckpointError: a file is missing, unreadable, damaged, of a newer format or of an unknown model.
    """
    path = Path(path).with_suffix(".safetensors")
    described = path.with_suffix(".json")
    for file in (path, described):
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: a checkpoint is a .safetensors file and the .json next to it")
    try:
        facts = json.loads(described.read_text())
        form, digest = facts.pop("format"), facts.pop("sha256")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{described} is damaged ({error!r}): restore it or train again") from error
    if form != FORMAT:
        raise CheckpointError(f"{described} has format {form}, this version reads {FORMAT}: upgrade gp-rangeformer")
    weights = path.read_bytes()
    if hashlib.sha256(weights).hexdigest() != digest:
        raise CheckpointError(f"{path} does not match the digest in {described.name}: restore both or train again")
    try:
        card = ModelCard(**facts)
        model_class, config = _MODELS[card.model]
        model = model_class(config(card.config))
        model.load_state_dict(safetensors.torch.load(weights))
    except (TypeError, KeyError, RuntimeError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} does not fit this version of the model ({error}): train again") from error
    return model.eval(), card


def pretrained_names() -> list[str]:
    """What :func:`load_pretrained` knows."""
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))


def described(name: str) -> dict[str, str]:
    """What a shipped model was trained on, over which ranges, and its errors on held-out systems, one line each.

    :raises CheckpointError: as :func:`load_checkpoint`.
    """
    model, card = load_checkpoint(_WEIGHTS / name)
    count = sum(parameter.numel() for parameter in model.parameters())
    lines = {"model": f"{card.model}, {count} parameters, {card.steps} steps, seed {card.seed}"}
    curriculum = card.training.get("curriculum")
    if curriculum:
        lower, upper = min(stage["lower"] for stage in curriculum), max(stage["upper"] for stage in curriculum)
        lines["trained on"] = f"{card.training.get('families')} matrices, n from {lower} to {upper}"
    for key, value in card.metrics.items():
        if isinstance(value, (int, float)):
            lines[f"held out, {key}"] = f"{value:.3g}"
    tail = card.training.get("log_determinant")
    if tail:
        sizes, ranks, noises = (f"{low:g} to {high:g}" for low, high in (tail["sizes"], tail["ranks"], tail["noises"]))
        lines["log determinant"] = (
            f"{tail['systems']} systems of {tail['kernels']} kernels ({', '.join(tail['kinds'])}, sums, products)"
        )
        lines["  ranges"] = f"n {sizes}, rank {ranks}, noise / variance {noises}"
        found = card.metrics["log_determinant"]
        lines["  held out"] = (
            f"error {found['median']:.4f} nats per point (median), {found['p95']:.4f} (95 %); "
            f"its 90 % interval covers {found['coverage']:.0%}"
        )
    return lines


def load_pretrained(name: str = "base") -> RangeFormer:
    """A RangeFormer that comes with the package: no download.

    :raises CheckpointError: unknown name (the message lists the known ones) or damaged file.
    """
    if name not in pretrained_names():
        known = ", ".join(pretrained_names()) or "none: reinstall gp-rangeformer"
        raise CheckpointError(f"no pretrained model named {name!r}; known: {known}")
    model, _ = load_checkpoint(_WEIGHTS / name)
    if not isinstance(model, RangeFormer):
        raise CheckpointError(f"the checkpoint {name!r} holds a {type(model).__name__}, not a RangeFormer")
    return model
