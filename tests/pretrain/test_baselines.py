"""NumFormer and RowTransformer: homogeneity, equivariance, sizes, and what each switch changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gp_rangeformer.rangeformer.operator import DenseOperator
from pretrain.baselines.numformer import NumFormer, NumFormerConfig
from pretrain.baselines.read_out import SCALARS, TASKS
from pretrain.baselines.row_transformer import RowTransformer, RowTransformerConfig

ROWS = RowTransformerConfig(TASKS, dim=16, depth=3, heads=2, head_dim=4, rank=4)
SWITCHES = {
    "softmax": replace(ROWS, attention="softmax", looped=False),
    "taylor": replace(ROWS, looped=False),
    "identity": replace(ROWS, attention="identity", looped=False),
    "looped": ROWS,
    "operator": replace(ROWS, operator=True),
}
ENTRIES = NumFormerConfig(TASKS, dim=16, depth=2, heads=2, head_dim=4, largest=7)


@pytest.fixture
def matrices() -> Tensor:
    root = torch.randn(3, 6, 6)
    return root @ root.mT / 6 + 0.1 * torch.eye(6)


@pytest.fixture
def rhs() -> Tensor:
    return torch.randn(3, 6)


def build(name: str) -> NumFormer | RowTransformer:
    return NumFormer(ENTRIES) if name == "numformer" else RowTransformer(SWITCHES[name])


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


@pytest.mark.parametrize("name", ["numformer", *SWITCHES])
def test_answers_are_homogeneous_in_the_matrix_and_the_right_hand_side(name, matrices, rhs):
    model = build(name)
    one = model(matrices, rhs, generator=seeded())[-1]
    other = model(300 * matrices, 7 * rhs, generator=seeded())[-1]
    expected = {
        "trace": 300 * one["trace"],
        "lambda_max": 300 * one["lambda_max"],
        "logdet": one["logdet"] + 6 * torch.tensor(300.0).log(),
        "solve": one["solve"] * 7 / 300,
    }
    assert all(value.abs().min() > 1e-6 for value in one.values())
    for task in TASKS:
        torch.testing.assert_close(other[task], expected[task], rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", list(SWITCHES))
def test_permuting_rows_with_their_codes_permutes_the_solution_and_keeps_the_scalars(name, matrices, rhs):
    model = build(name)
    assert isinstance(model, RowTransformer)
    codes = torch.randn(3, 6, 16)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    one = model(matrices, rhs, codes=codes)[-1]
    other = model(matrices[:, order][:, :, order], rhs[:, order], codes=codes[:, order])[-1]
    torch.testing.assert_close(other["solve"], one["solve"][:, order], rtol=1e-3, atol=1e-4)
    for task in SCALARS:
        torch.testing.assert_close(other[task], one[task], rtol=1e-3, atol=1e-4)


def test_numformer_has_a_token_per_entry_and_one_per_entry_of_the_right_hand_side(matrices, rhs):
    model = NumFormer(ENTRIES)
    assert model.tokens(matrices).shape[1] == 36
    assert model.tokens(matrices, rhs).shape[1] == 42


def test_numformer_reads_positions(matrices, rhs):
    model = NumFormer(ENTRIES)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    one, other = model(matrices, rhs)[0], model(matrices[:, order][:, :, order], rhs[:, order])[0]
    assert (one["lambda_max"] - other["lambda_max"]).abs().max() > 1e-4


def test_numformer_refuses_sizes_beyond_its_position_tables():
    model = NumFormer(replace(ENTRIES, tasks=SCALARS))
    assert model.fits(7)
    assert not model.fits(8)
    with pytest.raises(ValueError, match="beyond the position tables of 7"):
        model(torch.eye(8).unsqueeze(0))


def test_the_number_of_loops_is_free_at_inference_and_every_loop_answers(matrices, rhs):
    model = build("looped")
    few, many = (model(matrices, rhs, loops=loops, generator=seeded()) for loops in (2, 9))
    assert (len(few), len(many)) == (2, 9)
    assert torch.equal(few[1]["solve"], many[1]["solve"])
    assert not torch.equal(many[1]["trace"], many[8]["trace"])


@pytest.mark.parametrize("name", ["numformer", "softmax", "taylor", "identity"])
def test_models_that_are_not_looped_refuse_a_number_of_loops(name, matrices, rhs):
    model = build(name)
    assert len(model(matrices, rhs)) == 1
    with pytest.raises(ValueError, match="loops"):
        model(matrices, rhs, loops=3)


def test_a_looped_model_has_one_block_and_another_has_one_per_level():
    assert len(RowTransformer(SWITCHES["looped"]).blocks) == 1
    assert len(RowTransformer(SWITCHES["taylor"]).blocks) == 3


def test_the_attention_switch_changes_the_answer_of_the_same_weights(matrices, rhs):
    answers, weights = [], build("taylor").state_dict()
    for name in ("softmax", "taylor", "identity"):
        model = build(name)
        model.load_state_dict(weights)
        answers.append(model(matrices, rhs, generator=seeded())[0]["lambda_max"])
    assert not torch.allclose(answers[0], answers[1], rtol=1e-5)
    assert not torch.allclose(answers[1], answers[2], rtol=1e-5)


@pytest.mark.parametrize(("name", "products"), [("looped", 1), ("operator", 1 + 5)])
def test_only_the_operator_mode_multiplies_by_the_matrix_in_every_loop(name, products, matrices, rhs, monkeypatch):
    calls = []
    original = DenseOperator.matmul
    monkeypatch.setattr(DenseOperator, "matmul", lambda self, block: (calls.append(1), original(self, block))[1])
    build(name)(matrices, rhs, loops=5)
    assert len(calls) == products


@pytest.mark.parametrize("told", [False, True])
def test_the_diagonal_is_seen_through_products_alone_unless_it_is_a_feature(told, matrices, rhs):
    model = RowTransformer(replace(ROWS, diagonal_feature=told))
    codes = torch.randn(3, 6, 16)
    codes[:, 0] = 0  # no product contains column 0, hence none contains the entry that is changed
    changed = matrices.clone()
    changed[:, 0, 0] += 1
    one, other = model(matrices, rhs, codes=codes)[-1], model(changed, rhs, codes=codes)[-1]
    assert torch.equal(one["trace"], other["trace"]) != told


@pytest.mark.parametrize("name", ["numformer", *SWITCHES])
def test_gradients_are_finite_and_reach_the_blocks_even_with_a_zero_matrix_in_the_batch(name, matrices, rhs):
    matrices[0], matrices[1], rhs[2] = 0, torch.eye(6), 0
    model = build(name)
    answers = model(matrices, rhs)
    torch.stack([value.square().sum() for answer in answers for value in answer.values()]).sum().backward()
    gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    assert all(bool(gradient.isfinite().all()) for gradient in gradients.values())
    assert all(float(gradients[f"blocks.0.{key}"].norm()) > 0 for key in ("attention.value.weight", "mlp.0.weight"))


@pytest.mark.parametrize("name", ["numformer", "looped"])
def test_solve_needs_a_right_hand_side(name, matrices):
    with pytest.raises(ValueError, match="right-hand side"):
        build(name)(matrices)


@pytest.mark.parametrize("tasks", [(), ("trace", "trace"), ("inverse",)])
def test_unknown_repeated_or_no_tasks_are_refused(tasks):
    with pytest.raises(ValueError, match="tasks must be different names"):
        NumFormer(replace(ENTRIES, tasks=tasks))


def test_the_operator_mode_needs_a_loop():
    with pytest.raises(ValueError, match="needs looped=True"):
        replace(ROWS, looped=False, operator=True)
