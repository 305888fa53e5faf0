"""Kernel matrices of a batch, made and differentiated in one call: those of single elements, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.evaluate import evaluate, evaluate_arguments
from gp_rangeformer.kernels.expression import Constant, Expression, Product, Scale, Stationary, Sum, parameter_names
from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.kernels.fused_batch import FusedBatch
from gp_rangeformer.kernels.native.compiler import library_on, native_library
from gp_rangeformer.kernels.tensor.plain import plain

DTYPES = [torch.float32, torch.float64]
DIM = 3
# Roundings that a term goes through before its sum, times how much what comes after multiplies the first of them: a
# relative error of q changes exp(-q / 2) by q / 2 times as much, and q stays below 40 here.
OF_A_TERM = 100


@pytest.fixture(autouse=True)
def compiled() -> None:
    if native_library() is None:
        pytest.skip("nothing here compiles C++")


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


LEAVES: dict[str, Expression] = {
    **{kind: Stationary(kind) for kind in ("rbf", "matern12", "matern32", "matern52", "rq", "periodic")},
    "active": Stationary("matern32", (2, 0)),
    "one_column": Stationary("periodic", (1,)),
    "a_column_twice": Stationary("rbf", (1, 1)),
    "constant": Constant(),
}
EXPRESSIONS: dict[str, Expression] = {
    **LEAVES,
    "scale": Scale(LEAVES["matern52"]),
    "scale_of_scale": Scale(Scale(LEAVES["rq"])),
    "scaled_constant": Scale(Constant()),
    "sum": Sum((LEAVES["rbf"], LEAVES["matern12"], Constant())),
    "sum_of_one": Sum((LEAVES["rq"],)),
    "product": Product((LEAVES["active"], LEAVES["one_column"], LEAVES["rq"])),
    "product_of_one": Product((LEAVES["matern32"],)),
    "a_kernel_twice": Sum((LEAVES["rq"], Scale(LEAVES["rq"]))),
    "product_of_sums": Product(
        (Sum((LEAVES["rbf"], Constant())), Sum((Scale(LEAVES["periodic"]), LEAVES["matern52"])))
    ),
    "nested": Scale(
        Sum(
            (Product((Scale(LEAVES["rq"]), Sum((Constant(), LEAVES["active"])))), Scale(Product((LEAVES["matern12"],))))
        )
    ),
}
expressions = pytest.mark.parametrize("name", EXPRESSIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


class Drawn:
    """Inputs and parameters, each with the batch that ``batch_of`` says: of the whole, of less, or none."""

    def __init__(
        self, expression: Expression, shape: tuple[int, ...], n: int, dtype: torch.dtype, seed: int = 0
    ) -> None:
        self.expression, self.shape, self.n, self.dtype = expression, torch.Size(shape), n, dtype
        self.generator = torch.Generator().manual_seed(seed)
        self.x = torch.empty(0)
        self.parameters: tuple[Tensor, ...] = ()

    def draw(self, of_inputs: torch.Size, ard: bool, of_parameters: Iterator[torch.Size]) -> Drawn:
        self.x = self._uniform(*of_inputs, self.n, DIM)
        self.parameters = tuple(self._own(self.expression, ard, of_parameters))
        return self

    def _own(self, expression: Expression, ard: bool, batches: Iterator[torch.Size]) -> list[Tensor]:
        found = []
        for name in expression.own_names:
            own: tuple[int, ...] = ()
            if isinstance(expression, Stationary) and name in ("lengthscale", "period_length"):
                own = (1, DIM if expression.active_dims is None else len(expression.active_dims)) if ard else (1, 1)
            found.append(0.5 + self._uniform(*next(batches), *own))
        for child in expression.children:
            found += self._own(child, ard, batches)
        return found

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def weight(self) -> Tensor:
        """Symmetric, of both signs."""
        drawn = self._uniform(self.shape.numel(), self.n, self.n) - 0.5
        return drawn + drawn.mT

    def batch(self) -> FusedBatch:
        return FusedBatch.of(self.expression, self.x, self.parameters, self.shape)

    def single(self, index: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Inputs and parameters of one element."""

        def of(tensor: Tensor, own: int) -> Tensor:
            return tensor.expand(*self.shape, *tensor.shape[tensor.dim() - own :])[index]

        axes = [2 if name in ("lengthscale", "period_length") else 0 for name in parameter_names(self.expression)]
        return of(self.x, 2), tuple(of(p, own) for p, own in zip(self.parameters, axes, strict=True))

    def indices(self) -> Iterator[tuple[int, ...]]:
        return itertools.product(*map(range, self.shape))


