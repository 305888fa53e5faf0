"""Models that move in every way that a user moves them, the flag as it ships: every answer against exact float64."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import hypothesis
import pytest
import torch
from hypothesis import HealthCheck
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from torch import Tensor

import gp_rangeformer
from gp_rangeformer import collect_reports, settings
from gp_rangeformer.plugin import fitted
from gp_rangeformer.report import FallbackWarning, ReportCollection, SolveReport
from tests.fuzz.truth import Truth, exact, relative_residual
from tests.plugin.market import Problem, build, data, set_to

SIZES = (160, 200, 260, 320, 120)  # the last is below every min_size here; hypothesis prefers what comes first
KERNELS = ("matern32", "rbf", "ard", "matern12", "sum", "rational_quadratic")
CHANGES = (
    {"rank": 5},
    {"rank": 100},
    {"num_probes": 8},
    {"num_probes": 64},
    {"max_passes": 3},
    {"adaptive_rank": False},
    {"history": 1},
    {"logdet": "lanczos"},
    {},
)


@dataclass
class Moving:
    """A model that moves, and the size from which the RangeFormer solver answers it."""

    problem: Problem
    min_size: int

    @property
    def n(self) -> int:
        return len(self.problem.x)

    def give(self, x: Tensor, y: Tensor) -> None:
        problem = self.problem
        problem.x, problem.y = x.to(problem.x), y.to(problem.x)
        problem.model.set_train_data(problem.x, problem.y, strict=False)

    def kernel(self) -> Tensor:
        """A copy of K, as the flag evaluates it now."""
        problem = self.problem
        return problem.model.covar_module(problem.x).evaluate_kernel().to_dense().detach().to(torch.float64, copy=True)

    def noise(self) -> Tensor:
        return self.problem.likelihood.noise.detach().expand(self.n)

    def truth(self, kernel: Tensor) -> Truth:
        problem = self.problem
        found = exact(kernel, self.noise(), problem.y - problem.model.mean_module(problem.x).detach())
        assert isinstance(found, Truth)
        return found

    def in_float64(self) -> Problem:
        """The same values, for the host's own code."""
        problem = self.problem
        model = copy.deepcopy(problem.model).double()
        x, y = problem.x.double(), problem.y.double()
        model.set_train_data(x, y, strict=False)
        return Problem(model, x, y, problem.test_x.double())


