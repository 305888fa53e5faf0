"""Training configurations by name: ``load("base")``."""

from __future__ import annotations

import importlib
from pathlib import Path

from pretrain.configs.config import Stage, TrainConfig

__all__ = ["Stage", "TrainConfig", "load", "names"]


def names() -> list[str]:
    """Every configuration of this folder."""
    return sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in ("__init__", "config"))


def load(name: str) -> TrainConfig:
    """The configuration of that name; :raises ValueError: unknown, with the known ones."""
    if name not in names():
        raise ValueError(f"no configuration named {name!r}; known: {', '.join(names())}")
    return importlib.import_module(f"pretrain.configs.{name}").CONFIG
