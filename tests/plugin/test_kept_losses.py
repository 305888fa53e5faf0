"""``losses.append(loss)``: after its backward pass a loss holds no n x n matrix, however long it is kept."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gp_rangeformer import settings
from tests.plugin.market import Problem, build, exact_path, rangeformer_path

N = 300


class Watch(TorchDispatchMode):
    """Weak references to the memory of every n x n tensor that an operation reads or writes."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, Tensor) and leaf.numel() >= N * N:
                reference = StorageWeakRef(leaf.untyped_storage())
                self._seen[reference.cdata] = reference
        return result

    def alive(self) -> int:
        """How many are held by anybody. What autograd holds counts, and is out of the garbage collector's sight."""
        gc.collect()
        return sum(not reference.expired() for reference in self._seen.values())


@pytest.fixture
def watch() -> Iterator[Watch]:
    gc.collect()
    with Watch() as watching:
        yield watching


PATHS = {"exact": exact_path, "rangeformer": rangeformer_path}
CASES = [
    (path, kernel, dtype)
    for path in PATHS
    for kernel, dtype in (
        ("matern32", torch.float32),
        ("matern32", torch.float64),
        ("linear_plus_rbf", torch.float64),  # evaluated by GPyTorch
        ("spectral_mixture", torch.float64),
    )
]


def training_losses(problem: Problem, steps: int) -> list[Tensor]:
    """Kept as a plot of the training needs them, and as the mistake that everybody makes does."""
    optimizer = torch.optim.SGD(problem.model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()
        optimizer.step()
        losses.append(loss)
    return losses


@pytest.mark.parametrize(("path", "kernel", "dtype"), CASES)
def test_a_loss_kept_after_its_backward_pass_holds_no_matrix(path, kernel, dtype, watch: Watch) -> None:
    problem = build(kernel, n=N, dtype=dtype)
    with PATHS[path](tolerance=1e-4) if path == "rangeformer" else PATHS[path]() as reports:
        held = problem.loss()
        # Else the watch is blind: the graph needs K, or its factor, until the backward pass. Not that of a fused kernel
        # whose weight is thin.
        assert (watch.alive() > 0) == (path == "exact" or kernel != "matern32")
        held.backward()
        assert watch.alive() == 0
        losses = training_losses(problem, 4)
    assert {report.solver for report in reports} == {path}
    assert all(loss.grad_fn is not None for loss in losses)
    assert watch.alive() == 0


def held_by_kept_predictions(moment: str, watch: Watch) -> int:
    """Matrices that three losses of predictions, kept after their backward passes, still hold."""
    problem = build(n=N)
    before, kept = watch.alive(), []
    for _ in range(3):
        loss = getattr(problem.predict(), moment).sum()
        loss.backward()
        kept.append(loss)
    problem.model.train()  # GPyTorch's own caches of predictions go
    return watch.alive() - before


@pytest.mark.parametrize("path", PATHS)
def test_the_loss_of_a_prediction_holds_none_for_its_mean_and_no_more_than_gpytorch_s_for_its_variance(
    path, watch: Watch
) -> None:
    theirs = held_by_kept_predictions("variance", watch)
    with PATHS[path]():
        assert held_by_kept_predictions("mean", watch) == 0
        assert held_by_kept_predictions("variance", watch) <= theirs


def test_nor_does_one_whose_kernel_matrix_is_recomputed(watch: Watch) -> None:
    problem = build(n=N)
    with rangeformer_path(tolerance=1e-4), settings.kernel_storage("tiles"):
        losses = training_losses(problem, 3)
        assert watch.alive() == 0
    assert len(losses) == 3


def test_a_graph_that_is_retained_keeps_what_it_needs(watch: Watch) -> None:
    """And gives the same gradient again."""
    problem = build(n=N)
    with exact_path():
        loss = problem.loss()
        parameters = list(problem.model.parameters())
        first = torch.autograd.grad(loss, parameters, retain_graph=True)
        assert watch.alive() > 0
        second = torch.autograd.grad(loss, parameters)
        assert watch.alive() == 0
    torch.testing.assert_close(second, first)
