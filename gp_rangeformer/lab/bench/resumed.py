"""Result files that a run goes on with, and the lists of numbers that a command line gives."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from gp_rangeformer.lab.compare import machine

Part = TypeVar("Part")
Key = TypeVar("Key")

FORMAT = 1


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
    """What ``path`` holds under ``key`` of the same plan; nothing if there is no such file, or no such key yet.

    :param plan: a dataclass of plain values.
    :raises PlanError: the file is damaged, or holds another plan.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        found = type(plan)(**content["plan"])
        parts = [from_json(part) for part in content.get(key, ())]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path} is not a result of this command ({error}): choose another --json") from None
    if found != plan:
        ours, theirs = asdict(plan), asdict(found)
        other = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name])
        raise PlanError(f"{path} holds a run with {other}: choose another --json, or repeat that run's options")
    return parts


def measure_parts(
    path: Path | None,
    plan: Any,
    kind: Any,
    keys: Iterable[Key],
    measure: Callable[[Key], Part],
    *,
    write: Callable[[Path, dict[str, object]], object],
    show: Callable[[Part], object],
) -> list[Part]:
    """Measure those of ``keys`` that ``path`` has not yet, on the CPU, and write the file after each. Returns all that
    it has.

    :param kind: of a part: it has ``from_json``, ``to_json`` and ``key``.
    :param show: called with every part that has been measured.
    :raises PlanError: as :func:`read_parts`.
    """
    parts = [] if path is None else read_parts(path, plan, "cells", kind.from_json)
    described = machine.describe()
    for key in keys:
        if any(part.key == key for part in parts):
            continue
        parts.append(measure(key))
        show(parts[-1])
        if path is not None:
            cells = [part.to_json() for part in parts]
            write(path, {"format": FORMAT, "plan": asdict(plan), "machine": described, "cells": cells})
    return parts
