"""Further observations of a fitted model, a few at a time: the model of all of them, and what it predicts then."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch

from gp_rangeformer import clear_memory, settings
from gp_rangeformer.lab.bench.contenders import UnavailableError
from gp_rangeformer.lab.bench.prediction_calls import said, timed
from gp_rangeformer.lab.bench.prediction_contenders import CHOLESKY, FAST, FLAG, HOST, cholesky
from gp_rangeformer.lab.bench.prediction_data import Fitted
from gp_rangeformer.lab.bench.prediction_exact import Errors, ExactModel, ExactPredictions

MORE, POINTS, ROUNDS = 10, 100, 4  # observations at a time; test points; models, each of the one before
NEEDED = POINTS + ROUNDS * MORE  # rows of ``test_x``


@dataclass(frozen=True)
class FurtherRow:
    """One contender.

    :param first: seconds of the first ``get_fantasy_model`` after a prediction, with means and variances of the model
        that it gives; ``later``: of one that follows, their median.
    :param errors: of the last model; None where nothing exact is known.
    :param failure: why there is no answer.
    """

    name: str
    first: float | None = None
    later: float | None = None
    errors: Errors | None = None
    failure: str | None = None


@dataclass(frozen=True)
class Further:
    """Of one set and so many of its rows: ``more`` observations at a time, ``t`` test points."""

    dataset: str
    n: int
    more: int
    t: int
    rows: tuple[FurtherRow, ...]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Further:
        rows = []
        for row in content["rows"]:
            rows.append(FurtherRow(**{**row, "errors": None if row["errors"] is None else Errors(**row["errors"])}))
        return cls(**{**content, "rows": tuple(rows)})

    def to_json(self) -> dict[str, object]:
        return asdict(self)


_CONTENDERS: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    FLAG.name: settings.rangeformer,
    CHOLESKY: lambda: cholesky(False),
    FAST: lambda: cholesky(True),
}


def measure_further(name: str, fitted: Fitted, audited: int) -> Further:
    """By the flag and by GPyTorch's Cholesky, held against float64 up to ``audited`` rows."""
    exact = None
    if fitted.n <= audited:
        data, last = fitted.data, slice(POINTS, NEEDED)
        x, y = torch.cat([data.train_x, data.test_x[last]]), torch.cat([data.train_y, data.test_y[last]])
        whole = replace(fitted, data=replace(data, train_x=x, train_y=y))
        exact = ExactPredictions(ExactModel(whole), data.test_x[:POINTS])
    rows = tuple(_row(contender, fitted, exact) for contender in _CONTENDERS)
    return Further(name, fitted.n, MORE, POINTS, rows)


def _row(name: str, fitted: Fitted, exact: ExactPredictions | None) -> FurtherRow:
    try:
        if name != FLAG.name:
            HOST.check(fitted, POINTS)
        with warnings.catch_warnings(), _CONTENDERS[name](), torch.no_grad():
            warnings.simplefilter("ignore")
            return _measure(name, fitted, exact)
    except UnavailableError as error:
        return FurtherRow(name, failure=str(error))
    # Whatever it is: it is told, and must not cost the rest of the run.
    except Exception as error:
        return FurtherRow(name, failure=said(error))
    finally:
        clear_memory()


def _measure(name: str, fitted: Fitted, exact: ExactPredictions | None) -> FurtherRow:
    points, x, y = fitted.data.test_x[:POINTS], fitted.data.test_x[POINTS:], fitted.data.test_y[POINTS:]
    clear_memory()
    model: Any = fitted.build()
    _predict(model, points)
    seconds, answer = [], (points[:, 0], points[:, 0])
    for number in range(ROUNDS):
        some = slice(number * MORE, (number + 1) * MORE)
        took, model = timed(lambda model=model, some=some: model.get_fantasy_model(x[some], y[some]))
        predicting, answer = timed(lambda model=model: _predict(model, points))
        seconds.append(took + predicting)
    finite = all(bool(part.isfinite().all()) for part in answer)
    errors = exact.errors(slice(0, POINTS), *answer) if exact is not None and finite else None
    failure = None if finite else "NaN or infinity in its answer"
    return FurtherRow(name, seconds[0], median(seconds[1:]), errors, failure)


def _predict(model: Any, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    found = model(points)
    return found.mean, found.variance
