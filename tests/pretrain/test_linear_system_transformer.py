from __future__ import annotations

import pytest
import torch

from pretrain.baselines.linear_system_transformer import (
    LinearSystemTransformer,
    LinearSystemTransformerConfig,
    assemble,
)

A, B, H = 0, 1, 2
BLOCK = LinearSystemTransformerConfig(layers=3)
FULL = LinearSystemTransformerConfig(layers=3, parameterisation="full", size=6, embedding="learned", embedding_dim=11)
FULL_IDENTITY = LinearSystemTransformerConfig(layers=2, parameterisation="full", size=6)


def systems(n: int, batch: tuple[int, ...] = (4,)) -> tuple[torch.Tensor, torch.Tensor]:
    factor = torch.randn(*batch, n, n, dtype=torch.float64)
    matrix = factor @ factor.mT / n
    return matrix / torch.linalg.matrix_norm(matrix, 2)[..., None, None], torch.randn(*batch, n, dtype=torch.float64)


def relative_distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).detach().norm() / right.detach().norm())


@pytest.mark.parametrize("config", [BLOCK, FULL, FULL_IDENTITY])
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_every_system_of_a_batch_is_solved_by_itself(config, batch) -> None:
    model = LinearSystemTransformer(config).double()
    matrix, rhs = systems(6, batch)
    together = model(matrix, rhs)
    assert together.shape == rhs.shape
    single = [model(a, b) for a, b in zip(matrix.reshape(-1, 6, 6), rhs.reshape(-1, 6), strict=True)]
    torch.testing.assert_close(together.reshape(-1, 6), torch.stack(single))


@pytest.mark.parametrize("n", [1, 5, 23])
def test_one_block_model_serves_every_size_with_the_same_fifty_parameters_a_layer(n) -> None:
    model = LinearSystemTransformer(BLOCK).double()
    matrix, rhs = systems(n)
    assert model(matrix, rhs).shape == rhs.shape
    assert sum(parameter.numel() for parameter in model.parameters()) == 50 * BLOCK.layers


def test_a_full_model_has_dense_weights_and_one_embedding_row_per_equation() -> None:
    model = LinearSystemTransformer(FULL)
    width = 6 + 1 + 11
    assert sum(parameter.numel() for parameter in model.parameters()) == 2 * 3 * width**2 + 6 * 11


def test_hand_set_block_weights_take_exactly_one_gradient_descent_step() -> None:
    model = LinearSystemTransformer(LinearSystemTransformerConfig(layers=1)).double()
    eta = 0.7
    with torch.no_grad():
        model.query_weights.zero_()
        model.value_weights.zero_()
        model.query_weights[0, A, A], model.query_weights[0, B, B] = 1.0, -1.0
        model.value_weights[0, A, H] = -eta
    matrix, rhs = systems(7)
    initial = torch.randn_like(rhs)
    residual = rhs - (matrix @ initial.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(model(matrix, rhs, initial), initial + eta * residual)


def test_a_block_model_is_the_full_model_with_the_assembled_weights() -> None:
    n = FULL_IDENTITY.size
    assert n is not None
    block = LinearSystemTransformer(LinearSystemTransformerConfig(layers=2)).double()
    full = LinearSystemTransformer(FULL_IDENTITY).double()
    with torch.no_grad():
        block.query_weights.normal_(std=0.1)
        block.value_weights.normal_(std=0.1)
        full.query_weights.copy_(assemble(block.query_weights, n))
        full.value_weights.copy_(assemble(block.value_weights, n))
    matrix, rhs = systems(n)
    torch.testing.assert_close(block(matrix, rhs), full(matrix, rhs))


def test_assembled_blocks_are_multiples_of_the_identity_or_of_ones() -> None:
    scalars = torch.arange(1.0, 26.0).reshape(5, 5)
    dense = assemble(scalars, 3)
    assert dense.shape == (13, 13)
    torch.testing.assert_close(dense[:3, :3], scalars[A, A] * torch.eye(3))
    torch.testing.assert_close(dense[:3, 3], scalars[A, B] * torch.ones(3))
    torch.testing.assert_close(dense[3, 4:7], scalars[B, H] * torch.ones(3))
    torch.testing.assert_close(dense[10:, 4:7], scalars[4, H] * torch.eye(3))
    assert dense[3, 3] == scalars[B, B]


def test_permuting_equations_and_unknowns_together_permutes_the_solution_of_a_block_model() -> None:
    model = LinearSystemTransformer(BLOCK).double()
    with torch.no_grad():
        model.query_weights.normal_(std=0.1)
        model.value_weights.normal_(std=0.1)
    matrix, rhs = systems(8)
    order = torch.randperm(8)
    permuted = model(matrix[:, order][:, :, order], rhs[:, order])
    torch.testing.assert_close(permuted, model(matrix, rhs)[:, order])


def test_permuting_equations_changes_a_block_model_because_the_identity_names_them() -> None:
    model = LinearSystemTransformer(BLOCK).double()
    matrix, rhs = systems(8)
    order = torch.arange(8).roll(1)
    assert relative_distance(model(matrix[:, order], rhs[:, order]), model(matrix, rhs)) > 1e-2


def test_a_full_model_refuses_another_size_and_says_which_it_serves() -> None:
    with pytest.raises(ValueError, match="serves n = 6, got n = 5"):
        LinearSystemTransformer(FULL).double()(*systems(5))


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": 0},
        {"layers": 2, "parameterisation": "full"},
        {"layers": 2, "size": 9},
        {"layers": 2, "parameterisation": "full", "size": 9, "embedding": "learned"},
        {"layers": 2, "embedding": "learned", "embedding_dim": 27},
        {"layers": 2, "embedding_dim": 27},
    ],
)
def test_contradicting_fields_are_refused(fields) -> None:
    with pytest.raises(ValueError, match=r"layers|size|embedding"):
        LinearSystemTransformerConfig(**fields)


def test_an_unknown_parameterisation_is_refused() -> None:
    # A TypeError where annotations are checked at run time.
    with pytest.raises((ValueError, TypeError)):
        LinearSystemTransformerConfig(layers=2, parameterisation="diagonal")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("config", [BLOCK, FULL])
def test_every_layer_of_a_new_model_gets_a_gradient(config) -> None:
    model = LinearSystemTransformer(config).double()
    matrix, rhs = systems(6)
    (model(matrix, rhs) - torch.linalg.solve(matrix, rhs)).square().mean().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad.flatten(1).norm(dim=1) > 0).all())


def test_a_new_block_model_has_no_sums_over_coordinates() -> None:
    model = LinearSystemTransformer(BLOCK)
    for weights in (model.query_weights, model.value_weights):
        assert not weights[:, B, [A, H, H + 1, H + 2]].any()
        assert not weights[:, [A, H, H + 1, H + 2], B].any()
        assert bool((weights[:, A, :].count_nonzero(-1) == 4).all())
