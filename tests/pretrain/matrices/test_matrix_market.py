"""The Matrix Market loader, and what it refuses."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from pretrain.matrices import (
    MatrixMarketError,
    list_matrices,
    load,
)
from tests.pretrain.market import MARKET, needs_market


def market_file(folder: Path, name: str, header: str, body: str) -> Path:
    path, text = folder / name, f"%%MatrixMarket matrix {header}\n% a comment\n{body}\n"
    if name.endswith(".gz"):
        with gzip.open(path, "wt") as stream:
            stream.write(text)
    else:
        path.write_text(text)
    return path


@pytest.mark.parametrize("name", ["small.mtx", "small.mtx.gz"])
def test_a_stored_lower_triangle_is_loaded_as_the_full_matrix(tmp_path: Path, name: str):
    path = market_file(tmp_path, name, "coordinate real symmetric", "2 2 3\n1 1 4\n2 1 -1\n2 2 3")
    assert torch.equal(load(path), torch.tensor([[4.0, -1.0], [-1.0, 3.0]], dtype=torch.float64))


def test_an_unsymmetric_matrix_is_replaced_by_its_symmetric_part_with_a_warning(tmp_path: Path):
    path = market_file(tmp_path, "skewed.mtx", "array real general", "2 2\n4\n2\n0\n3")
    with pytest.warns(UserWarning, match=r"skewed\.mtx is not symmetric"):
        matrix = load(path)
    assert torch.equal(matrix, torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=torch.float64))


@pytest.mark.parametrize(
    ("header", "body", "cause"),
    [
        ("array real general", "2 1\n1\n2", r"is 2 x 1: only square"),
        ("array complex general", "1 1\n1 2", "is complex"),
        ("array real general", "1 1\nnan", "contains NaN"),
        ("coordinate real symmetric", "5001 5001 1\n1 1 1", r"n = 5001, above 5000"),
        ("coordinate real symmetric", "2 2 3\n1 1 4\n", "cannot read .*fetch it again"),
        ("coordinate real symmetric", "no size", "cannot read"),
    ],
)
def test_files_that_are_no_real_finite_square_matrix_are_refused(tmp_path: Path, header: str, body: str, cause: str):
    path = market_file(tmp_path, "bad.mtx", header, body)
    with pytest.raises(MatrixMarketError, match=cause):
        load(path)


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(MatrixMarketError, match=r"cannot read .*absent\.mtx"):
        load(tmp_path / "absent.mtx")


def test_a_truncated_archive_is_refused(tmp_path: Path):
    whole = market_file(tmp_path, "cut.mtx.gz", "array real general", "40 40\n" + "\n".join(map(str, range(1600))))
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(MatrixMarketError, match="cannot read"):
        load(whole)


def test_matrices_are_listed_by_size_from_their_headers_alone(tmp_path: Path):
    sizes = {"a.mtx": 30, "b.mtx.gz": 4, "c.mtx": 12, "d.mtx": 31}
    for name, n in sizes.items():
        market_file(tmp_path, name, "coordinate real symmetric", f"{n} {n} 1\nnot a number")
    market_file(tmp_path, "wide.mtx", "coordinate real general", "2 3 1\n1 1 1")
    (tmp_path / "notes.txt").write_text("nothing")
    assert [path.name for path in list_matrices(tmp_path, largest=30)] == ["b.mtx.gz", "c.mtx", "a.mtx"]


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(MatrixMarketError, match="is not a folder"):
        list_matrices(tmp_path / "absent")


@needs_market
def test_the_collection_loads_as_positive_definite_matrices_in_order_of_size():
    matrices = [load(path) for path in list_matrices(MARKET, largest=150)]
    assert len(matrices) > 5
    assert [len(matrix) for matrix in matrices] == sorted(len(matrix) for matrix in matrices)
    assert all(torch.linalg.eigvalsh(matrix)[0] > 0 for matrix in matrices)
