"""What a training step would start on a device, and how often it would wait there."""

from __future__ import annotations

import pytest
import torch

from tests.device_cost import warm_step
from tests.stand_in import DEVICE, StandIn


def test_a_warm_step_starts_few_operations_and_waits_for_few_numbers() -> None:
    found, report = warm_step()
    print("\n" + found.summary())
    assert (report.solver, report.logdet_method, report.iterations) == ("rangeformer", "learned", 2)
    # What it is today. Operations are to become 150 (some 60 of them make tiles, which are a few
    # kernels where Triton is); one of the transfers is GPyTorch's, which compares its inputs.
    assert found.starts.total() <= 236
    assert found.transfers.total() <= 2


def test_operations_views_and_transfers_are_told_apart() -> None:
    with StandIn() as device:
        there = torch.arange(6.0).to(DEVICE)
        counts = device.start()
        total = (there.reshape(2, 3).mT * 2).sum()
        assert (counts.starts.total(), counts.transfers.total()) == (2, 0)
        assert float(total) == 30
        assert there.cpu().tolist() == [0, 1, 2, 3, 4, 5]
        assert counts.transfers.total() == 2
        with pytest.raises(RuntimeError, match="mixes"):
            there.add(torch.ones(6))
