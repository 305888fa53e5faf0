"""Operations of the package's own are not believed on a GPU before they were tried there."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch
from torch import Tensor

from gp_rangeformer.kernels.gpu import operations
from gp_rangeformer.kernels.native import product  # registers what it needs
from gp_rangeformer.system import device_cores

CPU = torch.device("cpu")


def launchers(**wrong: object) -> ModuleType:
    """The tensor operations themselves, but for those given."""
    found = ModuleType("launchers")
    for name, (function, _) in operations._said.items():
        setattr(found, name, wrong.get(name, function))
    return found


def test_operations_that_say_the_same_do_not_differ() -> None:
    assert len(operations._said) == 6
    assert operations.differing(launchers(), CPU) == []


def test_a_wrong_number_is_named() -> None:
    def fit(*given: object) -> Tensor:
        return device_cores._fit(*given) * 1.001  # type: ignore[arg-type]

    def wide_product(matrix: Tensor, vectors: Tensor) -> Tensor:
        return product._wide_product(matrix, vectors).index_fill(0, torch.tensor([7]), float("nan"))

    assert set(operations.differing(launchers(fit=fit, wide_product=wide_product), CPU)) == {"fit", "wide_product"}


def test_an_argument_that_is_not_written_is_named() -> None:
    def conjugate(curvature: Tensor, coefficients: Tensor, status: Tensor, dtype: torch.dtype) -> Tensor:
        return device_cores._conjugate(curvature, coefficients, status.clone(), dtype)

    assert operations.differing(launchers(conjugate=conjugate), CPU) == ["conjugate"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there they work")
def test_where_they_cannot_be_tried_a_warning_says_so_and_the_host_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "triton_works", lambda *_: True)
    with pytest.warns(RuntimeWarning, match="wait for the host several times"):
        assert not operations.answers_on.__wrapped__(torch.device("cuda", 0))
    assert not operations.answers_on(CPU)


def test_triton_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("without Triton")
    device = torch.device("cuda", 0) if torch.cuda.is_available() else CPU
    if device == CPU:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert operations.differing(importlib.import_module("gp_rangeformer.kernels.gpu.cores"), device) == []
