"""What a replay asks of a contender, and the contenders that are GPyTorch models under some settings."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import time
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import collect_reports
from gp_rangeformer.lab.compare.audit import Parameters, gradient_vector, restore
from gp_rangeformer.lab.compare.instruments import count_products, synchronize
from gp_rangeformer.lab.compare.solvers import SolverSpec
from gp_rangeformer.lab.datasets import Dataset
from gp_rangeformer.lab.models import Regression, build_model


class UnavailableError(Exception):
    """A contender that cannot run here or does not know the kernel; the message is the reason to show."""


def import_peer(module: str, package: str | None = None) -> Any:
    """:raises UnavailableError: its package, of the same name if none is given, is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = package or module
        raise UnavailableError(f"{name} cannot be imported ({error}): pip install {name}") from None


@dataclass(frozen=True)
class Problem:
    """What all contenders are asked about.

    :param dataset: in float64 on the CPU, as loaded.
    :param kernel: one of :data:`gp_rangeformer.lab.models.KERNELS`.
    :param dtype: of every contender that has a choice, ``float32`` or ``float64``.
    """

    dataset: Dataset
    kernel: str
    dtype: str = "float32"
    device: str = "cpu"

    @property
    def n(self) -> int:
        return len(self.dataset.train_y)

    @cached_property
    def data(self) -> Dataset:
        """In the dtype and on the device of the contenders."""
        return self.dataset.to(getattr(torch, self.dtype), self.device)


@dataclass(frozen=True)
class Evaluation:
    """What one contender found at one state.

    :param processor: processor seconds of all threads.
    :param system: those of them that the kernel took.
    :param value: log marginal likelihood per point in nats; None from a floor, which computes none.
    :param gradient: of the negative value over all learnable raw hyperparameters, float64 on the CPU, in the order of
        :func:`~gp_rangeformer.lab.compare.audit.gradient_vector`.
    :param covered: the entries of ``gradient`` that were computed; None: all of them.
    :param passes: products with K.
    """

    seconds: float
    processor: float
    value: float | None
    gradient: Tensor
    covered: Tensor | None = None
    iterations: int = 0
    passes: int = 0
    fallbacks: int = 0
    notes: tuple[str, ...] = ()
    system: float = 0.0

    @property
    def finite(self) -> bool:
        return (self.value is None or math.isfinite(self.value)) and bool(self.gradient.isfinite().all())


class Contender(Protocol):
    """Computes value and gradient at given hyperparameters and says how long that took."""

    @property
    def name(self) -> str: ...

    def evaluate(self, state: Parameters) -> Evaluation:
        """Everything that depends on ``state`` is inside the time; putting it into place is not."""
        ...


class Clock:
    """Wall-clock seconds of a block, and processor seconds of all threads, in all and in the kernel; queued work of the
    device is waited for on both sides."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds = self.processor = self.system = 0.0

    def __enter__(self) -> Clock:
        synchronize(self._device)
        self._started = time.perf_counter(), time.process_time(), os.times().system
        return self

    def __exit__(self, *exception: object) -> None:
        synchronize(self._device)
        self.seconds = time.perf_counter() - self._started[0]
        self.processor = time.process_time() - self._started[1]
        self.system = os.times().system - self._started[2]


class ModelContender:
    """A GPyTorch model whose likelihood is evaluated and differentiated under the settings of ``spec``.

    :param data: in the dtype and on the device to run with.
    :param change: alters the model before its first use, with parameters that keep their names.
    :param further: settings inside those of ``spec``.
    """

    def __init__(
        self,
        spec: SolverSpec,
        data: Dataset,
        kernel: str,
        *,
        change: Callable[[Regression], None] | None = None,
        further: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    ) -> None:
        self.name = spec.name
        self._spec = spec
        self._further = further
        self._data = data
        self._model, likelihood = build_model(data, kernel)
        if change is not None:
            change(self._model)
            self._model.to(dtype=data.train_x.dtype, device=data.train_x.device)
        self._mll: Any = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, self._model)

    def evaluate(self, state: Parameters) -> Evaluation:
        x, y = self._data.train_x, self._data.train_y
        restore(self._model, state)
        self._model.zero_grad()
        counting = count_products(len(y)) if self._spec.uses_cg else contextlib.nullcontext()
        with self._spec.active(), counting as products, collect_reports() as reports, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with self._further(), Clock(x.device) as clock:
                loss = -self._mll(self._model(x), y)
                loss.backward()
        counted = products.take() if products is not None else None
        return Evaluation(
            clock.seconds,
            clock.processor,
            -loss.item(),
            gradient_vector(self._model),
            iterations=counted.iterations if counted else sum(report.iterations for report in reports),
            passes=counted.products if counted else sum(report.passes for report in reports),
            fallbacks=reports.fallbacks,
            notes=tuple(note.partition(":")[0] for report in reports for note in report.notes),
            system=clock.system,
        )
