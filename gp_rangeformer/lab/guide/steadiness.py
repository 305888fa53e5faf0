"""Which seconds other work had a part in, and which ratios are one number: what tables mark and sentences leave out."""

from __future__ import annotations

from collections.abc import Sequence

from gp_rangeformer.lab.bench.floors import FLOOR
from gp_rangeformer.lab.bench.peer_tables import relative_seconds, series
from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.bench.replay import WARM_UP

# Of the cores' time: what GPyTorch does on one thread alone leaves it above this. Told from the size FROM on: steps of
# milliseconds are shorter than what the system counts processor time in.
SHARED, FROM = 0.7, 4000
# Ratios of one size that differ by more are a range: a plug-in's steps differ by their iterations.
_STEADY = 1.5
# GPyTorch's step returns its matrices to the system, and has them mapped anew: the kernel's seconds are its own.
_KEEPS_MEMORY = (FLOOR, "rangeformer")


def disturbed(size: Size, name: str) -> bool:
    """Whether the contender's median step had to share the cores, or the floor's, which took turns with it."""
    return any((row := size.row(each)) is not None and _short_of_cores(row, size) for each in (name, FLOOR))


def any_disturbed(sizes: Sequence[Size]) -> bool:
    return any(disturbed(size, row.name) for size in sizes for row in size.rows if row.complete)


def undisturbed(size: Size, *names: str) -> bool:
    """Whether all of them were measured here, with the cores to themselves."""
    rows = [size.row(name) for name in names]
    return all(row is not None and row.complete and not disturbed(size, row.name) for row in rows)


def steady_seconds(sizes: Sequence[Size], name: str) -> dict[int, float]:
    """Of one contender by n, without what was disturbed."""
    return series([size for size in sizes if not disturbed(size, name)], name, Row.seconds)


def bounds(size: Size, name: str, reference: str) -> tuple[float, float] | None:
    """How many times as long as ``reference`` a step takes: the median twice, or the ends of the middle half of the
    steps where those are far apart. None: one of them was not measured."""
    if name not in (over := relative_seconds(size, reference)):
        return None
    own, other = (row.outcome.seconds for each in (name, reference) if (row := size.row(each)) is not None)
    pairs = list(zip(own, other, strict=True))
    ratios = sorted(a / b for a, b in pairs[WARM_UP:] or pairs)
    quarter = len(ratios) // 4
    low, high = ratios[quarter], ratios[-1 - quarter]
    return (low, high) if high > _STEADY * low else (over[name], over[name])


def times(size: Size, name: str, reference: str) -> str | None:
    """For a sentence; None where it was not measured, or disturbed."""
    found = bounds(size, name, reference)
    return None if found is None or not undisturbed(size, name, reference) else spoken(found)


def spoken(found: tuple[float, float], word: str = " to ") -> str:
    return word.join(dict.fromkeys(f"{end:.0f}" if end >= 10 else f"{end:.1f}" for end in found))


def _short_of_cores(row: Row, size: Size) -> bool:
    if not row.complete or size.n < FROM:
        return False
    outcome = row.outcome
    keeps = row.name in _KEEPS_MEMORY
    kernel = outcome.system if keeps and outcome.system else [0.0] * len(outcome.seconds)
    steps = sorted(list(zip(outcome.seconds, outcome.processor, kernel, strict=True))[WARM_UP:])
    middle = steps[(len(steps) - 1) // 2 : len(steps) // 2 + 1]
    return any(processor - system < SHARED * size.threads * seconds for seconds, processor, system in middle)
