"""Foreseen seconds and memory, exponents, and labels that do not overlap."""

from __future__ import annotations

from itertools import pairwise

import pytest

from gp_rangeformer.lab.bench.forecast import refusal
from gp_rangeformer.lab.bench.growth import exponent
from gp_rangeformer.lab.bench.peer_figures import spread


def refused(seconds: dict[int, float], peaks: dict[int, float], growth: int = 3, n: int = 4000) -> str | None:
    return refusal(n, seconds, peaks, growth=growth, patience=10.0, free=1000.0)


def test_a_contender_that_would_take_too_long_is_refused_with_the_reason() -> None:
    assert refused({1000: 0.1, 2000: 1.2}, {}) is None
    reason = refused({1000: 0.1, 2000: 1.3}, {})
    assert reason == "10 s a step foreseen from n = 2000, longer than the patience of 10 s"


def test_seconds_are_foreseen_with_the_contenders_own_growth() -> None:
    assert refused({2000: 2.0}, {}, growth=3) is not None
    assert refused({2000: 2.0}, {}, growth=2) is None


def test_a_contender_that_would_not_fit_is_refused_with_the_reason() -> None:
    assert refused({}, {2000: 249.0}) is None
    assert refused({}, {2000: 251.0}) == "1004 MiB foreseen from n = 2000, more than the 1000 MiB that are free"


def test_larger_sizes_say_nothing_about_smaller_ones() -> None:
    assert refused({8000: 1e6}, {8000: 1e6}) is None


def test_the_exponent_of_a_power_law_is_recovered() -> None:
    assert exponent({n: 3e-9 * n**2.3 for n in (1000, 2000, 4000)}) == pytest.approx(2.3)


def test_small_sizes_do_not_bend_the_exponent() -> None:
    law = {n: 1e-6 * n**2.0 for n in (2000, 4000)}
    assert exponent({500: 1.0, **law}) == pytest.approx(2.0)


def test_small_sizes_are_used_where_there_are_no_others() -> None:
    assert exponent({500: 0.25, 1000: 1.0}) == pytest.approx(2.0)


def test_one_size_has_no_exponent() -> None:
    assert exponent({2000: 1.0}) is None


def test_labels_keep_their_order_and_their_distance() -> None:
    positions = [0.5, 0.1, 0.5, 0.52, 0.9]
    found = spread(positions, 0.1)
    assert all(b - a > 0.1 - 1e-9 for a, b in pairwise(sorted(found)))
    assert found[1] == pytest.approx(0.1)
    assert found[4] == pytest.approx(0.9)
    assert sum(found) == pytest.approx(sum(positions))
