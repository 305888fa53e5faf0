"""Calibration of the tail's interval: groups of kernels, and widths from answers about kernels that were left out."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from gp_rangeformer.logdet.network import LogDetTail, LogDetTailConfig
from pretrain.log_determinant import train
from pretrain.log_determinant.calibration import calibrate, groups
from pretrain.log_determinant.train import Systems, TrainConfig, answers_from_outside, build, quantiles

FEATURES = 5
SIZES = (1000, 8000, 30_000)  # one in every bin
VALUES = (0.1, 0.5, 1.5, 3.0)
PER_BIN = 400


def network() -> LogDetTail:
    return LogDetTail(LogDetTailConfig(scalars=FEATURES, token_features=3, dim=8, hidden=16))


def answered(spread: Tensor, half_width: float = 1e-2, sizes: tuple[int, ...] = SIZES) -> tuple[Tensor, Systems]:
    """(answers, systems): errors uniform within ``spread`` half widths, per bin of n and z, to either side."""
    generator = torch.Generator().manual_seed(0)
    answers, tails, scalars = [], [], []
    for row, size in enumerate(sizes):
        for column, value in enumerate(VALUES):
            error = spread[row, column] * half_width * (2 * torch.rand(PER_BIN, generator=generator) - 1)
            answers.append(torch.tensor([value - half_width, value, value + half_width]).expand(PER_BIN, 3))
            tails.append(value + error)
            scalars.append(torch.zeros(PER_BIN, FEATURES).index_fill(1, torch.tensor(0), math.log(size)))
    tail = torch.cat(tails)
    return torch.cat(answers), {"scalars": torch.cat(scalars), "tail": tail, "upper": torch.full_like(tail, 9.0)}


def test_every_bin_gets_the_factor_that_covers_its_share() -> None:
    spread = torch.tensor([[1.0, 1.2, 1.4, 1.6], [1.8, 2.0, 2.2, 2.4], [2.6, 3.0, 3.4, 3.8]])
    model = network()
    calibrate(model, *answered(spread), level=0.9)
    torch.testing.assert_close(model.widening, 0.9 * spread, rtol=0.05, atol=0)
    assert float(model.floor) == 0


def test_no_factor_is_smaller_than_that_of_a_smaller_size_or_value() -> None:
    spread = torch.ones(3, 4)
    spread[0, 1] = 4.0
    model = network()
    calibrate(model, *answered(spread), level=0.9)
    expected = torch.full((3, 4), 3.6)
    expected[:, 0] = 0.9
    torch.testing.assert_close(model.widening, expected, rtol=0.05, atol=0)


def test_sizes_without_systems_inherit_the_factors_of_smaller_ones() -> None:
    model = network()
    calibrate(model, *answered(torch.full((3, 4), 2.0), sizes=SIZES[:1]), level=0.9)
    torch.testing.assert_close(model.widening, torch.full((3, 4), 1.8), rtol=0.05, atol=0)


def narrow(value: float, upper: float, count: int = 2000) -> tuple[Tensor, Systems]:
    """(answers, systems): intervals of 4e-8 around ``value``, missed by up to 2e-5."""
    error = 2e-5 * (2 * torch.rand(count, generator=torch.Generator().manual_seed(2)) - 1)
    answers = torch.tensor([value - 2e-8, value, value + 2e-8]).expand(count, 3)
    scalars = torch.zeros(count, FEATURES).index_fill(1, torch.tensor(0), math.log(SIZES[0]))
    return answers, {"scalars": scalars, "tail": value + error, "upper": torch.full((count,), upper)}


def test_tiny_intervals_are_covered_by_the_floor_and_not_by_widening_the_others() -> None:
    answers, systems = answered(torch.full((3, 4), 2.0))
    tiny_answers, tiny = narrow(1e-3, upper=5e-3)
    model = network()
    calibrate(model, torch.cat([answers, tiny_answers]), {k: torch.cat([systems[k], tiny[k]]) for k in tiny})
    torch.testing.assert_close(model.widening, torch.full((3, 4), 1.8), rtol=0.05, atol=0)
    missed = (tiny["tail"] - tiny_answers[:, 1]).abs()
    assert float((missed <= model.floor).float().mean()) == pytest.approx(0.99, abs=0.01)
    assert float(model.floor) == pytest.approx(2e-5, rel=0.05)


def test_narrow_intervals_do_not_set_the_floor_where_the_certain_interval_is_wide() -> None:
    model = network()
    calibrate(model, *narrow(1.0, upper=1.001))
    assert float(model.floor) == 0


def test_groups_weigh_the_same_however_many_systems_they_have() -> None:
    answers, systems = answered(torch.ones(3, 4))
    wide_answers, wide = answered(torch.full((3, 4), 4.0))
    # Three quarters of the systems miss by up to 1 half width, a quarter by up to 4: a factor f covers (1 + f / 4) / 2
    # of both groups on average.
    both = torch.cat([answers, answers, answers, wide_answers])
    group = torch.cat([torch.zeros(3 * len(answers)), torch.ones(len(wide_answers))]).long()
    model = network()
    calibrate(model, both, {k: torch.cat([systems[k]] * 3 + [wide[k]]) for k in wide}, group, level=0.9)
    torch.testing.assert_close(model.widening, torch.full((3, 4), 3.2), rtol=0.1, atol=0)


def test_rounding_of_z_beyond_the_certain_interval_counts_as_its_end() -> None:
    answers = torch.tensor([0.0, 1e-9, 1e-8]).expand(50, 3)
    systems = {"scalars": torch.zeros(50, FEATURES), "tail": torch.full((50,), -1e-3), "upper": torch.full((50,), 5e-3)}
    model = network()
    calibrate(model, answers, systems)
    assert float(model.floor) == 0


def features(kernels: int, per_kernel: int = 6) -> Systems:
    """Systems of kernels in three far groups."""
    generator = torch.Generator().manual_seed(1)
    kernel = torch.arange(kernels).repeat_interleave(per_kernel)
    scalars = torch.randn(len(kernel), FEATURES, generator=generator)
    scalars[:, 2:] += 30.0 * torch.eye(3)[kernel % 3]
    value = torch.rand(len(kernel), generator=generator)
    return {
        "kernel": kernel,
        "scalars": scalars,
        "tokens": torch.randn(len(kernel), 16, 3, generator=generator).half(),
        "tail": value,
        "estimate": 0.8 * value,
        "upper": 2 * value,
    }


def test_kernels_alike_share_a_group_and_systems_of_a_kernel_stay_together() -> None:
    data = features(60)
    group = groups(data, count=3)
    assert len(group.unique()) == 3
    for family in range(3):
        assert len(group[data["kernel"] % 3 == family].unique()) == 1


def test_size_and_rank_do_not_decide_the_group() -> None:
    data = features(60)
    moved = {**data, "scalars": data["scalars"].clone()}
    moved["scalars"][:, :2] = 100 * torch.randn(len(data["kernel"]), 2, generator=torch.Generator().manual_seed(2))
    assert torch.equal(groups(moved, count=3), groups(data, count=3))


def test_every_system_is_answered_by_a_head_that_never_saw_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = features(30)
    group = groups(data)
    seen: list[set[int]] = []

    def watched(folder: object, others: Systems, *rest: object, **options: object) -> None:
        seen.append(set(others["kernel"].tolist()))

    monkeypatch.setattr(train, "fit", watched)
    answers = answers_from_outside(data, TrainConfig(), tmp_path)
    for number, kernels in enumerate(seen):
        own = group == number
        assert kernels.isdisjoint(data["kernel"][own].tolist())
        others = {name: value[~own] for name, value in data.items()}
        expected = quantiles(build(others, 0), {name: value[own] for name, value in data.items()})
        assert torch.equal(answers[own], expected.detach())