class Trajectories(RuleBasedStateMachine):
    """Two models, whose calls come in any order."""

    seen: ClassVar[Counter[str]] = Counter()

    @initialize(
        dtype=st.sampled_from([torch.float64, torch.float32]),
        kernels=st.lists(st.sampled_from(KERNELS), min_size=2, max_size=2),
        sizes=st.lists(st.sampled_from(SIZES), min_size=2, max_size=2),
        small=st.sampled_from([False, False, False, True]),
    )
    def start(self, dtype: torch.dtype, kernels: list[str], sizes: list[int], small: bool) -> None:
        gp_rangeformer.clear_memory()
        self.chosen: dict[str, Any] = {}
        self.models = [
            Moving(build(kernel, n=n, dtype=dtype, seed=number), 150)
            for number, (kernel, n) in enumerate(zip(kernels, sizes, strict=True))
        ]
        if small:
            self.models[1].min_size = int(settings.min_size.value())  # the default: the exact path answers
        self.dtype = dtype
        for which in range(2):
            self.again(which)

    @contextlib.contextmanager
    def flag(self, model: Moving) -> Iterator[ReportCollection]:
        """Entered for every call, and left after it."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(settings.rangeformer())
            stack.enter_context(settings.min_size(model.min_size))
            for name, value in self.chosen.items():
                stack.enter_context(set_to(name, value))
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore", FallbackWarning)
            yield stack.enter_context(collect_reports())

    # What a user does ------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 1))
    def again(self, which: int) -> None:
        self.train(which, "again")

    @rule(which=st.integers(0, 1), size=st.sampled_from([0.003, 0.03, 0.2]), seed=st.integers(0, 99))
    def drift(self, which: int, size: float, seed: int) -> None:
        self._move(which, size, seed)
        self.train(which, "drift")

    @rule(which=st.integers(0, 1), size=st.sampled_from([0.01, 0.1]), steps=st.integers(3, 6))
    def optimise(self, which: int, size: float, steps: int) -> None:
        """By Adam, with the gradients that the flag gives."""
        parameters = list(self.models[which].problem.model.parameters())
        optimizer = torch.optim.Adam(parameters, lr=size)
        for _ in range(steps):
            self.train(which, "optimise")
            optimizer.step()

    @rule(which=st.integers(0, 1), noise=st.sampled_from([1e-3, 0.02, 0.5]), seed=st.integers(0, 99))
    def jump(self, which: int, noise: float, seed: int) -> None:
        self._move(which, 1.0, seed)
        self.models[which].problem.likelihood.noise = noise
        self.train(which, "jump")

    @rule(which=st.integers(0, 1), seed=st.integers(0, 99), scale=st.sampled_from([1e-3, 1.0, 100.0]))
    def other_targets(self, which: int, seed: int, scale: float) -> None:
        model = self.models[which]
        noise = torch.randn(model.n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        model.give(model.problem.x, scale * (torch.cos(4 * model.problem.x[:, 1].double()) + 0.3 * noise))
        self.train(which, "targets")

    @rule(which=st.integers(0, 1), n=st.sampled_from(SIZES), seed=st.integers(0, 9))
    def other_data(self, which: int, n: int, seed: int) -> None:
        self.models[which].give(*data(n, seed=seed)[:2])
        self.train(which, "data")

    @rule(change=st.sampled_from(CHANGES))
    def other_settings(self, change: dict[str, Any]) -> None:
        self.chosen = dict(change)
        for which in range(2):
            self.train(which, "settings")

    @rule()
    def forget(self) -> None:
        gp_rangeformer.clear_memory()
        assert gp_rangeformer.memory_bytes() == 0

    @rule(which=st.integers(0, 1))
    def train_without_the_flag(self, which: int) -> None:
        self.models[which].problem.loss_and_gradient()

    @rule(which=st.integers(0, 1))
    def value_alone(self, which: int) -> None:
        model = self.models[which]
        with self.flag(model) as reports, torch.no_grad():
            value = -float(model.problem.loss())
            self._judge(model, reports[0], value, "no_grad")

    @rule(which=st.integers(0, 1))
    def predict(self, which: int) -> None:
        model = self.models[which]
        with self.flag(model) as reports, torch.no_grad():
            found = model.problem.predict()
            mean, deviation = found.mean.double(), found.variance.double().sqrt()
        host = model.in_float64().predict()
        noise = float(model.noise()[0])
        observed = (host.variance.detach() + noise).sqrt()
        self.seen.update(["predictions", f"predictions by {reports[0].solver}"])
        # Of the deviation of an observation; a float32 kernel beside that is another kernel.
        allowed = 0.02 if self.dtype == torch.float64 else 0.05
        assert bool(((mean - host.mean.detach()).abs() <= allowed * observed).all())
        assert bool(((deviation**2 - host.variance.detach()).abs() <= allowed * observed**2).all())

    @rule(which=st.integers(0, 1), columns=st.sampled_from([1, 6, 30]), seed=st.integers(0, 9))
    def solve(self, which: int, columns: int, seed: int) -> None:
        model = self.models[which]
        problem, noise = model.problem, model.noise()
        rhs = torch.randn(model.n, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        with self.flag(model) as reports, torch.no_grad():
            operator = problem.model.covar_module(problem.x).evaluate_kernel().add_diagonal(noise)
            rhs = rhs.to(self.dtype)
            solution = operator.solve(rhs)
            true = relative_residual(model.kernel(), noise, rhs, solution)
        (report,) = reports
        assert true <= report.residual * (1 + 1e-6) + 1e-13
        self.seen.update(["solves", f"solves by {report.solver}"])
        if report.solver == "rangeformer":
            assert report.residual <= settings.solver.value().prediction_tolerance

    # What every answer is held against -------------------------------------------------------------------------------

    def train(self, which: int, move: str) -> None:
        model = self.models[which]
        problem = model.problem
        with self.flag(model) as reports:
            loss, gradient = problem.loss_and_gradient()
            assert len(reports) == 1
            self._judge(model, reports[0], -loss, move)
        host = model.in_float64()
        _, expected = host.loss_and_gradient()
        assert bool(gradient.isfinite().all())
        # Per point; a few probes are a rough gradient, and what they are known to is in the report.
        error = float((gradient - expected).norm())
        assert error <= 0.5 * float(expected.norm()) + 0.05
        self.seen["exact gradients" if reports[0].gradient is None else "stated gradients"] += 1

    def _judge(self, model: Moving, report: SolveReport, value: float, move: str) -> None:
        n, eps = model.n, torch.finfo(self.dtype).eps
        truth = model.truth(model.kernel())
        assert (report.operation, report.n) == ("inv_quad_logdet", n)
        assert report.mll is not None
        assert report.mll_interval is not None
        assert report.logdet is not None
        assert report.logdet_interval is not None
        assert report.mll_interval.contains(report.mll)
        assert report.logdet_interval.contains(report.logdet)
        assert report.mll_interval.widened(truth.mll_doubt).contains(truth.mll)
        assert report.logdet_interval.widened(truth.logdet_doubt).contains(truth.logdet)
        # The host adds up in the model's dtype, and may cancel.
        assert abs(value * n - report.mll) <= 16 * eps * (abs(truth.inv_quad) + abs(truth.logdet) + 2 * n)
        # Half the tolerance for the quadratic term, relative to itself where that is large; and the log determinant.
        uncertain = 0.0 if report.logdet_statistical is None else report.logdet_statistical.width
        allowed = 0.5 * settings.solver.value().tolerance * max(n, truth.inv_quad) + uncertain + 0.005 * n
        assert abs(report.mll - truth.mll) <= allowed
        if report.gradient is not None:
            assert all(entry.standard_error >= 0 for entry in report.gradient.entries)
        asked = n >= model.min_size
        assert asked or report.solver == "exact"
        self.seen.update(["calls", f"by {report.solver}", f"log determinant {report.logdet_method}", move])
        self.seen.update({"could be": asked, f"could be, {self.dtype}": asked, f"{move} by {report.solver}": 1})
        self.seen[f"fell back: {report.reason.name}"] += report.fell_back
        self.seen["warm"] += asked and report.iterations == 0 and report.solver == "rangeformer"

    def _move(self, which: int, size: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.models[which].problem.model.parameters():
                step = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter += size * step.to(parameter)


def test_whatever_a_user_does_every_answer_is_right_or_says_how_far_it_is_known() -> None:
    Trajectories.seen = seen = Counter()
    run_state_machine_as_test(
        Trajectories,
        settings=hypothesis.settings(
            max_examples=30,
            stateful_step_count=16,
            derandomize=True,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
    )
    assert seen["calls"] > 60
    assert seen["by rangeformer"] > 0.75 * seen["could be"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_trajectories_are_not_vacuous_every_move_is_answered_by_the_rangeformer_solver(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them, in which everything happens once."""
    monkeypatch.setattr(fitted, "_FACTORISED", 0)  # as if n were large
    Trajectories.seen = seen = Counter()
    moving = Trajectories()
    moving.start(dtype, ["matern32", "ard"], [320, 200], False)
    for which in (0, 1):
        moving.again(which)
        moving.drift(which, 0.03, which)
        moving.optimise(which, 0.01, 4)
        moving.value_alone(which)
        moving.predict(which)
        moving.solve(which, 1, which)
        moving.solve(which, 6, which)
        moving.other_targets(which, 1, 100.0)
        moving.train_without_the_flag(which)
        moving.jump(which, 0.02, which)
        moving.other_data(which, 260, which)
        moving.again(which)
    assert seen["by rangeformer"] == seen["could be"] == seen["calls"]
    for move in ("again", "drift", "optimise", "jump", "targets", "data", "no_grad"):
        assert seen[f"{move} by rangeformer"] == seen[move] > 1
    assert (seen["predictions by rangeformer"], seen["solves by rangeformer"]) == (2, 4)
    assert min(seen["log determinant learned"], seen["log determinant lanczos"]) > 1
    assert seen["warm"] > 3, "the memory is of no use"
    assert seen["stated gradients"] == seen["calls"] - seen["no_grad"]
    for change in CHANGES:
        before = seen["by rangeformer"]
        moving.other_settings(change)
        assert change == {"max_passes": 3} or seen["by rangeformer"] == before + 2
        moving.forget()
    moving.other_settings({"max_passes": 1, "rank": 5})
    assert seen["fell back: MAX_PASSES"] >= 2
