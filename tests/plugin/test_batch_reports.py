"""Batches: what reports say, what goes wrong in one element, targets of other shapes and dtypes, BoTorch's outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import gpytorch
import pytest
import torch
from gpytorch.constraints import Interval as Bounds
from gpytorch.distributions import MultivariateNormal
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from gp_rangeformer import collect_reports, last_report, settings
from gp_rangeformer.system.reason import Reason
from tests.conftest import HOST_DEFAULTS
from tests.plugin.batches import (
    Answer,
    Asked,
    Shape,
    answered,
    assert_close,
    assert_gpytorchs,
    first_derivatives,
    rounding,
)
from tests.plugin.market import data, exact_path


@pytest.mark.parametrize("batch", [(), (3,)], ids=["single", "batch"])
@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)], ids=str)
def test_targets_of_another_dtype_are_what_they_are_in_gpytorch(dtypes, batch) -> None:
    own, of_targets = dtypes

    def answer() -> Tensor:
        asked = Asked(of_kernel=batch, of_y=batch, dtype=own)
        return asked.marginal().log_prob(asked.y.detach().to(of_targets))

    expected = answer()
    with settings.rangeformer(), settings.exact_size(1), collect_reports() as reports:
        found = answer()
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=rounding(Asked(dtype=own)), atol=0)
    # A difference in float64 is what a float64 model takes.
    assert [report.reason for report in reports] == [Reason.MIXED_DTYPE if own == torch.float32 else Reason.EXACT_SMALL]


WRONG: list[tuple[Shape, Shape]] = [
    ((), (19,)),
    ((), (21,)),
    ((), (20, 20, 1, 3)),
    ((3,), (19,)),
    ((3,), (2, 20)),
    ((3,), (4, 20)),
    ((3,), (20, 3)),
    ((2, 2), (3, 20)),
    ((2, 2), (3, 2, 20)),
]


@pytest.mark.parametrize(("batch", "shape"), WRONG, ids=str)
@pytest.mark.parametrize("fast", [True, False], ids=["gpytorch", "botorch"])
def test_targets_of_a_wrong_shape_are_the_host_s_own_error(fast, batch, shape) -> None:
    def message() -> str:
        asked = Asked(of_kernel=batch)
        with pytest.raises(RuntimeError) as error:
            asked.marginal().log_prob(torch.ones(shape, dtype=torch.float64))
        return str(error.value)

    with gpytorch.settings.fast_computations(log_prob=fast):
        expected = message()
        with exact_path():
            found = message()
    # With fast log_prob off the host has torch's own code for it, and the flag the words of the fast one.
    assert found == expected or not fast


@pytest.mark.parametrize(
    ("batch", "shape"),
    [(b, s) for b in ((), (3,)) for s in ((), (1,), (20,), (3, 1), (3, 20), (2, 3, 20), (20, 3, 1))]
    + [((), (1, 20)), ((), (2, 1, 20)), ((2, 2), (2, 2, 1))],
    ids=str,
)
def test_targets_that_broadcast_do_as_in_gpytorch(batch, shape) -> None:
    targets = torch.linspace(-1, 1, math.prod(shape), dtype=torch.float64).reshape(shape)
    expected = Asked(of_kernel=batch).marginal().log_prob(targets).detach()
    with answered():
        asked = Asked(of_kernel=batch)
        found = asked.marginal().log_prob(targets).detach()
    assert_close({"value": found}, {"value": expected}, rounding(asked))


@pytest.mark.parametrize("batch", [(3,), (2, 2), (1,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_report_is_of_all_elements_together(dtype, batch) -> None:
    exact = Asked(of_kernel=batch, of_y=batch).values().detach()
    with answered() as reports:
        values = Asked(of_kernel=batch, of_y=batch, dtype=dtype).values()
    (report,) = reports
    assert report is last_report()
    assert (report.operation, report.solver, report.reason) == ("inv_quad_logdet", "exact", Reason.EXACT_SMALL)
    assert (report.n, report.batch_shape, report.columns) == (20, batch, 1)
    assert report.dtype == str(dtype).removeprefix("torch.")
    assert report.passes == report.columns_multiplied == exact.numel()
    assert report.iterations == 0
    assert 0 < report.residual < 20 * 1e3 * torch.finfo(dtype).eps
    assert report.logdet_method == "exact"
    assert report.notes == ()
    assert not report.fell_back
    assert report.mll is not None
    assert report.mll_interval is not None
    assert report.logdet_interval is not None
    assert report.logdet is not None
    assert report.mll == pytest.approx(float(values.detach().double().sum()), rel=100 * torch.finfo(dtype).eps)
    assert report.mll_interval.contains(report.mll)
    assert report.logdet_interval.contains(report.logdet)
    # In float32 inputs and parameters were rounded before K's entries were, which is not for the interval to say.
    if dtype == torch.float64:
        assert report.mll_interval.contains(float(exact.sum()))
        assert report.mll_interval.width < 1e-6
    assert "log p(y)/n" in report.summary()


def test_the_report_of_elements_that_need_float64_says_so() -> None:
    asked = Asked("rbf", 60, of_noise=(3,), dtype=torch.float32)
    asked.likelihood.noise_covar.register_constraint("raw_noise", Bounds(1e-6, 10.0))
    asked.likelihood.noise = torch.tensor([[0.1], [2e-4], [0.1]])
    wide = copy.deepcopy(asked.model).double()
    with settings.rangeformer(), settings.exact_size(1):
        values = asked.values()
    report = last_report()
    assert report is not None
    assert report.notes == ("factorised in float64",)
    prior = MultivariateNormal(wide["mean"](asked.x.double()), wide["kernel"](asked.x.double()))
    expected = wide["likelihood"](prior).log_prob(asked.y.double())
    # float32's eps in the entries of K, times 1 / noise.
    torch.testing.assert_close(values.double(), expected, rtol=60 * torch.finfo(torch.float32).eps / 2e-4, atol=0)


def with_noise(noise: list[float], kernel: str = "matern52_ard", equal_points: bool = False) -> Asked:
    """A noise of any sign for every element."""
    asked = Asked(kernel, of_x=(3,), of_noise=(3,))
    if equal_points:
        asked.x.data[1] = asked.x.data[1, :1]
    covariance = asked.likelihood.noise_covar
    covariance.register_constraint("raw_noise", Bounds(-100.0, 100.0, transform=None))  # type: ignore[arg-type]
    covariance.raw_noise.data = torch.tensor(noise, dtype=torch.float64).unsqueeze(-1)
    return asked


@pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")
def test_an_element_that_is_not_positive_definite_is_refused_as_gpytorch_refuses_it() -> None:
    with pytest.raises(NotPSDError):
        with_noise([0.1, -0.5, 0.1]).values()
    with exact_path(), pytest.raises(NotPSDError, match="raise the likelihood's noise"):
        with_noise([0.1, -0.5, 0.1]).values()


def test_an_element_without_noise_is_gpytorchs_still() -> None:
    expected = first_derivatives(with_noise([0.1, 0.0, 0.1], "matern32"))
    with answered() as reports:
        found = first_derivatives(with_noise([0.1, 0.0, 0.1], "matern32"))
    # No noise bounds the condition: its own does.
    dense = with_noise([0.1, 0.0, 0.1], "matern32").prior().covariance_matrix[1].detach()
    assert_close(found, expected, 20 * torch.finfo(torch.float64).eps * float(torch.linalg.cond(dense)))
    (report,) = reports
    assert report.mll == pytest.approx(float(found["value"].sum()), rel=1e-12)
    assert report.passes == 3


@pytest.mark.filterwarnings("ignore::linear_operator.utils.warnings.NumericalWarning")
def test_jitter_is_added_to_the_element_that_needs_it_and_is_said() -> None:
    noises = [0.1, 1e-18, 0.1]
    with answered() as reports:
        values = with_noise(noises, "rbf", equal_points=True).values().detach()
    (report,) = reports
    assert report.notes == ("jitter 1e-08 added to the diagonal",)
    assert report.batch_shape == (3,)
    with answered():
        well = with_noise([0.1, 0.1, 0.1], "rbf", equal_points=True).values().detach()
    torch.testing.assert_close(values[[0, 2]], well[[0, 2]], rtol=rounding(Asked()), atol=0)


BROKEN: dict[str, Callable[[Asked], Any]] = {
    "inputs": lambda asked: asked.x.data[1, 2].fill_(torch.nan),
    "targets": lambda asked: asked.y.data[1, 2].fill_(torch.nan),
    "infinite_targets": lambda asked: asked.y.data[2, 19].fill_(torch.inf),
    "noise": lambda asked: asked.likelihood.noise_covar.raw_noise.data[1].fill_(torch.nan),
    "lengthscale": lambda asked: asked.model["kernel"].base_kernel.raw_lengthscale.data[1].fill_(torch.nan),
    "outputscale": lambda asked: asked.model["kernel"].raw_outputscale.data[0].fill_(torch.inf),
}


@pytest.mark.parametrize("fast", [True, False], ids=["gpytorch", "botorch"])
@pytest.mark.parametrize("name", BROKEN)
def test_one_element_that_is_not_finite_is_a_clear_error(name, fast) -> None:
    asked = Asked(of_x=(3,), of_noise=(3,))
    BROKEN[name](asked)
    with exact_path(), gpytorch.settings.fast_computations(log_prob=fast), pytest.raises(NanError, match="NaN or inf"):
        asked.values()


@pytest.mark.parametrize("columns", [1, 4, 5, 9])
@pytest.mark.parametrize("reduce", [True, False])
def test_systems_with_few_and_with_many_columns_are_the_host_s(reduce, columns) -> None:
    rhs = torch.randn(3, 20, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def answer(asked: Asked) -> Answer:
        operator = asked.marginal().lazy_covariance_matrix.evaluate_kernel()
        quadratic, logdet = operator.inv_quad_logdet(rhs, logdet=True, reduce_inv_quad=reduce)
        leaves = {name: leaf for name, leaf in asked.leaves.items() if not name.startswith(("mean", "y"))}
        found = torch.autograd.grad(quadratic.square().sum() + logdet.sum(), list(leaves.values()))
        gradients = dict(zip(leaves, found, strict=True))
        return {"quadratic": quadratic.detach(), "logdet": logdet.detach(), **gradients}

    assert_gpytorchs(Asked, answer, factor=20.0)


@pytest.fixture
def botorch_defaults() -> Iterator[None]:
    """What ``import botorch`` sets for the whole process, on its first import only."""
    pytest.importorskip("botorch")
    for (setting, attribute, _), value in zip(HOST_DEFAULTS, [False, False, False, 6, 4096, 4096], strict=True):
        setattr(setting, attribute, value)
    yield
    for setting, attribute, value in HOST_DEFAULTS:
        setattr(setting, attribute, value)


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("batch", [(), (2,)], ids=["single", "batch"])
def test_botorch_s_models_of_several_outputs_are_batches(batch, outputs, botorch_defaults) -> None:
    from botorch.models import SingleTaskGP

    x = data(20, batch)[0]
    y = torch.stack([torch.sin((3 + k) * x[..., 0]) for k in range(outputs)], dim=-1)

    def answer() -> Answer:
        model: Any = SingleTaskGP(x, y)
        model.train()
        mll: Any = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
        loss = -mll(model(*model.train_inputs), model.train_targets)
        leaves = dict(model.named_parameters())
        found = torch.autograd.grad(loss.sum(), list(leaves.values()))
        return {"value": loss.detach(), **dict(zip(leaves, found, strict=True))}

    expected = answer()
    with answered() as reports:
        found = answer()
    assert reports[0].batch_shape == (*batch, *((outputs,) if outputs > 1 else ()))
    # BoTorch's noise starts at 0.02, which is less than NOISE.
    assert_close(found, expected, 10 * rounding(Asked()))
