"""Tables of one's own as data sets."""

import gzip
import warnings

import pytest
import torch

from gp_rangeformer.lab.datasets import DatasetError, load_csv
from tests.lab.tables import table, write
from tests.lab.test_datasets import raw_target


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
