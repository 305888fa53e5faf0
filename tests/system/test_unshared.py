"""Small cores on the CPU keep to one thread, and leave the number of threads as it was."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer.system.small_cores import unshared


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(("rows", "inside"), [(3, 1), (256, 1), (257, 2)])
def test_one_thread_for_small_cores_alone(rows: int, inside: int) -> None:
    with unshared(torch.eye(rows)):
        assert torch.get_num_threads() == inside
    assert torch.get_num_threads() == 2
    with pytest.raises(KeyError), unshared(torch.eye(rows)):
        raise KeyError
    assert torch.get_num_threads() == 2


def test_one_thread_stays_one() -> None:
    torch.set_num_threads(1)
    with unshared(torch.eye(3)):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 1
