"""Fits of data of many kinds, and from many starts: BoTorch's own beside ``fit_mll``, and which likelihood is higher.

Both train the same SingleTaskGP, with its priors, from the same start; what each has found is judged by GPyTorch's
Cholesky in float64, outside every timing.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gpytorch
import torch
from linear_operator.utils.errors import NanError, NotPSDError
from torch import Tensor

from gp_rangeformer import clear_memory, settings
from gp_rangeformer.fit import fit_mll
from gp_rangeformer.fit.parameters import FreeParameters
from gp_rangeformer.lab.bench.contenders import Clock
from gp_rangeformer.lab.bench.robust_sets import KINDS, RESTARTED
from gp_rangeformer.lab.bench.small_tasks import CPU, CountingLikelihood, botorch_conditions, load_botorch

GAP = 0.01  # nats per point that count as a difference
# Of a random start: every positive parameter's distance from its bound.
_SMALLEST, _LARGEST = 1e-3, 1e2


Case = tuple[str, int, int]  # a set's name, n, and the start: 0 is the model's own, any other the seed of a random one


@dataclass(frozen=True)
class End:
    """One fit. ``value``: MAP value in nats per point, exact; None where it raised ``raised``, or where not even
    float64 has a factor. ``warned``: the kinds of its warnings."""

    value: float | None
    seconds: float
    evaluations: int
    raised: str | None
    warned: tuple[str, ...]


@dataclass(frozen=True)
class RobustCell:
    """A case, and both ends. ``onward``: where BoTorch's own fit comes to that begins where the lower of both ended;
    None unless they are more than :data:`GAP` apart."""

    dataset: str
    n: int
    d: int
    dtype: str
    start: int
    theirs: End
    ours: End
    onward: float | None

    @property
    def key(self) -> Case:
        return self.dataset, self.n, self.start

    @property
    def above(self) -> float | None:
        """How much higher ours ends, in nats per point; None unless both ended."""
        if self.ours.value is None or self.theirs.value is None:
            return None
        return self.ours.value - self.theirs.value

    @classmethod
    def from_json(cls, content: dict) -> RobustCell:
        ends = {name: End(**{**content[name], "warned": tuple(content[name]["warned"])}) for name in ("theirs", "ours")}
        return cls(**{**content, **ends})

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def cases(names: Sequence[str], largest: int, restarts: int) -> list[Case]:
    """Every set once from the model's own start, then ``restarts`` random ones over those of :data:`RESTARTED`.

    :param largest: rows of a set, at most.
    """
    own = [(name, min(KINDS[name].n, largest), 0) for name in names]
    restarted = [(name, min(n, largest)) for name, n in RESTARTED.items() if name in names]
    return own + [(*one, start) for start, one in zip(range(1, restarts + 1), itertools.cycle(restarted))]


def measure(case: Case, seed: int) -> RobustCell:
    """Both fits of a case.

    :param seed: of the data.
    :raises ImportError: BoTorch is not installed.
    """
    name, n, start = case
    x, y = KINDS[name].data(n, seed)
    with botorch_conditions():
        mlls = [build(x, y) for _ in range(2)]
        for mll in mlls:
            if start:
                move(mll, start)
        theirs, ours = _end(mlls[0], _by_botorch), _end(mlls[1], _by_fit_mll)
        found = RobustCell(name, n, x.shape[1], KINDS[name].dtype, start, theirs, ours, None)
        if found.above is None or abs(found.above) <= GAP:
            return found
        return replace(found, onward=_end(mlls[found.above < 0], _by_botorch).value)


def warm_up() -> None:
    """What only the first fits of a process pay for."""
    measure(("steps", 20, 0), seed=0)


def build(x: Tensor, y: Tensor) -> CountingLikelihood:
    """SingleTaskGP as BoTorch makes it, inputs as they are."""
    single_task, _ = load_botorch()
    model = single_task(x, y.unsqueeze(-1))
    return CountingLikelihood(model.likelihood, model)


def move(mll: Any, seed: int) -> None:
    """To random hyperparameters: log-uniform where they have a bound, over five decades; else normal."""
    generator = torch.Generator().manual_seed(seed)
    parameters = FreeParameters(mll)
    size = parameters.size
    low, high = math.log(_SMALLEST), math.log(_LARGEST)
    bounded = low + (high - low) * torch.rand(size, generator=generator, dtype=torch.float64)
    free = torch.randn(size, generator=generator, dtype=torch.float64)
    parameters.write(torch.where(parameters.unbounded, free, bounded))


def _by_botorch(mll: Any) -> None:
    _, fit = load_botorch()
    fit(mll)


def _by_fit_mll(mll: Any) -> None:
    with settings.rangeformer():
        fit_mll(mll)


def _end(mll: CountingLikelihood, fit: Callable[[Any], None]) -> End:
    clear_memory()
    raised = None
    with warnings.catch_warnings(record=True) as warned, Clock(CPU) as clock:
        warnings.simplefilter("always")
        try:
            fit(mll)
        except Exception as error:  # whatever it is, it is what is asked for here
            raised = f"{type(error).__name__}: {error}"
    evaluations = mll.evaluations
    kinds = tuple(sorted({warning.category.__name__ for warning in warned}))
    return End(None if raised else exact_value(mll), clock.seconds, evaluations, raised, kinds)


def exact_value(mll: Any) -> float | None:
    """By GPyTorch's Cholesky in float64, at the parameters as they are; None if there is no factor."""
    wide = copy.deepcopy(mll).double().train()
    model = wide.model
    inputs = tuple(x.double() for x in model.train_inputs)
    model.set_train_data(inputs, model.train_targets.double(), strict=False)
    exact = gpytorch.settings.fast_computations(False, False, False)
    with settings.rangeformer(False), exact, torch.no_grad():
        try:
            return float(wide(model(*inputs), model.train_targets, *inputs))
        except (NanError, NotPSDError):
            return None
