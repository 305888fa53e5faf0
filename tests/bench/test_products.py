"""The costs of a product with K, way by way."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from gp_rangeformer.bench.products import Product, measure_products
from gp_rangeformer.cli import app


def test_every_way_multiplies_with_the_same_matrix_up_to_its_precision() -> None:
    errors = {product.way: product.error for product in measure_products(300, dimensions=3)}
    assert errors["dense, float32"] < 1e-6
    assert errors["recomputed"] < 1e-6
    assert 1e-4 < errors["dense, bfloat16 copy"] < 1e-2


def test_what_is_made_once_counts_once_in_a_step() -> None:
    assert Product("some", seconds=0.2, preparation=1.0, error=0.0).per_step(3) == pytest.approx(1.6)


def test_the_command_writes_its_figures(tmp_path) -> None:
    path = tmp_path / "products.json"
    result = CliRunner().invoke(app, ["bench", "products", "--sizes", "200", "--json", str(path)])
    assert result.exit_code == 0, result.output
    (cell,) = json.loads(path.read_text())["sizes"]
    assert cell["n"] == 200
    assert {product["way"] for product in cell["products"]} >= {"dense, float32", "recomputed"}
    assert all(product["seconds"] > 0 for product in cell["products"])


def test_the_command_refuses_sizes_that_are_no_numbers() -> None:
    assert CliRunner().invoke(app, ["bench", "products", "--sizes", "many"]).exit_code == 2
