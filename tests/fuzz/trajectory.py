"""One trajectory: a model or two that move for a few steps, every step held against exact float64."""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Iterator
from typing import Any

import gpytorch
import torch
from torch import Tensor

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.solvers.exact import Exact
from tests.fuzz.draws import RANGES, Dice, draw_settings
from tests.fuzz.problem import Problem
from tests.fuzz.truth import Indefinite, Truth, exact, relative_residual
from tests.plugin.market import set_to

Record = dict[str, Any]
_FAR = 800  # gradients of larger systems are compared in one step of four


def run_trajectory(seed: int, index: int, largest: int = 1600) -> Iterator[Record]:
    """The records of trajectory ``index``: a function of the arguments alone."""
    dice = Dice(seed, index)
    dtype = dice.pick(torch.float32, torch.float64)
    chosen = draw_settings(dice)
    # Now and then long enough for what is checked at every 25th step.
    long = dice.chance(0.02)
    n = _draw_size(dice, min(largest, 200) if long else largest)
    problems = [Problem.draw(dice, dtype, n)]
    if dice.chance(0.2):
        problems.append(Problem.draw(dice, dtype, n if dice.chance(0.5) else _draw_size(dice, largest)))
    gp_rangeformer.clear_memory()
    torch.manual_seed(index)
    for step in range(30 if long else dice.whole(1, 6)):
        problem = problems[step % len(problems)]
        move = "start" if step < len(problems) else _move(dice, problem, largest, long)
        record: Record = {"seed": seed, "trajectory": index, "step": step, "move": move, "settings": chosen}
        record |= _describe(problem)
        # Drawn whatever the answers are, so that the next step does not depend on them.
        with_gradient = len(problem.x) <= _FAR or dice.chance(0.25)
        rhs = _draw_rhs(dice, problem) if dice.chance(0.25) else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with _settings(chosen):
                _judge(problem, record, with_gradient)
                if rhs is not None:
                    _judge_solve(problem, rhs, record)
        yield record


def _draw_size(dice: Dice, largest: int) -> int:
    size = dice.whole(700, 1600) if dice.chance(0.06) else int(dice.log_between(60, 700))
    return min(size, largest)


def _move(dice: Dice, problem: Problem, largest: int, drift_only: bool) -> str:
    move = dice.pick("drift", "drift", "drift", "drift", "drift", "jump", "targets", "resize", "again")
    move = "drift" if drift_only else move
    if move == "drift":
        problem.drift(dice, dice.log_between(1e-3, 0.3))
    elif move == "jump":
        problem.jump(dice)
    elif move == "targets":
        problem.retarget(dice)
    elif move == "resize" and problem.inputs != "rows":
        problem.resize(dice, _draw_size(dice, largest))
    return move


def _describe(problem: Problem) -> Record:
    noise = problem.diagonal
    hyperparameters = [
        f"{name}={[float(f'{v:.3g}') for v in getattr(module, name).detach().flatten().tolist()]}"
        for module in problem.kernel.modules()
        for name in RANGES
        if f"raw_{name}" in module._parameters
    ]
    return {
        "n": len(problem.x),
        "d": problem.x.shape[1],
        "dtype": str(problem.dtype).removeprefix("torch."),
        "kernel": problem.name,
        "hyperparameters": " ".join(hyperparameters),
        "inputs": problem.inputs,
        "targets": problem.targets,
        "route": "model" if problem.model is not None else "matrix",
        "noise": [float(noise.min()), float(noise.max())],
    }


