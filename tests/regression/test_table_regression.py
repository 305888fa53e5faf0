"""A table becomes a model that predicts in the table's units."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch

from gp_rangeformer.fit import FitError
from gp_rangeformer.predict import leave_one_out
from gp_rangeformer.regression import Candidate, KernelError, TableError, TableWarning
from gp_rangeformer.regression import choice as choosing
from gp_rangeformer.regression.kernels import covariance
from gp_rangeformer.regression.unfinished import Unfinished
from tests.regression.rows import N, fit, table


def test_predictions_are_those_of_the_dense_formula_in_the_unit_of_the_target(model):
    new = table().drop(columns="y").iloc[::7]
    raw_x = model.columns.encoded(table())
    raw_y = torch.tensor(table()["y"].to_numpy(copy=True))
    mean_x, sd_x = raw_x.mean(dim=0), raw_x.std(dim=0, correction=0)
    mean_y, sd_y = raw_y.mean(), raw_y.std(correction=0)
    x, t = (raw_x - mean_x) / sd_x, (model.columns.encoded(new) - mean_x) / sd_x
    gp, noise = model.gp, model.gp.likelihood.noise.item()
    prior = gp.mean_module.constant.item()
    with torch.no_grad():
        k = gp.covar_module(x).to_dense() + noise * torch.eye(N, dtype=torch.float64)
        cross = gp.covar_module(t, x).to_dense()
        solved = torch.linalg.solve(k, torch.cat([((raw_y - mean_y) / sd_y - prior)[:, None], cross.T], dim=1))
        variance = gp.covar_module(t).to_dense().diagonal() + noise - (cross * solved[:, 1:].T).sum(dim=1)
    mean = mean_y + sd_y * (prior + cross @ solved[:, 0])
    sd = sd_y * variance.sqrt()
    found = model.predict(new)
    assert list(found.index) == list(new.index)
    # Two factorisations of A in float64: condition times epsilon, of deviations of the target.
    bound = float(torch.linalg.cond(k)) * 1e-15 * N
    for name, expected in (("mean", mean), ("sd", sd), ("lower95", mean - 1.96 * sd), ("upper95", mean + 1.96 * sd)):
        slack = 4e-5 * float(sd.max()) if "95" in name else 0
        np.testing.assert_allclose(found[name], expected, rtol=1e-12, atol=bound * float(sd_y) + slack)


def test_predictions_read_columns_by_name_and_need_no_others(model):
    new = table().iloc[:5]
    shuffled = new[["flag", "when", "city", "b", "a"]].assign(other="x")
    pd.testing.assert_frame_equal(model.predict(shuffled), model.predict(new))
    assert model.predict(new.iloc[:0]).shape == (0, 4)


def test_rows_with_missing_cells_are_answered_by_nan_and_a_warning(model):
    new = table().iloc[:4]
    new.loc["r1", "a"] = np.nan
    with pytest.warns(TableWarning, match="1 of 4 rows have missing cells"):
        found = model.predict(new)
    assert found["mean"].isna().tolist() == [False, True, False, False]


def test_progress_is_told_in_rows(model, monkeypatch):
    monkeypatch.setattr("gp_rangeformer.regression.table_regression._ROWS_AT_ONCE", 25)
    seen: list[tuple[int, int]] = []
    parts = model.predict(table(), lambda done, total: seen.append((done, total)))
    assert seen == [(25, 60), (50, 60), (60, 60)]
    monkeypatch.undo()
    np.testing.assert_allclose(parts, model.predict(table()), rtol=1e-10)


def test_a_value_too_large_for_the_dtype_is_refused():
    with pytest.warns(TableWarning, match="left out, text: 'city'"):
        single = fit(table(), target="y", kernel="rbf", encode="drop", dtype="float32", drop=["when"])
    new = table().iloc[:3]
    new.loc["r2", "b"] = 1e200
    with pytest.raises(TableError, match="row r2: a value is too large for float32"):
        single.predict(new)
    assert single.notes == ("left out, text: 'city'",)


def test_relevance_ranks_columns_and_counts_a_texts_inputs_together(model):
    found = model.relevance()
    assert set(found.index) == {"a", "b", "city", "when", "flag"}
    assert found.is_monotonic_decreasing
    assert found.index[0] == "a"
    assert found["a"] > 10 * found["b"]
    numbers = model.hyperparameters()
    squares = sum(numbers[f"lengthscale[city={city}]"] ** -2 for city in ("Oslo", "Rome", "Bonn"))
    assert found["city"] == pytest.approx(math.sqrt(squares))


def test_leave_one_out_is_in_the_unit_of_the_target(model):
    found, plain = model.leave_one_out(), leave_one_out(model.gp)
    scale = float(table()["y"].std(ddof=0))
    np.testing.assert_allclose(found.targets, table()["y"], rtol=1e-12)
    assert found.rmse == pytest.approx(plain.rmse * scale)
    assert found.score == pytest.approx(plain.score - math.log(scale))
    # A density integrates to one in either unit.
    standard = (found.targets - found.mean) / found.variance.sqrt()
    expected = -0.5 * (standard.square() + (2 * math.pi * found.variance).log())
    torch.testing.assert_close(found.log_density, expected)
    assert found.coverage == plain.coverage


def test_the_training_rows_can_be_had_again(model):
    found = model.training_frame()
    for name, cells in table().items():
        if cells.dtype.kind == "f":
            np.testing.assert_allclose(found[name], cells, rtol=1e-12)
        elif name == "when":
            assert (found[name].to_numpy() - cells.to_numpy()).astype("timedelta64[us]").astype(int).max() <= 2
        else:
            assert found[name].tolist() == cells.tolist()


def test_the_certificate_says_whether_it_converged_and_what_intervals_cover(model):
    assert model.fit_result.converged
    text = model.certificate()
    assert "converged" in text
    assert f"{model.fit_result.value:.4f}" in text
    assert "95 of 100 new observations" in text


def test_kernels_are_compared_on_the_same_rows_and_the_likeliest_is_taken():
    names: list[str] = []
    frame = table().drop(columns=["when", "city"])
    found = fit(
        frame, target="y", kernel="matern12,rbf", dtype="float64", callback=lambda name, record: names.append(name)
    )
    assert [type(one) for one in found.candidates] == [Candidate, Candidate]
    values = [one.value for one in found.candidates]
    assert values == sorted(values, reverse=True)
    assert found.kernel == found.candidates[0].kernel
    assert found.candidates[0].value == found.fit_result.value  # all rows were compared on: not fitted again
    assert set(names) == {"matern12", "rbf"}
    alone = fit(frame, target="y", kernel=found.kernel, dtype="float64")
    assert alone.fit_result.value == found.fit_result.value


def test_a_kernel_that_contains_another_must_earn_its_parameter():
    """On smooth data rq ends where it is an rbf, as likely as that to rounding."""
    frame = pd.DataFrame({"a": np.linspace(0, 6, N)})
    frame["y"] = np.sin(frame["a"]) + 0.1 * np.random.default_rng(0).normal(size=N)
    found = fit(frame, target="y", kernel="rq,rbf", dtype="float64")
    value = {one.kernel: one.value for one in found.candidates}
    assert value["rq"] < value["rbf"] + 1 / N
    assert found.kernel == "rbf"


def test_the_best_of_a_subset_is_fitted_to_all_rows(monkeypatch):
    monkeypatch.setattr(choosing, "MOST_ROWS", 30)
    points: list[int] = []
    frame = table().drop(columns=["when", "city"])
    found = fit(frame, target="y", kernel="matern32,rbf", callback=lambda name, record: points.append(record.points))
    assert {one.rows for one in found.candidates} == {30}
    assert set(points) == {30, N}
    assert len(found.gp.train_targets) == N
    assert len(found.leave_one_out().mean) == N


X, Y, STARTS = torch.zeros(20, 1), torch.zeros(20), [covariance("rbf", 1)]


def test_a_kernel_that_fails_is_told_and_the_others_are_compared(monkeypatch):
    original = choosing.fitted

    def failing(x, y, start, *others):
        if start.name == "rbf":
            raise FitError("it broke")
        return original(x, y, start, *others)

    monkeypatch.setattr(choosing, "fitted", failing)
    frame = table().drop(columns=["when", "city"])
    found = fit(frame, target="y", kernel="rbf,matern32")
    assert found.kernel == "matern32"
    assert found.candidates[-1] == Candidate("rbf", N, failure="it broke")
    with pytest.raises(FitError, match="no kernel could be fitted: rbf: it broke"):
        choosing.choose(X, Y, [STARTS[0]], 0, lambda name, record: None, Unfinished(None, X, Y, 0, STARTS))


def test_dates_alone_have_a_year_and_that_kernel_asks_for_float64():
    when = pd.date_range("2015-01-01", "2023-12-31", freq="75D")
    days = np.arange(len(when)) * 75.0
    rng = np.random.default_rng(0)
    y = days / 365.25 + 3 * np.sin(2 * np.pi * days / 365.25) + 0.1 * rng.normal(size=len(days))
    found = fit(pd.DataFrame({"when": when, "y": y}), target="y", kernel="trend-seasonal")
    assert found.dtype == "float64"
    period = found.gp.covar_module.kernels[1].base_kernel.cycle.period_length
    assert float(period) * float(found.inputs.scale) == pytest.approx(365.25, rel=1e-6)
    later = pd.DataFrame({"when": when[-1:] + pd.Timedelta(91, "D")})
    expected = (days[-1] + 91) / 365.25 + 3 * np.sin(2 * np.pi * (days[-1] + 91) / 365.25)
    said = found.predict(later).iloc[0]
    assert abs(said["mean"] - expected) < 4 * said["sd"]
    assert said["sd"] < 1.5, "half the season's swing"


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"kernel": "trend-seasonal"}, KernelError, "needs dates as the only input"),
        ({"kernel": "nothing"}, KernelError, "no kernel 'nothing'"),
        ({"dtype": "float16"}, ValueError, "dtype must be one of float32, float64"),
        ({"missing": "median"}, ValueError, "missing must be one of"),
        ({"target": "z"}, TableError, "no column 'z'"),
    ],
)
def test_what_cannot_be_fitted_is_refused(options, error, said):
    with pytest.raises(error, match=said):
        fit(table(), **{"target": "y", "kernel": "rbf", "encode": "one-hot", **options})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.assign(y=3.0), "target 'y' is constant, 3"),
        (lambda f: f.assign(a=np.where(np.arange(N) % 2, 1.7e308, -1.7e308)), "overflows float64: rescale"),
        (lambda f: f[["y"]].assign(a=1.0), "every column but 'y' is constant"),
        (lambda f: f.assign(a=2**60 + 1000 * np.arange(N)), "column 'a' holds numbers near .* subtract a constant"),
        (lambda f: f.assign(y=2**60 + 1000 * np.arange(N)), "column 'y' holds numbers near .* subtract a constant"),
    ],
)
def test_tables_that_cannot_be_standardised_are_refused(change, said):
    with pytest.raises(TableError, match=said), np.errstate(over="ignore"):
        fit(change(table()), target="y", kernel="rbf", encode="one-hot")


def test_variances_that_float64_cannot_hold_are_an_error():
    frame = table()[["a", "y"]]
    found = fit(frame.assign(y=1e200 * frame["y"]), target="y", kernel="rbf")
    with pytest.raises(OverflowError, match="fit to the target in another unit"):
        found.leave_one_out()


def test_the_global_generator_is_left_as_it_is():
    frame = table()[["a", "y"]]
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    fit(frame, target="y", kernel="rbf", seed=1)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("kernel", ["rbf", "linear+rbf"])
def test_a_row_far_out_leaves_the_predictions_of_all_others_as_they_are(kernel):
    frame = table()[["a", "b", "y"]]
    model = fit(frame, target="y", kernel=kernel, dtype="float64")
    odd = pd.concat([frame, frame.tail(1).assign(a=1e12)], ignore_index=True)
    expected, found = model.predict(frame), model.predict(odd)
    np.testing.assert_allclose(found[:-1], expected, rtol=1e-7)
    assert np.isfinite(found.to_numpy(float)).all()


def test_a_table_without_noise_is_predicted_as_exactly_as_its_kernel_can():
    x = np.random.default_rng(0).uniform(-2, 2, size=(150, 2))
    frame = pd.DataFrame(x, columns=["a", "b"]).assign(y=100 * np.sin(x.sum(1)))
    model = fit(frame[:100], target="y", kernel="rbf")
    found, truth = model.predict(frame[100:]), frame["y"][100:]
    assert np.sqrt(np.mean((found["mean"] - truth) ** 2)) < 1e-3 * truth.std()
    assert found["sd"].median() < 1e-3 * truth.std()  # GPyTorch's bound of the noise is ten times that
