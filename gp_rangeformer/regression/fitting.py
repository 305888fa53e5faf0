"""One fit of standardised data, whose best parameters are kept in a folder while it runs."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.atomic import WriteError, write_bytes
from gp_rangeformer.fit import FitResult, Record, fit_mll
from gp_rangeformer.regression.errors import TableWarning
from gp_rangeformer.regression.files import UNFINISHED
from gp_rangeformer.regression.kernels import Covariance, Regression, build

Watch = Callable[[str, Record], None]


class BestSoFar:
    """The parameters of one fit's best evaluation on all points, in ``unfinished.json`` of a folder.

    :param identity: of the fit: those of another one are not gone on from.
    """

    def __init__(self, folder: Path, identity: str) -> None:
        self._path, self._identity = folder / UNFINISHED, identity

    def keep(self, gp: Regression, value: float) -> None:
        """Replace what was kept.

        :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
        """
        parameters = {name: parameter.detach().tolist() for name, parameter in gp.named_parameters()}
        content = {"fit": self._identity, "value": value, "parameters": parameters}
        write_bytes(self._path, json.dumps(content).encode())

    def restore(self, gp: Regression) -> bool:
        """Put the parameters that an interrupted fit has left into ``gp``; says so in a warning. Whether there are any
        for this one."""
        try:
            content = json.loads(self._path.read_text())
            same = content["fit"] == self._identity
            kept = {name: torch.tensor(value) for name, value in content["parameters"].items()} if same else {}
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            _say(f"{self._path} cannot be read ({error!r}): the fit begins anew")
            return False
        if not same:
            _say(f"{self._path} is of other data, another kernel or other options: the fit begins anew")
            return False
        with torch.no_grad():
            for name, parameter in gp.named_parameters():
                parameter.copy_(kept[name])
        _say(f"goes on from the parameters in {self._path}, of log p(y)/n = {content['value']:.4f}")
        return True


def identity(x: Tensor, y: Tensor, start: Covariance, seed: int) -> str:
    """A digest of everything that decides a fit."""
    digest = hashlib.sha256()
    digest.update(repr((start.name, repr(start.kernel), tuple(x.shape), str(x.dtype), seed)).encode())
    for tensor in (x, y):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def fitted(
    x: Tensor, y: Tensor, start: Covariance, seed: int, watch: Callable[[Record], None], folder: Path | None = None
) -> tuple[Regression, FitResult]:
    """A model of standardised data, trained to convergence with the flag on. The global generator is left as it is.

    :param x: n x d.
    :param y: n.
    :param folder: keeps the best parameters so far.
    :raises FitError: as :func:`gp_rangeformer.fit.fit_mll`.
    """
    gp: Any = build(x, y, start)
    best = None if folder is None else BestSoFar(folder, identity(x, y, start, seed))
    resumed = best is not None and best.restore(gp)

    def see(record: Record) -> None:
        nonlocal best
        if best is not None and record.accepted and record.points == len(y):
            try:
                best.keep(gp, record.value)
            except WriteError as error:  # which must not cost the fit
                _say(f"{error}; the fit goes on without keeping its parameters")
                best = None
        watch(record)

    devices = [x.device] if x.device.type == "cuda" else []
    with torch.random.fork_rng(devices), settings.rangeformer():
        torch.manual_seed(seed)
        mll = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)
        return gp, fit_mll(mll, callback=see, seed=seed, levels=not resumed)


def _say(text: str) -> None:
    warnings.warn(text, TableWarning, stacklevel=5)
