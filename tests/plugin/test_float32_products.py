"""Float32 products in less than float32, which a process may ask for: not inside a call, and as before afterwards."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from gp_rangeformer import clear_memory, settings
from gp_rangeformer.fit import fit_mll
from gp_rangeformer.torch_modes import no_autocast
from tests.plugin.market import build, exact_path, marginal_log_likelihood, rangeformer_path

BACKENDS: Any = torch.backends
NEWER = hasattr(BACKENDS.cuda.matmul, "fp32_precision")
WHOLE = {"highest", "ieee", "none"}


def precisions() -> list[str]:
    if NEWER:
        return [BACKENDS.cuda.matmul.fp32_precision, BACKENDS.mkldnn.matmul.fp32_precision]
    return [torch.get_float32_matmul_precision()]


def older(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)


def one_backend(precision: str) -> None:
    BACKENDS.mkldnn.matmul.fp32_precision = precision


def all_backends(precision: str) -> None:
    BACKENDS.fp32_precision = precision


SETTERS: list[tuple[Callable[[str], None], str]] = [(older, "medium"), (older, "high")]
if NEWER:
    SETTERS += [(one_backend, "bf16"), (one_backend, "tf32"), (all_backends, "tf32"), (all_backends, "bf16")]
setters = pytest.mark.parametrize(("choose", "precision"), SETTERS)


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")
    if NEWER:
        all_backends("none")
        one_backend("none")
        BACKENDS.cuda.matmul.fp32_precision = "none"


@setters
def test_whole_products_inside_and_the_setting_as_before_afterwards(choose, precision) -> None:
    choose(precision)
    before = precisions()
    assert not WHOLE.issuperset(before)
    with no_autocast():
        assert WHOLE.issuperset(precisions())
        with contextlib.suppress(KeyError), no_autocast():
            raise KeyError
        assert WHOLE.issuperset(precisions())
    assert precisions() == before
    with pytest.raises(KeyError), no_autocast():
        raise KeyError
    assert precisions() == before


def test_what_the_older_interface_says_is_as_before_too() -> None:
    older("medium")
    with no_autocast():
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.skipif(not NEWER, reason="this PyTorch has one precision for all backends")
def test_a_backend_that_follows_all_others_still_does() -> None:
    all_backends("tf32")
    with no_autocast():
        pass
    all_backends("ieee")
    assert WHOLE.issuperset(precisions())


def test_what_is_chosen_inside_stays() -> None:
    older("medium")
    with no_autocast():
        older("high")
    assert torch.get_float32_matmul_precision() == "high"


@setters
def test_the_last_of_two_threads_restores(choose, precision) -> None:
    choose(precision)
    before, entered, left, seen = precisions(), threading.Event(), threading.Event(), []

    def other() -> None:
        with no_autocast():
            entered.set()
            left.wait(60)
            seen.append(precisions())

    thread = threading.Thread(target=other)
    with no_autocast():
        thread.start()
        assert entered.wait(60)
    assert WHOLE.issuperset(precisions())
    left.set()
    thread.join()
    assert WHOLE.issuperset(seen[0])
    assert precisions() == before


@pytest.mark.parametrize("path", ["exact", "rangeformer"])
@pytest.mark.parametrize("storage", ["dense", "tiles"])
def test_it_changes_no_bit_of_a_float32_step(path, storage) -> None:
    def step(precision: str) -> tuple[float, Tensor]:
        clear_memory()
        problem = build("ard", n=300, dtype=torch.float32)
        problem.likelihood.noise = 0.2
        torch.set_float32_matmul_precision(precision)
        answered = exact_path() if path == "exact" else rangeformer_path(tolerance=1e-3)
        with answered, settings.kernel_storage(storage):
            found = problem.loss_and_gradient()
        assert torch.get_float32_matmul_precision() == precision
        return found

    expected, found = step("highest"), step("medium")
    assert found[0] == expected[0]
    assert torch.equal(found[1], expected[1])


def test_it_changes_no_bit_of_a_fit() -> None:
    def parameters(precision: str) -> Tensor:
        clear_memory()
        problem = build("ard", n=600, dtype=torch.float32)
        torch.set_float32_matmul_precision(precision)
        with settings.rangeformer(), settings.min_size(500):
            fit_mll(marginal_log_likelihood(problem.model), max_evaluations=4)
        return parameters_to_vector(problem.model.parameters()).detach()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(parameters("highest"), parameters("medium"))


def test_what_is_declined_keeps_the_setting() -> None:
    seen: list[list[str]] = []
    problem = build("ard", n=60, dtype=torch.float32)
    original = torch.linalg.cholesky_ex

    def cholesky(*arguments, **options):
        seen.append(precisions())
        return original(*arguments, **options)

    older("medium")
    with settings.rangeformer(), settings.exact_size(1000), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.linalg, "cholesky_ex", cholesky)
        problem.loss_and_gradient()
    assert seen
    assert all(each == precisions() for each in seen)
