"""BoTorch's models and its own way to fit them."""

from __future__ import annotations

import importlib.util
import threading
from typing import Any

import pytest
import torch
from gpytorch.mlls import ExactMarginalLogLikelihood, SumMarginalLogLikelihood

from gp_rangeformer import settings
from gp_rangeformer.fit import botorch_fits, botorch_optimizer, fit_mll
from gp_rangeformer.fit.botorch import botorch_optimizer as default
from tests.fit.models import data, value

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("botorch") is None, reason="BoTorch is an extra"),
    pytest.mark.usefixtures("as_after_botorchs_import"),
]


def single_task(n: int, outputs: int = 1, noise: torch.Tensor | None = None) -> Any:
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Normalize

    x, y = data(n)
    targets = torch.stack([y * (index + 1) - index for index in range(outputs)], 1)
    model = SingleTaskGP(x, targets, train_Yvar=noise, input_transform=Normalize(x.shape[1]))
    return ExactMarginalLogLikelihood(model.likelihood, model)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("flag", [False, True])
def test_the_map_value_is_botorchs_or_better(given, flag) -> None:
    from botorch.fit import fit_gpytorch_mll

    noise = torch.full((110, 1), 0.01, dtype=torch.float64) if given else None
    best = value(fit_gpytorch_mll(single_task(110, noise=noise)))
    mll = single_task(110, noise=noise)
    with settings.rangeformer(flag):
        fitted = fit_gpytorch_mll(mll, optimizer=botorch_optimizer)
    assert fitted is mll
    assert not mll.training
    assert value(mll) >= best - 1e-3


def total(fitted: Any) -> float:
    """Over all outputs."""
    fitted.train()
    with torch.no_grad():
        model = fitted.model
        return float(fitted(model(*model.train_inputs), model.train_targets, *model.train_inputs).sum())


def test_several_outputs_and_lists() -> None:
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import ModelListGP

    reference = fit_gpytorch_mll(single_task(60, outputs=2))
    mll = single_task(60, outputs=2)
    fit_gpytorch_mll(mll, optimizer=botorch_optimizer)
    assert total(mll) >= total(reference) - 2e-3
    models = ModelListGP(single_task(60).model, single_task(50).model)
    together = SumMarginalLogLikelihood(models.likelihood, models)
    fit_gpytorch_mll(together, optimizer=botorch_optimizer)
    alone = single_task(50)
    fit_gpytorch_mll(alone, optimizer=botorch_optimizer)
    assert value(together.mlls[1]) == pytest.approx(value(alone), abs=1e-6)


def test_many_outputs_take_more_evaluations_than_average_information_does() -> None:
    from botorch.fit import fit_gpytorch_mll

    reference, mll = fit_gpytorch_mll(single_task(60, outputs=4)), single_task(60, outputs=4)
    fit_gpytorch_mll(mll, optimizer=botorch_optimizer)
    assert total(mll) >= total(reference) - 4e-3


