"""Solvers as they are named, refused, switched on, interrupted and left out."""

import json
import math

import gpytorch
import pytest
import torch
from linear_operator.utils.errors import NotPSDError

from gp_rangeformer import Direct, settings
from gp_rangeformer.lab.compare import DEFAULT_SOLVERS, Options, SolverError, State, compare, parse_solvers, write_json
from gp_rangeformer.lab.compare.tables import markdown, tables
from gp_rangeformer.lab.compare.training import Observer
from tests.lab.comparisons import arm, result_of


def test_a_solver_is_switched_on_inside_its_context_only():
    rangeformer, cg, cholesky = parse_solvers("rangeformer:rank=50+predictor=previous,cg-tight,cholesky", min_size=77)
    before = settings.current()
    with settings.rangeformer():
        with cg.active():
            assert settings.rangeformer.off()
            assert gpytorch.settings.max_cholesky_size.value() == 0
            assert gpytorch.settings.cg_tolerance.value() == 0.01
        with cholesky.active():
            assert settings.rangeformer.off()
            assert not gpytorch.settings.fast_computations.log_prob.on()
    with rangeformer.active():
        assert settings.rangeformer.on()
        solver = settings.solver.value()
        assert (solver.rank, solver.predictor, settings.min_size.value()) == (50, "previous", 77)
    assert settings.current() == before


def test_the_networks_own_answers_are_compared_when_asked_for_and_need_not_be_right():
    assert "rangeformer-direct" not in DEFAULT_SOLVERS
    (direct,) = parse_solvers("rangeformer-direct")
    with direct.active():
        assert settings.rangeformer.on()
        assert isinstance(settings.solver.value(), Direct)
    result = result_of(compare(arm(300), (direct,), Options(steps=2, audit_every=1)), "rangeformer-direct")
    assert [step.answered_by for step in result.steps] == ["direct"] * 3
    assert all(audit.value_error > 1e-6 for audit in result.audits)
    assert all(step.residual is not None and step.interval is not None for step in result.steps)


def test_settings_are_parsed_in_their_own_type():
    (spec,) = parse_solvers(
        "rangeformer:rank=50+tolerance=0.05+logdet=lanczos+exact_line_search=off+min_size=9", min_size=7
    )
    expected = {"min_size": 9, "rank": 50, "tolerance": 0.05, "logdet": "lanczos", "exact_line_search": False}
    assert spec.overrides == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cholesky,newton", "no solver 'newton'; solvers: exact, cholesky, cg, cg-tight, rangeformer"),
        ("", "no solver named"),
        ("reference", "the reference always runs"),
        ("cg,cg", "named twice"),
        ("cg:rank=3", "only exact, rangeformer, rangeformer-fit and rangeformer-direct take settings"),
        ("rangeformer:ranks=3", "no setting 'ranks'; settings: .*rank"),
        ("rangeformer:rangeformer=off", "no setting 'rangeformer'"),
        ("rangeformer:rank", "not of the form"),
        ("rangeformer:rank=0", "at least 1"),
        ("rangeformer:rank=many", "rank=many"),
        ("rangeformer:predictor=oracle", "'extrapolate'"),
        ("rangeformer:exact_line_search=maybe", "write on or off"),
        ("rangeformer:logdet=exact", "logdet=exact is gone: name the solver exact"),
        ("rangeformer:mode=direct", "mode is gone: name the solver rangeformer-direct"),
        ("rangeformer:compiled_kernels=off", "compiled_kernels is gone: fused_kernels=tensors"),
        ("rangeformer:fused_kernels=on", "fused_kernels=on is gone: fused_kernels=compiled"),
        ("rangeformer:verbose=on", r"verbose is gone: .*setLevel\(logging\.DEBUG\)"),
    ],
)
def test_a_solver_that_cannot_be_is_refused_with_what_can(names, message):
    with pytest.raises(SolverError, match=message):
        parse_solvers(names)


