"""How long the fits of small data sets take, as BoTorch makes them: by the host alone, and with the flag on.

The host runs with the settings that ``import botorch`` leaves, whether BoTorch is there or not: Cholesky at every n, in
steps and predictions (GPyTorch alone goes to conjugate gradients above n = 800). The flag is on over the same settings,
with its own at their defaults, on the CPU. One model is asked by both in turn, in alternating order, each time at other
hyperparameters, the same for both, so that seconds compare and nothing can be remembered.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import gpytorch
import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import RBFKernel, ScaleKernel
from torch import Tensor

from gp_rangeformer import clear_memory, collect_reports, settings
from gp_rangeformer.lab.bench.contenders import Clock
from gp_rangeformer.lab.bench.peer_run import PlanError
from gp_rangeformer.lab.bench.peers import Observer
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.audit import gradient_vector
from gp_rangeformer.lab.compare.instruments import PeakMemory
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.lab.compare.tables import Grid

FORMAT = 1
TEST_POINTS = 100
_CPU = torch.device("cpu")
_LARGEST_CHOLESKY, _CHOLESKY_TRIES = 4096, 6  # as BoTorch sets them
_FEWEST_PAIRS = 4  # of a step or a prediction; the first is not counted
_LENGTHSCALE, _NOISE, _SPREAD = 1 / 3, 0.02, 0.3  # medians: over sqrt(d), of standardised y; deviation of logarithms


@dataclass(frozen=True)
class Plan:
    """What decides the numbers of a run; two runs share a file if their plans are equal.

    :param repetitions: pairs of host and flag per figure, at most.
    :param threads: of torch.
    """

    dimensions: int
    dtype: str
    seed: int
    repetitions: int
    threads: int


@dataclass(frozen=True)
class Timing:
    """One task, by the host and with the flag on.

    :param host: seconds of every repetition; ``flag``: of the same ones.
    :param differences: |flag - host| / |host| of everything that the task returns, the largest over all repetitions.
    :param answered_by: the solvers in the flag's reports, with the reason where the plug-in left a call to GPyTorch.
    :param evaluations: of the likelihood in a fit, by the host and with the flag on; None elsewhere.
    """

    host: list[float]
    flag: list[float]
    differences: dict[str, float]
    answered_by: list[str]
    evaluations: list[int] | None = None

    @property
    def ratio(self) -> float:
        """How many times faster the flag is: the ratio of the medians."""
        return median(self.host) / median(self.flag)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and 90th percentile of that ratio within a pair."""
        ratios = [host / flag for host, flag in zip(self.host, self.flag, strict=True)]
        deciles = quantiles(ratios, n=10, method="inclusive") if len(ratios) > 1 else ratios
        return deciles[0], deciles[-1]

    def summary(self) -> dict[str, object]:
        medians = {"host_seconds": median(self.host), "flag_seconds": median(self.flag)}
        return {**medians, "ratio": self.ratio, "spread": self.spread}


@dataclass(frozen=True)
class Cell:
    """One size and batch.

    :param timings: by the names of :data:`TASKS`; ``fit`` of a single model, and where BoTorch is installed.
    :param peaks: of a step in MiB above what was held before, host and flag; None where they cannot be told.
    """

    n: int
    batch: int
    timings: dict[str, Timing]
    peaks: list[float | None]

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "summaries": {name: timing.summary() for name, timing in self.timings.items()}}

    @classmethod
    def from_json(cls, content: dict) -> Cell:
        timings = {name: Timing(**timing) for name, timing in content["timings"].items()}
        return cls(content["n"], content["batch"], timings, content["peaks"])


