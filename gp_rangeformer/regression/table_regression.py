"""A table's regression: fitted, asked, kept in a folder and read again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gp_rangeformer.fit import FitResult, Record
from gp_rangeformer.predict import LeaveOneOut

if TYPE_CHECKING:
    import pandas as pd


class TableRegression:
    """An exact GP of one column of a table given the others, in the units of the table.

    Made by :meth:`fit` or :meth:`load`.

    ``target``: name of the predicted column. ``columns``: how the others become inputs (``columns.inputs``: one
    :class:`Column` each, with ``name``, ``kind`` ("number", "boolean", "date", "text") and ``categories``;
    ``columns.names``: of the d inputs, as in ``city=Oslo``). ``kernel``: its name. ``gp``: the GPyTorch model, inputs
    and target standardised. ``fit_result``: of the fit, its history too; after :meth:`load` without its ``report``.
    ``candidates``: the kernels that were compared (:class:`Candidate`; empty where one was named). ``notes``: what was
    left out of the table, one sentence each. ``seed``, ``dtype`` ("float32"), ``device`` ("cpu").
    """

    target: str
    columns: Any
    kernel: str
    gp: Any
    fit_result: FitResult | None
    candidates: tuple[Any, ...]
    notes: tuple[str, ...]
    seed: int
    dtype: str
    device: str

    @classmethod
    def fit(
        cls,
        frame: pd.DataFrame,
        *,
        target: str,
        kernel: Any = "auto",
        drop: tuple[str, ...] = (),
        encode: Literal["refuse", "one-hot", "drop"] = "refuse",
        missing: Literal["drop", "mean", "refuse"] = "drop",
        dtype: Literal["float32", "float64"] | None = None,
        device: str = "cpu",
        seed: int = 0,
        callback: Callable[[str, Record], None] | None = None,
        folder: str | Path | None = None,
    ) -> TableRegression:
        """Train to convergence on every row that can be used.

        :param kernel: "auto" compares several by their certified likelihood on at most 1000 rows; a name, a sum of
            names ("linear+rbf"), several of them to compare ("rbf,matern32"), or a GPyTorch kernel on the d inputs.
        :param drop: columns to leave out.
        :param encode: what becomes of text columns. "one-hot": an input for each of at most 20 texts.
        :param missing: what becomes of rows with missing cells; "mean" puts the mean, or the most frequent text.
            Rows without a target are left out, and with "refuse" refused.
        :param dtype: None: float32, or float64 where the kernel asks for it.
        :param callback: sees the kernel's name and every evaluation. What it raises ends the fit.
        :param folder: keeps the best parameters so far while the fit runs; the same call on the same data goes on from
            there.
        :raises TableError: the table cannot be used as it is, naming row, column and remedy.
        :raises KernelError: there is no such kernel.
        :raises FitError: as :func:`gp_rangeformer.fit.fit_mll`.
        """
        raise NotImplementedError

    def predict(self, frame: pd.DataFrame, callback: Callable[[int, int], None] | None = None) -> pd.DataFrame:
        """``mean``, ``sd`` (of an observation, noise included), ``lower95`` and ``upper95`` for every row, in the
        target's unit and with the rows' index.

        Columns are found by name; others, the target too, are not read. NaN where a cell is missing, if the fit left
        such rows out.

        :param callback: sees how many of how many rows are done.
        :raises TableError: a column is missing, a text is unknown, a value is infinite or of another kind.
        """
        raise NotImplementedError

    def relevance(self) -> pd.Series:
        """How much each column matters, ranked: 1 / length-scale, the length-scale in standard deviations of the
        column.

        At 1 the function changes much within one standard deviation of the column, at 0.1 hardly. The inputs of a text
        column count together; of a sum of kernels, the mean of squares weighted with their variances. Indexed by column
        name; all relevances are 0 or more.

        :raises ValueError: no part of the kernel has a length-scale.
        """
        raise NotImplementedError

    def leave_one_out(self) -> LeaveOneOut:
        """Of the training rows, in the target's unit: as :func:`gp_rangeformer.predict.leave_one_out`."""
        raise NotImplementedError

    def training_frame(self) -> pd.DataFrame:
        """The rows that it was fitted to, columns and target in their own units, to rounding."""
        raise NotImplementedError

    def hyperparameters(self) -> dict[str, float]:
        """By short names, as in ``lengthscale[age]`` and ``noise``; in standardised units."""
        raise NotImplementedError

    def certificate(self) -> str:
        """In words: whether the fit converged, the likelihood, and what its intervals cover."""
        raise NotImplementedError

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` (parameters, training data, scaling) and ``model.json`` (columns, categories,
        hyperparameters, versions, the fit) to a folder, which is made if its parent is there.

        ``gp-rangeformer fit --out`` adds ``held_out.csv``: rows that were not trained on, indexed by ``line`` or
        ``row`` of the file, with the target, ``mean``, ``sd``, ``lower95``, ``upper95`` and the raw inputs; and
        ``fit.json``, the numbers of its ``--json``.

        :raises WriteError: the folder cannot be written.
        """
        raise NotImplementedError

    @classmethod
    def load(cls, folder: str | Path, *, kernel: Any = None, device: str = "cpu") -> TableRegression:
        """What :meth:`save` wrote.

        :param kernel: a fresh GPyTorch kernel like the one that was fitted, if it was given as a module.
        :raises SavedModelError: a file is missing, damaged, of another model or of a newer version, naming the remedy.
        """
        raise NotImplementedError
