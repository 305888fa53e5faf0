"""Attention over rows: the linear form equals the quadratic one, and no order of the rows matters."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer.rangeformer.attention import RowAttention, linear_attention, taylor_features


def test_linear_attention_is_the_sum_over_all_pairs() -> None:
    query, key, value = torch.randn(2, 7, 3).double(), torch.randn(2, 9, 3).double(), torch.randn(2, 9, 5).double()
    by_pairs = torch.einsum("bif,bjf,bjd->bid", query, key, value)
    torch.testing.assert_close(linear_attention(query, key, value), by_pairs)


def test_taylor_features_expand_the_exponential_to_second_order_and_stay_positive() -> None:
    query, key = torch.randn(50, 6).double(), torch.randn(40, 6).double()
    product = query @ key.mT / 6**0.5
    kernel = taylor_features(query) @ taylor_features(key).mT
    torch.testing.assert_close(kernel, 1 + product + product.square() / 2)
    assert (kernel > 0).all()


def test_taylor_attention_is_the_normalised_mean_under_its_kernel() -> None:
    torch.manual_seed(1)
    attention = RowAttention(dim=8, heads=2, head_dim=4, feature_map="taylor").double()
    tokens = torch.randn(3, 10, 8).double()
    query, key = attention.query_key(tokens).unflatten(-1, (4, 4)).transpose(1, 2).chunk(2, dim=1)
    product = query @ key.mT / 2
    weights = 1 + product + product.square() / 2
    weights = weights / weights.sum(-1, keepdim=True)
    value = attention.value(tokens).unflatten(-1, (2, 4)).transpose(1, 2)
    expected = attention.output((weights @ value).transpose(1, 2).flatten(-2))
    torch.testing.assert_close(attention(tokens), expected)


@pytest.mark.parametrize("feature_map", ["taylor", "identity", "softmax"])
@pytest.mark.parametrize("head_dim", [2, 4])  # 2: queries and keys of all heads are together as wide as a token
def test_permuting_tokens_permutes_the_output(feature_map: str, head_dim: int) -> None:
    torch.manual_seed(0)
    attention = RowAttention(dim=8, heads=2, head_dim=head_dim, feature_map=feature_map).double()  # type: ignore[arg-type]
    tokens = torch.randn(3, 10, 8).double()
    order = torch.randperm(10)
    torch.testing.assert_close(attention(tokens[:, order]), attention(tokens)[:, order])
    assert not torch.allclose(attention(tokens)[:, :1], attention(tokens)[:, 1:2])
