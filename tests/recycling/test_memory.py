from __future__ import annotations

import threading

import torch

from gp_rangeformer.preconditioner.landmarks import Landmarks
from gp_rangeformer.recycling.first_guess import extrapolate
from gp_rangeformer.recycling.memory import Memory, MemoryStore


def test_extrapolation_is_exact_on_a_line() -> None:
    start, slope = torch.randn(20, 3), torch.randn(20, 3)
    solutions = (start + slope, start + 2 * slope)
    torch.testing.assert_close(extrapolate(solutions), start + 3 * slope)
    assert extrapolate(solutions[:1]) is solutions[0]
    assert extrapolate(()) is None


def test_only_the_last_solutions_of_one_shape_are_kept() -> None:
    memory = Memory()
    for value in range(4):
        memory.remember(torch.full((5, 2), float(value)), history=2)
    assert [float(solution[0, 0]) for solution in memory.solutions] == [2.0, 3.0]
    memory.remember(torch.zeros(5, 3), history=2)
    assert len(memory.solutions) == 1
    assert len(memory.recall(torch.ones(5, 3))) == 1
    for other in (torch.ones(5, 2), torch.ones(4, 3), torch.ones(5, 3, dtype=torch.float64)):
        assert memory.recall(other) == ()
    memory.remember(torch.zeros(5, 3), history=0)
    assert memory.solutions == ()


def test_failures_pause_longer_and_longer() -> None:
    memory = Memory(landmarks=Landmarks(torch.arange(3)))
    pauses = []
    for _ in range(7):
        memory.record_failure()
        pauses.append(memory.pause)
    assert pauses == [1, 3, 7, 15, 31, 31, 31]
    assert memory.landmarks is None


def test_the_store_is_bounded_and_drops_the_least_recently_used() -> None:
    store = MemoryStore()
    for key in ("a", "b", "c"):
        store.get(key).remember(torch.zeros(100, 1), history=2)  # 400 bytes each
    store.get("a")  # used again
    store.trim(900)
    assert store.nbytes == 800
    assert store.get("a").solutions
    assert store.get("c").solutions
    assert not store.get("b").solutions
    store.trim(0)
    assert store.nbytes == 0


def test_memories_of_one_owner_go_together() -> None:
    store = MemoryStore()
    store.get(((1,), 10)).remember(torch.zeros(4, 1), history=1)
    store.get(((1, 2), 10)).remember(torch.zeros(4, 1), history=1)
    store.get(((2,), 10)).remember(torch.zeros(4, 1), history=1)
    store.discard(1)
    assert len(store) == 1


def test_threads_share_one_memory_per_key() -> None:
    store = MemoryStore()
    found = []

    def work() -> None:
        for key in range(200):
            found.append((key, id(store.get(key))))
            store.get(key).remember(torch.zeros(3, 1), history=2)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 200
