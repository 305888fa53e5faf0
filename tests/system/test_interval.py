"""Intervals: what two have in common, and how they are printed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gp_rangeformer.system.answers import Interval

NUMBERS = st.floats(-1e9, 1e9)
INTERVALS = st.tuples(NUMBERS, NUMBERS).map(sorted).map(lambda ends: Interval(*ends))


@given(INTERVALS, INTERVALS, NUMBERS)
def test_what_lies_within_a_certain_interval_contains_all_that_both_contain(likely, certain, number) -> None:
    found = likely.within(certain)
    assert certain.lower <= found.lower <= found.upper <= certain.upper
    if likely.contains(number) and certain.contains(number):
        assert found.contains(number)


def test_an_interval_that_misses_the_certain_one_says_nothing() -> None:
    assert Interval(3.0, 4.0).within(Interval(1.0, 2.0)) == Interval(1.0, 2.0)


@given(INTERVALS, st.integers(0, 6))
def test_printed_ends_contain_the_interval(interval, places) -> None:
    lower, upper = (float(text) for text in interval.outward(places))
    assert lower <= interval.lower
    assert interval.upper <= upper
    assert upper - lower <= interval.width + 2.0 * 10.0**-places + 1e-6


def test_an_interval_without_ends_is_printed() -> None:
    assert Interval(float("-inf"), float("inf")).outward(4) == ("-inf", "inf")
    assert Interval(1.71271, 1.71279).outward(4) == ("1.7127", "1.7128")
    assert Interval(-0.5, -0.5).outward(3) == ("-0.500", "-0.500")