SHARING = {
    "everything_its_own": (True, True),
    "points_shared": (False, True),
    "parameters_shared": (True, False),
}


def drawn(
    name: str,
    n: int,
    dtype: torch.dtype = torch.float64,
    shape: tuple[int, ...] = (3,),
    sharing: str = "everything_its_own",
    ard: bool = True,
) -> Drawn:
    own = [torch.Size(shape) if whole else torch.Size() for whole in SHARING[sharing]]
    return Drawn(EXPRESSIONS[name], shape, n, dtype).draw(own[0], ard, itertools.repeat(own[1]))


def assert_bits_of_single_evaluations(case: Drawn) -> None:
    found = case.batch().evaluate()
    assert found.dtype == case.dtype
    assert torch.equal(found, found.mT)
    for matrix, index in zip(found, case.indices(), strict=True):
        x, parameters = case.single(index)
        assert torch.equal(matrix, evaluate(case.expression, x, parameters)), index
        assert torch.equal(matrix, FusedKernel(case.expression, x, parameters).evaluate()), index


@dtypes
@expressions
@pytest.mark.parametrize("count", [1, 2], ids=["one_thread", "two_threads"])
def test_a_batch_has_the_bits_of_single_evaluations(name, dtype, count) -> None:
    with threads(count):
        for n in (1, 2, 40, 129):  # 3 * 129^2 numbers are enough for two threads
            assert_bits_of_single_evaluations(drawn(name, n, dtype))


@dtypes
@pytest.mark.parametrize("n", [255, 256, 257, 511, 513])
def test_rows_of_more_pairs_than_are_made_at_once_have_them_too(n, dtype) -> None:
    for count in (1, 2):
        with threads(count):
            assert_bits_of_single_evaluations(drawn("nested", n, dtype, (2,)))


@dtypes
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1,), (1, 1), (2, 1)], ids=str)
def test_batches_of_every_shape_and_sharing_have_them(shape, sharing, dtype) -> None:
    for ard in (True, False):
        assert_bits_of_single_evaluations(drawn("nested", 9, dtype, shape, sharing, ard))


@dtypes
@pytest.mark.parametrize("n", [1023, 1024, 1025])
def test_a_kernel_alone_has_the_same_bits_on_either_side_of_the_bound_of_large_ones(n, dtype) -> None:
    x, parameters = drawn("scale", n, dtype, (1,)).single((0,))
    fused = FusedKernel(EXPRESSIONS["scale"], x, parameters)
    assert torch.equal(fused.evaluate(), evaluate_arguments(fused.expression, fused.arguments, n, dtype))


@dtypes
def test_the_matrices_do_not_share_memory_with_those_of_an_earlier_evaluation(dtype) -> None:
    batch = drawn("scale", 300, dtype).batch()  # large enough for memory that is kept
    first = batch.evaluate()
    kept = first.clone()
    batch.evaluate().fill_(7)
    assert torch.equal(first, kept)


def sizes(batch: FusedBatch, weight: Tensor) -> list[Tensor]:
    """What the terms of every gradient's sum are at most, added up: |W_ij| and twice the largest entry of K. With a
    distance a stationary kernel changes by at most its value at zero, and with parameters, which are 1/2 or more here,
    by at most twice K."""
    terms = 2 * weight.double().abs() * batch.evaluate().double().amax((-2, -1), keepdim=True)
    rows, all_of_them = 2 * terms.sum(-1, keepdim=True), terms.sum((-2, -1))
    return [rows if argument.dim() == 3 else all_of_them for argument in batch.arguments]


