"""What the code opens by name is inside the package, where a wheel takes it along."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest

import gp_rangeformer
from gp_rangeformer.rangeformer.pretrained import pretrained_names

ROOT = resources.files(gp_rangeformer)
NATIVE = ROOT / "kernels" / "native"
# Compiled on first use, every one that is in the folder.
SOURCES = (
    "batch.cpp",
    "border.cpp",
    "derivatives.cpp",
    "neighbours.cpp",
    "product.cpp",
    "sparse.cpp",
    "tiles.cpp",
    "wide.cpp",
)


@pytest.mark.parametrize(
    "file",
    [
        "py.typed",
        *(f"kernels/native/{name}" for name in SOURCES),
        *(f"rangeformer/weights/{name}{suffix}" for name in pretrained_names() for suffix in (".json", ".safetensors")),
        "logdet/weights/head.json",
        "logdet/weights/head.safetensors",
        "lab/bench/optima.json",
        "lab/datasets/data/co2_weekly.csv",
        "lab/model_report/page.html",
    ],
)
def test_a_file_that_is_opened_by_name_is_in_the_package(file: str) -> None:
    assert ROOT.joinpath(*file.split("/")).is_file()


def test_the_script_is_a_module_beside_the_package() -> None:
    """As help is to be answered before the package is imported."""
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8")
    assert re.search(r'^gp-rangeformer = "gp_rangeformer_command:main"$', text, re.MULTILINE)
    (file,) = re.findall(r'^"(.*)" = "gp_rangeformer_command\.py"$', text, re.MULTILINE)
    assert "def main()" in (Path(__file__).parents[1] / file).read_text("utf-8")


def test_sources_include_only_headers_beside_them() -> None:
    texts = {file.name: file.read_text("utf-8") for file in NATIVE.iterdir() if file.name.endswith((".cpp", ".h"))}
    assert {name for name in texts if name.endswith(".cpp")} == set(SOURCES)
    included = {header for text in texts.values() for header in re.findall(r'#include "([^"]+)"', text)}
    assert included == {name for name in texts if name.endswith(".h")}
