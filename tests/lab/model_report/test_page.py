"""The report of a model: what stands on the page is what the model says, and nothing on it can run or be fetched."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gpytorch.kernels import LinearKernel

from gp_rangeformer import Certified, settings
from gp_rangeformer.fit import FitResult, Record
from gp_rangeformer.lab.model_report import render, words
from gp_rangeformer.lab.model_report.drawing import as_image
from gp_rangeformer.lab.model_report.effects import effect_figure, effects
from gp_rangeformer.lab.model_report.residuals import observed_figure
from gp_rangeformer.lab.model_report.training import whole_fit
from gp_rangeformer.predict import LeaveOneOut
from gp_rangeformer.regression import TableRegression
from gp_rangeformer.system.answers import Interval
from tests.lab.model_report.pages import HTML, MATH, TAGS, TARGET, Page


def test_the_page_is_whole_and_needs_nothing_else(page: str) -> None:
    parsed = Page(page)
    assert parsed.open == []
    assert {tag for tag, _ in parsed.tags} == TAGS
    assert not [name for _, attributes in parsed.tags for name in attributes if name.startswith("on") or name == "href"]
    assert "url(" not in page
    assert "@import" not in page
    assert len(page) < 1_000_000
    for image in parsed.images:
        assert not [part for part in image.iter() if part.tag.endswith("script")]
        links = [value for part in image.iter() for name, value in part.attrib.items() if name.endswith("href")]
        assert all(link.startswith(("#", "data:image/png;base64,")) for link in links)


def test_names_stay_names_whatever_they_hold(page: str) -> None:
    parsed = Page(page)
    for name in (HTML, MATH, TARGET, f"{MATH}=<b>Rome</b>"):
        assert name in parsed.text
    drawn = ["".join(part.itertext()) for image in parsed.images for part in image.iter() if part.tag.endswith("}text")]
    assert {"<b>Rome</b>", "Oslo", "São Paulo", TARGET} <= set(drawn)


@pytest.mark.parametrize("name", ["a\tb\x07" + 40 * "長", "$\\frac"])
def test_a_long_or_unprintable_name_or_half_a_formula_is_drawn(name: str) -> None:
    image = as_image(observed_figure(scores_of([0.2, 0.4, 0.7]), name))
    drawn = ET.fromstring(base64.b64decode(image.partition(",")[2]))
    texts = ["".join(part.itertext()) for part in drawn.iter() if part.tag.endswith("}text")]
    (label,) = [text for text in texts if text.endswith("observed")]
    assert label.startswith(name[:1])
    assert len(label) < 40


def test_the_page_says_what_the_model_says(page: str, mixed: TableRegression) -> None:
    text, scores = Page(page).text, mixed.leave_one_out()
    assert f"leave-one-out RMSE {scores.rmse:.4g}" in text
    for one in scores.coverage:
        assert f"{one.level:.0%} {one.share:.1%} {one.deviation:.1%}" in text
    for name, value in mixed.relevance().items():
        assert f"{name} {value:.3g}" in text
    for name, value in mixed.hyperparameters().items():
        assert f"{name} {value:.5g}" in text
    for candidate in mixed.candidates:
        assert f"{candidate.kernel} {candidate.value:.4f}" in text
    for note in mixed.notes:
        assert note in text
    assert f"torch {torch.__version__}" in text
    assert mixed.fit_result is not None
    assert f"log p(y)/n is {mixed.fit_result.value:.4f}" in text


def test_bars_are_as_long_as_relevance_is_large(page: str, mixed: TableRegression) -> None:
    styles = [str(attributes["style"]) for tag, attributes in Page(page).tags if tag == "span"]
    lengths = [float(re.fullmatch(r"width: ([\d.e-]+)%", style)[1]) for style in styles]  # type: ignore[index]
    relevance = mixed.relevance().to_numpy()
    np.testing.assert_allclose(lengths, 100 * relevance / relevance[0], rtol=1e-12)


def test_scores_stand_in_one_unit_on_the_page(page: str, mixed: TableRegression) -> None:
    best, scores = mixed.candidates[0], mixed.leave_one_out()
    # Standardised targets have a density larger by their scale; the model is the candidate that was fitted to all rows.
    score = scores.score + math.log(float(mixed.outputs.scale))
    assert best.leave_one_out == pytest.approx(score, abs=1e-5)
    words_of_page = Page(page).text
    assert f"leave-one-out score, standardised {score:.4f} nats per row" in words_of_page
    assert f"{best.leave_one_out:.4f} 80" in words_of_page
    assert words_of_page.count("leave-one-out score") == 2
    assert words_of_page.count("leave-one-out score, standardised") == 2


@pytest.mark.parametrize(("alone", "zone"), [(True, "UTC"), (False, None)])
@pytest.mark.parametrize(
    ("ends", "years"),
    [
        (("2020-01-01", "9999-12-31"), (2020, 10000)),
        (("0001-01-01", "2020-01-01"), (1, 2020)),
        (("-0044-03-15", "12020-01-01"), (-43.8, 12020)),
        (("9999-12-20", "9999-12-31"), (9999.97, 10000)),
        (("1677-09-22", "2262-04-11"), None),
    ],
)
def test_dates_of_any_year_are_drawn_and_named(
    ends: tuple[str, str], years: tuple[float, float] | None, alone: bool, zone: str | None
) -> None:
    random = np.random.default_rng(0)
    low, high = (np.datetime64(end, "us") for end in ends)
    days = low + (high - low) * random.integers(0, 9, 38) // 8
    frame = pd.DataFrame({"day": pd.Series([low, high, *days], dtype="datetime64[us]").dt.tz_localize(zone)})
    if not alone:
        frame["x"] = random.normal(size=40)
    frame["y"] = random.normal(size=40)
    frame.loc[0, "y"] = 99.0  # farthest out
    model = TableRegression.fit(frame, target="y", kernel="rbf")
    parsed = Page(render(model))
    assert f"day {ends[0]}" in parsed.text
    assert len(parsed.images) == 5 + len(frame.columns) - 1
    kept = model.training_frame()
    (found,) = effects(model, kept, ["day"])
    figure = effect_figure(found, kept, "y", found.ends)
    figure.canvas.draw()
    (axes,) = figure.axes
    if years is None:
        assert "1700" in [label.get_text() for label in axes.get_xticklabels()]
    else:
        assert axes.get_xlabel() == "year"
        line = np.asarray(axes.get_lines()[0].get_xdata())
        # To a day, as years differ in length.
        assert (line[0], line[-1]) == (pytest.approx(years[0], abs=0.01), pytest.approx(years[1], abs=0.01))


def test_the_rows_farthest_out_are_named(page: str, mixed: TableRegression) -> None:
    scores, frame = mixed.leave_one_out(), mixed.training_frame()
    standard = (scores.targets - scores.mean) / scores.variance.sqrt()
    at = int(standard.abs().argmax())
    assert f"{float(scores.targets[at]):.5g} {float(scores.mean[at]):.5g} {float(standard[at]):+.1f}" in Page(page).text
    assert f"{HTML} {frame[HTML].iloc[at]:.5g}" in Page(page).text


def test_the_same_figure_gives_the_same_image() -> None:
    assert as_image(whole_fit(a_fit())) == as_image(whole_fit(a_fit()))


def test_a_kernel_without_length_scales_has_no_bars() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(30, 2))
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "y": x @ [1.0, 2.0] + random.normal(0, 0.1, 30)})
    model = TableRegression.fit(frame, target="y", kernel=LinearKernel())
    parsed = Page(render(model))
    assert "span" not in {tag for tag, _ in parsed.tags}
    assert "no length-scale" in parsed.text
    assert len(parsed.images) == 7, "effects are drawn all the same"


def test_an_effect_is_the_function_while_others_stay_at_their_median(mixed: TableRegression) -> None:
    frame = mixed.training_frame()
    (found,) = effects(mixed, frame, [HTML])
    rows = pd.DataFrame({HTML: found.values})
    rows[MATH] = frame[MATH].mode().iloc[0]
    rows["member"] = frame["member"].mean() > 0.5
    rows["joined"] = frame["joined"].median()
    predicted = mixed.predict(rows)
    np.testing.assert_allclose(found.mean, predicted["mean"], rtol=1e-6)
    noise = mixed.hyperparameters()["noise"] * float(mixed.outputs.scale) ** 2
    # Both in float32: each variance is off by a few roundings of the prior's.
    prior = mixed.hyperparameters()["outputscale"] * float(mixed.outputs.scale) ** 2
    np.testing.assert_allclose(found.deviation**2 + noise, predicted["sd"] ** 2, atol=8 * 2**-24 * prior)
    assert (found.values[0], found.values[-1]) == (frame[HTML].min(), frame[HTML].max())


def test_variances_that_are_estimated_are_said_to_be() -> None:
    random = np.random.default_rng(0)
    x = random.uniform(-1, 1, (400, 3))
    y = np.sin(4 * x).sum(1) + random.normal(0, 0.3, 400)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "y": y})
    model = TableRegression.fit(frame, target="y", kernel="matern12", dtype="float32")
    frame = model.training_frame()
    (exact,) = effects(model, frame, ["a"])
    with settings.solver(Certified(variances="estimated", rank=10, neighbours=5)), settings.min_size(100):
        (estimated,) = effects(model, frame, ["a"])
    assert exact.variance_error < 0.001 < estimated.variance_error
    assert "estimated" not in words.of_effects(exact.variance_error).text
    assert f"estimated, to about {estimated.variance_error:.1%}" in words.of_effects(estimated.variance_error).text


def test_every_category_is_a_point(mixed: TableRegression) -> None:
    frame = mixed.training_frame()
    city, member = effects(mixed, frame, [MATH, "member"])
    assert city.values == ["<b>Rome</b>", "Oslo", "São Paulo"]
    assert member.values == [False, True]
    assert city.mean[1] - city.mean[0] == pytest.approx(4, abs=1)


def test_the_only_column_shows_its_rows_and_dates_stay_dates(dated: TableRegression) -> None:
    frame = dated.training_frame()
    (found,) = effects(dated, frame, ["week"])
    assert len(found.values) == 1000, "seasons do not fall between them"
    figure = effect_figure(found, frame, dated.target, found.ends)
    figure.canvas.draw()
    (axes,) = figure.axes
    assert any(len(cloud.get_offsets()) == len(frame) for cloud in axes.collections)  # type: ignore[arg-type]
    assert "1999" in [label.get_text() for label in axes.get_xticklabels()]
    low, high = axes.get_ylim()
    observed = frame[dated.target].to_numpy()
    assert low < observed.min() < observed.max() < high


HISTORY = (
    Record(200, 0.1, -1.5, 0.0, True),
    Record(200, 0.2, -1.2, 0.0, True),
    Record(1000, 0.5, -1.0, 0.002, True),
    Record(1000, 0.8, -math.inf, 0.0, False),
    Record(1000, 1.0, -0.8, 0.003, True),
    Record(1000, 1.5, -0.799, 0.003, True),
)


def a_fit(**changes: Any) -> FitResult:
    found = FitResult(
        value=-0.799, error=0.003, certain=Interval(-0.85, 7.0), decrement=2e-5, noise=1e-5, converged=True,
        reason="converged", method="average information", evaluations={200: 2, 1000: 4}, seconds=1.6, history=HISTORY,
        report=None,
    )  # fmt: skip
    return dataclasses.replace(found, **changes)


def scores_of(pit: Sequence[float]) -> LeaveOneOut:
    distribution = torch.tensor(pit, dtype=torch.float64)
    zero = torch.zeros_like(distribution)
    return LeaveOneOut(zero, zero, zero + 1, zero, distribution, 0.0, 0.0)
