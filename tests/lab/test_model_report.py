"""The report of a model: what stands on the page is what the model says, and nothing on it can run or be fetched."""

from __future__ import annotations

import base64
import dataclasses
import math
import re
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gpytorch.kernels import LinearKernel

from gp_rangeformer import Certified, settings
from gp_rangeformer.fit import FitResult, Record
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.model_report import render, words, writing
from gp_rangeformer.lab.model_report.drawing import as_image
from gp_rangeformer.lab.model_report.effects import effect_figure, effects
from gp_rangeformer.lab.model_report.residuals import observed_figure
from gp_rangeformer.lab.model_report.training import magnified_end, whole_fit
from gp_rangeformer.predict import LeaveOneOut
from gp_rangeformer.regression import TableRegression
from gp_rangeformer.regression.predictions import beside
from gp_rangeformer.regression.words import of_fit
from gp_rangeformer.system.answers import Interval
from tests.lab.commands import invoke

TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "strong", "dl", "div", "dt", "dd", "figure",
    "img", "figcaption", "b", "table", "thead", "tbody", "tr", "th", "td", "span", "ul", "li", "footer",
}  # fmt: skip
VOID = {"meta", "img"}
HTML, MATH, TARGET = '<script>alert("1")</script>', "$a_{$ & co", "price <€>"


