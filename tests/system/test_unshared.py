"""Small cores on the CPU keep to one thread, and leave the number of threads as it was."""

from __future__ import annotations

import threading

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


@pytest.mark.usefixtures("two_threads")
def test_other_threads_change_no_number_that_new_ones_start_with() -> None:
    seen: list[int] = []

    def worker() -> None:
        with unshared(torch.eye(3)):
            started = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            started.start()
            started.join()

    thread = threading.Thread(target=worker)
    thread.start()
    thread.join()
    assert seen == [2]
