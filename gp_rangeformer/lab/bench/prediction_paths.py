"""Functions from a posterior: this package's and BoTorch's, drawn from one model and evaluated at many points."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from gp_rangeformer import clear_memory, predict
from gp_rangeformer.lab.bench.contenders import UnavailableError
from gp_rangeformer.lab.bench.prediction_calls import peak_of, repeated, said
from gp_rangeformer.lab.bench.prediction_contenders import check_memory
from gp_rangeformer.lab.bench.prediction_data import Fitted
from gp_rangeformer.lab.bench.prediction_exact import ExactPredictions
from gp_rangeformer.lab.bench.small_tasks import has_botorch

OURS, BOTORCH = "sample_paths", "BoTorch's draw_matheron_paths"
Draw = Callable[[Any, int, int], Callable[[Tensor], Tensor]]  # a model, a count, a seed
_DRAWS, _OF_A_DRAW = 5, 16  # that are held against exact variances


@dataclass(frozen=True)
class Paths:
    """``count`` functions from one model, each evaluated at ``t`` points.

    :param draw, evaluate: seconds, medians where they are short; ``peak``: of both, in MiB above what was held before.
    :param standardised: mean of (f - m)^2 / v with exact means and variances, over 16 paths (or ``count``) and all
        points, of five draws with other waves: 1 on average of exact draws. None of them where nothing exact is known.
    :param failure: why there are none.
    """

    name: str
    count: int
    t: int
    draw: float | None = None
    evaluate: float | None = None
    peak: float | None = None
    standardised: tuple[float, ...] = ()
    failure: str | None = None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Paths:
        return cls(**{**content, "standardised": tuple(content["standardised"])})

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def measure_paths(fitted: Fitted, count: int, t: int, exact: ExactPredictions | None) -> tuple[Paths, ...]:
    """By both, ``count`` paths at the first ``t`` points; of BoTorch's as many as fit into memory."""
    found = []
    for name, draw in ((OURS, _ours), (BOTORCH, _botorchs)):
        some = count
        try:
            some = count if name == OURS else _most(fitted, count)
            found.append(_measure(name, draw, fitted, some, t, exact))
        except UnavailableError as error:
            found.append(Paths(name, some, t, failure=str(error)))
        # Whatever it is: it is told, and must not cost the rest of the run.
        except Exception as error:
            found.append(Paths(name, some, t, failure=said(error)))
        finally:
            clear_memory()
    return tuple(found)


def _ours(model: Any, count: int, seed: int) -> Callable[[Tensor], Tensor]:
    return predict.sample_paths(model, count, seed=seed)


def _botorchs(model: Any, count: int, seed: int) -> Callable[[Tensor], Tensor]:
    torch.manual_seed(seed)
    return import_module("botorch.sampling.pathwise").draw_matheron_paths(model, torch.Size([count]))


def _most(fitted: Fitted, count: int) -> int:
    """BoTorch's copies its factor for every path.

    :raises UnavailableError: it is not installed, or not even one fits.
    """
    if not has_botorch():
        raise UnavailableError("BoTorch is not installed: pip install botorch")
    while True:
        try:
            check_memory(fitted.itemsize * fitted.n**2 * (count + 8))  # eight: measured, beside the copies
        except UnavailableError:
            if count == 1:
                raise
            count //= 2
        else:
            return count


def _build(fitted: Fitted) -> Any:
    """BoTorch's model class, which its paths need, where it is installed; the same model in any case."""
    model: Any = fitted.build()
    if not has_botorch():
        return model
    parts = {"likelihood": model.likelihood, "covar_module": model.covar_module, "mean_module": model.mean_module}
    single_task = import_module("botorch.models").SingleTaskGP
    return single_task(fitted.data.train_x, fitted.data.train_y[:, None], outcome_transform=None, **parts).eval()


def _measure(name: str, draw: Draw, fitted: Fitted, count: int, t: int, exact: ExactPredictions | None) -> Paths:
    x = fitted.data.test_x[:t]
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # BoTorch advises float64
        drawing, paths = repeated(lambda: _build(fitted), lambda model: draw(model, count, 0))
        evaluating, _ = repeated(lambda: paths, lambda paths: paths(x))
        del paths
        peak = peak_of(lambda: _build(fitted), lambda model: draw(model, count, 0)(x))
        found: list[float] = []
        for seed in range(_DRAWS if exact is not None else 0):
            assert exact is not None
            values = draw(_build(fitted), min(count, _OF_A_DRAW), seed)(x).double()
            found.append(float(((values - exact.mean[:t]).square() / exact.variance[:t]).mean()))
    return Paths(name, count, t, drawing, evaluating, peak, tuple(found))
