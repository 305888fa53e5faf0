"""LogDetTail: an answer that cannot leave its interval, features in units of the training set, and its checkpoint."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from gp_rangeformer.checkpoint import load_checkpoint, save_checkpoint
from gp_rangeformer.logdet.features import LOG_SIZE
from gp_rangeformer.logdet.learned import load_head
from gp_rangeformer.logdet.network import VALUE_BINS, LogDetTail, LogDetTailConfig
from gp_rangeformer.logdet.reader import TailReader
from gp_rangeformer.rangeformer.rangeformer import RangeFormerConfig

CONFIG = LogDetTailConfig(scalars=5, token_features=3, dim=8, hidden=16)
RANGEFORMER = RangeFormerConfig(dim=16, sketch=4, width=4, heads=2, loops=2)
BATCH = 64


def network(spread: float = 0.0) -> LogDetTail:
    """Untrained, or with a last layer that makes it answer anything."""
    model = LogDetTail(CONFIG)
    last = model.read[-1]
    assert isinstance(last, torch.nn.Linear)
    torch.nn.init.normal_(last.weight, std=spread)
    return model


def evidence(offset: float = 0.0, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    scalars = torch.randn(BATCH, 5, generator=generator)
    tokens = torch.randn(BATCH, 16, 3, generator=generator)
    return offset + scale * scalars, offset + scale * tokens


def ends() -> tuple[Tensor, Tensor]:
    """(estimate, upper), the estimate anywhere below the upper end, some of them at it."""
    upper = torch.linspace(1e-3, 8, BATCH)
    return upper * torch.linspace(0, 1, BATCH).flip(0), upper


def test_quantiles_ascend_within_zero_and_the_upper_end_whatever_the_weights() -> None:
    estimate, upper = ends()
    answer = network(spread=5.0)(*evidence(), estimate, upper)
    assert bool((answer.diff(dim=-1) >= 0).all())
    assert bool((answer >= 0).all() and (answer <= upper.unsqueeze(-1)).all())
    assert bool((answer == 0).any() and (answer == upper.unsqueeze(-1)).any()), "the ends were never reached"


def test_the_floor_moves_both_ends_and_not_the_value() -> None:
    model = network(spread=0.5)
    upper = torch.linspace(1, 8, BATCH)
    estimate = 0.5 * upper
    before = model(*evidence(), estimate, upper)
    model.floor.fill_(1e-3)
    moved = model(*evidence(), estimate, upper) - before
    inside = (before[:, 0] > 1e-3) & (before[:, 2] < upper - 1e-3)
    assert int(inside.sum()) > BATCH // 2
    expected = torch.tensor([-1e-3, 0, 1e-3]).expand(int(inside.sum()), 3)
    torch.testing.assert_close(moved[inside], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("size", "row"), [(1000, 0), (4096, 0), (4097, 1), (12_000, 1), (12_001, 2), (36_000, 2)])
def test_the_interval_is_widened_by_the_factor_of_its_size_and_its_value(size: int, row: int) -> None:
    model = network(spread=0.5)
    upper = torch.linspace(0.2, 8, BATCH)
    estimate = 0.5 * upper
    scalars, tokens = evidence()
    scalars[:, LOG_SIZE] = math.log(size)
    before = model(scalars, tokens, estimate, upper)
    model.widening.copy_(1 + 0.1 * torch.arange(12).reshape(3, 4))
    after = model(scalars, tokens, estimate, upper)
    assert torch.equal(after[:, 1], before[:, 1])
    column = (before[:, 1].unsqueeze(-1) > torch.tensor(VALUE_BINS)).sum(-1)
    assert len(column.unique()) == 4
    inside = (after[:, 0] > 0) & (after[:, 2] < upper)
    assert int(inside.sum()) > BATCH // 4
    ratio = (after[:, 2] - after[:, 0]) / (before[:, 2] - before[:, 0])
    torch.testing.assert_close(ratio[inside], (1 + 0.1 * (4 * row + column))[inside], rtol=1e-4, atol=0)


def test_with_a_floor_the_interval_still_ends_at_zero_and_the_upper_end() -> None:
    model = network(spread=5.0)
    model.floor.fill_(0.5)
    estimate, upper = ends()
    answer = model(*evidence(), estimate, upper)
    assert bool((answer.diff(dim=-1) >= 0).all())
    assert float(answer.detach().min()) == 0
    assert bool((answer <= upper.unsqueeze(-1)).all())


@pytest.mark.parametrize("pressed", ["zero", "upper end"])
def test_an_answer_pressed_against_an_end_gets_the_floor_like_any_other(pressed: str) -> None:
    model, floor = network(), 1e-3
    last = model.read[-1]
    assert isinstance(last, torch.nn.Linear)
    last.bias.data[0] = -50.0 if pressed == "zero" else 50.0
    model.floor.fill_(floor)
    upper = torch.linspace(1, 8, BATCH)
    low, value, high = model(*evidence(), 0.5 * upper, upper).unbind(-1)
    torch.testing.assert_close(value, torch.zeros(BATCH) if pressed == "zero" else upper)
    torch.testing.assert_close(high - low, torch.full((BATCH,), floor), rtol=0, atol=1e-6)
    scalars, tokens = evidence()
    read = TailReader(model)(scalars[0].numpy(), tokens[0].numpy(), 0.5 * float(upper[0]), float(upper[0]))
    assert read[2] - read[0] == pytest.approx(floor, abs=1e-6)


def test_the_untrained_network_goes_a_fifth_of_the_way() -> None:
    estimate, upper = torch.tensor([1.0, 0.5]), torch.tensor([2.0, 4.0])
    answer = network()(*(part[:2] for part in evidence()), estimate, upper)
    torch.testing.assert_close(answer[:, 1], estimate + 0.2 * (upper - 0.95 * estimate))
    assert bool((answer[:, 0] < answer[:, 1]).all() and (answer[:, 1] < answer[:, 2]).all())


def test_an_estimate_at_the_upper_end_can_still_be_lowered() -> None:
    model = network()
    last = model.read[-1]
    assert isinstance(last, torch.nn.Linear)
    last.bias.data[0] = -1.0
    end = torch.tensor([2.0])
    answer = model(*(part[:1] for part in evidence()), end, end)
    assert answer[0, 1].item() == pytest.approx(1.9)


def test_standardised_features_have_no_units() -> None:
    answers = []
    for offset, scale in ((0.0, 1.0), (-3.0, 20.0)):
        torch.manual_seed(0)
        model = network(spread=0.5)
        given = evidence(offset, scale)
        model.standardise(*given)
        answers.append(model(*given, *ends()))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-3, atol=1e-4)


def test_beyond_six_standard_deviations_a_feature_moves_nothing_more() -> None:
    model = network(spread=0.5)
    scalars, tokens = evidence()
    model.standardise(scalars, tokens)
    answers = []
    for distance in (0.0, 7.0, 1e6):
        far = scalars.clone()
        far[:, 2] = model.scalar_mean[2] + distance * model.scalar_scale[2]
        answers.append(model(far, tokens, *ends()))
    assert torch.equal(answers[1], answers[2])
    assert not torch.equal(answers[0], answers[1])


def test_the_feature_farthest_outside_the_training_range_is_named() -> None:
    model = network()
    scalars, tokens = evidence()
    model.standardise(scalars, tokens)
    reader = TailReader(model)
    inside = scalars[0].double().numpy()
    assert reader.farthest_outside(inside)[1] == 0
    outside = inside.copy()
    outside[1] = float(scalars[:, 1].amin() - 0.4 * model.scalar_scale[1])
    outside[3] = float(scalars[:, 3].amax() + 2.5 * model.scalar_scale[3])
    feature, distance = reader.farthest_outside(outside)
    assert feature == 3
    assert distance == pytest.approx(2.5, rel=1e-4)


def test_without_a_training_set_nothing_is_outside() -> None:
    assert TailReader(network()).farthest_outside(np.full(5, 1e30))[1] == 0


@pytest.mark.parametrize("spread", [0.5, 5.0])
def test_the_reader_answers_as_the_network(spread: float) -> None:
    """Also beyond the clipped features, at both ends of the interval, and in every bin of the widening."""
    model = network(spread)
    scalars, tokens = evidence(scale=4.0)
    scalars[:, LOG_SIZE] = torch.linspace(5, 11, BATCH)
    model.standardise(*evidence())
    model.widening.copy_(torch.arange(1.0, 1 + model.widening.numel()).reshape(model.widening.shape))
    model.floor.fill_(1e-3)
    estimate, upper = ends()
    expected = model(scalars, tokens, estimate, upper)
    reader = TailReader(model)
    for index in range(BATCH):
        found = reader(
            scalars[index].double().numpy(), tokens[index].double().numpy(), float(estimate[index]), float(upper[index])
        )
        torch.testing.assert_close(torch.from_numpy(found).float(), expected[index], rtol=1e-4, atol=1e-5)


def test_a_checkpoint_brings_back_the_tail_with_its_training_range(tmp_path: Path) -> None:
    tail = network(spread=0.5)
    given = evidence()
    tail.standardise(*given)
    save_checkpoint(tmp_path / "m", tail)
    restored, _ = load_checkpoint(tmp_path / "m", LogDetTail)
    assert restored.config == tail.config
    assert torch.equal(restored(*given, *ends()), tail(*given, *ends()))
    assert torch.equal(restored.scalar_high, tail.scalar_high)


def test_the_shipped_head_is_trained() -> None:
    tail = load_head()
    assert bool(tail.scalar_low.isfinite().all() and tail.scalar_high.isfinite().all())
    last = tail.read[-1]
    assert isinstance(last, torch.nn.Linear)
    assert float(last.weight.detach().abs().max()) > 0
    assert 0 < float(tail.floor) < 1e-3
    for axis in (0, 1):
        assert bool((tail.widening.diff(dim=axis) >= 0).all()), "narrower for larger n or z"
    assert 1 < float(tail.widening[0, 0]) < float(tail.widening[-1, -1])
