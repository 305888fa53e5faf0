"""One recorded training trajectory, replayed by several contenders in turn.

All contenders see the same hyperparameters at every step, and take turns within a step, so that their seconds compare
on a machine whose speed changes, and their errors do not depend on where each would have gone by itself.
"""

from __future__ import annotations

import contextlib
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median

import gpytorch
import torch

from gp_rangeformer import clear_memory, collect_reports
from gp_rangeformer.compare.audit import ExactEvaluator, Parameters, gradient_vector, relative_error, restore, snapshot
from gp_rangeformer.compare.instruments import count_products, synchronize
from gp_rangeformer.compare.solvers import SolverSpec
from gp_rangeformer.datasets import Dataset
from gp_rangeformer.models import build_model

WARM_UP = 3  # steps before the memory is filled and every contender has met its allocations


@dataclass
class Outcome:
    """What one contender did. ``seconds``, ``iterations`` and ``passes`` per step; errors at the audited steps.

    ``value_error``: of the log marginal likelihood in nats per point; ``gradient_error``: relative, both absolute.
    ``notes``: how often a report said what.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    value_error: list[float] = field(default_factory=list)
    gradient_error: list[float] = field(default_factory=list)
    fallbacks: int = 0
    notes: dict[str, int] = field(default_factory=dict)

    def summary(self) -> dict[str, float]:
        """Medians of seconds and means of the rest, after the warm-up."""
        return {
            "seconds": median(self.seconds[WARM_UP:] or self.seconds),
            "iterations": mean(self.iterations[WARM_UP:] or self.iterations),
            "passes": mean(self.passes[WARM_UP:] or self.passes),
            "value_error": mean(self.value_error),
            "largest_value_error": max(self.value_error),
            "gradient_error": mean(self.gradient_error),
            "fallbacks": self.fallbacks,
        }


def record_trajectory(dataset: Dataset, kernel: str, spec: SolverSpec, steps: int, lr: float) -> list[Parameters]:
    """The parameters before each of ``steps`` Adam steps, taken with ``spec``.

    :param dataset: in the precision and on the device to train with.
    """
    model, likelihood = build_model(dataset, kernel)
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=lr)
    states = []
    clear_memory()
    with spec.active(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(steps):
            states.append(snapshot(model))
            optimizer.zero_grad()
            loss = -mll(model(dataset.train_x), dataset.train_y)  # type: ignore[operator]
            loss.backward()
            optimizer.step()
    clear_memory()
    return states


def replay(
    dataset: Dataset,
    kernel: str,
    states: Sequence[Parameters],
    contenders: Sequence[SolverSpec],
    exact: ExactEvaluator,
    audit_every: int,
) -> list[Outcome]:
    """Value and gradient at every state by every contender, in turn.

    :param dataset: in the precision and on the device of the contenders.
    :param exact: in float64; asked outside every timing, at every ``audit_every``-th state and the last.
    """
    device = dataset.train_x.device
    models = [build_model(dataset, kernel) for _ in contenders]
    mlls = [gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model) for model, likelihood in models]
    outcomes = [Outcome(spec.name) for spec in contenders]
    clear_memory()
    for index, state in enumerate(states):
        audited = index % audit_every == 0 or index == len(states) - 1
        truth = exact(state) if audited else None
        # The order rotates: nobody always runs on the caches that the same neighbour left.
        for turn in range(len(contenders)):
            number = (turn + index) % len(contenders)
            spec, (model, _), mll, outcome = contenders[number], models[number], mlls[number], outcomes[number]
            restore(model, state)
            model.zero_grad()
            counting = count_products(len(dataset.train_y)) if spec.uses_cg else contextlib.nullcontext()
            with spec.active(), counting as products, collect_reports() as reports, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                synchronize(device)
                started = time.perf_counter()
                loss = -mll(model(dataset.train_x), dataset.train_y)  # type: ignore[operator]
                loss.backward()
                synchronize(device)
                outcome.seconds.append(time.perf_counter() - started)
            counted = products.take() if products is not None else None
            outcome.passes.append(counted.products if counted else sum(report.passes for report in reports))
            outcome.iterations.append(counted.iterations if counted else sum(report.iterations for report in reports))
            outcome.fallbacks += reports.fallbacks
            for note in (note.partition(":")[0] for report in reports for note in report.notes):
                outcome.notes[note] = outcome.notes.get(note, 0) + 1
            if truth is not None:
                outcome.value_error.append(abs(-loss.item() - truth.value))
                outcome.gradient_error.append(relative_error(gradient_vector(model), truth.gradient))
    clear_memory()
    return outcomes
