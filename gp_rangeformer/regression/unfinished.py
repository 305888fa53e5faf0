"""What an interrupted fit leaves in a folder: the kernels that were compared, and the best parameters of the last."""

from __future__ import annotations

import contextlib
import hashlib
import warnings
from collections.abc import Mapping
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.regression.errors import TableWarning
from gp_rangeformer.regression.files import UNFINISHED, sealed, unfinished_files, unsealed
from gp_rangeformer.regression.kernels import Covariance, Regression
from gp_rangeformer.version import own_version


class Unfinished:
    """``unfinished.json`` of a folder, replaced with everything that is kept, so that a kill loses nothing before.

    What is there of the same data and seed is gone on from, with a :class:`~gp_rangeformer.regression.TableWarning`.
    What is of another fit, which may run, is left alone: this one's is ``unfinished-1.json``, or the next free number.
    What is damaged or edited is not used. Both are said.

    :param folder: None: nothing is kept.
    :param x: n x d, standardised.
    :param y: n, standardised.
    :param starts: the kernels that are asked for.
    """

    def __init__(self, folder: Path | None, x: Tensor, y: Tensor, seed: int, starts: list[Covariance]) -> None:
        self._folder = folder
        self._path: Path | None = None  # where there is something of this fit
        self._kept = b""  # all that is there
        self._data = "" if folder is None else _digest(x, y, seed)
        self._compared: dict[str, Any] = {}
        self._best: dict[str, Any] | None = None
        if folder is not None:
            self._begin(unfinished_files(folder), [_key(start) for start in starts])

    def _begin(self, paths: list[Path], asked: list[str]) -> None:
        """Go on from the one of ``paths`` that is of this fit, or say what the others are."""
        said = ""
        for path in paths:
            try:
                self._kept = path.read_bytes()
                content = unsealed(self._kept)
            except (OSError, ValueError) as error:
                if path.name == UNFINISHED:
                    self._path, said = path, f"{path} is damaged, or was edited ({error})"
                continue
            compared, best = content.get("compared", {}), content.get("best")
            known = [name for name in asked if name in compared]
            if content.get("data") == self._data and (known or (best and best["kernel"] in asked)):
                self._path, self._compared, self._best = path, compared, best
                if known:
                    _say(f"goes on from {path}: {', '.join(known)} {'is' if len(known) == 1 else 'are'} fitted already")
                return
            said = said or f"{path} stays: it is of other data, another kernel or other options"
        self._kept = b""
        if said:
            _say(f"{said}: the fit begins anew")

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
        if self._folder is None:
            return
        try:
            content = sealed({"data": self._data, "compared": self._compared, "best": self._best})
            # Not before: of two fits that begin together the second would take the name of the first.
            self._path = self._path or _reserved(self._folder)
            write_bytes(self._path, content)
            self._kept = content
        except (OSError, ValueError) as error:  # which must not cost the fit
            _say(f"{error}; the fit goes on without keeping its parameters")
            self._folder = None
            if not self._kept:
                self.remove()  # the name alone

    def remove(self) -> None:
        """The file, when the model is kept; not where another fit has written it since."""
        with contextlib.suppress(OSError):
            if self._path is not None and self._path.read_bytes() == self._kept:
                self._path.unlink()


def _reserved(folder: Path) -> Path:
    """An empty file under the first free name."""
    first = folder / UNFINISHED
    for path in chain([first], (first.with_stem(f"{first.stem}-{number}") for number in count(1))):
        with contextlib.suppress(FileExistsError):
            path.touch(exist_ok=False)
            return path
    raise AssertionError("numbers do not end")


def parameters_to_json(gp: Regression) -> dict[str, Any]:
    return {name: parameter.detach().tolist() for name, parameter in gp.named_parameters()}


def parameters_from_json(gp: Regression, content: Mapping[str, Any]) -> None:
    """Into ``gp``, exactly."""
    with torch.no_grad():
        for name, parameter in gp.named_parameters():
            parameter.copy_(torch.tensor(content[name], dtype=parameter.dtype, device="cpu"))


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
