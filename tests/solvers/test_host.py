from __future__ import annotations

import numpy as np
import pytest
import torch

from gp_rangeformer.solvers.host import symmetric, to_device, to_host


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
