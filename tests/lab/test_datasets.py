"""The sets that come with the package, and where others are looked for."""

import csv
import math
from datetime import date
from importlib import resources

import pytest
import torch

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.datasets import (
    Dataset,
    DatasetError,
    available,
    borehole,
    data_directory,
    load,
    load_csv,
    robot_arm,
    wing_weight,
)
from tests.lab.tables import write

SIMULATORS = ("robot_arm", "borehole", "wing_weight")

BUILT_IN = ("co2", *SIMULATORS)


def raw_target(data: Dataset) -> list[float]:
    both = torch.cat([data.train_y, data.test_y]) * data.target_scale + data.target_mean
    return both.tolist()


def test_the_environment_variable_names_the_folder_and_the_argument_overrides_it(monkeypatch, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "uci").mkdir(parents=True)
    monkeypatch.setenv("GP_RANGEFORMER_DATA", str(tmp_path / "one"))
    assert data_directory() == tmp_path / "one"
    assert data_directory(tmp_path / "two") == tmp_path / "two"


def test_the_folder_beside_the_checkout_is_the_default_if_it_is_there(monkeypatch, tmp_path):
    monkeypatch.delenv("GP_RANGEFORMER_DATA", raising=False)
    monkeypatch.setattr(datasets, "_BESIDE_CHECKOUT", tmp_path)
    assert data_directory() is None
    (tmp_path / "uci").mkdir()
    assert data_directory() == tmp_path


def test_a_named_folder_without_uci_is_refused_not_ignored(monkeypatch, tmp_path):
    with pytest.raises(DatasetError, match="data_dir names"):
        data_directory(tmp_path)
    monkeypatch.setenv("GP_RANGEFORMER_DATA", str(tmp_path))
    with pytest.raises(DatasetError, match="GP_RANGEFORMER_DATA names"):
        data_directory()


def test_available_lists_the_built_in_sets_without_a_folder(no_folder):
    assert available() == BUILT_IN


def test_available_lists_only_sets_whose_file_is_there(folder):
    assert available(folder) == (*BUILT_IN, "bike")


