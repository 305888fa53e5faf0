"""When an estimator of the tail is believed, when Lanczos answers instead, and what the report says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gpytorch
import pytest
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.logdet import checked as value_module
from gp_rangeformer.logdet.estimate import CHECK_EVERY, TailEstimate, TailEstimator, disagreement, objection
from gp_rangeformer.logdet.lanczos import FLOOR
from gp_rangeformer.preconditioner.nystrom import NystromPreconditioner
from gp_rangeformer.recycling.memory import Memory
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.system.answers import Evaluation, Interval, LogDet
from gp_rangeformer.system.linear_system import LinearSystem
from tests.plugin.market import build, rangeformer_path
from tests.system.systems import kernel_matrix, points, system, targets

N = 200
SYSTEM = system(kernel_matrix(points(N, 3)), 0.05)
WHOLE = {"rank": N, "adaptive_rank": False}  # all of K in the preconditioner
EXACT = float(torch.logdet(SYSTEM.to_dense()))


@dataclass
class Fake:
    """Knows the exact tail and answers it, ``shift`` off, with a stated half width."""

    shift: float = 0.0
    half: float | None = 0.005
    definite: bool = True
    refusal: str | None = None
    calls: int = 0

    def __call__(
        self, system: LinearSystem, preconditioner: NystromPreconditioner, probes: Any, solutions: Any, quadratic: Any
    ) -> TailEstimate:
        self.calls += 1
        value = (EXACT - preconditioner.logdet()) / N + self.shift
        interval = None if self.half is None else Interval(value - self.half, value + self.half)
        return TailEstimate(value, interval, 0.9, "learned", self.definite, self.refusal)


def evaluate(tail: TailEstimator | None, memory: Memory | None = None, **options: Any) -> tuple[LogDet, Evaluation]:
    """One training step."""
    # Rank 20: a step needs several iterations and leaves a tail of about half a nat per point.
    solver = Certified(**{"rank": 20, "logdet": tail or "lanczos", "num_logdet_probes": 32, **options})
    evaluation = solver.prepare(SYSTEM, memory or Memory()).evaluate(targets(N))
    assert evaluation.fallback_reason is None
    assert evaluation.logdet is not None
    return evaluation.logdet, evaluation


def checked_before(objection: str | None = None) -> Memory:
    """A memory whose next call is not one that Lanczos checks."""
    return Memory(tail_calls=1, tail_objection=objection)


@pytest.fixture
def lanczos_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at every Lanczos run."""
    calls: list[int] = []
    original = value_module.lanczos_logdet

    def counting(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        return original(*arguments, **options)

    monkeypatch.setattr(value_module, "lanczos_logdet", counting)
    return calls


def test_the_fake_is_an_estimator() -> None:
    assert isinstance(Fake(), TailEstimator)


def test_what_nothing_speaks_against_is_used_without_lanczos(lanczos_calls: list[int]) -> None:
    logdet, _ = evaluate(Fake(shift=0.001), checked_before())
    assert (logdet.method, logdet.note, logdet.level, logdet.passes) == ("learned", None, 0.9, 0)
    assert logdet.value == pytest.approx(EXACT + 0.001 * N, abs=1e-6)
    assert logdet.statistical is not None
    assert logdet.statistical.width == pytest.approx((0.01 + 2 * FLOOR) * N)
    assert not lanczos_calls


@pytest.mark.parametrize(
    ("tail", "why"),
    [
        (Fake(half=0.02), "uncertainty of 0.02 nats per point exceeds logdet_tolerance"),
        (Fake(refusal="n = 3 is below the 256"), "n = 3 is below the 256"),
        (Fake(shift=float("nan")), "not finite"),
        (Fake(shift=float("inf"), half=None), "not finite"),
        (Fake(definite=False), "contradict a positive semi-definite"),
    ],
    ids=["uncertain", "refused", "nan", "infinite", "indefinite"],
)
def test_what_should_not_be_used_is_handed_over_to_lanczos_with_a_note(tail: Fake, why: str) -> None:
    for memory in (Memory(), checked_before()):
        logdet, _ = evaluate(tail, memory)
        plain, _ = evaluate(None)
        assert logdet.note is not None
        assert logdet.note.startswith("the learned log determinant handed over to Lanczos: ")
        assert why in logdet.note
        assert (logdet.value, logdet.statistical, logdet.method) == (plain.value, plain.statistical, "lanczos")
        assert memory.tail_objection is None  # says nothing about other steps


def test_the_gradient_does_not_depend_on_who_estimates() -> None:
    one = torch.ones(1, dtype=torch.float64)
    weights = [evaluate(tail, checked_before())[1].weight.dense(one, one[0]) for tail in (None, Fake(shift=0.3))]
    assert torch.equal(weights[0], weights[1])


def test_lanczos_checks_the_first_call_of_a_memory_and_every_25th(lanczos_calls: list[int]) -> None:
    tail, memory = Fake(), Memory()
    checks = []
    for call in range(2 * CHECK_EVERY + 1):
        before = len(lanczos_calls)
        logdet, _ = evaluate(tail, memory)
        assert logdet.method == "learned"
        if len(lanczos_calls) > before:
            checks.append(call)
            assert logdet.passes > 0  # the check is accounted for
    assert checks == [0, 25, 50]
    assert tail.calls == 51


def test_disagreement_switches_an_estimator_off_until_a_later_check_agrees(lanczos_calls: list[int]) -> None:
    tail, memory = Fake(shift=0.3), Memory()
    logdet, _ = evaluate(tail, memory)
    assert logdet.method == "lanczos"
    assert logdet.note is not None
    assert "Lanczos differs from it by 0.3" in logdet.note
    tail.shift = 0.0
    for _ in range(CHECK_EVERY - 1):
        logdet, _ = evaluate(tail, memory)
        assert (logdet.method, logdet.note is None) == ("lanczos", False)
    for _ in range(3):
        logdet, _ = evaluate(tail, memory)
        assert (logdet.method, logdet.note) == ("learned", None)
    assert len(lanczos_calls) == CHECK_EVERY + 1


def test_disagreement_in_one_memory_says_nothing_about_another() -> None:
    spoilt = checked_before("Lanczos differs from it")
    assert evaluate(Fake(), spoilt)[0].method == "lanczos"
    assert evaluate(Fake(), checked_before())[0].method == "learned"


def test_an_estimator_without_an_interval_is_never_checked(lanczos_calls: list[int]) -> None:
    memory = Memory()
    for _ in range(3):
        logdet, _ = evaluate(Fake(shift=0.3, half=None), memory)
        assert (logdet.method, logdet.statistical) == ("learned", None)
    assert not lanczos_calls


@pytest.mark.parametrize("shift", [-100.0, 100.0])
def test_the_value_stays_inside_the_rigorous_interval(shift: float) -> None:
    logdet, _ = evaluate(Fake(shift=shift), checked_before())
    assert logdet.method == "learned"
    assert logdet.rigorous.contains(EXACT)
    assert logdet.value == (logdet.rigorous.lower if shift < 0 else logdet.rigorous.upper)
    assert logdet.statistical == logdet.rigorous  # it says nothing that could be true


@pytest.mark.parametrize("tail", [Fake(half=0.009), None])
def test_the_likely_interval_does_not_leave_the_certain_one(tail: Fake | None) -> None:
    logdet, _ = evaluate(tail, checked_before(), rank=190, adaptive_rank=False, num_logdet_probes=2)
    assert logdet.method == ("lanczos" if tail is None else "learned")
    assert logdet.statistical is not None
    assert logdet.rigorous.lower <= logdet.statistical.lower < logdet.statistical.upper == logdet.rigorous.upper


@pytest.mark.parametrize("tail", [Fake(), Fake(half=3.0), Fake(refusal="unlike training")])
def test_nobody_is_asked_for_what_is_certain(tail: Fake, lanczos_calls: list[int]) -> None:
    """At a model's first call, which is checked elsewhere; but for what disproves K."""
    logdet, _ = evaluate(tail, **WHOLE)
    assert logdet.rigorous.contains(EXACT)
    assert 0 < logdet.rigorous.width < 0.002 * N
    assert (logdet.passes, logdet.note) == (0, None)
    assert not lanczos_calls
    evaluate(Fake(definite=False), **WHOLE)
    assert lanczos_calls


def test_an_objection_is_to_more_than_the_tolerance_only() -> None:
    estimate = TailEstimate(1.0, Interval(0.99, 1.01), 0.9, "learned")
    assert objection(estimate, 0.0101) is None
    assert objection(estimate, 0.0099) is not None


def test_a_disagreement_is_more_than_both_allow_together() -> None:
    lanczos = LogDet(110.0, Interval(0.0, 200.0), Interval(109.0, 111.0))  # 0.1 nats per point of 10, +- 0.1

    def found(value: float) -> str | None:
        return disagreement(TailEstimate(value, None, None, "learned"), lanczos, base=100.0, n=10, tolerance=0.05)

    assert found(1.14) is None
    assert found(0.86) is None
    assert found(1.16) is not None
    assert found(0.84) is not None


def test_the_report_names_the_method_and_why_another_one_answered() -> None:
    problem = build("matern32", n=400)
    for tolerance, method in ((0.5, "learned"), (1e-6, "lanczos")):
        gp_rangeformer.clear_memory()
        with rangeformer_path(tolerance=1e-3, probes=32), settings.solver(logdet_tolerance=tolerance):
            problem.loss()
            report = gp_rangeformer.last_report()
        assert (report.solver, report.logdet_method) == ("rangeformer", method)
        handed_over = [note for note in report.notes if "handed over to Lanczos" in note]
        assert len(handed_over) == (method == "lanczos")
        if handed_over:
            assert "logdet_tolerance" in handed_over[0]
            assert handed_over[0] in report.summary()


@pytest.mark.parametrize("method", ["learned", "quadrature", "lanczos"])
def test_every_method_reports_a_value_inside_its_rigorous_interval(method: str) -> None:
    problem = build("matern32", n=300)
    with gpytorch.settings.fast_computations(False, False, False):
        covariance = problem.likelihood(problem.model(problem.x)).lazy_covariance_matrix
    exact = torch.logdet(covariance.to_dense()).item()
    with (
        rangeformer_path(tolerance=1e-3, probes=32),
        settings.solver(logdet=method),
        settings.solver(logdet_tolerance=0.5),
    ):
        problem.loss()
        report = gp_rangeformer.last_report()
    assert report.logdet is not None
    assert report.logdet_interval is not None
    assert report.logdet_method == method
    assert report.logdet_interval.contains(report.logdet)
    assert report.logdet_interval.contains(exact)


@pytest.mark.parametrize(("half", "expected"), [(0.02, 128), (0.005, 64)], ids=["unsure", "sure"])
def test_an_unsure_estimate_asks_for_twice_the_landmarks(half: float, expected: int) -> None:
    memory = checked_before()
    memory.rank = 64
    solver = Certified(rank=150, adaptive_rank=True, logdet=Fake(half=half))
    solver.prepare(SYSTEM, memory).evaluate(targets(N))
    assert memory.rank == expected
    prepared = solver.prepare(SYSTEM, memory)
    assert prepared.preconditioner is not None
    assert prepared.preconditioner.rank == pytest.approx(expected, abs=2)
