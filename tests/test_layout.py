"""The architecture is visible from the folders: every one imports only from those below it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gp_rangeformer

ROOT = Path(gp_rangeformer.__file__).parent
# From the bottom: a part of the package, a folder or a file, imports from those before it and from itself.
ORDER = (
    "atomic",
    "version",
    "settings",
    "float32_products",
    "torch_modes",
    "checkpoint",
    "allocation",
    "kernels",
    "system",
    "preconditioner",
    "recycling",
    "logdet",
    "solvers",
    "rangeformer",
    "report",
    "plugin",
    "fit",
    "predict",
    "__init__",
    "sklearn",
    "regression",
    "lab",
)
# Numerics, which know nothing of whom they serve.
WITHOUT_GPYTORCH = ORDER[ORDER.index("allocation") : ORDER.index("report")]
FILES = sorted(ROOT.rglob("*.py"))


def part(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def imported(file: Path) -> Iterator[str]:
    """Modules that it imports, wherever in the file; names that are imported from a package count as its modules."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own(module: str) -> str | None:
    """Which part of the package a module is in; what the package itself exports is at the top."""
    package, *rest = module.split(".")
    if package != "gp_rangeformer":
        return None
    return rest[0] if rest and rest[0] in ORDER else "__init__"


def test_every_part_has_its_place() -> None:
    assert {part(file) for file in FILES} == set(ORDER)


@pytest.mark.parametrize("file", FILES, ids=name)
def test_no_import_runs_upwards(file: Path) -> None:
    place = ORDER.index(part(file))
    above = [module for module in imported(file) if (found := own(module)) and ORDER.index(found) > place]
    assert above == []


@pytest.mark.parametrize("folder", WITHOUT_GPYTORCH)
def test_numerics_do_not_import_gpytorch(folder: str) -> None:
    found = {module.split(".")[0] for file in (ROOT / folder).rglob("*.py") for module in imported(file)}
    assert "gp_rangeformer" in found
    assert not found & {"gpytorch", "botorch"}
    # Whose errors and jitter the exact path shares.
    assert folder == "solvers" or "linear_operator" not in found


# Modules, whose numbers are made where the host's own are; torch_modes.on_host is around them.
MODULES = {"logdet/network.py", "rangeformer/embedding.py", "sklearn/host_kernels.py"}
MAKERS = {
    *("zeros", "ones", "empty", "full", "arange", "tensor", "linspace", "logspace", "eye", "rand", "randn", "randint"),
    *("randperm", "sparse_csr_tensor", "sparse_coo_tensor", "tril_indices", "triu_indices", "empty_strided", "asarray"),
}


@pytest.mark.parametrize("file", [file for file in FILES if part(file) != "lab"], ids=name)
def test_every_tensor_is_made_on_a_device_that_is_named(file: Path) -> None:
    """Not where ``torch.set_default_device`` says."""
    calls = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.Call)]
    made = [call for call in calls if ast.unparse(call.func) in {f"torch.{maker}" for maker in MAKERS}]
    nowhere = [call.lineno for call in made if not {"device", "out"} & {keyword.arg for keyword in call.keywords}]
    assert nowhere == [] or name(file) in MODULES, f"{file}: give these a device"