def test_a_part_that_vanished_on_its_way_comes_back() -> None:
    """Its scale on the lower bound, off which the likelihood rises, by less than a step is worth: 0.064 nats per point
    below where BoTorch's own fit goes from there."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models.map_saas import AdditiveMapSaasSingleTaskGP

    generator = torch.Generator().manual_seed(1)
    x = torch.rand(30, 4, generator=generator, dtype=torch.float64)
    y = torch.sin(4 * x[:, 0]) + x[:, 1] ** 2 + 0.1 * torch.randn(30, generator=generator, dtype=torch.float64)
    torch.manual_seed(0)
    model = AdditiveMapSaasSingleTaskGP(x, y.unsqueeze(-1), num_taus=3)
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    result = fit_mll(mll)
    assert result.value == pytest.approx(value(mll), abs=1e-8)
    accepted = [record.value for record in result.history if record.accepted]
    assert accepted == sorted(accepted)
    fit_gpytorch_mll(mll)
    assert value(mll) - result.value < 0.003


def test_as_the_default_inside_the_flag() -> None:
    from botorch.fit import fit_gpytorch_mll
    from botorch.optim.fit import fit_gpytorch_mll_scipy

    calls = []
    with botorch_fits():
        assert settings.rangeformer.on()
        fit_gpytorch_mll(
            single_task(30), optimizer_kwargs={"callback": lambda parameters, result: calls.append(result)}
        )
    assert calls
    assert calls[0].step == 1
    assert settings.rangeformer.off()
    kept = fit_gpytorch_mll.__globals__["_fit_fallback"].__kwdefaults__["optimizer"]
    assert kept is fit_gpytorch_mll_scipy
    assert kept is not default


def test_the_last_context_to_be_left_puts_botorchs_optimiser_back() -> None:
    """In threads those are left in any order: each has put back what it found, which was another's."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.optim.fit import fit_gpytorch_mll_scipy

    defaults = fit_gpytorch_mll.__globals__["_fit_fallback"].__kwdefaults__
    entered, leave = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]

    def stay(index: int) -> None:
        with botorch_fits():
            entered[index].set()
            leave[index].wait(30)

    threads = [threading.Thread(target=stay, args=(index,)) for index in range(2)]
    for thread, event in zip(threads, entered, strict=True):
        thread.start()
        assert event.wait(30)
    found = []
    for thread, event in zip(threads, leave, strict=True):
        found.append(defaults["optimizer"])
        event.set()
        thread.join()
    assert found == [botorch_optimizer, botorch_optimizer]
    assert defaults["optimizer"] is fit_gpytorch_mll_scipy


def test_the_loss_that_botorch_makes_is_not_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """BoTorch before 0.18 makes it in every fit, all of which went to its own optimiser without a word."""
    from botorch.optim.closures import get_loss_closure_with_grads

    asked: list[object] = []

    def counted(mll: Any, **options: Any) -> Any:
        asked.append(mll)
        return fit_mll(mll, **options)

    monkeypatch.setattr("gp_rangeformer.fit.botorch.fit_mll", counted)
    mll = single_task(30)
    mll.train()
    free = {name: parameter for name, parameter in mll.named_parameters() if parameter.requires_grad}
    result = botorch_optimizer(mll, closure=get_loss_closure_with_grads(mll, free))
    assert asked == [mll]
    assert -result.fval == pytest.approx(value(mll), abs=1e-6)
    some, left_to_botorch = dict(list(free.items())[1:]), object()
    monkeypatch.setattr("botorch.optim.fit.fit_gpytorch_mll_scipy", lambda *arguments, **options: left_to_botorch)
    assert botorch_optimizer(mll, closure=get_loss_closure_with_grads(mll, some)) is left_to_botorch
    assert asked == [mll]


def test_a_loss_of_ones_own_and_limits(caplog: pytest.LogCaptureFixture) -> None:
    from botorch.optim.closures.core import ForwardBackwardClosure
    from botorch.optim.core import OptimizationStatus

    mll: Any = single_task(30)
    mll.train()
    parameters = {name: parameter for name, parameter in mll.named_parameters() if parameter.requires_grad}

    def loss() -> torch.Tensor:
        return -mll(mll.model(*mll.model.train_inputs), mll.model.train_targets)

    result = botorch_optimizer(mll, closure=ForwardBackwardClosure(loss, parameters), options={"maxiter": 2})
    assert result.fval < -value(single_task(30)) + 1e-6
    stopped = botorch_optimizer(single_task(30), timeout_sec=1e-9)
    assert stopped.status is OptimizationStatus.STOPPED
    with caplog.at_level("WARNING", logger="gp_rangeformer"):
        assert botorch_optimizer(single_task(30), max_evaluations=2).status is OptimizationStatus.STOPPED
    assert "has not converged" in caplog.text
