"""What a report says of a fit: its likelihood, its end, its calibration."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gp_rangeformer.lab.model_report import render, words
from gp_rangeformer.lab.model_report.training import magnified_end, whole_fit
from gp_rangeformer.regression import TableRegression
from gp_rangeformer.regression.words import in_words, of_fit
from tests.lab.model_report.pages import Page
from tests.lab.model_report.test_page import a_fit, scores_of


def heights(line: Any) -> list[float]:
    return np.asarray(line.get_ydata()).tolist()


def test_the_likelihood_is_drawn_with_its_failures_and_as_much_of_the_certain_interval_as_fits() -> None:
    (axes,) = whole_fit(a_fit()).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    low, high = axes.get_ylim()
    assert heights(lines["on a subset of the rows"]) == [-1.5, -1.2]
    assert heights(lines["rejected steps"]) == [low]
    assert heights(lines["certain at the end"]) == [-0.85, high]
    assert high < 0, "seven nats above would flatten the fit"
    (bars,) = axes.containers
    assert heights(bars[0]) == [-1.0, -0.8, -0.799]


def test_the_end_is_drawn_at_the_scale_of_its_interval() -> None:
    (axes,) = magnified_end(a_fit()).axes
    low, high = axes.get_ylim()
    assert (low + high) / 2 == pytest.approx(-0.799)
    assert 3 * 0.003 < high - low < 20 * 0.003
    (bars,) = axes.containers
    assert heights(bars[0]) == [-0.8, -0.799]
    (segments,) = bars[2]
    assert segments.get_segments()[1][:, 1] == pytest.approx([-0.802, -0.796])


def test_the_certificate_in_words_has_both_intervals_and_what_they_cover() -> None:
    converged, value, likely, certain = of_fit(a_fit(), 0.95, "float32")
    assert converged.title == "The fit converged."
    assert not converged.doubtful
    assert "-0.7990" in value.title
    assert "Cholesky" not in value.text
    assert "0.0030" in likely.title
    assert "95%" in likely.title
    assert "probe" in likely.text
    assert "-0.8500 and 7.0000" in certain.title


def test_an_exact_likelihood_has_no_likely_interval() -> None:
    titles = [one.title for one in of_fit(a_fit(error=0.0), None, "float32")]
    assert not [title for title in titles if "Likely" in title]
    assert len(titles) == 3


def test_an_exact_likelihood_has_no_more_digits_than_rounding_leaves() -> None:
    fit = a_fit(error=0.0, rounding=0.018)
    _, value, _ = of_fit(fit, None, "float64")
    assert value.title == "log p(y)/n is -0.799."
    assert "Rounding" in value.text
    assert "0.018" in value.text
    assert "leave-one-out" in in_words(fit, None, "float64")
    assert "Rounding" not in in_words(a_fit(error=0.0, rounding=1e-8), None, "float64")


def test_scores_that_rounding_limits_are_not_called_exact() -> None:
    scores = scores_of([0.1, 0.5, 0.9])
    assert "exact, up to rounding" in words.of_calibration(scores)[0].text
    assert "0.018" in words.of_calibration(scores, 0.018)[0].text


def test_where_no_certain_interval_is_known_that_is_said() -> None:
    for error, words_of_it in ((0.0, "exact to rounding"), (0.003, "likely")):
        last = of_fit(a_fit(certain=None, error=error), 0.95, "float32")[-1]
        assert last.title == "No certain interval is known."
        assert words_of_it in last.text


def test_the_page_and_the_certificate_say_the_same(page: str, mixed: TableRegression) -> None:
    text = Page(page).text
    assert mixed.fit_result is not None
    assert not mixed.fit_result.notes
    for line in mixed.certificate().splitlines():
        assert line in text


def test_certificates_say_which_evaluation_they_come_from(mixed: TableRegression, page: str, tmp_path: Path) -> None:
    assert mixed.fit_result is not None
    assert mixed.fit_result.report is not None
    where = "They come from the evaluation where the fit ended, on 80 rows. The solver's report of it"
    assert f"{where}: {mixed.fit_result.report.summary()}." in Page(page).text
    mixed.save(tmp_path)
    kept = Page(render(TableRegression.load(tmp_path))).text
    assert f"{where} is not known" in kept
    assert mixed.certificate().splitlines()[0] in kept


def test_a_model_that_was_not_fitted_to_convergence_has_no_certificate(dated: TableRegression) -> None:
    plain = TableRegression(dataclasses.replace(dated._state, fit_result=None))
    assert "not fitted to convergence. No certificates of the likelihood are known." in Page(render(plain)).text


@pytest.mark.parametrize(("left", "doubtful"), [(1e-3, False), (2.2, True)])
def test_steps_that_gain_nothing_more_are_an_end_where_little_is_left(left: float, doubtful: bool) -> None:
    first, *_ = of_fit(a_fit(converged=False, reason="no further gain", decrement=left), 0.95, "float32")
    assert first.doubtful == doubtful


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_fit_that_has_not_converged_says_so(dtype: str) -> None:
    first, *_ = of_fit(a_fit(converged=False, reason="evaluations used up"), 0.95, dtype)
    assert first.doubtful
    assert "not converged: evaluations used up" in first.title
    assert ("float64 may get further" in first.text) == (dtype == "float32")


@pytest.mark.parametrize(
    ("stretch", "verdict", "doubtful"),
    [
        (lambda u: u, "as many rows as they promise", False),
        (lambda u: 0.5 * u, "too wide at 50%, 80%, 95%", True),
        (lambda u: u**0.2, "too narrow at 50%, 80%, 95%", True),
        (lambda u: np.where(u < 0.85, 0.5 * u, 1.0), "too wide at 50%, 80%, too narrow at 95%", True),
    ],
    ids=["calibrated", "wide", "narrow", "heavy tails"],
)
def test_calibration_is_judged_within_chance(stretch: Any, verdict: str, doubtful: bool) -> None:
    inside = stretch((np.arange(1000) + 0.5) / 1000)  # the level of the interval that just contains each target
    found = words.of_calibration(scores_of(list(0.5 + 0.5 * inside)))[-1]
    assert verdict in found.title
    assert found.doubtful == doubtful


def test_what_chance_would_move_is_no_verdict() -> None:
    inside = (np.arange(1000) + 0.5) / 1000
    deviation = math.sqrt(0.95 * 0.05 / 1000)
    little, much = (np.where(inside > 0.95 - times * deviation, 1.0, inside) for times in (2, 4))
    assert not words.of_calibration(scores_of(list(0.5 + 0.5 * little)))[-1].doubtful
    assert words.of_calibration(scores_of(list(0.5 + 0.5 * much)))[-1].doubtful
