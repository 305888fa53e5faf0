"""UCI files: their splits, what they may not hold, what is refused."""

import pytest
import torch

from gp_rangeformer.lab.datasets import DatasetError, available, data_directory, load
from tests.lab.tables import bike_rows, write_uci
from tests.lab.test_datasets import raw_target

needs_uci = pytest.mark.skipif(
    data_directory() is None,
    reason="no UCI files: set GP_RANGEFORMER_DATA to a folder that contains uci/",
)


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
