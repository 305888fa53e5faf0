"""With the flag off the host behaves to the last bit as if the package were not installed."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import Kernel
from gpytorch.models.exact_prediction_strategies import DefaultPredictionStrategy
from linear_operator import settings as host_settings
from linear_operator.operators import AddedDiagLinearOperator, LinearOperator

from gp_rangeformer import IncompatibleHostError, collect_reports, plugin, settings
from gp_rangeformer.plugin import entrances
from tests.plugin.market import build, exact_path, rangeformer_path

HOOKED = ("inv_quad_logdet", "solve", "root_inv_decomposition")


@contextlib.contextmanager
def package_removed() -> Iterator[None]:
    """The host's own methods, as before the package was imported."""
    for name in HOOKED:
        delattr(AddedDiagLinearOperator, name)
    MultivariateNormal.log_prob = entrances.original_log_prob
    Kernel.__call__ = entrances.original_call_kernel
    LinearOperator.add_low_rank = entrances.original_add_low_rank
    LinearOperator._mul_matrix = entrances.original_multiply
    try:
        yield
    finally:
        plugin.install()


def everything(log_prob: bool = True) -> list[torch.Tensor]:
    """Loss, gradient and predictions of a fresh model, two optimiser steps on."""
    torch.manual_seed(3)
    problem = build("ard", n=130)
    results = []
    with host_settings._fast_log_prob(log_prob):
        optimiser = torch.optim.Adam(problem.model.parameters(), lr=0.1)
        for _ in range(2):
            optimiser.zero_grad()
            loss = problem.loss()
            loss.backward()
            results += [loss.detach(), *(p.grad.clone() for p in problem.model.parameters() if p.grad is not None)]
            optimiser.step()
        for fast_pred_var in (False, True):
            with gpytorch.settings.fast_pred_var(fast_pred_var):
                prediction = problem.predict()
                results += [prediction.mean.detach(), prediction.covariance_matrix.detach()]
                fantasy = problem.model.get_fantasy_model(problem.test_x, torch.ones(len(problem.test_x)).double())
                results.append(fantasy(problem.test_x + 0.1).mean.detach())
    return results


def use_and_leave_the_flag() -> None:
    for path in (exact_path, rangeformer_path):
        with path(), gpytorch.settings.fast_pred_var():
            problem = build("ard", n=130)
            problem.loss().backward()
            problem.predict().variance.sum().backward()


@pytest.mark.parametrize("log_prob", [True, False])
@pytest.mark.parametrize("used", [False, True], ids=["never_used", "used_and_left"])
def test_the_host_is_bit_identical_with_the_flag_off(used: bool, log_prob: bool) -> None:
    with package_removed():
        assert "solve" not in AddedDiagLinearOperator.__dict__
        expected = everything(log_prob)
    if used:
        use_and_leave_the_flag()
    with collect_reports() as reports:
        found = everything(log_prob)
    assert len(reports) == 0
    assert len(found) == len(expected)
    for ours, host in zip(found, expected, strict=True):
        assert torch.equal(ours, host)


def calls_of_this_package(what: Callable[[], object]) -> int:
    """How many of its functions are entered."""
    own, entered = str(Path(plugin.__file__).parents[1]), 0

    def count(frame: Any, event: str, _: Any) -> None:
        nonlocal entered
        entered += event == "call" and frame.f_code.co_filename.startswith(own)

    sys.setprofile(count)
    try:
        what()
    finally:
        sys.setprofile(None)
    return entered


def test_with_the_flag_off_the_hooks_do_next_to_nothing() -> None:
    """What it costs everybody who imports the package: 10 us of a step, 30 of a prediction."""
    problem = build("ard", n=20)
    with host_settings._fast_log_prob(False), gpytorch.settings.fast_pred_var(False):
        assert 0 < calls_of_this_package(problem.loss) <= 15
        assert 0 < calls_of_this_package(lambda: problem.predict().variance) <= 60


