"""The RangeFormers that come with the package: no download."""

from __future__ import annotations

from pathlib import Path

from gp_rangeformer.checkpoint import CheckpointError, load_checkpoint
from gp_rangeformer.rangeformer.rangeformer import RangeFormer

WEIGHTS = Path(__file__).parent / "weights"


def pretrained_names() -> list[str]:
    """What :func:`load_pretrained` knows."""
    return sorted(path.stem for path in WEIGHTS.glob("*.safetensors"))


def load_pretrained(name: str = "base") -> RangeFormer:
    """A RangeFormer that comes with the package, float32, in eval mode on the CPU.

    :raises CheckpointError: unknown name (the message lists the known ones) or damaged file.
    """
    if name not in pretrained_names():
        known = ", ".join(pretrained_names()) or "none: reinstall gp-rangeformer"
        raise CheckpointError(f"no pretrained model named {name!r}; known: {known}")
    model, _ = load_checkpoint(WEIGHTS / name, RangeFormer)
    return model