@contextlib.contextmanager
def _settings(chosen: dict[str, Any]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        # The exact path last: it has none of the others' arguments.
        for name, value in chosen.items():
            if name != "exact":
                stack.enter_context(set_to(name, value))
        if "exact" in chosen:
            stack.enter_context(settings.solver(Exact()))
        yield


def _judge(problem: Problem, record: Record, with_gradient: bool) -> None:
    """Value, intervals and gradient of log p(y)."""
    for parameter in problem.parameters():
        parameter.grad = None
    noise, targets = problem.diagonal, problem.y
    started = time.perf_counter()
    kernel: Tensor | None = None
    try:
        with settings.rangeformer(), gp_rangeformer.collect_reports() as reports:
            if problem.model is not None:
                kernel = problem.evaluated_kernel()
                started = time.perf_counter()
            value, evaluated = problem.log_prob()
            kernel = evaluated if evaluated is not None else kernel
            value.backward()
    except Exception as error:
        record |= _exception("log_prob", error, problem)
        return
    record["seconds"] = round(time.perf_counter() - started, 4)
    report = next((r for r in reports if r.operation == "inv_quad_logdet"), None)
    if report is None:
        record["flaws"] = ["no report"]
        return
    assert kernel is not None
    truth = exact(kernel, noise, targets)
    record |= _of_report(report)
    if isinstance(truth, Indefinite):
        record["smallest_eigenvalue"] = truth.smallest
        return
    n = len(targets)
    record |= {"mll_true": truth.mll, "logdet_true": truth.logdet}
    record["doubt"] = {"mll": truth.mll_doubt, "logdet": truth.logdet_doubt}
    record["value_error"] = abs((float(value.detach()) if report.mll is None else report.mll) - truth.mll) / n
    record["value_error_relative"] = record["value_error"] / max(1.0, abs(truth.mll) / n)
    record |= {"misses": _misses(report, truth), "statistical": _statistical(report, truth)}
    if with_gradient:
        record |= _gradient_errors(problem, truth, noise)


def _of_report(report: gp_rangeformer.SolveReport) -> Record:
    flaws = []
    for name in ("mll", "logdet"):
        value, interval = getattr(report, name), getattr(report, f"{name}_interval")
        if value is None or interval is None:
            continue
        if not math.isfinite(value) or not math.isfinite(interval.width):
            flaws.append(f"{name} or its interval not finite")
        elif not interval.contains(value):
            flaws.append(f"{name} outside its own interval")
    return {
        "solver": report.solver,
        "reason": report.reason.name,
        "fell_back": report.fell_back,
        "notes": list(report.notes),
        "method": report.logdet_method,
        "level": report.logdet_level,
        "iterations": report.iterations,
        "passes": report.passes,
        "mll": report.mll,
        "logdet": report.logdet,
        "intervals": {
            name: [interval.lower, interval.upper]
            for name in ("mll_interval", "logdet_interval", "mll_statistical", "logdet_statistical")
            if (interval := getattr(report, name)) is not None
        },
        "flaws": flaws,
    }


def _outside(interval: Any, value: float) -> float:
    """By how much; infinite for an interval that is not a number."""
    if math.isnan(interval.lower) or math.isnan(interval.upper):
        return math.inf
    return max(interval.lower - value, value - interval.upper, 0.0)


def _misses(report: gp_rangeformer.SolveReport, truth: Truth) -> dict[str, float]:
    """By how many nats certain intervals miss what float64 leaves no doubt about."""
    misses = {}
    for name, value, doubt in (
        ("mll", truth.mll, truth.mll_doubt),
        ("logdet", truth.logdet, truth.logdet_doubt),
    ):
        interval = getattr(report, f"{name}_interval")
        if interval is not None and (size := _outside(interval, value)) > doubt:
            misses[name] = size
    return misses


def _statistical(report: gp_rangeformer.SolveReport, truth: Truth) -> dict[str, list[Any]]:
    """Per interval: [contains the truth, contains it or is right to 1e-5 nats per point, miss in nats]."""
    found = {}
    for name, value in (("mll", truth.mll), ("logdet", truth.logdet)):
        interval = getattr(report, f"{name}_statistical")
        if interval is not None:
            size = _outside(interval, value)
            close = abs(getattr(report, name) - value) < 1e-5 * report.n
            found[name] = [size == 0, size == 0 or close, size]
    return found


def _gradient_errors(problem: Problem, truth: Truth, noise: Tensor) -> Record:
    """Of the raw parameters: against the weights of the evaluated matrix, relative to the gradient and to the larger of
    its two terms, and against float64 throughout. None where the answer has no gradient."""
    got = torch.cat([_flat(parameter.grad, parameter) for parameter in problem.parameters()])
    wide = problem.in_float64()
    kernel, diagonal = wide.differentiable()

    def gradients(weights: Tensor) -> Tensor:
        surrogate = (weights * kernel).sum() + (weights.diagonal() * diagonal).sum()
        found = torch.autograd.grad(surrogate, wide.parameters(), retain_graph=True, allow_unused=True)
        return torch.cat([_flat(g, p) for g, p in zip(found, wide.parameters(), strict=True)])

    quadratic = gradients(0.5 * torch.outer(truth.weights, truth.weights))
    logarithmic = gradients(-0.5 * truth.inverse)
    expected = quadratic + logarithmic
    error, norm = float((got - expected).norm()), float(expected.norm())
    terms = max(float(quadratic.norm()), float(logarithmic.norm()))
    record: Record = {"gradient_norm": norm, "gradient_terms": terms}
    if not terms > 0:
        return record
    record |= {"gradient_error": error / max(norm, 1e-12 * terms), "gradient_error_of_terms": error / terms}
    names = [name for name, _ in problem.kernel.named_parameters()] + ["noise"]
    sizes = [parameter.numel() for parameter in problem.parameters()]
    parts = (got - expected).split(sizes)
    record["gradient_parts"] = {k: float(f"{float(p.norm()) / terms:.3g}") for k, p in zip(names, parts, strict=True)}
    if problem.dtype == torch.float64:
        record["gradient_error_exact"] = record["gradient_error"]
        return record
    ideal = exact(kernel.detach(), noise, problem.y)
    if isinstance(ideal, Truth):
        reference = gradients(0.5 * torch.outer(ideal.weights, ideal.weights) - 0.5 * ideal.inverse)
        record["gradient_error_exact"] = float((got - reference).norm() / reference.norm())
    return record


def _flat(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    gradient = torch.zeros_like(parameter) if gradient is None else gradient
    return gradient.detach().double().flatten()


def _draw_rhs(dice: Dice, problem: Problem) -> Tensor:
    n = len(problem.x)
    rhs = dice.normal(n, dice.pick(1, 2, 5, 40)) * dice.log_between(1e-3, 1e3)
    if dice.chance(0.5) and bool(problem.y.any()):
        rhs[:, 0] = problem.y
    return rhs.to(problem.dtype)


def _judge_solve(problem: Problem, rhs: Tensor, record: Record) -> None:
    """The residual that a solve certifies against the true one of its answer."""
    try:
        with torch.no_grad(), settings.rangeformer(), gp_rangeformer.collect_reports() as reports:
            kernel = problem.evaluated_kernel()
            solution = problem.solve(rhs)
    except Exception as error:
        record |= _exception("solve", error, problem)
        return
    report = next((r for r in reports if r.operation == "solve"), None)
    if report is None or report.solver == "gpytorch":
        return
    true = relative_residual(kernel, problem.diagonal, rhs, solution)
    record["solve"] = {
        "solver": report.solver,
        "reason": report.reason.name,
        "columns": rhs.shape[1],
        "claimed": report.residual,
        "true": true,
        # The comparison itself rounds in float64.
        "broken": not true <= report.residual * (1 + 1e-6) + 1e-13,
    }


def _exception(operation: str, error: Exception, problem: Problem) -> Record:
    """What was raised, whether GPyTorch's own Cholesky answers, and whether the evaluated matrix is positive definite
    in float64."""
    answers, definite = True, None
    with contextlib.suppress(Exception), settings.rangeformer(), torch.set_grad_enabled(operation == "log_prob"):
        definite = isinstance(exact(problem.evaluated_kernel(), problem.diagonal, problem.y), Truth)
    try:
        with gpytorch.settings.max_cholesky_size(10**6), settings.rangeformer(False):
            if operation == "solve":
                with torch.no_grad():
                    problem.solve(problem.y.unsqueeze(-1))
            else:
                problem.log_prob()[0].backward()
    except Exception:
        answers = False
    message = f"{type(error).__name__}: {str(error)[:300]}"
    raised = {"operation": operation, "error": message, "gpytorch_answers": answers, "positive_definite": definite}
    return {"exception": raised}