def test_timing_only_names_must_be_among_the_solvers_and_train_by_adam():
    with pytest.raises(SolverError, match="not among the solvers"):
        parse_solvers("cg", timing_only="cholesky")
    with pytest.raises(SolverError, match="ends where it has converged"):
        parse_solvers("cg,rangeformer-fit", timing_only="rangeformer-fit")


def test_a_solver_that_raises_does_not_stop_the_others(monkeypatch):
    from linear_operator.operators import LinearOperator

    n = 400  # fewer are left to GPyTorch, also with the flag
    original = LinearOperator.cholesky

    def refuse(self, upper=False):
        if self.dtype == torch.float32 and self.shape[-1] == n:
            raise NotPSDError("made up for this test")
        return original(self, upper)

    monkeypatch.setattr(LinearOperator, "cholesky", refuse)
    comparison = compare(arm(n), parse_solvers("cholesky,exact"), Options(steps=2))
    broken = comparison.result("cholesky")
    assert broken is not None
    assert broken.state is State.FAILED
    assert broken.error == "NotPSDError: made up for this test"
    assert broken.steps == []
    result_of(comparison, "exact")
    assert "cholesky failed at step 0: NotPSDError: made up for this test" in tables(comparison)[-1].to_markdown()


def test_a_value_that_is_not_a_number_ends_the_solver(monkeypatch):
    def spoil(solver: str, done: int, total: int, status: str) -> None:
        if solver == "exact" and done == 2:
            monkeypatch.setattr(torch.optim.Adam, "step", to_nan)

    def to_nan(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.fill_(math.nan)

    comparison = compare(arm(120), parse_solvers("exact"), Options(steps=5), observer=spoil)
    result = comparison.result("exact")
    assert result is not None
    assert result.state is State.FAILED
    assert result.error
    assert len(result.steps) == 3


def interrupt_at(name: str, step: int) -> Observer:
    def observer(solver: str, done: int, total: int, status: str) -> None:
        if solver == name and done == step:
            raise KeyboardInterrupt

    return observer


def test_an_interrupt_keeps_every_finished_solver_and_the_steps_done(tmp_path):
    path = tmp_path / "result.json"
    comparison = compare(
        arm(120),
        parse_solvers("cholesky,exact,cg"),
        Options(steps=5),
        observer=interrupt_at("exact", 3),
        save=lambda so_far: write_json(path, so_far.to_json()),
    )
    assert comparison.interrupted
    assert [result.state for result in comparison.results] == [State.DONE, State.DONE, State.INTERRUPTED]
    content = json.loads(path.read_text())
    assert content["interrupted"] is True
    assert [solver["name"] for solver in content["solvers"]] == ["reference", "cholesky", "exact"]
    assert [len(solver["steps"]) for solver in content["solvers"]] == [6, 6, 3]
    assert content["solvers"][2]["state"] == "interrupted"
    assert content["solvers"][2]["summary"]["seconds_per_step"] > 0
    assert "interrupted after 3 steps" in markdown(comparison, "machine", "command")
    assert torch.is_grad_enabled()


def test_timing_only_solvers_run_few_steps_and_take_no_part_in_the_comparison():
    options = Options(steps=4, timing_steps=2, audit_every=1)
    comparison = compare(arm(120), parse_solvers("exact,cg", timing_only="cg"), options)
    timed = result_of(comparison, "cg")
    assert len(timed.steps) == 2
    assert timed.rmse is timed.exact_value is timed.difference is None
    assert [audit.step for audit in timed.audits] == [0]
    assert timed.summary()["gradient_error_start"] > 0
    arrival, _, cost = tables(comparison)
    assert not any(row[0].startswith("cg") for row in arrival.rows)
    assert any(row[0] == "cg\ntiming only" for row in cost.rows)


def test_systems_that_the_plugin_declines_are_counted_with_their_reason():
    result = result_of(compare(arm(60), parse_solvers("rangeformer"), Options(steps=1)), "rangeformer")
    assert sum(result.declined.values()) == 2
    assert "exact_size" in next(iter(result.declined))
    assert result.steps[0].interval is None