class Page(HTMLParser):
    """Tags with their attributes, the words between them, and whatever was not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def images(self) -> list[ET.Element]:
        """Every figure, parsed."""
        prefix = "data:image/svg+xml;base64,"
        sources = [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith(prefix) for source in sources)
        return [ET.fromstring(base64.b64decode(source.removeprefix(prefix))) for source in sources]


def mixed_table() -> pd.DataFrame:
    """Numbers, text, dates and booleans, a constant, missing cells, and names that are HTML or formulas."""
    random = np.random.default_rng(0)
    n = 80
    height, city = random.uniform(150, 200, n), random.choice(["Oslo", "<b>Rome</b>", "São Paulo"], n)
    member, days = random.random(n) < 0.4, random.integers(0, 900, n)
    y = 5 * np.sin(height / 8) + 4 * (city == "Oslo") + 2 * member + days / 200 + random.normal(0, 0.7, n)
    joined = pd.Timestamp("2020-01-01") + pd.to_timedelta(days, unit="D")
    columns = {HTML: height, MATH: city, "member": member, "joined": joined, "constant": 1.0, TARGET: y}
    frame = pd.DataFrame(columns).astype({"member": "boolean"})
    frame.loc[frame.index[::17], MATH] = None
    frame.loc[frame.index[1::20], "member"] = None
    return frame


@pytest.fixture(scope="module")
def mixed() -> TableRegression:
    with pytest.warns(UserWarning, match="constant"):
        return TableRegression.fit(
            mixed_table(), target=TARGET, kernel="matern32,rbf", encode="one-hot", missing="mean"
        )


@pytest.fixture(scope="module")
def dated() -> TableRegression:
    """The Mauna Loa record's last 110 weeks."""
    data = datasets.load("co2", n=110, n_test=10)
    weeks = pd.date_range("1998-12-05", periods=110, freq="7D")
    y = data.train_y.numpy()[np.argsort(data.train_x[:, 0].numpy())]
    return TableRegression.fit(pd.DataFrame({"week": weeks, "CO2 [ppm]": y}), target="CO2 [ppm]", kernel="matern52")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the robot arm by two of its angles, saved, with rows held out."""
    data = datasets.load("robot_arm", n=110, n_test=10)
    frame = pd.DataFrame(data.train_x.numpy(), columns=pd.Index(data.feature_names))[["theta2", "theta3"]].copy()
    frame[data.target_name] = data.train_y.numpy()
    fitted, held = frame.iloc[:80], frame.iloc[80:]
    model = TableRegression.fit(fitted, target=data.target_name, kernel="rbf")
    path = tmp_path_factory.mktemp("model")
    model.save(path)
    held = held.rename_axis("line")
    beside(model.predict(held), held, data.target_name).to_csv(path / "held_out.csv")
    return path


@pytest.fixture(scope="module")
def page(mixed: TableRegression) -> str:
    return render(mixed)


# --------------------------------------------------------------------------------------------------------------------
# the page


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


@pytest.mark.parametrize("zone", [None, "UTC"])
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
@pytest.mark.parametrize("alone", [True, False])
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


# --------------------------------------------------------------------------------------------------------------------
# effects


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


# --------------------------------------------------------------------------------------------------------------------
# the fit

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
    converged, value, likely, certain = of_fit(a_fit(), 0.95)
    assert converged.title == "The fit converged."
    assert not converged.doubtful
    assert "-0.7990" in value.title
    assert "Cholesky" not in value.text
    assert "0.0030" in likely.title
    assert "95%" in likely.title
    assert "probe" in likely.text
    assert "-0.8500 and 7.0000" in certain.title


def test_an_exact_likelihood_has_no_likely_interval() -> None:
    titles = [one.title for one in of_fit(a_fit(error=0.0), None)]
    assert not [title for title in titles if "Likely" in title]
    assert len(titles) == 3


def test_where_no_certain_interval_is_known_that_is_said() -> None:
    for error, words_of_it in ((0.0, "exact to rounding"), (0.003, "likely")):
        last = of_fit(a_fit(certain=None, error=error), 0.95)[-1]
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
    first, *_ = of_fit(a_fit(converged=False, reason="no further gain", decrement=left), 0.95)
    assert first.doubtful == doubtful


def test_a_fit_that_has_not_converged_says_so() -> None:
    first, *_ = of_fit(a_fit(converged=False, reason="evaluations used up"), 0.95)
    assert first.doubtful
    assert "not converged: evaluations used up" in first.title


# --------------------------------------------------------------------------------------------------------------------
# calibration


def scores_of(pit: Sequence[float]) -> LeaveOneOut:
    distribution = torch.tensor(pit, dtype=torch.float64)
    zero = torch.zeros_like(distribution)
    return LeaveOneOut(zero, zero, zero + 1, zero, distribution, 0.0, 0.0)


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


# --------------------------------------------------------------------------------------------------------------------
# the command


def test_the_command_writes_beside_the_model_with_held_out_rows(folder: Path) -> None:
    result = invoke("report", folder)
    assert result.exit_code == 0, result.output
    written = folder / "report.html"
    assert f"written: {written}" in result.stdout
    held = pd.read_csv(folder / "held_out.csv")
    error = float(np.sqrt(np.mean((held["distance"] - held["mean"]) ** 2)))
    inside = float(np.mean((held["lower95"] <= held["distance"]) & (held["distance"] <= held["upper95"])))
    text = Page(written.read_text("utf-8")).text
    assert f"On 30 held-out rows the RMSE is {error:.4g}. {inside:.1%} of them" in text


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda rows: rows.drop(columns="lower95"), "have no column 'lower95'"),
        (lambda rows: rows.drop(columns="distance"), "have no column 'distance'"),
        (lambda rows: rows.assign(mean="much"), "column 'mean' holds 'much'"),
        (lambda rows: rows.assign(upper95=math.inf), "column 'upper95' is infinite"),
    ],
)
def test_held_out_rows_that_were_changed_are_refused_by_name(
    folder: Path, tmp_path: Path, change: Any, said: str
) -> None:
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    change(pd.read_csv(path / "held_out.csv", index_col="line")).to_csv(path / "held_out.csv")
    result = invoke("report", path)
    assert result.exit_code == 2
    assert said in result.stderr
    assert "leave the table as it was written, or remove it" in result.stderr


def test_held_out_rows_with_a_missing_cell_are_not_counted(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "model"
    shutil.copytree(folder, path)
    rows = pd.read_csv(path / "held_out.csv", index_col="line")
    for number, name in enumerate(("distance", "mean", "lower95")):
        rows.iloc[number, rows.columns.get_loc(name)] = None
    rows.to_csv(path / "held_out.csv")
    assert invoke("report", path).exit_code == 0
    assert "On 27 held-out rows" in Page((path / "report.html").read_text("utf-8")).text


@pytest.mark.parametrize("scale", [1e-300, 1e100])
def test_the_share_that_is_explained_does_not_depend_on_the_unit(scale: float) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=40)})
    frame["y"] = (frame["a"] + random.normal(size=40)) * scale
    other = frame.assign(y=frame["y"] / scale)
    texts = [Page(render(TableRegression.fit(each, target="y", kernel="rbf"))).text for each in (frame, other)]
    found = [re.search(r"variance explained ([\d.]+)%", text) for text in texts]
    assert found[0] is not None
    assert found[1] is not None
    assert float(found[0][1]) == pytest.approx(float(found[1][1]), abs=0.11)


def test_the_command_refuses_what_is_no_model(tmp_path: Path) -> None:
    result = invoke("report", tmp_path, "--out", tmp_path / "r.html")
    assert result.exit_code == 2
    assert "model.json is missing" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_path_that_cannot_be_written_is_refused_before_anything_is_computed(folder: Path, tmp_path: Path) -> None:
    result = invoke("report", folder, "--out", tmp_path / "none" / "r.html")
    assert result.exit_code == 2
    assert f"there is no folder {tmp_path / 'none'}" in result.stderr


def test_rows_that_were_dropped_before_the_split_are_on_the_page(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    frame = pd.DataFrame({"a": random.normal(size=60), "b": random.normal(size=60)})
    frame["y"] = frame["a"] + 0.1 * random.normal(size=60)
    frame.loc[:6, "b"] = None
    frame.to_csv(tmp_path / "table.csv", index=False)
    result = invoke("fit", tmp_path / "table.csv", "--target", "y", "--kernel", "rbf", "--out", tmp_path / "model")
    assert result.exit_code == 0, result.output
    note = "dropped 7 of 60 rows with missing values; most are missing in column 'b'"
    for arguments in ([], ["report", tmp_path / "model"]):
        assert not arguments or invoke(*arguments).exit_code == 0
        text = Page((tmp_path / "model" / "report.html").read_text("utf-8")).text
        assert note in text
        assert "Nothing was left out" not in text
    assert TableRegression.load(tmp_path / "model").notes == (note,)


def test_a_fit_that_is_kept_asks_for_its_report_which_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(model: TableRegression, held_out: pd.DataFrame) -> str:
        raise ArithmeticError(f"{model.target} of {len(held_out)} rows has no factor")

    monkeypatch.setattr(writing, "render", fails)
    path = tmp_path / "model"
    result = invoke("fit", "--dataset", "robot_arm", "--n", 50, "--n-test", 20, "--out", path)
    assert result.exit_code == 1
    assert f"{path / 'report.html'} was not written: distance of 20 rows has no factor" in result.stderr
    assert {file.name for file in path.iterdir()} == {"model.json", "model.safetensors", "held_out.csv", "fit.json"}
