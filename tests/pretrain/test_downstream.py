from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from gp_rangeformer.checkpoint import save_checkpoint
from gp_rangeformer.lab.datasets import load
from gp_rangeformer.lab.models import hyperparameters
from gp_rangeformer.rangeformer.rangeformer import RangeFormer, RangeFormerConfig
from pretrain.baselines.untrained import untrained
from pretrain.experiments.downstream import gp_learning, range_finder, warm_start
from pretrain.experiments.downstream.command import main
from pretrain.experiments.downstream.descent import Crossing, Start, conjugate_gradients, network_start
from pretrain.experiments.downstream.finders import block_krylov, finders, projection_errors, subspace_iteration
from pretrain.experiments.downstream.gp_training import (
    build,
    directly,
    exact_value,
    find_length_scale,
    likelihood_per_point,
    set_length_scale,
    train,
)
from pretrain.matrices import MatrixMarketError, Spectrum
from tests.pretrain.market import MARKET, needs_market

SMALL = RangeFormerConfig(dim=12, sketch=4, width=4, heads=2, head_dim=4, loops=2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two_eigenvalues() -> tuple[csr_matrix, np.ndarray]:
    basis = torch.linalg.qr(torch.randn(10, 10, generator=generator(), dtype=torch.float64)).Q
    spectrum = torch.tensor([1.0] * 4 + [5.0] * 6, dtype=torch.float64)
    matrix = (basis * spectrum) @ basis.mT
    return csr_matrix(matrix.numpy()), torch.randn(10, generator=generator(1), dtype=torch.float64).numpy()


def decaying(n: int = 40) -> torch.Tensor:
    return Spectrum(("exponential",)).sample(1, n, generator())[0]


def test_two_eigenvalues_take_two_iterations_and_two_products_from_zero() -> None:
    matrix, rhs = two_eigenvalues()
    _, (crossing,) = conjugate_gradients(matrix, rhs, Start, [1e-10], cap=100)
    assert crossing is not None
    assert (crossing.iterations, crossing.products) == (2, 2)


def test_a_start_that_is_the_solution_costs_its_own_products_and_one_residual() -> None:
    matrix, rhs = two_eigenvalues()
    solution = np.linalg.solve(matrix.toarray(), rhs)
    _, (crossing,) = conjugate_gradients(matrix, rhs, lambda: Start(solution, products=7), [1e-10], cap=100)
    assert crossing is not None
    assert (crossing.iterations, crossing.products) == (0, 8)


def test_the_diagonal_start_and_the_diagonal_preconditioner_solve_a_diagonal_matrix() -> None:
    diagonal = np.array([1.0, 2.0, 3.0, 40.0])
    matrix, rhs = csr_matrix(np.diag(diagonal)), np.ones(4)
    _, (started,) = conjugate_gradients(matrix, rhs, lambda: Start(rhs / diagonal), [1e-10], cap=10)
    _, (preconditioned,) = conjugate_gradients(matrix, rhs, Start, [1e-10], cap=10, inverse_diagonal=1 / diagonal)
    assert started is not None
    assert preconditioned is not None
    assert (started.iterations, preconditioned.iterations) == (0, 1)


def test_a_tolerance_that_the_cap_does_not_reach_is_none_and_the_looser_one_is_kept() -> None:
    matrix, rhs = two_eigenvalues()
    _, (loose, tight) = conjugate_gradients(matrix, rhs, Start, [0.9, 1e-10], cap=1)
    assert loose is not None
    assert loose.iterations == 1
    assert tight is None


def test_a_claimed_residual_is_true_where_rounding_separates_the_recurrence_from_it() -> None:
    # At condition 1e10 the recurrence passes 1e-12 long before the residual does, if it ever does.
    spectrum = torch.logspace(0, -10, 30, dtype=torch.float64)
    basis = torch.linalg.qr(torch.randn(30, 30, generator=generator(), dtype=torch.float64)).Q
    matrix = csr_matrix(((basis * spectrum) @ basis.mT).numpy())
    rhs = np.ones(30)
    _, (crossing,) = conjugate_gradients(matrix, rhs, Start, [1e-12], cap=2000)
    assert crossing is None


def test_the_network_is_charged_for_its_embedding_and_for_every_loop() -> None:
    matrix = csr_matrix(decaying().numpy())
    start = network_start(untrained(SMALL), matrix, np.ones(40), seed=0)
    assert start.products == 4 + 2 * 4


def test_a_median_at_runs_that_never_arrived_is_none() -> None:
    arrived = Crossing(3, 4, 0.5)
    assert warm_start.summary([arrived, None, None])["iterations"] is None
    assert warm_start.summary([arrived, arrived, None])["iterations"] == 3
    assert warm_start.summary([arrived, arrived, None])["arrived"] == 2


def test_projection_errors_of_the_best_range_are_the_next_eigenvalue_and_the_tail() -> None:
    matrix = decaying()
    spectrum, vectors = torch.linalg.eigh(matrix)
    spectral, frobenius = projection_errors(matrix, vectors[:, -5:])
    assert spectral == pytest.approx(float(spectrum[-6]), rel=1e-9)
    assert frobenius == pytest.approx(float(spectrum[:-5].square().sum().sqrt()), rel=1e-9)


def test_the_lanczos_norm_agrees_with_the_dense_one(monkeypatch) -> None:
    matrix = decaying()
    basis = subspace_iteration(matrix, 4, 0, generator()).basis
    dense, _ = projection_errors(matrix, basis)
    monkeypatch.setattr("pretrain.experiments.downstream.finders._DENSE_NORM", 0)
    lanczos, _ = projection_errors(matrix, basis)
    assert lanczos == pytest.approx(dense, rel=1e-5)


def test_power_steps_bring_a_range_nearer_to_the_best() -> None:
    matrix = decaying()
    none, many = (
        projection_errors(matrix, subspace_iteration(matrix, 4, steps, generator()).basis) for steps in (0, 9)
    )
    assert many[0] < 0.9 * none[0]


def test_block_krylov_is_orthonormal_and_at_least_as_good_as_subspace_iteration_of_the_same_depth() -> None:
    matrix = decaying()
    krylov = block_krylov(matrix, 4, 5, generator())
    torch.testing.assert_close(krylov.basis.mT @ krylov.basis, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(matrix @ krylov.basis, krylov.image)
    power = subspace_iteration(matrix, 4, 4, generator())
    assert krylov.columns == power.columns == 4 * 6
    assert projection_errors(matrix, krylov.basis)[1] < projection_errors(matrix, power.basis)[1]


def test_methods_at_the_networks_price_multiply_no_more_columns_than_it() -> None:
    matrix, methods = decaying(), finders(untrained(SMALL), untrained(SMALL))
    columns = {name: find(matrix, generator()).columns for name, find in methods.items()}
    assert columns["rangeformer"] == 4 + 2 * 4
    assert columns["block Krylov"] == columns["oversampled"] == columns["rangeformer"]
    assert columns["rpcholesky"] == 4


def test_every_finder_hands_over_the_image_of_its_basis() -> None:
    matrix, methods = decaying(), finders(untrained(SMALL), untrained(SMALL))
    for find in methods.values():
        found = find(matrix, generator())
        torch.testing.assert_close(found.image, matrix @ found.basis)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    torch.manual_seed(5)
    save_checkpoint(path, RangeFormer(SMALL))
    return path


@pytest.fixture(scope="module")
def quick_run(checkpoint, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("downstream")
    main(["--checkpoint", str(checkpoint), "--out", str(folder), "--parts", "cg,svd", "--quick"])
    return folder


def test_a_quick_cg_run_writes_every_method_at_both_tolerances_and_a_figure(quick_run) -> None:
    content = json.loads((quick_run / "cg.json").read_text())
    for row in content["systems"]:
        assert set(row["methods"]) == set(warm_start.METHODS)
        for method in row["methods"].values():
            assert [step["tolerance"] for step in method["to"]] == [1e-6, 1e-10]
    spent = [row["methods"]["rangeformer"]["to"][0] for row in content["systems"]]
    assert all(step["products"] == step["iterations"] + content["network_columns"] + 1 for step in spent)
    assert (quick_run / "cg.png").read_bytes().startswith(b"\x89PNG")


def test_a_quick_svd_run_writes_every_method_at_three_ranks_and_none_beats_the_optimum(quick_run) -> None:
    content = json.loads((quick_run / "svd.json").read_text())
    for row in content["matrices"]:
        assert list(row["methods"]) == content["methods"]
        assert len(content["methods"]) == 8
        for method in row["methods"].values():
            assert [error["k"] for error in method["nested"]] == [1, 2, 4]
            assert min(error["frobenius"] for error in method["nested"] + method["ritz"]) > 1 - 1e-6
    assert (quick_run / "svd.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_says_where_and_from_what_it_came(quick_run) -> None:
    content = json.loads((quick_run / "cg.json").read_text())
    assert content["torch"] == torch.__version__
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["arguments"]["plan"]["seeds"] == 1
    assert content["model"]["width"] == 4


def test_equal_arguments_run_nothing_again_and_other_weights_do(quick_run, tmp_path, monkeypatch) -> None:
    calls = []
    part = warm_start.run
    monkeypatch.setattr(warm_start, "run", lambda *arguments: calls.append(1) or part(*arguments))
    folder = tmp_path / "out"
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        save_checkpoint(tmp_path / "model", RangeFormer(SMALL))
        path = str(tmp_path / "model.safetensors")
        main(["--checkpoint", path, "--out", str(folder), "--parts", "cg", "--quick"])
    assert len(calls) == 2


def test_a_full_run_without_matrices_is_refused(checkpoint, tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["--checkpoint", str(checkpoint), "--out", str(tmp_path), "--parts", "svd"])
    assert "--matrices" in capsys.readouterr().err


def test_a_missing_file_is_named(tmp_path) -> None:
    plan = warm_start.Plan(systems=("bcsstk02",))
    with pytest.raises(MatrixMarketError, match=r"bcsstk02\.mtx"):
        warm_start.run(plan, untrained(SMALL), tmp_path)


@needs_market
def test_the_papers_matrix_is_among_those_of_a_quick_run() -> None:
    content = warm_start.run(warm_start.Plan.quick(MARKET), untrained(SMALL), MARKET)
    assert [row["n"] for row in content["systems"]] == [60, 60, 66]


def test_the_full_plan_has_the_papers_matrix_ten_more_and_three_decays() -> None:
    assert len(set(warm_start.SYSTEMS)) == 11
    assert warm_start.SYSTEMS[0] == "bcsstk02"
    assert set(range_finder.DECAYS) < set(range_finder.Plan().matrices)


@pytest.mark.filterwarnings("ignore::gp_rangeformer.OutsideToleranceWarning")
def test_the_networks_likelihood_is_the_exact_one_where_its_range_is_everything() -> None:
    """Thirty rows, and thirty columns long before residuals meet a tolerance of 1e-12."""
    model = build(load("borehole", n=30, n_test=1))
    exact = exact_value(model)
    with directly(untrained(SMALL), seed=0, tolerance=1e-12), torch.no_grad():
        value = likelihood_per_point(model.train())
    assert value.item() == pytest.approx(exact, rel=1e-9)


def test_training_by_the_networks_answers_follows_cholesky() -> None:
    """Solves to a hundredth and 32 probes move hyperparameters by a few per cent a step at most."""
    dataset = load("borehole", n=60, n_test=1)
    reached = {}
    for method in ("exact", "direct"):
        model, run = train(dataset, method, untrained(SMALL), steps=8, learning_rate=0.1, seed=0)
        assert run.stopped is None
        reached[method] = exact_value(model)
    assert len(run.inside) == len(run.exact_values) == 8
    assert all(run.inside)
    assert reached["direct"] == pytest.approx(reached["exact"], abs=0.02)


def test_a_length_scale_is_found_from_values_alone() -> None:
    dataset = load("borehole", n=40, n_test=1)
    model = build(dataset)
    found = find_length_scale(model, "exact", untrained(SMALL), seed=0)
    assert hyperparameters(model)["lengthscale"] == pytest.approx(found.value, rel=1e-3)
    for factor in (0.9, 1.1):
        set_length_scale(model, factor * found.value)
        value = exact_value(model)
        assert value is not None
        assert value < found.likelihood


def test_a_quick_gp_run_compares_the_networks_likelihood_with_the_exact_one(checkpoint, tmp_path) -> None:
    main(["--checkpoint", str(checkpoint), "--out", str(tmp_path), "--parts", "gp", "--quick"])
    content = json.loads((tmp_path / "gp.json").read_text())
    (row,) = content["problems"]
    methods = row["seeds"][0]
    assert list(row["summary"]) == list(gp_learning.METHODS)
    assert set(methods["length_scale"]) == set(gp_learning.METHODS)
    # Both start at the same hyperparameters.
    assert methods["direct"]["exact_values"][0] == pytest.approx(methods["exact"]["values"][0], rel=1e-9)
    assert len(methods["direct"]["residuals"]) == gp_learning.Plan.quick(None).steps
    assert (tmp_path / "gp.png").read_bytes().startswith(b"\x89PNG")