def test_an_unknown_name_is_answered_with_the_names_and_the_way_to_add_uci(no_folder, folder):
    with pytest.raises(DatasetError, match=r"did you mean 'borehole'.*wing_weight.*GP_RANGEFORMER_DATA"):
        load("bore_hole")
    with pytest.raises(DatasetError, match=r"did you mean 'bike'.*manifest"):
        load("bikes", data_dir=folder)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_training_half_is_standardised_in_float64(name):
    data = load(name, n=300, n_test=40)
    assert data.train_x.shape == (300, len(data.feature_names))
    assert data.test_x.shape == (40, len(data.feature_names))
    assert data.train_y.shape == (300,)
    assert data.test_y.shape == (40,)
    for part in (data.train_x, data.train_y):
        assert part.dtype == torch.float64
        torch.testing.assert_close(part.mean(dim=0), torch.zeros_like(part[0]), atol=1e-10, rtol=0)
        torch.testing.assert_close(part.std(dim=0, correction=0), torch.ones_like(part[0]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_seed_decides_the_data(name):
    first, again, other = (load(name, n=100, n_test=50, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(first.train_x, again.train_x)
    assert torch.equal(first.train_y, again.train_y)
    assert torch.equal(first.test_y, again.test_y)
    assert not torch.equal(first.train_x, other.train_x)


@pytest.mark.parametrize(("n", "n_test"), [(1, 10), (0, 10), (-5, 10), (10, 0)])
def test_sizes_too_small_to_standardise_or_test_are_refused(n, n_test):
    with pytest.raises(DatasetError, match="at least"):
        load("robot_arm", n=n, n_test=n_test)


def test_the_shipped_co2_record_is_whole_and_in_time_order():
    text = resources.files("gp_rangeformer.lab.datasets").joinpath("data").joinpath("co2_weekly.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    days = [date.fromisoformat(row["date"]) for row in rows]
    assert len(rows) == 2225
    assert (days[0], days[-1]) == (date(1958, 3, 29), date(2001, 12, 29))
    assert days == sorted(set(days))
    # 2284 weeks from the first to the last, of which 59 are missing
    assert (days[-1] - days[0]).days // 7 + 1 - len(rows) == 59
    assert (rows[0]["co2"], rows[-1]["co2"]) == ("316.1", "371.5")


def test_co2_forecasts_the_last_fifth():
    data = load("co2")
    assert (len(data.train_x), len(data.test_x)) == (1780, 445)
    assert data.train_x.max() < data.test_x.min()
    # the last observed week, 2001-12-29, is 371.5 ppm
    assert data.test_y[-1] * data.target_scale + data.target_mean == pytest.approx(371.5)


def test_co2_spans_the_right_years():
    data = load("co2")
    # 1958-03-29 is day 88 of 365 (0-based 87); 2001-12-29 is 0-based day 362
    span = 2001 + 362 / 365 - (1958 + 87 / 365)
    all_x = torch.cat([data.train_x, data.test_x])[:, 0]
    years_per_unit = span / (all_x[-1] - all_x[0]).item()
    weekly = (all_x[1:] - all_x[:-1]) * years_per_unit
    assert weekly.min().item() == pytest.approx(7 / 365.25, rel=0.01)


def test_a_co2_subset_stays_in_time_order_before_the_test_weeks():
    data = load("co2", n=200, n_test=100)
    assert (data.train_x[1:] > data.train_x[:-1]).all()
    assert len(data.test_x) == 100
    assert data.train_x.max() < data.test_x.min()


def test_more_co2_weeks_than_there_are_is_refused_with_the_count():
    with pytest.raises(DatasetError, match="1780 training rows"):
        load("co2", n=1781)


def test_robot_arm_reaches_where_geometry_says():
    # up 1, left 1, left 1/2: the end is at (-3/2, 1)
    bent = [math.pi / 2, math.pi / 2, 0.0, 0.3, 1.0, 1.0, 0.5, 0.0]
    # straight in an arbitrary direction: the lengths add
    straight = [1.1, 0.0, 0.0, 0.0, 0.1, 0.2, 0.3, 0.4]
    reached = robot_arm(torch.tensor([bent, straight], dtype=torch.float64))
    torch.testing.assert_close(reached, torch.tensor([math.sqrt(3.25), 1.0], dtype=torch.float64))


def test_borehole_matches_a_value_computed_by_hand():
    # ln(r/rw) = 10, so f = 2 pi 1e5 300 / (10 (1 + 3e5 + 1e3))
    x = torch.tensor([[0.1, 0.1 * math.exp(10), 1e5, 1050, 100, 750, 1500, 1e4]], dtype=torch.float64)
    assert borehole(x).item() == pytest.approx(6e7 * math.pi / 3_010_010, rel=1e-12)


def test_wing_weight_matches_a_light_aircraft_and_its_sweep_law():
    # the Cessna C172 values of Forrester et al.; the expected weight from 40-digit decimal arithmetic
    cessna = [174, 252, 7.52, 0.0, 34, 0.672, 0.12, 3.8, 2000, 0.064]
    bare, swept = [*cessna[:9], 0.0], [*cessna[:3], 60.0, *cessna[4:9], 0.0]
    weight = wing_weight(torch.tensor([cessna, bare, swept], dtype=torch.float64))
    assert weight[0].item() == pytest.approx(244.96715133593023, rel=1e-12)
    # cos 60 degrees = 1/2: 4^0.6 2^-0.3 times the structure
    assert (weight[2] / weight[1]).item() == pytest.approx(2**0.9, rel=1e-12)


@pytest.mark.parametrize("name", SIMULATORS)
def test_simulators_give_any_number_of_points_by_default_2000(name):
    assert load(name).train_x.shape[0] == 2000
    assert load(name, n=17).train_x.shape[0] == 17


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("robot_arm", [0] * 8, [2 * math.pi] * 4 + [1] * 4),
        ("borehole", [0.05, 100, 63070, 990, 63.1, 700, 1120, 9855], [0.15, 5e4, 115600, 1110, 116, 820, 1680, 12045]),
        (
            "wing_weight",
            [150, 220, 6, -10, 16, 0.5, 0.08, 2.5, 1700, 0.025],
            [200, 300, 10, 10, 45, 1, 0.18, 6, 2500, 0.08],
        ),
    ],
)
def test_simulated_targets_are_the_function_of_uniform_inputs_plus_five_percent_noise(name, low, high, monkeypatch):
    simulator = datasets.SIMULATORS[name]
    inputs = []
    recorder = simulator._replace(function=lambda x: (inputs.append(x), simulator.function(x))[1])
    monkeypatch.setitem(datasets.SIMULATORS, name, recorder)
    data = load(name, n=4000, n_test=2000, seed=1)
    test_x, train_x = inputs
    assert [len(x) for x in inputs] == [2000, 4000]

    low, high = torch.tensor(low, dtype=torch.float64), torch.tensor(high, dtype=torch.float64)
    unit = (train_x - low) / (high - low)
    assert 0 <= unit.min() <= unit.amin(dim=0).max() < 0.01
    assert 0.99 < unit.amax(dim=0).min() <= unit.max() <= 1
    # standard error of a uniform mean over 4000 points: 0.0046
    assert (unit.mean(dim=0) - 0.5).abs().max() < 0.02
    mean, scale = train_x.mean(dim=0), train_x.std(dim=0, correction=0)
    torch.testing.assert_close(data.test_x, (test_x - mean) / scale)

    function = getattr(datasets, name)
    clean_scale = function(train_x).std()
    for x, y in ((train_x, data.train_y), (test_x, data.test_y)):
        noise = y * data.target_scale + data.target_mean - function(x)
        assert (noise.std() / clean_scale).item() == pytest.approx(0.05, rel=0.06)
        assert (noise.mean() / clean_scale).abs() < 0.005


@pytest.mark.parametrize("name", SIMULATORS)
def test_simulated_test_inputs_do_not_move_with_n(name):
    def raw_order(n):
        return load(name, n=n, n_test=30).test_x.argsort(dim=0)

    assert torch.equal(raw_order(50), raw_order(500))


def test_to_converts_every_tensor_and_nothing_else():
    data = load("borehole", n=20, n_test=5)
    single = data.to(torch.float32)
    assert {part.dtype for part in (single.train_x, single.train_y, single.test_x, single.test_y)} == {torch.float32}
    assert torch.equal(single.test_x, data.test_x.float())
    assert (single.name, single.target_mean, single.source) == (data.name, data.target_mean, data.source)


def test_to_refuses_dtypes_that_cannot_hold_the_data(tmp_path):
    with pytest.raises(DatasetError, match="floating"):
        load("co2").to(torch.int64)
    # one test row 1e6 training deviations away, beyond float16's 65504
    lines = [f"{i % 2},{i}" for i in range(20)]
    for outlier in range(20):
        changed = [*lines]
        changed[outlier] = f"1e6,{outlier}"
        data = load_csv(write(tmp_path, "\n".join(["a,y", *changed])), "y")
        if data.test_x.max() > 1e5:
            with pytest.raises(DatasetError, match="overflows"):
                data.to(torch.float16)
            return
    pytest.fail("no split put the outlier in the test half: the test is vacuous")
