"""What an interrupted fit leaves in a folder: the kernels that were compared, and the best parameters of the last."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gp_rangeformer.atomic import WriteError, write_bytes
from gp_rangeformer.regression.errors import TableWarning
from gp_rangeformer.regression.files import UNFINISHED, sealed, unsealed
from gp_rangeformer.regression.kernels import Covariance, Regression
from gp_rangeformer.version import own_version


class Unfinished:
    """``unfinished.json`` of a folder, replaced with everything that is kept, so that a kill loses nothing before.

    What is there of the same data and seed is gone on from, with a :class:`~gp_rangeformer.regression.TableWarning`;
    what is of others is kept under another name, what is damaged or edited not used, and both are said.

    :param folder: None: nothing is kept.
    :param x: n x d, standardised.
    :param y: n, standardised.
    :param starts: the kernels that are asked for.
    """

    def __init__(self, folder: Path | None, x: Tensor, y: Tensor, seed: int, starts: list[Covariance]) -> None:
        self._path = None if folder is None else folder / UNFINISHED
        self._data = "" if folder is None else _digest(x, y, seed)
        self._compared: dict[str, Any] = {}
        self._best: dict[str, Any] | None = None
        if self._path is not None and self._path.is_file():
            self._read(self._path, [_key(start) for start in starts])

    def _read(self, path: Path, asked: list[str]) -> None:
        try:
            content = unsealed(path.read_bytes())
        except (OSError, ValueError) as error:
            _say(f"{path} is damaged, or was edited ({error}): the fit begins anew")
            return
        compared, best = content.get("compared", {}), content.get("best")
        known = [name for name in asked if name in compared]
        if content.get("data") != self._data or not (known or (best and best["kernel"] in asked)):
            _say(f"{path} is of other data, another kernel or other options: the fit begins anew, {_kept_aside(path)}")
            return
        self._compared, self._best = compared, best
        if known:
            _say(f"goes on from {path}: {', '.join(known)} {'is' if len(known) == 1 else 'are'} fitted already")

    def compared(self, start: Covariance) -> dict[str, Any] | None:
        """What :meth:`keep_compared` was given of this kernel."""
        return self._compared.get(_key(start))

    def keep_compared(self, start: Covariance, content: Mapping[str, Any]) -> None:
        """:param content: plain values."""
        self._compared[_key(start)], self._best = dict(content), None
        self._write()

    def keep_best(self, start: Covariance, gp: Regression, points: int, value: float) -> None:
        """:param points: of the training rows, that ``value``, in nats each, is of."""
        rows, parameters = len(_targets(gp)), parameters_to_json(gp)
        self._best = {"kernel": _key(start), "rows": rows, "points": points, "value": value, "parameters": parameters}
        self._write()

    def restore_best(self, start: Covariance, gp: Regression) -> int | None:
        """Put the parameters that were kept into ``gp``. On how many of its rows they were found; None where there are
        none."""
        best, rows = self._best, len(_targets(gp))
        if best is None or (best["kernel"], best["rows"]) != (_key(start), rows):
            return None
        parameters_from_json(gp, best["parameters"])
        on = "" if best["points"] == rows else f" on {best['points']} of {rows} rows"
        _say(f"goes on from the parameters in {self._path}, of log p(y)/n = {best['value']:.4f}{on}")
        return best["points"]

    def _write(self) -> None:
        if self._path is None:
            return
        try:
            write_bytes(self._path, sealed({"data": self._data, "compared": self._compared, "best": self._best}))
        except (WriteError, ValueError) as error:  # which must not cost the fit
            _say(f"{error}; the fit goes on without keeping its parameters")
            self._path = None


def _kept_aside(path: Path) -> str:
    """Under the next free number: the fit that it is of may be worth hours. What has become of it, in words."""
    others = (path.with_stem(f"{path.stem}-{number}") for number in count(1))
    free = next(other for other in others if not other.exists())
    try:
        path.rename(free)
    except OSError as error:
        return f"and will replace it ({error}): copy it to keep it"
    return f"and it is kept as {free.name}: rename it back to go on from it"


def parameters_to_json(gp: Regression) -> dict[str, Any]:
    return {name: parameter.detach().tolist() for name, parameter in gp.named_parameters()}


def parameters_from_json(gp: Regression, content: Mapping[str, Any]) -> None:
    """Into ``gp``, exactly."""
    with torch.no_grad():
        for name, parameter in gp.named_parameters():
            parameter.copy_(torch.tensor(content[name], dtype=parameter.dtype))


def _key(start: Covariance) -> str:
    return start.name or repr(start.kernel)


def _targets(gp: Any) -> Tensor:
    return gp.train_targets


def _digest(x: Tensor, y: Tensor, seed: int) -> str:
    """Of everything but the kernel that decides a fit."""
    digest = hashlib.sha256(repr((own_version(), tuple(x.shape), str(x.dtype), seed)).encode())
    for tensor in (x, y):
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _say(text: str) -> None:
    warnings.warn(text, TableWarning, stacklevel=5)
