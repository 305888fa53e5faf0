"""How a quantity grows with n: an exponent fitted on double logarithmic axes."""

from __future__ import annotations

from collections.abc import Mapping
from math import log

# Below, what does not depend on n (launches, Python, thread starts) bends the line.
ASYMPTOTIC = 2000


def exponent(values: Mapping[int, float]) -> float | None:
    """p of the least-squares fit value ~ c n^p.

    :param values: positive, by n; those from n = 2000 on count where there are two of them, else all.
    :return: None from fewer than two sizes.
    """
    chosen = {n: value for n, value in values.items() if n >= ASYMPTOTIC}
    if len(chosen) < 2:
        chosen = dict(values)
    if len(chosen) < 2:
        return None
    x, y = [log(n) for n in chosen], [log(value) for value in chosen.values()]
    centre_x, centre_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - centre_x) * (b - centre_y) for a, b in zip(x, y, strict=True))
    return covariance / sum((a - centre_x) ** 2 for a in x)
