"""Result files that a run goes on with, and the lists of numbers that a command line gives."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

Part = TypeVar("Part")


class PlanError(ValueError):
    """A run that cannot be done as asked; the message names the option and the remedy."""


def whole_numbers(text: str, option: str) -> list[int]:
    """Ascending, each once.

    :raises PlanError: not whole numbers separated by commas.
    """
    try:
        return sorted({int(number) for number in text.split(",")})
    except ValueError:
        raise PlanError(f"{option} {text!r}: whole numbers separated by commas") from None


def read_parts(path: Path, plan: Any, key: str, from_json: Callable[[Any], Part]) -> list[Part]:
    """What ``path`` holds under ``key`` of the same plan; nothing if there is no such file.

    :param plan: a dataclass of plain values.
    :raises PlanError: the file is damaged, or holds another plan.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        found = type(plan)(**content["plan"])
        parts = [from_json(part) for part in content[key]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path} is not a result of this command ({error}): choose another --json") from None
    if found != plan:
        ours, theirs = asdict(plan), asdict(found)
        other = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name])
        raise PlanError(f"{path} holds a run with {other}: choose another --json, or repeat that run's options")
    return parts