def test_the_comparison_can_fail_the_flag_changes_bits() -> None:
    expected = everything()
    with rangeformer_path():
        found = everything()
    assert not all(torch.equal(ours, host) for ours, host in zip(found, expected, strict=True))


def test_installing_again_changes_nothing() -> None:
    def hooks() -> list[Any]:
        methods = [AddedDiagLinearOperator.__dict__[name] for name in HOOKED]
        others = [LinearOperator.add_low_rank, LinearOperator._mul_matrix]
        return [*methods, MultivariateNormal.log_prob, Kernel.__call__, *others]

    before = hooks()
    plugin.install()
    plugin.install()
    assert hooks() == before
    assert entrances.original_log_prob is not MultivariateNormal.log_prob
    everything()  # no hook calls itself


@pytest.mark.parametrize("name", HOOKED)
def test_a_host_method_with_another_signature_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LinearOperator, name, lambda self, something_new: None)
    with pytest.raises(IncompatibleHostError, match=rf"{name} takes.*linear-operator==0\.6\.1"):
        plugin.check_host()


@pytest.mark.parametrize("name", HOOKED)
def test_a_host_class_with_its_own_method_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AddedDiagLinearOperator, name, lambda self: None)
    with pytest.raises(IncompatibleHostError, match=f"its own {name}"):
        plugin.install()


def test_a_log_prob_with_another_signature_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entrances, "original_log_prob", lambda self, value, sample_weight: None)
    with pytest.raises(IncompatibleHostError, match="log_prob"):
        plugin.check_host()


@pytest.mark.parametrize("name", ["covar_cache", "exact_predictive_covar"])
def test_a_prediction_strategy_without_the_known_callers_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(DefaultPredictionStrategy, name)
    with pytest.raises(IncompatibleHostError, match=name):
        plugin.check_host()


def test_an_added_diagonal_without_its_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AddedDiagLinearOperator, "__init__", lambda self, *args: LinearOperator.__init__(self, *args))
    with pytest.raises(IncompatibleHostError, match="_linear_op"):
        plugin.check_host()


def test_the_installed_host_is_compatible() -> None:
    plugin.check_host()
    for name in HOOKED:
        ours = list(inspect.signature(getattr(AddedDiagLinearOperator, name)).parameters)
        assert ours == list(inspect.signature(getattr(LinearOperator, name)).parameters)


RELOAD = """
import importlib, torch, gpytorch, gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer import plugin
from gp_rangeformer.plugin import hooks
from gp_rangeformer.plugin import entrances
for module in (entrances, hooks, plugin):
    importlib.reload(module)
from tests.plugin.market import build, exact_path
with exact_path() as reports, gpytorch.settings.fast_computations(log_prob=False):
    problem = build(n=120)
    problem.loss().backward()
    problem.predict().variance
assert len(reports) == 3, reports.counts
"""


def test_reloading_the_hooks_does_not_make_them_call_themselves() -> None:
    """As a notebook's autoreload does."""
    subprocess.run([sys.executable, "-c", RELOAD], check=True, cwd=Path(__file__).parents[2], timeout=120)


def test_the_flag_itself_touches_no_host_setting() -> None:
    with settings.rangeformer():
        assert host_settings.fast_computations.log_prob.on()
        with host_settings._fast_log_prob(False):
            build(n=130).loss().backward()
            assert host_settings.fast_computations.log_prob.off()


def test_a_model_trained_with_the_flag_is_saved_and_copied_as_any_other() -> None:
    problem = build(n=130)
    keys = list(problem.model.state_dict())
    with exact_path(), gpytorch.settings.fast_pred_var():
        problem.loss().backward()
        expected = problem.predict().mean.detach()
        twin = copy.deepcopy(problem.model)
    assert list(problem.model.state_dict()) == keys
    buffer = io.BytesIO()
    torch.save(problem.model, buffer)
    assert b"gp_rangeformer." not in buffer.getvalue()  # no module of the package is needed to load it
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    for model in (twin, loaded):
        found = model.eval()(problem.test_x).mean
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
