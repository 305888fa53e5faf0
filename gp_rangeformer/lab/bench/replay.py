"""One recorded training trajectory, replayed by several contenders in turn.

All contenders see the same hyperparameters at every step, and take turns within a step, so that their seconds compare
on a machine whose speed changes, and their errors do not depend on where each would have gone by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean, median

import gpytorch
import torch

from gp_rangeformer import clear_memory
from gp_rangeformer.lab.bench.contenders import Contender, Evaluation
from gp_rangeformer.lab.compare.audit import (
    ExactEvaluator,
    Parameters,
    ValueAndGradient,
    relative_error,
    restore,
    snapshot,
)
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import build_model

WARM_UP = 3  # steps before the memory is filled and every contender has met its allocations


@dataclass
class Outcome:
    """What one contender did. ``seconds``, ``iterations`` and ``passes`` per step; errors at the audited steps.

    ``value_error``: of the log marginal likelihood in nats per point; ``gradient_error``: relative, both absolute.
    ``notes``: how often a report said what. ``left_out``: why it did not run to the end, None if it did.
    ``processor``: seconds of all threads per step; ``system``: those of them that the kernel took.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    iterations: list[int] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    value_error: list[float] = field(default_factory=list)
    gradient_error: list[float] = field(default_factory=list)
    fallbacks: int = 0
    notes: dict[str, int] = field(default_factory=dict)
    left_out: str | None = None
    processor: list[float] = field(default_factory=list)
    system: list[float] = field(default_factory=list)

    def add(self, evaluation: Evaluation, truth: ValueAndGradient | None) -> None:
        """Append a step; its errors where ``truth`` is known, a floor's never."""
        self.seconds.append(evaluation.seconds)
        self.processor.append(evaluation.processor)
        self.system.append(evaluation.system)
        self.passes.append(evaluation.passes)
        self.iterations.append(evaluation.iterations)
        self.fallbacks += evaluation.fallbacks
        for note in evaluation.notes:
            self.notes[note] = self.notes.get(note, 0) + 1
        if truth is not None and evaluation.value is not None:
            covered = slice(None) if evaluation.covered is None else evaluation.covered
            self.value_error.append(abs(evaluation.value - truth.value))
            self.gradient_error.append(relative_error(evaluation.gradient[covered], truth.gradient[covered]))

    def cores(self) -> float:
        """Processor seconds over wall-clock seconds, after the warm-up; nan if not measured."""
        wall = sum(self.seconds[WARM_UP:] or self.seconds)
        return sum(self.processor[WARM_UP:] or self.processor) / wall if wall and self.processor else math.nan

    def summary(self) -> dict[str, float]:
        """Medians of seconds and means of the rest, after the warm-up; nan where nothing was measured."""
        return {
            "seconds": median(self.seconds[WARM_UP:] or self.seconds or [math.nan]),
            "iterations": mean(self.iterations[WARM_UP:] or self.iterations or [math.nan]),
            "passes": mean(self.passes[WARM_UP:] or self.passes or [math.nan]),
            "value_error": mean(self.value_error or [math.nan]),
            "largest_value_error": max(self.value_error, default=math.nan),
            "gradient_error": mean(self.gradient_error or [math.nan]),
            "fallbacks": self.fallbacks,
        }


def record_trajectory(
    dataset: Dataset, kernel: str, spec: SolverSpec, steps: int, lr: float, start: Parameters | None = None
) -> list[Parameters]:
    """The parameters before each of ``steps`` Adam steps, taken with ``spec``.

    :param dataset: in the precision and on the device to train with.
    :param start: the first ones; None for those of a fresh model.
    """
    model, likelihood = build_model(dataset, kernel)
    if start is not None:
        restore(model, start)
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
    contenders: Sequence[Contender],
    states: Sequence[Parameters],
    exact: ExactEvaluator | None,
    audit_every: int,
    patience: float | None = None,
) -> list[Outcome]:
    """Value and gradient at every state by every contender, in turn.

    :param exact: in float64; asked outside every timing, at every ``audit_every``-th state and the last. None: never.
    :param patience: a contender that takes longer over its first step, in seconds, or ever raises or finds no finite
        number, is left out from there on, with the reason in its outcome. None: everybody runs to the end, and what is
        raised ends the replay.
    """
    outcomes = [Outcome(contender.name) for contender in contenders]
    clear_memory()
    order = torch.Generator().manual_seed(0)
    for index, state in enumerate(states):
        audited = index % audit_every == 0 or index == len(states) - 1
        truth = exact(state) if audited and exact is not None else None
        # In another random order every time: nobody always runs on the caches that the same neighbour left.
        for number in torch.randperm(len(contenders), generator=order).tolist():
            if outcomes[number].left_out is None:
                _step(contenders[number], state, truth, outcomes[number], patience)
    clear_memory()
    return outcomes


def ratio(outcome: Outcome, reference: Outcome) -> float:
    """Seconds over the reference's: the median over the steps after the warm-up of the ratio within a step."""
    pairs = list(zip(outcome.seconds, reference.seconds, strict=True))
    return median(own / other for own, other in pairs[WARM_UP:] or pairs)


def describe_error(error: Exception) -> str:
    """Its kind and the first line of what it says."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _step(
    contender: Contender, state: Parameters, truth: ValueAndGradient | None, outcome: Outcome, patience: float | None
) -> None:
    try:
        evaluation = contender.evaluate(state)
    except Exception as error:
        if patience is None:
            raise
        outcome.left_out = f"failed at step {len(outcome.seconds) + 1}: {describe_error(error)}"
        return
    if patience is not None and not evaluation.finite:
        outcome.left_out = f"failed at step {len(outcome.seconds) + 1}: value or gradient is not finite"
        return
    outcome.add(evaluation, truth)
    # Later ones may be slow because the machine was busy.
    if patience is not None and len(outcome.seconds) == 1 and evaluation.seconds > patience:
        outcome.left_out = f"step 1 took {evaluation.seconds:.3g} s, longer than the patience of {patience:g} s"
