"""The figures: written for what there is, in one colour per solver, with the certified band in view."""

import dataclasses

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from gp_rangeformer.lab import datasets, plots
from gp_rangeformer.lab.compare import Comparison, Options, compare, parse_solvers


@pytest.fixture(scope="module")
def co2() -> Comparison:
    solvers = parse_solvers("cholesky,cg,rangeformer,rangeformer:rank=60", min_size=150)
    return compare(datasets.load("co2", n=250, n_test=100), solvers, Options(steps=4))


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    figure.canvas.draw()
    return figure


def line_colours(figure: Figure) -> dict[str, str]:
    lines = [line for axes in figure.axes for line in axes.get_lines()]
    return {
        str(line.get_label()): to_hex(line.get_color()) for line in lines if not str(line.get_label()).startswith("_")
    }


def test_all_figures_are_written_for_one_dimensional_data(co2, tmp_path):
    written = plots.write_figures(co2, tmp_path / "new" / "folder")
    assert [path.name for path in written] == [f"co2-{name}.png" for name in plots.FIGURES]
    for path in written:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


def test_no_predictions_are_drawn_where_there_is_more_than_one_input(tmp_path):
    data = datasets.load("robot_arm", n=120, n_test=20)
    comparison = compare(data, parse_solvers("exact"), Options(steps=2))
    written = {path.name for path in plots.write_figures(comparison, tmp_path)}
    assert written == {f"robot_arm-{name}.png" for name in ("likelihood", "hyperparameters", "cost")}


def test_nothing_is_drawn_of_a_comparison_that_did_not_start(co2, tmp_path):
    assert plots.write_figures(dataclasses.replace(co2, results=[]), tmp_path) == []


def test_an_interrupted_comparison_is_drawn_as_far_as_it_came(tmp_path):
    def observer(solver: str, done: int, total: int, status: str) -> None:
        if solver == "rangeformer" and done == 2:
            raise KeyboardInterrupt

    data = datasets.load("co2", n=150, n_test=40)
    comparison = compare(data, parse_solvers("rangeformer", min_size=100), Options(steps=4), observer=observer)
    assert comparison.interrupted
    written = {path.name for path in plots.write_figures(comparison, tmp_path)}
    assert written == {f"co2-{name}.png" for name in plots.FIGURES}


def test_a_solver_has_one_colour_in_every_figure(co2):
    seen: dict[str, set[str]] = {}
    for draw in plots.FIGURES.values():
        for label, colour in line_colours(drawn(draw(co2))).items():
            seen.setdefault(label, set()).add(colour)
    for name in ("reference (float64)", "cholesky", "cg", "rangeformer", "rangeformer: rank=60"):
        assert len(seen[name]) == 1, name
    assert len({*seen["cholesky"], *seen["cg"], *seen["rangeformer"], *seen["rangeformer: rank=60"]}) == 4


def test_a_wide_rigorous_band_does_not_squash_the_curves(co2):
    figure = drawn(plots.likelihood(co2))
    values = [step.value for result in co2.results for step in result.steps]
    low, high = figure.axes[0].get_ylim()
    assert low < min(values) < max(values) < high
    assert high - low < 1.3 * (max(values) - min(values))
    labels = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {"rangeformer, rigorous interval", "rangeformer, statistical interval"} <= set(labels)
    assert len(labels) == len(set(labels))


def test_every_hyperparameter_has_its_panel(co2):
    figure = drawn(plots.hyperparameters(co2))
    titles = [axes.get_title() for axes in figure.axes if axes.get_visible()]
    assert titles == [name.replace("_", " ") for name in co2.results[0].steps[0].hyperparameters]


def test_co2_is_drawn_in_ppm_over_years(co2):
    figure = drawn(plots.predictions(co2))
    upper, lower = figure.axes
    assert "ppm" in upper.get_ylabel()
    assert "ppm" in lower.get_ylabel()
    assert lower.get_xlabel() == "year"
    years = np.asarray(upper.get_lines()[0].get_xdata(), dtype=float)
    ppm = np.asarray(upper.get_lines()[0].get_ydata(), dtype=float)
    # The last 100 weeks of the record, 29 January 2000 to 29 December 2001.
    assert years.min() == pytest.approx(2000.08, abs=0.03)
    assert years.max() == pytest.approx(2001.99, abs=0.01)
    assert 350 < ppm.min() < ppm.max() < 390


def test_the_residual_is_drawn_against_its_tolerance(co2):
    left, right = drawn(plots.certificates(co2)).axes
    assert any(text.get_text() == "tolerance 0.01" for text in left.texts)
    assert left.get_yscale() == right.get_yscale() == "log"
