"""A table's regression: fitted, asked, kept in a folder and read again."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from gpytorch.kernels import Kernel
from gpytorch.utils.warnings import GPInputWarning
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.predict import LeaveOneOut, leave_one_out
from gp_rangeformer.regression.choice import Candidate, choose, kernel_names
from gp_rangeformer.regression.errors import TableError, TableWarning, import_pandas
from gp_rangeformer.regression.files import is_unfinished, prepared_folder, read_model, write_model
from gp_rangeformer.regression.fitting import Watch, fitted
from gp_rangeformer.regression.kernels import Covariance, covariance, default_dtype, hyperparameters
from gp_rangeformer.regression.kinds import place
from gp_rangeformer.regression.predictions import with_interval
from gp_rangeformer.regression.prepared import prepared
from gp_rangeformer.regression.relevance import inverse_squares
from gp_rangeformer.regression.rows import Encode, Missing, check_option
from gp_rangeformer.regression.saved import State, description_of, restored, tensors_of
from gp_rangeformer.regression.unfinished import Unfinished
from gp_rangeformer.regression.words import in_words
from gp_rangeformer.torch_modes import on_host

if TYPE_CHECKING:
    import pandas as pd

_ROWS_AT_ONCE = 4096  # of predictions: a bound of memory, and the steps of a progress display
_FAR = 1e3  # standard deviations
Dtype = Literal["float32", "float64"]


class TableRegression:
    """An exact GP of one column of a table given the others, in the units of the table.

    Made by :meth:`fit` or :meth:`load`.

    ``target``: name of the predicted column. ``columns``: how the others become inputs (``columns.inputs``: one
    :class:`~gp_rangeformer.regression.Column` each, with ``name``, ``kind`` ("number", "boolean", "date", "text") and
    ``categories``; ``columns.names``: of the d inputs, as in ``city=Oslo``). ``inputs``, ``outputs``: the
    :class:`~gp_rangeformer.regression.Scaling` of inputs and target. ``kernel``: its name, or the class of one that
    was given as a module. ``gp``: the GPyTorch model, of standardised inputs and targets. ``fit_result``: of the fit,
    its history too; after :meth:`load` without its ``report``. ``level``: the probability of the fit's ``error``, None
    where the likelihood is exact. ``candidates``: the kernels that were compared, best first
    (:class:`~gp_rangeformer.regression.Candidate`; empty where one was named). ``notes``: what was left out of the
    table, one sentence each. ``seed``, ``dtype`` ("float64"), ``device`` ("cpu").
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self.target, self.columns = state.target, state.columns
        self.inputs, self.outputs = state.inputs, state.outputs
        self.gp: Any = state.gp
        self.kernel = state.kernel.title
        self.fit_result, self.level = state.fit_result, state.level
        self.candidates, self.notes, self.seed = state.candidates, state.notes, state.seed

    @property
    def dtype(self) -> str:
        return str(self.gp.train_targets.dtype).removeprefix("torch.")

    @property
    def device(self) -> str:
        return str(self.gp.train_targets.device)

    @classmethod
    @on_host()
    def fit(
        cls,
        frame: pd.DataFrame,
        *,
        target: str,
        kernel: str | Kernel | Covariance = "auto",
        drop: Sequence[str] = (),
        encode: Encode = "refuse",
        missing: Missing = "drop",
        dtype: Dtype | None = None,
        device: str = "cpu",
        seed: int = 0,
        callback: Watch | None = None,
        folder: str | Path | None = None,
    ) -> TableRegression:
        """Train to convergence on every row that can be used, with the flag on.

        What is left out is said in a :class:`~gp_rangeformer.regression.TableWarning`, and in ``notes``.

        :param kernel: "auto" compares matern12, matern32, matern52, rbf and rq by their certified likelihood, less one
            nat a parameter, on at most 1000 rows; a name, a sum of names ("linear+rbf"), several of them to compare
            ("rbf,matern32"), or a GPyTorch kernel on the d inputs, of which a copy is trained.
        :param drop: columns to leave out.
        :param encode: what becomes of text columns. "one-hot": an input for each of at most 20 texts.
        :param missing: what becomes of rows with missing cells; "mean" puts the column's mean, of texts and booleans
            the most frequent. Rows without a target are left out, and with "refuse" refused.
        :param dtype: None: float64 up to 5,000 rows and where the kernel asks for it, else float32.
        :param callback: sees the kernel's name and every evaluation. What it raises ends the fit.
        :param folder: keeps the kernels that were compared and the best parameters so far in ``unfinished.json``; the
            same call on the same data goes on from there, after a kill too. :meth:`save` ends that.
        :raises TableError: the table cannot be used as it is, naming row, column and remedy.
        :raises KernelError: there is no such kernel.
        :raises FitError: as :func:`gp_rangeformer.fit.fit_mll`.
        :raises WriteError: ``folder`` cannot be written to.
        """
        names: tuple[str, ...] = () if isinstance(kernel, Kernel | Covariance) else kernel_names(kernel)
        if dtype is not None:
            check_option("dtype", dtype, ("float32", "float64"))
        kept = None if folder is None else Path(folder)
        if kept is not None:
            prepared_folder(kept)
        data = prepared(frame, target, drop, encode, missing)
        for note in data.notes:
            warnings.warn(note, TableWarning, stacklevel=2)
        if isinstance(kernel, Kernel | Covariance):
            starts = [Covariance(None, kernel) if isinstance(kernel, Kernel) else kernel]
        else:
            starts = [covariance(name, data.x.shape[1], data.year) for name in names]
        wanted = getattr(torch, dtype or default_dtype(starts[0].name, len(data.y)))
        x, y = data.x.to(device, wanted), data.y.to(device, wanted)
        watch: Watch = callback or (lambda name, record: None)
        candidates: tuple[Candidate, ...] = ()
        done = None
        unfinished = Unfinished(kept, x, y, seed, starts)
        if len(starts) > 1:
            candidates, done = choose(x, y, starts, seed, watch, unfinished)
            starts = [covariance(candidates[0].kernel, data.x.shape[1], data.year)]
        (start,) = starts
        done = done or fitted(x, y, start, seed, lambda record: watch(start.title, record), unfinished)
        gp, result, level = done
        return cls(
            State(
                target, data.columns, data.inputs, data.outputs, gp, start, result, level, candidates, data.notes, seed,
                unfinished,
            )
        )  # fmt: skip

    @on_host()
    def predict(self, frame: pd.DataFrame, callback: Callable[[int, int], None] | None = None) -> pd.DataFrame:
        """``mean``, ``sd`` (of an observation, noise included), ``lower95`` and ``upper95`` for every row, in the
        target's unit and with the rows' index.

        Columns are found by name; others, the target too, are not read. NaN, and a warning, where a cell is missing
        and the fit left such rows out.

        :param callback: sees how many of how many rows are done.
        :raises TableError: a column is missing, a text is unknown, a value is infinite or of another kind.
        """
        raw = self.columns.encoded(frame)
        complete = raw.isfinite().all(dim=1)
        if not bool(complete.all()):
            count = int((~complete).sum())
            warnings.warn(f"{count} of {len(raw)} rows have missing cells: no predictions", TableWarning, stacklevel=2)
        x = self.inputs.standardised(raw[complete]).to(self.gp.train_targets)
        if not bool(x.isfinite().all()):
            at = int(complete.nonzero()[(~x.isfinite().all(dim=1)).nonzero()[0, 0]])
            raise TableError(f"{place(frame, at)}: a value is too large for {self.dtype}: correct or remove the row")
        moments = np.full((len(raw), 2), np.nan)
        moments[complete.numpy()] = self._predicted(x, callback).numpy()
        mean = moments[:, 0] * float(self.outputs.scale) + float(self.outputs.mean)
        sd = moments[:, 1] * float(self.outputs.scale)
        return with_interval(mean, sd, frame.index)

    def _predicted(self, x: Tensor, callback: Callable[[int, int], None] | None) -> Tensor:
        """Mean and deviation of every row, standardised, t x 2 in float64."""
        self.gp.eval()
        found, done = torch.empty(len(x), 2, dtype=torch.float64, device="cpu"), 0
        with _quietly(), settings.rangeformer(), settings.exact_size(1), torch.no_grad():
            for rows in _asked_together(x):
                prediction = self.gp.likelihood(self.gp(x[rows]))
                both = torch.stack([prediction.mean.double(), prediction.variance.double().sqrt()], dim=1)
                found[rows.cpu()], done = both.cpu(), done + len(rows)
                if callback is not None:
                    callback(done, len(x))
        return found

    @on_host()
    def relevance(self) -> pd.Series:
        """How much each column matters, ranked: 1 / length-scale, the length-scale in standard deviations of the
        column.

        At 1 the function changes much within one standard deviation of the column, at 0.01 hardly over all of it. The
        inputs of a text column count together (root of the sum of squares); of a sum of kernels it is the root mean
        square, weighted with their variances; a linear part counts by the slope that it expects, the same along every
        input. Indexed by column name.

        :raises ValueError: no part of the kernel has a length-scale.
        """
        pd = import_pandas()
        squares = inverse_squares(self.gp.covar_module, len(self.columns.names))
        found = {name: float(squares[where].sum().sqrt()) for name, where in self.columns.slices.items()}
        return pd.Series(found, name="relevance").sort_values(ascending=False, kind="stable")

    @on_host()
    def leave_one_out(self) -> LeaveOneOut:
        """Of the training rows, in the target's unit, else as :func:`gp_rangeformer.predict.leave_one_out`.

        Variances too small for float64 in that unit, of deviations below 1e-162, are 0.

        :raises OverflowError: they are too large, of deviations above 1e154.
        """
        found, mean, scale = leave_one_out(self.gp), float(self.outputs.mean), float(self.outputs.scale)
        variance = found.variance * scale * scale
        if not bool(variance.isfinite().all()):
            raise OverflowError(
                f"a target with deviation {scale:.3g} has variances beyond float64: fit to the target in another unit"
            )
        return replace(
            found,
            targets=found.targets * scale + mean,
            mean=found.mean * scale + mean,
            variance=variance,
            log_density=found.log_density - np.log(scale),
        )

    @on_host()
    def training_frame(self) -> pd.DataFrame:
        """The rows that it was fitted to, columns and target in their own units, to rounding."""
        x, y = self.gp.train_inputs[0].detach().cpu(), self.gp.train_targets.detach().cpu()
        frame = self.columns.decoded(self.inputs.restored(x))
        frame[self.target] = self.outputs.restored(y[:, None]).squeeze(1).numpy()
        return frame

    def hyperparameters(self) -> dict[str, float]:
        """By short names, as in ``lengthscale[age]`` and ``noise``; in standardised units."""
        return hyperparameters(self.gp, self.columns.names)

    def certificate(self) -> str:
        """In words: whether the fit converged, the likelihood, and what its intervals cover."""
        if self.fit_result is None:
            return "The parameters were not fitted to convergence."
        return in_words(self.fit_result, self.level, self.dtype)

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` (parameters, training data, scaling) and ``model.json`` (columns, categories,
        hyperparameters, versions, the fit) to a folder, which is made if its parent is there.

        ``gp-rangeformer fit --out`` adds ``held_out.csv``: rows that were not trained on, indexed by ``line`` or
        ``row`` of the file, with the target, ``mean``, ``sd``, ``lower95``, ``upper95`` and the raw inputs; and
        ``fit.json``, the numbers of its ``--json`` and digests that tell whether those rows are of this model.

        Those of a model that was there before are removed, and what this model's fit kept while it ran.

        :raises WriteError: the folder cannot be written.
        """
        write_model(Path(folder), tensors_of(self._state), description_of(self._state))
        if self._state.unfinished is not None:
            self._state.unfinished.remove()

    @classmethod
    @on_host()
    def load(cls, folder: str | Path, *, kernel: Kernel | None = None, device: str = "cpu") -> TableRegression:
        """What :meth:`save` wrote.

        :param kernel: a fresh GPyTorch kernel like the one that was fitted, if it was given as a module.
        A :class:`~gp_rangeformer.regression.TableWarning` says where a later fit to the folder has not ended.

        :raises SavedModelError: a file is missing, damaged, edited, of another model or version, naming the remedy.
        """
        tensors, content = read_model(Path(folder))
        if is_unfinished(Path(folder)):
            said = "holds a later fit that runs, or was interrupted: this is the model from before it"
            warnings.warn(f"{folder} {said}; the same fit once more goes on", TableWarning, stacklevel=2)
        return cls(restored(tensors, content, kernel, device))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Training rows may be asked for, without GPyTorch's remark that they are."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GPInputWarning)
        yield


def _asked_together(x: Tensor) -> Iterator[Tensor]:
    """Rows of ``x``, standardised, in portions. Those far out by themselves: GPyTorch, which evaluates some kernels,
    computes distances about the mean of the rows that are asked for, and one of them would spoil those of all."""
    far = (x.abs() > _FAR).any(dim=1)
    for rows in (~far, far):
        places = rows.nonzero().squeeze(1)
        yield from places.split(_ROWS_AT_ONCE) if len(places) else ()
