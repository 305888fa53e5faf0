"""Data sets: what is loaded is what was asked for, and everything else is refused with a reason."""

import csv
import gzip
import math
import warnings
from datetime import date
from importlib import resources
from pathlib import Path

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

SIMULATORS = ("robot_arm", "borehole", "wing_weight")
BUILT_IN = ("co2", *SIMULATORS)

needs_uci = pytest.mark.skipif(
    data_directory() is None,
    reason="no UCI files: set GP_RANGEFORMER_DATA to a folder that contains uci/",
)


@pytest.fixture
def no_folder(monkeypatch):
    monkeypatch.delenv(datasets.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(datasets, "_BESIDE_CHECKOUT", Path("no such folder"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder whose bike is `bike_rows`."""
    write_uci(tmp_path, "bike", bike_rows())
    (tmp_path / "uci" / "manifest.csv").write_text(
        "name,n,d,origin_repo,y\nbike,20,17,someone/somewhere@1,log count; LEAK\nabsent,9,1,a/b@1,y\n"
    )
    return tmp_path


def bike_rows() -> list[list]:
    """20 rows x 17 columns: column j of row i is 100 i + j, the target is i, every fifth row is a test row."""
    return [[100 * i + j for j in range(17)] + [i, int(i % 5 == 4)] for i in range(20)]


def write_uci(folder: Path, name: str, rows: list[list], header: list[str] | None = None) -> None:
    (folder / "uci").mkdir(exist_ok=True)
    header = header or [*(f"x{j}" for j in range(len(rows[0]) - 2)), "y", "is_test"]
    with gzip.open(folder / "uci" / f"{name}.csv.gz", "wt") as lines:
        csv.writer(lines, lineterminator="\n").writerows([header, *rows])


def write(tmp_path: Path, text: str, name: str = "table.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def table(rows: int = 20, header: str = "a,b,y") -> list[str]:
    """Lines whose columns identify the row: a = i, b = -i, y = i^2."""
    return [header, *(f"{i},{-i},{i * i}" for i in range(rows))]


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


def test_uci_rows_follow_the_standard_split(folder):
    data = load("bike", data_dir=folder)
    targets = [round(value) for value in raw_target(data)]
    assert targets[:16] == [i for i in range(20) if i % 5 != 4]
    assert sorted(targets[16:]) == [4, 9, 14, 19]
    assert data.target_name == "log count"
    assert "someone/somewhere@1" in data.source


def test_bike_comes_without_the_columns_that_leak_its_target(folder):
    data = load("bike", data_dir=folder)
    assert data.feature_names == tuple(f"x{j}" for j in range(15))
    assert data.train_x.shape == (16, 15)
    assert "x15 and x16" in data.source


def test_a_subset_of_a_uci_set_is_contained_in_the_larger_ones(folder):
    def training_targets(n):
        data = load("bike", n=n, n_test=2, seed=5, data_dir=folder)
        return [round(value) for value in (data.train_y * data.target_scale + data.target_mean).tolist()]

    assert set(training_targets(4)) < set(training_targets(9)) < set(training_targets(16))


def test_the_uci_test_subset_does_not_depend_on_n(folder):
    def held_out(n):
        data = load("bike", n=n, n_test=2, data_dir=folder)
        return [round(value) for value in (data.test_y * data.target_scale + data.target_mean).tolist()]

    assert held_out(4) == held_out(12) == held_out(None)
    assert len(held_out(4)) == 2


def test_more_uci_rows_than_there_are_is_refused_with_the_count(folder):
    with pytest.raises(DatasetError, match=r"bike has 16 training rows, fewer than n = 17"):
        load("bike", n=17, data_dir=folder)


def test_a_constant_column_becomes_zero_in_both_halves(folder):
    rows = [[0.1, 5 + i, i % 3, int(i > 7)] for i in range(10)]
    # constant in training only: its test values have no scale to be measured on
    rows[9][0] = 7.0
    write_uci(folder, "bike", rows)
    (folder / "uci" / "manifest.csv").write_text("name,n,d,origin_repo,y\nbike,10,2,a/b@1,y\n")
    data = load("bike", data_dir=folder)
    assert torch.equal(data.train_x[:, 0], torch.zeros(8, dtype=torch.float64))
    assert torch.equal(data.test_x[:, 0], torch.zeros(2, dtype=torch.float64))
    assert data.train_x[:, 1].std(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.pop(),
        lambda rows: rows[3].__setitem__(2, "nan"),
        lambda rows: rows[3].__setitem__(2, "text"),
        lambda rows: rows[3].__setitem__(18, 2),
        lambda rows: [row.__setitem__(18, 0) for row in rows],
        lambda rows: [row.pop() for row in rows],
    ],
    ids=["row missing", "nan", "text", "is_test 2", "no test rows", "column missing"],
)
def test_a_uci_file_that_departs_from_the_manifest_is_refused(folder, change):
    rows = bike_rows()
    change(rows)
    write_uci(folder, "bike", rows)
    with pytest.raises(DatasetError, match="fetch the file again"):
        load("bike", data_dir=folder)


def test_a_cut_off_or_absent_uci_file_is_refused(folder):
    path = folder / "uci" / "bike.csv.gz"
    path.write_bytes(path.read_bytes()[:-20])
    for name in ("bike", "absent"):
        with pytest.raises(DatasetError, match=rf"cannot read .*{name}\.csv\.gz"):
            load(name, data_dir=folder)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "name,n,d,origin_repo,y\nbike,many,17,a/b,y\n", "name,n\nbike\n", None])
def test_a_manifest_that_cannot_be_read_is_refused(folder, text):
    path = folder / "uci" / "manifest.csv"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(DatasetError, match=r"manifest\.csv"):
        load("bike", data_dir=folder)


@needs_uci
@pytest.mark.parametrize("name", ["kin40k", "pol", "bike", "elevators", "protein", "sml"])
def test_the_uci_sets_load_standardised_and_finite(name):
    assert name in available()
    data = load(name, n=500, n_test=200)
    assert data.train_x.shape[0] == 500
    assert data.test_x.shape[0] == 200
    assert all(bool(part.isfinite().all()) for part in (data.train_x, data.train_y, data.test_x, data.test_y))
    spread = data.train_x.std(dim=0, correction=0)
    assert (((spread - 1).abs() < 1e-9) | (spread == 0)).all()
    assert data.train_y.square().mean().item() == pytest.approx(1)


@needs_uci
def test_no_kept_bike_column_gives_the_target_away():
    data = load("bike")
    assert data.train_x.shape == (15642, 15)
    # exp(log count) is linear in the two leaking columns; in the others a linear fit explains little.
    count = (data.train_y * data.target_scale).exp()
    design = torch.cat([data.train_x, torch.ones(len(count), 1, dtype=torch.float64)], dim=1)
    fit = torch.linalg.lstsq(design, count[:, None], driver="gelsd").solution[:, 0]
    explained = 1 - (design @ fit - count).square().mean() / count.var()
    assert explained < 0.6


@needs_uci
def test_constant_columns_of_sml_are_zero():
    data = load("sml")
    constant = [j for j in range(data.train_x.shape[1]) if not data.train_x[:, j].any()]
    assert constant == [2, 20, 21, 22]


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


def test_csv_rows_are_split_without_overlap_or_loss(tmp_path):
    data = load_csv(write(tmp_path, "\n".join(table(50))), "y", seed=2)
    assert (len(data.train_x), len(data.test_x)) == (45, 5)
    assert sorted(round(value) for value in raw_target(data)) == [i * i for i in range(50)]
    assert (data.feature_names, data.target_name, data.name) == (("a", "b"), "y", "table.csv")
    # b = -a keeps rows together through the split
    torch.testing.assert_close(data.test_x[:, 1], -data.test_x[:, 0])


def test_csv_target_may_be_any_column(tmp_path):
    data = load_csv(write(tmp_path, "\n".join(table(header="a,y,c"))), "y")
    assert data.feature_names == ("a", "c")
    # y = -a here: perfectly anticorrelated
    torch.testing.assert_close(data.train_y, -data.train_x[:, 0])


def test_csv_same_seed_same_split_other_seed_other_split(tmp_path):
    path = write(tmp_path, "\n".join(table(50)))
    first, again, other = (load_csv(path, "y", n=20, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.train_y, again.train_y)
    assert raw_target(first) != pytest.approx(raw_target(other))


def test_csv_sizes_are_respected_or_refused_with_the_count(tmp_path):
    path = write(tmp_path, "\n".join(table(50)))
    data = load_csv(path, "y", n=7, n_test=3)
    assert (len(data.train_x), len(data.test_x)) == (7, 3)
    assert len(load_csv(path, "y", n_test=1000).test_x) == 5
    with pytest.raises(DatasetError, match="45 training rows"):
        load_csv(path, "y", n=46)


def test_csv_reads_gzip_byte_order_mark_quotes_spaces_and_blank_lines(tmp_path):
    plain = load_csv(write(tmp_path, "\n".join(table())), "y")
    lines = table()
    lines[0] = ' "a", b ,y'
    lines[3] = '"2", -2 ,4e0'
    dressed = "\ufeff" + "\r\n".join([*lines[:5], "", "  ", *lines[5:], ""])
    path = tmp_path / "table.csv.gz"
    path.write_bytes(gzip.compress(dressed.encode()))
    data = load_csv(path, "y")
    assert data.feature_names == plain.feature_names
    assert torch.equal(data.train_x, plain.train_x)
    assert torch.equal(data.test_y, plain.test_y)


@pytest.mark.parametrize("mark", [";", "\t", "|"])
def test_csv_separators_are_seen_in_the_header(tmp_path, mark):
    plain = load_csv(write(tmp_path, "\n".join(table())), "y")
    other = load_csv(write(tmp_path, "\n".join(table()).replace(",", mark)), "y")
    assert torch.equal(other.train_x, plain.train_x)


@pytest.mark.parametrize("mark", ["", "NA", "NaN", "null", "?", "-nan", "na"])
def test_csv_rows_with_missing_values_are_dropped_counted_and_warned_of(tmp_path, mark):
    lines = table()
    lines[4], lines[9] = f"{mark},-3,9", f"8,-8,{mark}"
    path = write(tmp_path, "\n".join(lines))
    with pytest.warns(UserWarning, match="dropped 2 of 20 rows") as caught:
        data = load_csv(path, "y")
    assert caught[0].filename == __file__
    assert "2 of 20 rows dropped" in data.source
    assert sorted(round(value) for value in raw_target(data)) == [i * i for i in range(20) if i not in (3, 8)]


def test_csv_without_missing_values_does_not_warn(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_csv(write(tmp_path, "\n".join(table())), "y")


def with_line(line: int, text: str) -> str:
    """The 20-row table with its 1-based line replaced."""
    lines = table()
    lines[line - 1] = text
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("\n".join(table()[1:]), "no header"),
        ("\n".join(table(header="a,a,y")), "'a' occurs more than once"),
        ("\n".join(table(header="a, a,y")), "'a' occurs more than once"),
        ("\n".join(table(header=",b,y")), "column 1 has no name"),
        ("\n".join(table(header="a,b,Y")), r"no column 'y'.*its columns: a, b, Y"),
        ("\n".join(table(header="a,b,yy")), r"did you mean 'yy'"),
        ("y\n" + "\n".join(str(i) for i in range(20)), "only the target column"),
        (with_line(6, "4,-4"), "line 6: 2 cells under 3 columns"),
        (with_line(6, "4,-4,16,1"), "line 6: 4 cells under 3 columns"),
        (with_line(6, "4,1,000,16"), "line 6: 4 cells under 3 columns"),
        (with_line(6, "4,red,16"), r"line 6: column 'b' holds text, 'red': drop the column or encode"),
        (with_line(6, "4,,blue"), r"line 6: column 'y' holds text, 'blue'"),
        (with_line(6, "2024-01-31,-4,16"), r"line 6: column 'a' holds text, '2024-01-31'"),
        (with_line(6, '"4,5",-4,16'), r"column 'a' holds text, '4,5'"),
        (with_line(6, "1_000,-4,16"), r"column 'a' holds text, '1_000'"),
        (with_line(6, "4,inf,16"), "line 6: column 'b' is infinite"),
        (with_line(6, "4,-4,1e999"), "line 6: column 'y' is infinite"),
        (with_line(6, '4,"-4,16'), "not well-formed CSV"),
        ("\n".join(["a,y", *(f"{i},3" for i in range(20))]), r"target 'y' is constant, 3"),
        ("\n".join(["a,y", *(f"{i},0.1" for i in range(20))]), r"target 'y' is constant, 0.1"),
        ("\n".join(table(9)), "9 complete rows, 0 with missing values"),
        (
            "\n".join([*table(9), "?,-9,81", "10,,100", "11,,121"]),
            "9 complete rows, 3 with missing values; most are missing in column 'b'",
        ),
        ("\n".join(["a,y", *(f"1.{i % 7}e308,{i}" for i in range(20))]), "overflows float64: rescale"),
    ],
)
def test_csv_faults_are_named_with_their_place_and_remedy(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(DatasetError, match=message):
        load_csv(path, "y")


@pytest.mark.parametrize("exponent", [-300, -160, 160, 300])
def test_csv_columns_whose_squares_leave_float64_are_standardised_all_the_same(tmp_path, exponent):
    plain = load_csv(write(tmp_path, "\n".join(["a,y", *(f"{i},{i}" for i in range(20))])), "y")
    text = "\n".join(["a,y", *(f"{i}e{exponent},{i}" for i in range(20))])
    torch.testing.assert_close(load_csv(write(tmp_path, text), "y").train_x, plain.train_x)


def test_csv_files_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(DatasetError, match="no file"):
        load_csv(tmp_path / "absent.csv", "y")
    with pytest.raises(DatasetError, match="cannot read"):
        load_csv(tmp_path, "y")
    path = tmp_path / "table.csv"
    path.write_bytes("\n".join(table()).encode("utf-16"))
    with pytest.raises(DatasetError, match="not UTF-8"):
        load_csv(path, "y")
    path.write_bytes(gzip.compress("\n".join(table(2000)).encode())[:-200])
    with pytest.raises(DatasetError, match="cannot read"):
        load_csv(path, "y")


def test_csv_line_numbers_count_the_lines_of_the_file(tmp_path):
    text = with_line(3, '"1\n",-1,1').replace("5,-5,25", "5,red,25")
    with pytest.raises(DatasetError, match="line 8"):
        load_csv(write(tmp_path, text), "y")
