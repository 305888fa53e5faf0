"""The names of the log determinant's features: their order is that of the shipped head, or the head is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from gp_rangeformer.checkpoint import CheckpointError
from gp_rangeformer.logdet import learned
from gp_rangeformer.logdet.features import (
    CURVES,
    LEVELS,
    POINTWISE,
    SCALARS,
    TOKENS,
    check_features,
    ordered_scalars,
    ordered_tokens,
)


def test_names_are_distinct() -> None:
    assert len(set(SCALARS)) == len(SCALARS)
    assert len(set(TOKENS)) == len(TOKENS)


def test_scalars_stand_where_their_names_do_in_whatever_order_they_are_given() -> None:
    numbers = {name: float(index) for index, name in enumerate(SCALARS)}
    backwards = dict(reversed(numbers.items()))
    expected = torch.arange(len(SCALARS), dtype=torch.float64)
    assert torch.equal(ordered_scalars(numbers), expected)
    assert torch.equal(ordered_scalars(backwards), expected)


def test_tokens_stand_where_their_names_do_in_whatever_order_they_are_given() -> None:
    columns = {name: torch.full((3,), float(index), dtype=torch.float64) for index, name in enumerate(TOKENS)}
    curves = {name: torch.stack([columns[f"{name}_{level}"] for level in LEVELS], dim=-1) for name in CURVES[::-1]}
    found = ordered_tokens(curves, {name: columns[name] for name in POINTWISE[::-1]})
    assert torch.equal(found, torch.arange(len(TOKENS), dtype=torch.float64).expand(3, -1))


def test_a_scalar_that_is_missing_or_unknown_is_an_error() -> None:
    numbers = dict.fromkeys(SCALARS, 0.0)
    with pytest.raises(KeyError, match="no place among the scalars for log_sise"):
        ordered_scalars({**numbers, "log_sise": 1.0})
    del numbers["radau"]
    with pytest.raises(KeyError, match="radau"):
        ordered_scalars(numbers)


def test_the_shipped_card_names_every_feature_in_order() -> None:
    card = learned.head_card()
    check_features(card, learned.HEAD)
    assert (card.config["scalars"], card.config["token_features"]) == (len(SCALARS), len(TOKENS))


def _exchanged(training: dict[str, Any]) -> None:
    names = training["scalars"]
    names[6], names[7] = names[7], names[6]


def _shortened(training: dict[str, Any]) -> None:
    training["tokens"].pop()


def _unnamed(training: dict[str, Any]) -> None:
    del training["scalars"], training["tokens"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_exchanged, "of the scalars, number 6 is log_gap_0.25 there and log_gap_0.1 here"),
        (_shortened, "22 tokens are named there, 23 here"),
        (_unnamed, "0 scalars are named there, 39 here"),
    ],
)
def test_a_head_that_was_trained_on_other_features_is_refused(
    change: Callable[[dict[str, Any]], None], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix in (".json", ".safetensors"):
        shutil.copy(learned.HEAD.with_suffix(suffix), tmp_path)
    described = tmp_path / "head.json"
    monkeypatch.setattr(learned, "HEAD", tmp_path / "head")
    assert learned.load_head().config.scalars == len(SCALARS), "the copy itself was refused"
    facts = json.loads(described.read_text())
    change(facts["training"])
    described.write_text(json.dumps(facts))
    with pytest.raises(CheckpointError) as refused:
        learned.load_head()
    assert said in str(refused.value)
    assert "train it again with python -m pretrain.log_determinant.train" in str(refused.value)
    assert str(described) in str(refused.value)
