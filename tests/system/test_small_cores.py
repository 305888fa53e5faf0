from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gp_rangeformer.system.small_cores import (
    NotPositiveDefiniteError,
    cholesky_with_inverse,
    product,
    symmetric,
    to_device,
    to_host,
)


def test_tensors_arrive_in_their_order_with_their_shapes_in_float64() -> None:
    given = [torch.arange(6.0).reshape(2, 3), torch.tensor(7, dtype=torch.int32), torch.tensor([True, False])]
    found = to_host(*given)
    assert [array.shape for array in found] == [(2, 3), (), (2,)]
    assert all(array.dtype == np.float64 for array in found)
    for array, tensor in zip(found, given, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


@pytest.mark.cuda
def test_tensors_of_both_places_arrive_together() -> None:
    here, there = torch.arange(4.0), torch.arange(6.0, dtype=torch.float64, device="cuda").reshape(3, 2).mT
    found = to_host(there, here, there.sum())
    np.testing.assert_array_equal(found[0], there.cpu().numpy())
    np.testing.assert_array_equal(found[1], here.numpy())
    assert float(found[2]) == 15


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_array_takes_the_precision_of_the_tensors_it_meets(dtype: torch.dtype) -> None:
    array = np.asfortranarray(np.random.default_rng(0).standard_normal((3, 5)))
    found = to_device(array, torch.empty(1, dtype=dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found.numpy(), array, rtol=1e-6)


def test_the_symmetric_part_is_symmetric_to_the_bit() -> None:
    core = np.random.default_rng(1).standard_normal((7, 7))
    found = symmetric(core)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_allclose(found - core, core.T - found)


@pytest.mark.parametrize("k", [1, 31, 32, 33, 65, 130])
def test_a_core_is_factorised_and_the_factor_inverted(k: int) -> None:
    rows = np.random.default_rng(k).standard_normal((k, 2 * k))
    core = rows @ rows.T + 0.1 * np.eye(k)
    factor, inverse = cholesky_with_inverse(core)
    np.testing.assert_allclose(factor, np.linalg.cholesky(core), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(product(inverse, factor), np.eye(k), atol=1e-10)
    np.testing.assert_array_equal(np.triu(inverse, 1), 0)


@pytest.mark.parametrize("k", [5, 33, 70])
@pytest.mark.parametrize("poison", [-1e-3, np.nan, np.inf])
def test_a_core_without_a_factor_is_refused(k: int, poison: float) -> None:
    core = np.eye(k)
    core[k - 1, k - 1] = poison
    with pytest.raises(NotPositiveDefiniteError):
        cholesky_with_inverse(core)


def test_small_cores_wake_no_threads() -> None:
    """Threads of another library than PyTorch's would stay busy on the cores that its own need next."""
    script = """
import time
import numpy as np
from gp_rangeformer.system.small_cores import cholesky_with_inverse, product
for k in (33, 65):
    core = k * np.eye(k) + np.ones((k, k))
    cholesky_with_inverse(core)  # imports LAPACK, whose threads are busy for a moment once
    time.sleep(0.5)
    started, used = time.perf_counter(), time.process_time()
    while time.perf_counter() - started < 1:
        factor, inverse = cholesky_with_inverse(core)
        product(product(factor, inverse), core)
    print((time.process_time() - used) / (time.perf_counter() - started))
"""
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    shares = [float(line) for line in done.stdout.splitlines()]
    assert len(shares) == 2
    assert max(shares) < 1.1
