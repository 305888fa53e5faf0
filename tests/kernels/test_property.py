"""Random expressions, nested twice, on random inputs: values and gradients are GPyTorch's."""

from __future__ import annotations

import torch
from gpytorch.kernels import AdditiveKernel, ConstantKernel, Kernel, MaternKernel, ProductKernel, RBFKernel, ScaleKernel
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.market import DIM, LEAVES, by_host, by_thin_tiles, by_tiles, factors, points

ACTIVE = st.sampled_from([None, (0,), (2, 0), (0, 1, 2)])


@st.composite
def leaves(draw) -> Kernel:
    name = draw(st.sampled_from([*LEAVES, "constant"]))
    if name == "constant":
        return ConstantKernel()
    active = draw(ACTIVE)
    # Not for Matern-1/2, whose diagonal GPyTorch rounds to exp(-1e-8) then.
    ard = draw(st.booleans()) and name != "matern12"
    options = {"ard_num_dims": DIM if active is None else len(active)} if ard else {}
    return LEAVES[name](active_dims=active, **options)


def grown(children: st.SearchStrategy[Kernel]) -> st.SearchStrategy[Kernel]:
    several = st.lists(children, min_size=2, max_size=3)
    return st.one_of(
        children,
        children.map(ScaleKernel),
        several.map(lambda kernels: AdditiveKernel(*kernels)),
        several.map(lambda kernels: ProductKernel(*kernels)),
    )


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(kernel=grown(grown(leaves())), n=st.integers(1, 300), seed=st.integers(0, 100))
def test_random_expressions_are_gpytorchs(kernel, n, seed) -> None:
    kernel = kernel.double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in kernel.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    x = points(n, seed=seed)
    left, right, diagonal = factors(n)
    weight = left @ right.mT + diagonal.diag()
    theirs, ours, thin = (
        by_host(kernel, x, weight),
        by_tiles(kernel, x, weight),
        by_thin_tiles(kernel, x, left, right, diagonal),
    )
    scale = float(theirs.kernel.abs().max())
    torch.testing.assert_close(ours.kernel, theirs.kernel, rtol=0, atol=1e-11 * scale)
    # Sums of n^2 signed terms may cancel: relative to the terms' own size.
    size = float(weight.abs().sum()) * scale
    for name, gradient in theirs.gradients.items():
        for found in (ours.gradients[name], thin[name]):
            torch.testing.assert_close(found, gradient, rtol=1e-9, atol=1e-11 * size, msg=name)


def test_the_random_expressions_are_nested() -> None:
    """Not only leaves: the strategy reaches a product of sums."""
    nested = grown(grown(st.sampled_from([RBFKernel, MaternKernel]).map(lambda kind: kind())))

    def is_nested(kernel: Kernel) -> bool:
        return type(kernel) is ProductKernel and any(type(child) is AdditiveKernel for child in kernel.kernels)

    from hypothesis import find

    assert is_nested(find(nested, is_nested, settings=settings(derandomize=True)))