def plain_gradient(case: Drawn, batch: FusedBatch, weight: Tensor) -> list[Tensor]:
    """In float64, of the very arguments and weights that the dtype holds."""
    wide = tuple(argument.detach().double().requires_grad_() for argument in batch.arguments)
    parts = zip(*(argument.unbind(0) for argument in wide), strict=True)
    kernel = torch.stack([plain(case.expression, own, case.n, torch.float64) for own in parts])
    return list(torch.autograd.grad(kernel, wide, weight.double(), allow_unused=True, materialize_grads=True))


def assert_gradients_are_plain(case: Drawn, batch: FusedBatch, weight: Tensor, found: tuple[Tensor, ...]) -> None:
    # Rows of up to 256 terms and columns of n are summed in the dtype, those sums in float64.
    roundings = OF_A_TERM + min(256, case.n) + case.n
    expected, bounds = plain_gradient(case, batch, weight), sizes(batch, weight)
    for gradient, exact, bound, argument in zip(found, expected, bounds, batch.arguments, strict=True):
        assert gradient.shape == argument.shape
        assert gradient.dtype == argument.dtype
        error = ((gradient.double() - exact).abs() / bound).max()
        assert float(error) < roundings * torch.finfo(case.dtype).eps


@dtypes
@expressions
def test_gradients_of_symmetric_weights_are_those_of_plain_operations(name, dtype) -> None:
    for n, shape in ((1, (2,)), (2, (3,)), (97, (1, 2)), (129, (1,))):
        case = drawn(name, n, dtype, shape)
        batch, weight = case.batch(), case.weight()
        for count in (1, 3):  # more elements than threads, and fewer; n = 129 is enough for several
            with threads(count):
                assert_gradients_are_plain(case, batch, weight, batch.contract_symmetric(weight))


@dtypes
@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("ard", [True, False], ids=["ard", "one_lengthscale"])
def test_gradients_of_inputs_and_parameters_are_those_of_single_elements_added_up(ard, sharing, dtype) -> None:
    """What is shared collects from all elements, in its own shape."""
    case = drawn("nested", 20, dtype, (2, 3), sharing, ard)
    leaves = [tensor.requires_grad_() for tensor in (case.x, *case.parameters)]
    weight = case.weight()
    batch = case.batch()
    found = torch.autograd.grad(batch.arguments, leaves, batch.contract_symmetric(weight))
    outputs, gradients = [], []
    for element, index in enumerate(case.indices()):
        x, parameters = case.single(index)
        one = FusedKernel(case.expression, x, parameters)
        outputs += one.arguments
        gradients += one.contract_dense(weight[element])
    expected = torch.autograd.grad(outputs, leaves, gradients)
    for own, other, leaf in zip(found, expected, leaves, strict=True):
        assert own.shape == leaf.shape
        size = float(weight.abs().sum()) * float(leaf.detach().abs().max())
        assert float((own - other).abs().max()) < 2 * OF_A_TERM * torch.finfo(dtype).eps * size


@dtypes
@pytest.mark.parametrize("n", [128, 257])
@pytest.mark.parametrize("shape", [(1,), (2,), (3,)], ids=str)
def test_the_same_threads_give_the_same_bits_and_others_the_same_but_for_rounding(shape, n, dtype) -> None:
    case = drawn("nested", n, dtype, shape)
    weight, found = case.weight(), {}
    for count in (1, 2, 4):
        with threads(count):
            first, second = (case.batch().contract_symmetric(weight) for _ in range(2))
        for own, other in zip(first, second, strict=True):
            assert torch.equal(own, other)
        found[count] = first
    for count in (2, 4):
        for own, other, bound in zip(found[count], found[1], sizes(case.batch(), weight), strict=True):
            # Two sums of the same terms in another order.
            assert bool(((own.double() - other.double()).abs() <= 2 * (256 + n) * torch.finfo(dtype).eps * bound).all())


