"""Numbers that float64 cannot tell apart are not taken for what was written."""

import numpy as np
import pytest
import torch

from gp_rangeformer.regression.errors import TableError
from gp_rangeformer.regression.scaling import Scaling, check_digits

KEY = 2**60  # float64 tells integers apart in steps of 256 here


@pytest.mark.parametrize("step", [300, 2_000, 20_000])
def test_keys_of_which_digits_are_lost_are_refused(step):
    keys = np.array([KEY + step * at + 1 for at in range(12)], dtype=np.int64).astype(np.float64)
    with pytest.raises(TableError, match=r"column 'id' holds numbers near 1\.153e\+18 .* in steps of 3e\+02: subtract"):
        check_digits("id", keys)


@pytest.mark.parametrize("values", [
    np.array([KEY + 300_000 * at for at in range(12)], dtype=np.int64).astype(np.float64),
    np.full(12, float(KEY)), np.zeros(12), np.array([0.1 + 0.2, 0.3] * 6), np.array([-1e308, 1e308] * 6),
    5e-324 * np.arange(1e5, 1e5 + 12, dtype=np.float64) * 1e4, np.arange(12.0) + 1e9,
])  # fmt: skip
def test_other_numbers_and_constants_pass(values):
    with np.errstate(over="ignore"):
        check_digits("x", values)


@pytest.mark.parametrize("scale", [1e-150, 1.0, 1e150])
def test_what_is_standardised_has_mean_0_and_deviation_1_and_is_restored(scale):
    values = scale * torch.randn(50, 2, dtype=torch.float64)
    found = Scaling.of(values)
    standard = found.standardised(values)
    torch.testing.assert_close(standard.mean(dim=0), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-14)
    torch.testing.assert_close(standard.square().mean(dim=0), torch.ones(2, dtype=torch.float64), rtol=1e-13, atol=0)
    torch.testing.assert_close(found.restored(standard), values, rtol=1e-12, atol=1e-15 * scale)
