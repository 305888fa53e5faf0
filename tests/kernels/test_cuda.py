"""Kernel matrices on a GPU: by Triton and by PyTorch's own operations, the same as on the CPU."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer.kernels.expression import Expression, Kind, Product, Scale, Stationary, Sum
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.gpu import device_tiles as device_tiles_module
from gp_rangeformer.kernels.gpu.device_tiles import copy_transposed
from gp_rangeformer.kernels.gpu.streamed import streamed

pytestmark = pytest.mark.cuda
N, D = 700, 5
SINGLE: tuple[Kind, ...] = ("rbf", "matern12", "matern32", "matern52", "rq", "periodic")
TOLERANCE = {torch.float32: 5e-6, torch.float64: 5e-14}


def parameters(expression: Expression) -> list[torch.Tensor]:
    match expression:
        case Stationary("rq"):
            return [torch.full((1, D), 0.5), torch.tensor([1.3])]
        case Stationary("periodic"):
            return [torch.full((1, D), 0.5), torch.full((1, D), 0.9)]
        case Stationary():
            return [torch.full((1, D), 0.5)]
        case Scale(child):
            return [torch.tensor(1.4), *parameters(child)]
    return [value for child in expression.children for value in parameters(child)]


def on(device: str, dtype: torch.dtype, expression: Expression) -> FusedKernel:
    x = torch.rand(N, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if expression != Scale(Stationary("matern12")):  # whose slope there is what rounding makes of it
        x[1] = x[0]
    return FusedKernel(
        expression, x.to(device, dtype), tuple(value.to(device, dtype) for value in parameters(expression))
    )


EXPRESSIONS: list[Expression] = [Scale(Stationary(kind)) for kind in SINGLE]
EXPRESSIONS.append(Sum((Scale(Stationary("matern52")), Scale(Product((Stationary("rbf"), Stationary("periodic")))))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("expression", EXPRESSIONS, ids=repr)
@pytest.mark.parametrize("triton", [True, False])
def test_values_and_gradients_are_those_of_the_cpu(expression, dtype, triton, monkeypatch) -> None:
    if not triton:
        monkeypatch.setattr(device_tiles_module, "triton_works", lambda index, dtype: False)
    # Tiles, not streams.
    monkeypatch.setattr("gp_rangeformer.kernels.contract.streamed", lambda *arguments: None)
    # Several tiles, the last ones narrow.
    monkeypatch.setattr("gp_rangeformer.kernels.evaluate.tile_size", lambda device: 256)
    monkeypatch.setattr("gp_rangeformer.kernels.contract.tile_size", lambda device, compiled: 256)
    left, right = torch.randn(2, N, 9, generator=torch.Generator().manual_seed(1), dtype=dtype)
    diagonal = torch.linspace(0, 1, N, dtype=dtype)
    here, there = on("cpu", dtype, expression), on("cuda", dtype, expression)
    with torch.no_grad():
        matrix = there.dense()
        assert torch.equal(matrix, matrix.mT)
        assert torch.allclose(matrix.cpu(), here.dense(), rtol=0, atol=2 * TOLERANCE[dtype])
    expected = here.contract(left, right, diagonal)
    found = there.contract(left.cuda(), right.cuda(), diagonal.cuda())
    for own, other in zip(found, expected, strict=True):
        assert float((own.cpu() - other).norm()) <= TOLERANCE[dtype] * max(1.0, float(other.norm()))


@pytest.mark.parametrize("kind", SINGLE)
def test_streamed_products_and_gradients_are_those_of_float64(kind) -> None:
    expression = Scale(Scale(Stationary(kind)))
    fused, precise = on("cuda", torch.float32, expression), on("cuda", torch.float64, expression)
    stream = streamed(expression, fused.arguments, torch.float32)
    assert stream is not None
    left, right, vectors = torch.randn(3, N, 9, generator=torch.Generator().manual_seed(1)).cuda()
    diagonal = torch.linspace(0, 1, N, device="cuda")
    with torch.no_grad():
        expected = precise.dense() @ vectors.double()
        product = stream.matmul(vectors)
    assert float((product - expected).norm() / expected.norm()) < 5e-6
    assert torch.equal(product, stream.matmul(vectors))
    gradients = stream.contract(left, right, diagonal)
    exact = precise.contract(left.double(), right.double(), diagonal.double())
    for own, other in zip(gradients, exact, strict=True):
        assert float((own.reshape(other.shape) - other).norm()) <= 5e-6 * max(1.0, float(other.norm()))


def test_sums_of_kernels_float64_and_cpus_are_not_streamed() -> None:
    several = EXPRESSIONS[-1]
    assert streamed(several, on("cuda", torch.float32, several).arguments, torch.float32) is None
    single = EXPRESSIONS[0]
    assert streamed(single, on("cuda", torch.float64, single).arguments, torch.float64) is None
    assert streamed(single, on("cpu", torch.float32, single).arguments, torch.float32) is None


def test_triton_works_here() -> None:
    assert device_tiles_module.triton_works(torch.cuda.current_device(), torch.float32)


def test_without_triton_a_warning_says_so(monkeypatch) -> None:
    def fail(*arguments, **options):
        raise OSError("no C compiler")

    monkeypatch.setattr("gp_rangeformer.kernels.gpu.tiles.TritonTiles.value", fail)
    with pytest.warns(RuntimeWarning, match="Triton failed .*no C compiler"):
        assert not device_tiles_module.triton_works.__wrapped__(torch.cuda.current_device(), torch.float32)


def test_a_transposed_copy_of_a_part_leaves_the_rest_alone() -> None:
    source = torch.randn(100, 300, device="cuda")[:, 10:200]
    target = torch.zeros(190, 128, device="cuda")
    copy_transposed(source, target[:, 5:105])
    assert torch.equal(target[:, 5:105], source.mT)
    assert not bool(target[:, :5].any() or target[:, 105:].any())