@dtypes
def test_a_kernel_alone_is_differentiated_as_a_batch_of_one(dtype) -> None:
    case = drawn("nested", 60, dtype, (1,))
    weight = case.weight()
    fused = FusedKernel(case.expression, *case.single((0,)))
    expected = [gradient.reshape(gradient.shape[1:]) for gradient in case.batch().contract_symmetric(weight)]
    for given_weight in (weight, weight[0], weight.mT, weight[0].expand(1, 60, 60)):
        for own, other, argument in zip(fused.contract_symmetric(given_weight), expected, fused.arguments, strict=True):
            assert own.shape == argument.shape
            assert torch.equal(own, other)
    with settings.fused_kernels("tensors"):
        uncompiled = FusedKernel(case.expression, *case.single((0,))).contract_symmetric(weight)
    assert_gradients_are_plain(case, case.batch(), weight, tuple(gradient.unsqueeze(0) for gradient in uncompiled))


def test_a_gradient_asked_for_twice_is_not_added_up() -> None:
    case = drawn("nested", 40)
    batch, weight = case.batch(), case.weight()
    first = [gradient.clone() for gradient in batch.contract_symmetric(weight)]
    batch.contract_symmetric(2 * weight)
    for own, other in zip(batch.contract_symmetric(weight), first, strict=True):
        assert torch.equal(own, other)


def test_a_weight_of_another_shape_or_dtype_is_refused() -> None:
    case = drawn("scale", 12)
    batch, weight = case.batch(), case.weight()
    for wrong in (weight[:2], weight[:, :6, :6], weight.float()):
        with pytest.raises(ValueError, match="weight must be"):
            batch.contract_symmetric(wrong)


def test_elements_are_the_batch_one_by_one_and_gradients_pass_through_them() -> None:
    case = drawn("nested", 25, shape=(2, 2))
    leaves = [tensor.requires_grad_() for tensor in (case.x, *case.parameters)]
    batch = case.batch()
    elements = batch.elements()
    assert len(elements) == batch.count == 4
    for one, matrix in zip(elements, batch.evaluate(), strict=True):
        assert torch.equal(one.evaluate(), matrix)
    weight = case.weight()
    outputs = [argument for one in elements for argument in one.arguments]
    gradients = [g for one, w in zip(elements, weight, strict=True) for g in one.contract_symmetric(w)]
    found = torch.autograd.grad(outputs, leaves, gradients, retain_graph=True)
    expected = torch.autograd.grad(batch.arguments, leaves, batch.contract_symmetric(weight))
    for own, other in zip(found, expected, strict=True):
        # The same numbers, which autograd adds up in another order.
        size = float(weight.abs().sum())
        torch.testing.assert_close(own, other, rtol=0, atol=OF_A_TERM * torch.finfo(torch.float64).eps * size)


@dtypes
@expressions
def test_the_matrices_in_the_graph_are_those_without_one_to_rounding(name, dtype) -> None:
    batch = drawn(name, 30, dtype).batch()
    found, expected = batch.dense(), batch.evaluate()
    assert found.dtype == dtype
    assert found.shape == expected.shape
    # A Matern-1/2 kernel is a root of distances, which plain operations round to eps |z|^2.
    resolution = torch.finfo(torch.float64).eps ** 0.5 if dtype == torch.float64 else torch.finfo(dtype).eps
    off_diagonal = 1 - torch.eye(30, dtype=dtype)
    scale = float(expected.abs().max())
    assert float(((found - expected) * off_diagonal).abs().max()) < OF_A_TERM * torch.finfo(dtype).eps * scale
    assert float((found - expected).abs().max()) < OF_A_TERM * resolution * scale


