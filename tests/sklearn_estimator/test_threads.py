"""What estimators that are fitted in threads leave behind, and what they find."""

from __future__ import annotations

import threading
import warnings

import gpytorch
import linear_operator
import numpy as np

from gp_rangeformer import settings
from gp_rangeformer.sklearn import RangeFormerRegressor
from gp_rangeformer.sklearn.flag import flag


def state() -> tuple[object, ...]:
    """Of the process."""
    tries = linear_operator.settings.cholesky_max_tries.value()
    return gpytorch.settings.debug.on(), tries, settings.current(), list(warnings.filters)


def test_flags_that_overlap_leave_the_hosts_settings_as_they_were() -> None:
    """Each remembers what to put back when it begins: what the other has set, if that is inside its own."""
    before = state()
    first_is_in, first_may_leave, first_has_left, second_is_in = (threading.Event() for _ in range(4))
    seen: list[bool] = []

    def first() -> None:
        with flag(None):
            first_is_in.set()
            first_may_leave.wait(30)
        first_has_left.set()

    def second() -> None:
        with flag(None):
            second_is_in.set()
            first_has_left.wait(30)
            seen.append(bool(gpytorch.settings.debug.on()))

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert first_is_in.wait(30)
    threads[1].start()
    second_is_in.wait(0.2)  # long enough for one that does not wait for its turn
    first_may_leave.set()
    for thread in threads:
        thread.join()
    assert seen == [False]
    assert state() == before


def test_fits_in_threads_are_those_one_after_the_other() -> None:
    generator = np.random.default_rng(0)
    rows = generator.uniform(size=(40, 2))
    targets = [np.sin(3 * rows[:, 0] + shift) + 0.1 * generator.normal(size=40) for shift in range(4)]
    apart = [RangeFormerRegressor(alpha=0.01).fit(rows, y).predict(rows) for y in targets]
    before, together = state(), {}
    begun = threading.Barrier(len(targets))

    def fit(index: int) -> None:
        begun.wait(30)
        together[index] = RangeFormerRegressor(alpha=0.01).fit(rows, targets[index]).predict(rows)

    threads = [threading.Thread(target=fit, args=(index,)) for index in range(len(targets))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, expected in enumerate(apart):
        np.testing.assert_allclose(together[index], expected, rtol=1e-9, atol=1e-12)
    assert state() == before
