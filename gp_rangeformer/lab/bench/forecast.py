"""What a contender would take at the next size, from its own smaller ones, and whether there is room for it."""

from __future__ import annotations

from collections.abc import Mapping


def refusal(
    n: int,
    seconds: Mapping[int, float],
    peaks: Mapping[int, float],
    *,
    growth: int,
    patience: float,
    free: float | None,
) -> str | None:
    """Why a contender should not be tried at ``n``, or None.

    :param seconds: per step by size, as measured; the largest size below ``n`` counts and grows as n^growth.
    :param peaks: highest memory in MiB by size; grows as n^2.
    :param patience: seconds that a step may take.
    :param free: MiB, None if that is not known.
    """
    smaller = max((size for size in seconds if size < n), default=None)
    if smaller is not None:
        foreseen = seconds[smaller] * (n / smaller) ** growth
        if foreseen > patience:
            return f"{foreseen:.0f} s a step foreseen from n = {smaller}, longer than the patience of {patience:g} s"
    smaller = max((size for size in peaks if size < n), default=None)
    if smaller is not None and free is not None:
        foreseen = peaks[smaller] * (n / smaller) ** 2
        if foreseen > free:
            return f"{foreseen:.0f} MiB foreseen from n = {smaller}, more than the {free:.0f} MiB that are free"
    return None