@pytest.mark.parametrize("sharing", SHARING)
@pytest.mark.parametrize("name", ["rbf", "rq", "periodic", "matern52", "nested"])
def test_second_derivatives_are_differences_of_the_compiled_first_ones(name, sharing) -> None:
    case = drawn(name, 7, shape=(2,), sharing=sharing)
    leaves = [tensor.requires_grad_() for tensor in (case.x, *case.parameters)]
    weight = case.weight()
    directions = [case._uniform(*leaf.shape) - 0.5 for leaf in leaves]
    first = torch.autograd.grad(case.batch().dense(), leaves, weight, create_graph=True)
    along = torch.stack([(g * v).sum() for g, v in zip(first, directions, strict=True)]).sum()
    found = torch.autograd.grad(along, leaves)
    step = torch.finfo(torch.float64).eps ** (1 / 3)
    moved = []
    for sign in (1, -1):
        shifted = [(p + sign * step * v).detach().requires_grad_() for p, v in zip(leaves, directions, strict=True)]
        case.x, case.parameters = shifted[0], tuple(shifted[1:])
        batch = case.batch()
        moved.append(torch.autograd.grad(batch.arguments, shifted, batch.contract_symmetric(weight)))
    for own, above, below in zip(found, *moved, strict=True):
        difference = (above - below) / (2 * step)
        # step^2 times third derivatives, which lengthscales of 1/2 and three factors make a few hundred.
        assert float((own - difference).norm()) < 1e3 * step**2 * (1 + float(difference.norm()))


def test_nobody_fuses_batches_where_the_compiled_code_is_switched_off() -> None:
    assert library_on(torch.device("cpu")) is not None
    assert library_on(torch.device("meta")) is None
    with settings.fused_kernels("tensors"):
        assert library_on(torch.device("cpu")) is None


@dtypes
def test_points_too_far_apart_to_see_each_other_leave_the_diagonal_in_every_element(dtype) -> None:
    """Elements have limits of their own where profiles are held: alpha decides."""
    case = drawn("rq", 20, dtype)
    case.x = case.x * torch.tensor([1.0, 1e4, 1e9], dtype=dtype).reshape(3, 1, 1)
    case.parameters = case.parameters[0], torch.tensor([30.0, 0.02, 3.0], dtype=dtype)
    assert_bits_of_single_evaluations(case)
    batch, weight = case.batch(), case.weight()
    assert batch.evaluate().isfinite().all()
    for gradient in batch.contract_symmetric(weight):
        assert gradient.isfinite().all()


def test_a_nan_stays_in_its_element() -> None:
    case = drawn("nested", 20)
    case.x[1, 3, 0] = torch.nan
    found = case.batch().evaluate()
    assert found[1].isnan().any()
    assert found[[0, 2]].isfinite().all()
    assert_bits = drawn("nested", 20).batch().evaluate()
    assert torch.equal(found[[0, 2]], assert_bits[[0, 2]])


def grown(children: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    several = st.lists(children, min_size=1, max_size=3).map(tuple)
    return st.one_of(children, children.map(Scale), several.map(Sum), several.map(Product))


def parts_of(shape: tuple[int, ...]) -> st.SearchStrategy[torch.Size]:
    """Batches that broadcast to ``shape``."""
    kept = [shape[i:] for i in range(len(shape) + 1)]
    return st.sampled_from([*kept, (1, *shape[1:]), (*shape[:-1], 1)]).map(torch.Size)


@hypothesis_settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_random_expressions_of_random_batches_are_those_of_their_elements(data) -> None:
    expression = data.draw(grown(grown(st.sampled_from(list(LEAVES.values())))))
    shape = data.draw(st.sampled_from([(3,), (2, 3), (1,), (2, 1), (4,)]))
    n = data.draw(st.one_of(st.integers(1, 12), st.sampled_from([60, 256, 258])))
    case = Drawn(expression, shape, n, data.draw(st.sampled_from(DTYPES)), data.draw(st.integers(0, 100)))
    batches = (data.draw(parts_of(shape)) for _ in itertools.count())
    case.draw(data.draw(parts_of(shape)), data.draw(st.booleans()), batches)
    batch, weight = case.batch(), case.weight()
    with threads(data.draw(st.sampled_from([1, 2]))):
        assert_bits_of_single_evaluations(case)
        found = batch.contract_symmetric(weight)
    assert_gradients_are_plain(case, batch, weight, found)