class Step:
    """One value of the log marginal likelihood (the sum over a batch) with its backward pass.

    ConstantMean, ScaleKernel(RBFKernel) with a length-scale per dimension, GaussianLikelihood. Where ``batch`` is more
    than 1 all of them have it as a leading axis: x is batch x n x d and y batch x n, as SingleTaskGP holds its outputs.
    """

    fewest = _FEWEST_PAIRS

    def __init__(self, n: int, batch: int, plan: Plan) -> None:
        shape = torch.Size() if batch == 1 else torch.Size([batch])
        x, y, x_test = draw_data(n, batch, plan)
        self.x, self.y = x.expand(*shape, *x.shape), y.mT.reshape(*shape, n)
        self.x_test = x_test.expand(*shape, *x_test.shape)
        self.likelihood = gpytorch.likelihoods.GaussianLikelihood(batch_shape=shape)
        self.model: Any = _Model(self.x, self.y, self.likelihood).to(x)
        self.mll: Any = gpytorch.mlls.ExactMarginalLogLikelihood(self.likelihood, self.model)
        self._generator = torch.Generator().manual_seed(plan.seed)

    def renew(self) -> None:
        """Draw other hyperparameters; before each pair."""
        kernel = self.model.covar_module
        middle = _LENGTHSCALE * self.x.shape[-1] ** 0.5
        kernel.base_kernel.lengthscale = middle * self._factor(kernel.base_kernel.lengthscale)
        kernel.outputscale = self._factor(kernel.outputscale)
        self.likelihood.noise = _NOISE * self._factor(self.likelihood.noise)

    def _factor(self, like: Tensor) -> Tensor:
        return (_SPREAD * torch.randn(like.shape, generator=self._generator, dtype=torch.float64)).exp().to(like)

    def prepare(self) -> None:
        """Before each run, outside the time."""
        self.mll.train()
        self.mll.zero_grad()

    def run(self) -> Any:
        losses = -self.mll(self.model(self.x), self.y)
        losses.sum().backward()
        return losses

    def read(self, result: Any) -> dict[str, Tensor]:
        """What host and flag are compared by."""
        return {"loss": result.detach(), "gradient": gradient_vector(self.model)}


class Prediction(Step):
    """Means and variances of observations at 100 points, by a model without caches."""

    def prepare(self) -> None:
        self.mll.train()  # which forgets the caches
        self.mll.eval()

    def run(self) -> Any:
        with torch.no_grad():
            predicted = self.likelihood(self.model(self.x_test))
            return predicted.mean, predicted.variance

    def read(self, result: Any) -> dict[str, Tensor]:
        return {"mean": result[0], "variance": result[1]}


class FastPrediction(Prediction):
    """The same under ``fast_pred_var``, as in BoTorch's posteriors."""

    def run(self) -> Any:
        with gpytorch.settings.fast_pred_var():
            return super().run()


class Fit(Step):
    """``fit_gpytorch_mll`` of a new SingleTaskGP from its own start values.

    The two may end after different numbers of evaluations: L-BFGS turns rounding into other steps.
    """

    fewest = 1

    def renew(self) -> None:
        """Every fit starts where SingleTaskGP does."""

    def prepare(self) -> None:
        single_task, _ = _botorch()
        self.model = single_task(self.x, self.y.unsqueeze(-1))
        self.mll = _CountingLikelihood(self.model.likelihood, self.model)

    def run(self) -> Any:
        _, fit = _botorch()
        fit(self.mll)

    def read(self, result: Any) -> dict[str, Tensor]:
        self.mll.train()
        with settings.rangeformer(False), torch.no_grad():
            return {"loss": -self.mll(self.model(*self.model.train_inputs), self.model.train_targets)}


TASKS: dict[str, type[Step]] = {
    "step": Step,
    "prediction": Prediction,
    "fast prediction": FastPrediction,
    "fit": Fit,
}


class _Model(gpytorch.models.ExactGP):
    def __init__(self, x: Tensor, y: Tensor, likelihood: gpytorch.likelihoods.GaussianLikelihood) -> None:
        super().__init__(x, y, likelihood)
        shape = y.shape[:-1]
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=shape)
        self.covar_module = ScaleKernel(RBFKernel(ard_num_dims=x.shape[-1], batch_shape=shape), batch_shape=shape)

    def forward(self, x: Tensor) -> MultivariateNormal:
        return MultivariateNormal(self.mean_module(x), self.covar_module(x))  # type: ignore[arg-type]


