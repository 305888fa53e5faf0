"""The costs of a product with K, way by way."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

from gp_rangeformer.lab.bench.products import Product, _rounded_to_tf32, measure_products
from gp_rangeformer.lab.cli import app


def test_every_way_multiplies_with_the_same_matrix_up_to_its_precision() -> None:
    products = measure_products(300, dimensions=3)
    errors = {product.way: product.error for product in products}
    assert errors["dense, float32"] < 1e-6
    assert errors["recomputed"] < 1e-6
    assert 1e-4 < errors["dense, bfloat16 copy"] < 1e-2


def test_whether_refinement_with_a_rounded_matrix_stalls_depends_on_the_kernel() -> None:
    def left(dimensions: int) -> dict[str, tuple[float, ...] | None]:
        return {product.way: product.left for product in measure_products(300, dimensions=dimensions)}

    smooth, rough = left(dimensions=2), left(dimensions=12)
    assert smooth["recomputed"] is None
    for found, stalls in ((smooth, True), (rough, False)):
        float32, bfloat16 = found["dense, float32"], found["dense, bfloat16 copy"]
        assert float32 is not None
        assert bfloat16 is not None
        assert max(float32) < 0.1
        assert (max(bfloat16) > 1) == stalls


def test_tf32_keeps_ten_bits_rounded_to_nearest() -> None:
    values = torch.tensor([1.0, 1 + 2.0**-10, 1 + 2.0**-12, 1 + 3 * 2.0**-12, -1.5 - 2.0**-13])
    assert _rounded_to_tf32(values).tolist() == [1.0, 1 + 2.0**-10, 1.0, 1 + 2.0**-10, -1.5]


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
