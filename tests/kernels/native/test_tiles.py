"""Tiles by the compiled library: its arithmetic, its threads, and what it refuses."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.expression import Constant, Expression, Product, Scale, Stationary, Sum
from gp_rangeformer.kernels.native import interface as native_interface
from gp_rangeformer.kernels.native.compiler import native_library
from gp_rangeformer.kernels.native.tiles import NativeTiles
from gp_rangeformer.kernels.tensor.nodes import TensorTiles
from gp_rangeformer.kernels.tiles import Block
from tests.kernels.rounding import STRETCH, exact_product, of_sum

DTYPES = [torch.float32, torch.float64]
ONE = torch.ones(1)
TREE = Sum((Scale(Product((Stationary("matern32"), Stationary("rq", (1,)), Constant()))), Stationary("periodic")))
PARAMETERS = (
    *(torch.tensor(0.7), torch.tensor([[0.5, 0.9, 1.4]]), torch.tensor([[0.8]]), torch.tensor([1.3])),
    *(torch.tensor([0.6]), torch.tensor([[1.1]]), torch.tensor([[2.0]])),
)


@pytest.fixture(autouse=True)
def compiled() -> None:
    if native_library() is None:
        pytest.skip("nothing here compiles C++")


def points(n: int, d: int = 3) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def native(expression: Expression, x: Tensor, parameters: tuple[Tensor, ...], dtype: torch.dtype) -> NativeTiles:
    library = native_library()
    assert library is not None
    return NativeTiles(library, expression, embed(expression, x, parameters), len(x), dtype)


def whole(tiles: NativeTiles | TensorTiles, n: int, dtype: torch.dtype) -> Tensor:
    kernel = torch.empty(n, n, dtype=dtype)
    tiles.value(Block(slice(0, n), slice(0, n)), kernel)
    return kernel


def of_distances(kind: str, distances: list[float], dtype: torch.dtype, alpha: float = 1.0) -> Tensor:
    """k at the scaled distances, from points on a line."""
    x = torch.tensor([0.0, *distances], dtype=torch.float64).unsqueeze(-1)
    shape = (torch.tensor([alpha]),) if kind == "rq" else ()
    expression = Stationary(kind)  # type: ignore[arg-type]
    return whole(native(expression, x, (torch.ones(1, 1), *shape), dtype), len(x), dtype)[0, 1:]


EXACT = {
    "rbf": lambda r: (-0.5 * r**2).exp(),
    "matern12": lambda r: (-r).exp(),
    "matern32": lambda r: (1 + math.sqrt(3) * r) * (-math.sqrt(3) * r).exp(),
    "matern52": lambda r: (1 + math.sqrt(5) * r + 5 / 3 * r**2) * (-math.sqrt(5) * r).exp(),
    "rq": lambda r: (1 + 0.5 * r**2).reciprocal(),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", EXACT)
def test_values_are_exact_to_a_few_roundings_over_the_whole_range(kind, dtype) -> None:
    distances = torch.logspace(-6, 1, 4000, dtype=torch.float64)
    # Coordinates and their squared distance are rounded too: relative to k, by at most 2 eps q |k'| / k <= 20 eps here.
    found = of_distances(kind, distances.tolist(), dtype).double()
    exact = EXACT[kind](distances)
    condition = 1 + distances if kind != "rbf" else 1 + distances**2
    error = ((found - exact).abs() / exact / condition).max()
    assert error < 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [0.05, 0.7, 30.0])
def test_the_rational_quadratic_is_exact_for_any_alpha(alpha, dtype) -> None:
    distances = torch.logspace(-4, 2, 2000, dtype=torch.float64)
    found = of_distances("rq", distances.tolist(), dtype, alpha).double()
    alpha32 = float(torch.tensor(alpha))
    exact = (-alpha32 * (0.5 * distances**2 / alpha32).log1p()).exp()
    held = exact < math.exp(-60)  # as little as makes no difference, in float32
    error = ((found - exact).abs() / exact / (1 - exact.log()))[~held].max()
    assert float(found[held].max() if held.any() else 0) < 1.01 * math.exp(-60)
    assert error < 6 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 255, 256, 257, 700])
def test_matrices_of_any_size_are_those_of_tensor_operations(n, dtype, two_threads) -> None:
    x = points(n)
    tensors = TensorTiles(TREE, embed(TREE, x, PARAMETERS), torch.float64, n)
    found = whole(native(TREE, x, PARAMETERS, dtype), n, dtype)
    torch.testing.assert_close(
        found.double(), whole(tensors, n, torch.float64), rtol=0, atol=20 * torch.finfo(dtype).eps
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", ["native", "tensors"])
@pytest.mark.parametrize("alpha", [0.1, 3.0, 1e3, 1e6])
def test_the_slope_in_alpha_is_exact_beside_k_for_any_alpha(alpha, make, dtype) -> None:
    """dk / d log alpha of a pair, where u / b - log b of a small u = q / (2 alpha) is all but cancelled."""
    expression, x = Stationary("rq"), torch.tensor([[0.0], [1.5]], dtype=torch.float64)
    parameters = torch.ones(1, 1, dtype=torch.float64), torch.tensor([alpha], dtype=torch.float64)
    if make == "native":
        tiles = native(expression, x, parameters, dtype)
    else:
        tiles = TensorTiles(expression, embed(expression, x, parameters), dtype, 2)
    tiles.pull(Block(slice(0, 2), slice(0, 2)), torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=dtype))
    _, slope = tiles.gradients()
    u = 0.5 * 1.5**2 / alpha
    bracket = u / (1 + u) - math.log1p(u) if u > 1e-3 else -(u**2) / 2 + 2 / 3 * u**3 - 3 / 4 * u**4
    exact = alpha * (1 + u) ** -alpha * bracket
    assert abs(alpha * float(slope) - exact) < 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_those_of_tensor_operations(dtype, two_threads) -> None:
    n, x = 700, points(700)
    weight = torch.randn(n, n, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tensors = TensorTiles(TREE, embed(TREE, x, PARAMETERS), torch.float64, n)
    ours = native(TREE, x, PARAMETERS, dtype)
    for rows in (slice(0, 300), slice(300, n)):
        for columns in (slice(0, 511), slice(511, n)):
            block = Block(rows, columns)
            tensors.pull(block, weight[rows, columns])
            ours.pull(block, weight[rows, columns].to(dtype))
    for own, reference in zip(ours.gradients(), tensors.gradients(), strict=True):
        assert own.shape == reference.shape
        assert float((own - reference).norm() / reference.norm()) < 200 * torch.finfo(dtype).eps


def test_an_entry_has_the_same_bits_in_every_tile() -> None:
    n, x = 700, points(700)
    tiles = native(TREE, x, PARAMETERS, torch.float32)
    kernel = whole(tiles, n, torch.float32)
    assert torch.equal(kernel, kernel.mT)
    for block in (Block(slice(3, 400), slice(137, 138)), Block(slice(699, 700), slice(1, 700))):
        tile = torch.empty(block.shape)
        tiles.value(block, tile)
        assert torch.equal(tile, kernel[block.rows, block.columns])


@pytest.mark.parametrize(("n", "dtype"), [(2951, torch.float32), (2101, torch.float64)])
def test_a_matrix_written_past_the_caches_has_the_same_bits_and_no_others(n, dtype, two_threads) -> None:
    """Rows that start anywhere within a cache line, in a matrix that others surround; 32 MiB and more are streamed."""
    tiles = native(Stationary("matern32"), points(n), (ONE.reshape(1, 1),), dtype)
    around = torch.full((n + 2, n + 5), 7.0, dtype=dtype)
    inside = around[1:-1, 3:-2]
    assert inside.numel() * dtype.itemsize >= 2**25
    tiles.value(Block(slice(0, n), slice(0, n)), inside)
    for rows in (slice(0, n // 2), slice(n // 2, n)):
        part = torch.empty(rows.stop - rows.start, n, dtype=dtype)
        tiles.value(Block(rows, slice(0, n)), part)
        assert torch.equal(inside[rows], part)
    inside.fill_(7.0)
    assert bool((around == 7.0).all())


def test_threads_change_no_bit_of_a_value_and_hardly_a_gradient(two_threads) -> None:
    n, x = 600, points(600)
    weight = torch.randn(n, n, generator=torch.Generator().manual_seed(1))
    found = []
    for threads in (1, 2, 2):
        torch.set_num_threads(threads)
        tiles = native(TREE, x, PARAMETERS, torch.float32)
        kernel = whole(tiles, n, torch.float32)
        tiles.pull(Block(slice(0, n), slice(0, n)), weight)
        found.append((kernel, tiles.gradients()))
    (alone, of_one), (shared, of_two), (_, again) = found
    assert torch.equal(alone, shared)
    assert all(torch.equal(one, other) for one, other in zip(of_two, again, strict=True))
    for one, other in zip(of_one, of_two, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", EXACT)
def test_not_a_number_stays_one_and_far_is_nothing(kind, dtype) -> None:
    found = of_distances(kind, [math.nan, 1e15, 1.0], dtype)
    # The mean of the points is not a number either.
    assert found.isnan().all()
    far = of_distances(kind, [1e15, 1.0], dtype)[0]
    assert 0 <= float(far) < 1e-8


@pytest.mark.parametrize("kind", EXACT)
def test_coincident_points_add_nothing_to_the_gradient(kind) -> None:
    x = torch.full((40, 2), 0.3, dtype=torch.float64)
    shape = (ONE,) if kind == "rq" else ()
    tiles = native(Stationary(kind), x, (torch.ones(1, 1), *shape), torch.float32)
    block = Block(slice(0, 40), slice(0, 40))
    tiles.pull(block, torch.full((40, 40), 1e6))
    coordinates, *others = tiles.gradients()
    assert torch.equal(coordinates, torch.zeros_like(coordinates))
    assert all(float(other.abs()) < 1e-20 for other in others)
    assert torch.equal(whole(tiles, 40, torch.float32), torch.ones(40, 40))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 4, 5, 31, 32, 33, 37, 64, 70])
@pytest.mark.parametrize("n", [1, 13, 300, 1543])
def test_products_with_a_matrix_that_is_made_on_the_way_are_those_with_it(n, columns, dtype, two_threads) -> None:
    """Entries have the same bits in either; the first and the last rows, for the slow exact sums."""
    x, vectors = points(n), torch.randn(n, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    tiles = native(TREE, x, PARAMETERS, dtype)
    rows = torch.arange(n)[[*range(min(n, 13)), *range(-min(n, 13), 0)]]
    exact, sizes, own = exact_product(whole(tiles, n, dtype)[rows], vectors)
    error = (tiles.multiply(vectors)[rows].double() - exact).abs()
    assert bool((error <= (of_sum(n, dtype, STRETCH) + own) * sizes).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 33])
def test_rows_of_a_product_have_its_bits_wherever_they_are_cut(columns, dtype, two_threads) -> None:
    n = 401
    vectors = torch.randn(n, columns, generator=torch.Generator().manual_seed(1)).to(dtype)
    tiles = native(TREE, points(n), PARAMETERS, dtype)
    product = tiles.multiply(vectors)
    for start, stop in ((0, 1), (1, 97), (5, 388), (n, n)):
        part = tiles.multiply(vectors, slice(start, stop))
        assert torch.equal(part[start:stop], product[start:stop])
        assert not part[:start].any()
        assert not part[stop:].any()


@pytest.mark.parametrize("name", ["value", "pull", "multiply_made", "multiply_wide_made"])
@pytest.mark.parametrize("suffix", ["float", "double"])
def test_too_little_memory_is_an_error_and_not_the_end_of_the_process(name, suffix) -> None:
    """For as many threads as no memory suffices for."""
    tiles = native(TREE, points(9), PARAMETERS, torch.float32)  # kept: its program is read
    function = getattr(native_library(), f"{name}_{suffix}")
    with pytest.raises(MemoryError, match=name):
        function(ctypes.addressof(tiles._program), *(0,) * (len(function.argtypes) - 2), -1)


def test_a_library_with_other_constants_is_refused(monkeypatch) -> None:
    library = native_library()
    assert library is not None
    assert native_interface.declare(library) is library
    monkeypatch.setattr(native_interface, "BATCH", 95)
    with pytest.raises(OSError, match=r"constants \[32, 96, .* not \[32, 95, "):
        native_interface.declare(library)


def test_a_constant_kernel_multiplies_too() -> None:
    tiles = native(Constant(), points(40), (torch.tensor([2.5]),), torch.float32)
    torch.testing.assert_close(tiles.multiply(torch.ones(40, 3)), torch.full((40, 3), 100.0))


def test_columns_of_another_length_or_precision_are_refused() -> None:
    tiles = native(TREE, points(20), PARAMETERS, torch.float32)
    for wrong in (torch.ones(19, 2), torch.ones(20, 2, dtype=torch.float64)):
        with pytest.raises(ValueError, match="20 numbers of torch"):
            tiles.multiply(wrong)


def test_a_tile_of_another_shape_or_precision_is_refused() -> None:
    tiles = native(TREE, points(20), PARAMETERS, torch.float32)
    block = Block(slice(0, 10), slice(0, 20))
    with pytest.raises(ValueError, match="10 x 20"):
        tiles.value(block, torch.empty(20, 10))
    with pytest.raises(ValueError, match="float32"):
        tiles.pull(block, torch.empty(10, 20, dtype=torch.float64))
    with pytest.raises(ValueError, match="neighbours in memory"):
        tiles.value(block, torch.empty(20, 10).mT)
