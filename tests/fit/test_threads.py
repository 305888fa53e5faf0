"""Fits that run in several threads at once are the fits that run one after the other."""

from __future__ import annotations

import threading

import pytest

from gp_rangeformer import Exact, settings
from gp_rangeformer.fit import FitResult, fit_mll
from tests.fit.models import build

SIZES = (120, 150, 180)


def _fits(flag: bool, together: bool) -> dict[int, FitResult]:
    results: dict[int, FitResult] = {}
    begun = threading.Barrier(len(SIZES) if together else 1)

    def fit(n: int) -> None:
        begun.wait(30)
        with settings.rangeformer(flag), settings.solver(Exact()):
            results[n] = fit_mll(build(n))

    threads = [threading.Thread(target=fit, args=(n,)) for n in SIZES]
    for thread in threads:
        thread.start()
        if not together:
            thread.join()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.parametrize("flag", [False, True])
def test_fits_in_threads_at_once_are_those_one_after_the_other(flag: bool) -> None:
    """One thread's fit has looked at what another's evaluated: it then went on without curvature, and without knowing
    the errors of its own values."""
    before = settings.current()
    apart, together = _fits(flag, together=False), _fits(flag, together=True)
    for n in SIZES:
        assert together[n].method == apart[n].method == "average information"
        assert together[n].evaluations == apart[n].evaluations
        assert together[n].value == pytest.approx(apart[n].value, abs=1e-9)
        report = together[n].report
        assert report is not None
        assert report.n == n
    assert settings.current() == before
