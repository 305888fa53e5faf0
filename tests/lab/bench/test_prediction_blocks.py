"""GPyTorch in blocks of test points, as its users call it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from gp_rangeformer.lab.bench import prediction_contenders, prediction_data
from gp_rangeformer.lab.bench.prediction_contenders import (
    CHOLESKY,
    CONTENDERS,
    FAST,
    FLAG,
    HOST,
    HOST_WHOLE,
    LOVE,
    WHOLE,
)
from gp_rangeformer.lab.bench.prediction_data import Fitted, load_fitted
from gp_rangeformer.lab.bench.prediction_tables import predictions_grid, small_grid
from gp_rangeformer.lab.bench.predictions import measure_small
from tests.lab.bench.test_predictions import PLAN, POINTS, start

BY_NAME = {contender.name: contender for contender in (*CONTENDERS, HOST, HOST_WHOLE)}


@pytest.fixture(scope="module")
def fitted() -> Iterator[Fitted]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prediction_data, "optimum", start)
        yield load_fitted("robot_arm", 100, POINTS, dtype=torch.float64, seed=0)


@pytest.mark.parametrize("name", [CHOLESKY, FAST, LOVE, HOST.name])
def test_blocks_give_the_numbers_of_one_call(fitted: Fitted, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = fitted.data.test_x[:60]
    whole = BY_NAME[name].build(fitted)(points)  # fewer than a block
    monkeypatch.setattr(prediction_contenders, "BLOCK", 25)
    split = BY_NAME[name].build(fitted)(points)
    for found, wanted in zip(split, whole, strict=True):
        assert found.shape == (60,)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [(name, [25, 25, 10]) for name in (CHOLESKY, FAST, LOVE, HOST.name)]
    + [(name, [60]) for name in (WHOLE, HOST_WHOLE.name, FLAG.name)],
)
def test_one_model_answers_all_blocks(name: str, sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_contenders, "BLOCK", 25)
    built: list[list[int]] = []

    def build() -> Any:
        asked: list[int] = []
        built.append(asked)

        def model(x: Tensor) -> Any:
            asked.append(len(x))
            return SimpleNamespace(mean=x[:, 0], variance=x[:, 0])

        return model

    predict = BY_NAME[name].build(SimpleNamespace(build=build))  # type: ignore[arg-type]
    predict(torch.zeros(60, 2))
    predict(torch.zeros(60, 2))
    assert built == [sizes * 2]


def test_blocks_need_no_matrix_of_all_points(fitted: Fitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction_contenders, "free_bytes", lambda device: 2**27)
    HOST.check(fitted, 65_536)
    with pytest.raises(prediction_contenders.UnavailableError, match="refused"):
        HOST_WHOLE.check(fitted, 65_536)


def test_the_small_model_gets_blocks_and_a_quarter_at_once(fitted: Fitted) -> None:
    small = measure_small("robot_arm", fitted, PLAN)
    asked = [(row.name, [calls.t for calls in row.calls]) for row in small.rows]
    assert asked == [(FLAG.name, [16, 64]), (HOST.name, [16, 64]), (HOST_WHOLE.name, [16])]
    assert not [calls.failure for row in small.rows for calls in row.calls if calls.failure]
    assert "in blocks of 1,000 points" in small_grid([small], replace(PLAN, block=1000), "").to_markdown()
    assert "given all points at once" in small_grid([small], PLAN, "").to_markdown()
    assert "in blocks of 1,000 points" in predictions_grid([], replace(PLAN, block=1000), "").to_markdown()