class _CountingLikelihood(gpytorch.mlls.ExactMarginalLogLikelihood):
    evaluations = 0

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self.evaluations += 1
        return super().forward(*arguments, **options)


def draw_data(n: int, batch: int, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
    """Points n x d, uniform in the unit cube; n x batch outputs, each a wave in its own direction with noise,
    standardised; and 100 x d test points."""
    generator = torch.Generator().manual_seed(plan.seed)
    draw = functools.partial(torch.randn, generator=generator, dtype=torch.float64)
    points = torch.rand(n + TEST_POINTS, plan.dimensions, generator=generator, dtype=torch.float64)
    x, x_test = points[:n], points[n:]
    y = torch.sin(3 * x @ draw(plan.dimensions, batch)) + 0.1 * draw(n, batch)
    y = (y - y.mean(0)) / y.std(0)
    dtype = getattr(torch, plan.dtype)
    return x.to(dtype), y.to(dtype), x_test.to(dtype)


@contextlib.contextmanager
def botorch_conditions() -> Iterator[None]:
    """The host's settings as BoTorch sets them, and no warnings."""
    host = gpytorch.settings
    with (
        host.fast_computations(covar_root_decomposition=False, log_prob=False, solves=False),
        host.max_cholesky_size(_LARGEST_CHOLESKY),
        host.cholesky_max_tries(_CHOLESKY_TRIES),
        host.max_eager_kernel_size(_LARGEST_CHOLESKY),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _botorch() -> tuple[Any, Any]:
    """SingleTaskGP and fit_gpytorch_mll. What their import sets for the whole process is put back.

    :raises ImportError: BoTorch is not installed.
    """
    fast = gpytorch.settings.fast_computations
    flags = (fast.covar_root_decomposition, fast.log_prob, fast.solves)
    before = [flag._default for flag in flags]
    with botorch_conditions():  # puts the sizes and tries back
        found = import_module("botorch.models").SingleTaskGP, import_module("botorch.fit").fit_gpytorch_mll
    for flag, default in zip(flags, before, strict=True):
        flag._default = default
    return found


def has_botorch() -> bool:
    """Whether fits can be measured."""
    try:
        _botorch()
    except ImportError:
        return False
    return True


def time_pairs(task: Step, repetitions: int, patience: float) -> Timing:
    """Run ``task`` by the host and with the flag on, in turn. Where there are several pairs the first is not counted.

    :param repetitions: pairs that count, at most.
    :param patience: seconds after which no further pair is begun, once there are ``task.fewest``.
    """
    seconds: dict[bool, list[float]] = {False: [], True: []}
    read: dict[bool, dict[str, Tensor]] = {}
    counts: dict[bool, int] = {}
    differences: dict[str, float] = {}
    answered: set[str] = set()
    pairs, started = 0, time.perf_counter()
    while pairs <= repetitions and (pairs < task.fewest or time.perf_counter() - started < patience):
        task.renew()
        for flag in (False, True) if pairs % 2 else (True, False):
            task.prepare()
            with settings.rangeformer(flag), collect_reports() as reports, Clock(_CPU) as clock:
                result = task.run()
            seconds[flag].append(clock.seconds)
            for report in reports:
                declined = f" ({report.reason.name})" if report.solver == "gpytorch" else ""
                answered.add(report.solver + declined)
            if isinstance(task.mll, _CountingLikelihood):
                counts[flag] = task.mll.evaluations
            read[flag] = task.read(result)
        for name, host in read[False].items():
            difference = float((read[True][name] - host).norm() / host.norm())
            differences[name] = max(difference, differences.get(name, 0.0))
        pairs += 1
    first = min(1, pairs - 1)
    evaluations = [counts[False], counts[True]] if counts else None
    return Timing(seconds[False][first:], seconds[True][first:], differences, sorted(answered), evaluations)


def measure_cell(
    n: int, batch: int, plan: Plan, tasks: Sequence[str], patience: float, observer: Observer = lambda text: None
) -> Cell:
    """All figures of one size and batch.

    :param tasks: names of :data:`TASKS`; a fit needs BoTorch and a batch of 1.
    :param patience: seconds per figure, see :func:`time_pairs`.
    """
    timings = {}
    with botorch_conditions():
        for name in tasks:
            observer(f"n = {n}, batch {batch}: {name}")
            torch.manual_seed(plan.seed)
            timings[name] = time_pairs(TASKS[name](n, batch, plan), plan.repetitions, patience)
        step = Step(n, batch, plan)
        step.renew()
        return Cell(n, batch, timings, [_peak(step, flag) for flag in (False, True)])


def _peak(task: Step, flag: bool) -> float | None:
    clear_memory()
    task.prepare()
    memory = PeakMemory(_CPU)
    memory.start()
    with settings.rangeformer(flag):
        task.run()
    return memory.peak()


def parse_counts(text: str, option: str, smallest: int) -> list[int]:
    """Ascending, each once.

    :raises PlanError: not whole numbers separated by commas, or one below ``smallest``.
    """
    try:
        counts = sorted({int(count) for count in text.split(",")})
    except ValueError:
        raise PlanError(f"{option} {text!r}: whole numbers separated by commas") from None
    if counts[0] < smallest:
        raise PlanError(f"{option} {text!r}: whole numbers from {smallest} on")
    return counts


def read_cells(path: Path, plan: Plan) -> list[Cell]:
    """The cells that ``path`` holds of the same plan; none if there is no such file.

    :raises PlanError: the file is damaged, or holds another plan.
    """
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text())
        found = Plan(**content["plan"])
        cells = [Cell.from_json(cell) for cell in content["cells"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path} is not a result of this command ({error}): choose another --json") from None
    if found != plan:
        ours, theirs = asdict(plan), asdict(found)
        other = ", ".join(f"{name} {theirs[name]}, not {ours[name]}" for name in ours if ours[name] != theirs[name])
        raise PlanError(f"{path} holds a run with {other}: choose another --json, or repeat that run's options")
    return cells


def run(
    plan: Plan,
    sizes: Sequence[int],
    batches: Sequence[int],
    *,
    patience: float,
    path: Path | None = None,
    write: Callable[[Path, dict[str, object]], object] = write_json,
    observer: Observer = lambda text: None,
    show: Callable[[Cell], None] = lambda cell: None,
) -> list[Cell]:
    """Measure every size with every batch, those that ``path`` has not yet, and write the file after each.

    :param show: called with every cell that has been measured.
    :raises PlanError: as :func:`read_cells`.
    """
    known = {(cell.n, cell.batch): cell for cell in ([] if path is None else read_cells(path, plan))}
    wanted = [(n, batch) for n in sizes for batch in batches]
    fits, described = has_botorch(), machine.describe()
    for n, batch in wanted:
        tasks = [name for name in TASKS if name != "fit" or (fits and batch == 1)]
        if (n, batch) in known and known[n, batch].timings.keys() >= set(tasks):
            continue
        known[n, batch] = measure_cell(n, batch, plan, tasks, patience, observer)
        show(known[n, batch])
        if path is not None:
            cells = [known[key] for key in sorted(known)]
            content = {
                "format": FORMAT,
                "plan": asdict(plan),
                "machine": described,
                "botorch": metadata.version("botorch") if fits else None,
                "test_points": TEST_POINTS,
                "settings": settings.current(),
                "sizes": sorted({cell.n for cell in cells}),
                "batches": sorted({cell.batch for cell in cells}),
                "cells": [cell.to_json() for cell in cells],
            }
            write(path, content)
    return [known[key] for key in wanted]


def seconds_grid(cells: Sequence[Cell], plan: Plan, where: str | None = None) -> Grid:
    """One row per size and batch: what each task takes, and how many times faster the flag makes it.

    :param where: what it was measured on; None: this machine.
    """
    shown = [name for name in TASKS if any(name in cell.timings for cell in cells)]
    headers = ["n, batch"]
    for name in shown:
        headers += [f"{name}\nhost, flag".replace(" p", "\np"), "faster\n(10-90 %)"]
    rows = []
    for cell in cells:
        row = [f"{cell.n}, {cell.batch}"]
        for name in shown:
            timing = cell.timings.get(name)
            row += ["-", "-"] if timing is None else [_milliseconds(timing), _times(timing)]
        rows.append(tuple(row))
    counts = sorted({len(timing.host) for cell in cells for timing in cell.timings.values()})
    runs = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    notes = [
        "step: likelihood and backward pass; prediction: means and variances at "
        f"{TEST_POINTS} points without caches; fast: with fast_pred_var",
        f"host: BoTorch's settings, Cholesky at every n; medians of {runs} runs, in turn; "
        "faster: ratio of medians, its percentiles in pairs",
        f"d = {plan.dimensions}, {plan.dtype}, seed {plan.seed}, threads: {plan.threads}; "
        f"{where or machine.one_line()}",
    ]
    if "fit" in shown:
        notes.insert(1, "fit: BoTorch's fit_gpytorch_mll of a SingleTaskGP from its start values")
    return Grid("Small data sets: milliseconds", tuple(headers), tuple(rows), tuple(notes))


def accuracy_grid(cells: Sequence[Cell]) -> Grid:
    """One row per size and batch: how far host and flag are apart, the memory of a step, and who answered."""
    headers = ("n, batch", "loss", "gradient", "mean", "variance", "peak MiB", "the flag's step by")
    fits = [cell.timings.get("fit") for cell in cells]
    fitted = any(fits)
    rows = []
    for cell, fit in zip(cells, fits, strict=True):
        found = [timing.differences for name, timing in cell.timings.items() if name != "fit"]
        largest = (max(each[name] for each in found if name in each) for name in headers[1:5])
        peaks = ", ".join("-" if peak is None else f"{peak:.0f}" for peak in cell.peaks)
        answered = ", ".join(cell.timings["step"].answered_by) or "gpytorch"
        row = [f"{cell.n}, {cell.batch}", *(f"{value:.0e}" for value in largest), peaks, answered]
        if fitted and fit is None:
            row += ["-", "-"]
        elif fit is not None:
            row += [f"{fit.differences['loss']:.0e}", ", ".join(map(str, fit.evaluations or ()))]
        rows.append(tuple(row))
    notes = ["largest relative differences between host and flag over all runs; peak: memory of a step, host, flag"]
    if fitted:
        headers += ("fitted loss", "evaluations")
        notes.append("fitted loss: of the likelihoods where the two fits ended, after so many evaluations, host, flag")
    return Grid("Small data sets: differences", headers, tuple(rows), tuple(notes))


def one_line(cell: Cell) -> str:
    """For the terminal, while the run goes on."""
    found = ", ".join(f"{name} {_times(timing)}" for name, timing in cell.timings.items())
    return f"n={cell.n} batch={cell.batch}: times faster: {found}"


def _milliseconds(timing: Timing) -> str:
    found = (1e3 * median(seconds) for seconds in (timing.host, timing.flag))
    return ", ".join(f"{value:.0f}" if value >= 100 else f"{value:#.3g}" for value in found)


def _times(timing: Timing) -> str:
    ratio = f"{timing.ratio:.{2 if timing.ratio < 10 else 1}f}"
    if len(timing.host) == 1:
        return ratio
    return f"{ratio} ({'-'.join(f'{bound:#.2g}'.rstrip('.') for bound in timing.spread)})"
