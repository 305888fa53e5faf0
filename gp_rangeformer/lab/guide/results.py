"""The stored result files, as the types of the commands that wrote them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from gp_rangeformer.lab.bench import predictions, small, small_tasks
from gp_rangeformer.lab.bench.estimator_cell import EstimatorCell
from gp_rangeformer.lab.bench.fits import FitCell
from gp_rangeformer.lab.bench.optima import SETS
from gp_rangeformer.lab.bench.peer_run import Plan
from gp_rangeformer.lab.bench.peers import Size
from gp_rangeformer.lab.bench.prediction_further import Further
from gp_rangeformer.lab.bench.products import Product
from gp_rangeformer.lab.bench.robust import RobustCell
from gp_rangeformer.lab.bench.stages import Breakdown
from gp_rangeformer.lab.guide.pages import GuideError


@dataclass(frozen=True)
class PeerRun:
    """``gp-rangeformer bench``; of two files that are one table, the first one's plan."""

    plan: Plan
    sizes: list[Size]


@dataclass(frozen=True)
class FitRuns:
    """``gp-rangeformer bench fits`` at one size."""

    dtype: str
    seed: int
    patience: float
    cells: list[FitCell]


@dataclass(frozen=True)
class EstimatorRun:
    """``gp-rangeformer bench sklearn``."""

    seed: int
    cells: list[EstimatorCell]


@dataclass(frozen=True)
class RobustRun:
    """``gp-rangeformer bench robust``."""

    seed: int
    cells: list[RobustCell]


@dataclass(frozen=True)
class PredictionRun:
    """``gp-rangeformer bench predictions``."""

    plan: predictions.Plan
    cells: list[predictions.Cell]
    small: list[predictions.Cell]
    further: list[Further]


@dataclass(frozen=True)
class Contention:
    """Mean seconds of a step by (conditions, solver), over so many steps. See :mod:`.contention`."""

    n: int
    dtype: str
    threads: int
    seconds: dict[tuple[str, str], tuple[float, int]]


def _fit_runs(content: Any) -> FitRuns:
    plan, cells = content["plan"], [FitCell.from_json(cell) for cell in content["cells"]]
    return FitRuns(plan["dtype"], plan["seed"], plan["patience"], cells)


@dataclass(frozen=True)
class Results:
    """Everything in the repository at ``root``, each file read when it is first asked for.

    :raises GuideError: from any property: the file is not there, or another command's.
    """

    root: Path

    @cached_property
    def peers(self) -> PeerRun:
        """All contenders at every size: two files, the second of one size that takes longer."""
        runs = [self._run("peers"), self._run("peers16")]
        return PeerRun(runs[0].plan, sorted((size for run in runs for size in run.sizes), key=lambda size: size.n))

    @cached_property
    def kept(self) -> PeerRun | None:
        """With a malloc that keeps memory; None where nobody measured that."""
        return self._run("peers-kept") if self._path("peers-kept").is_file() else None

    @cached_property
    def growth(self) -> PeerRun:
        return self._run("growth")

    @cached_property
    def optima(self) -> dict[str, PeerRun]:
        """Steps at the end of a fit, by set: one file each."""
        return {name: self._run(f"optimum-{name}") for name in SETS}

    @cached_property
    def fit(self) -> PeerRun:
        """Every step of a fit to near its optimum."""
        return self._run("fit")

    @cached_property
    def fits(self) -> dict[str, FitRuns]:
        """Whole fits, by file: one for each size."""
        return {name: self._read(name, _fit_runs) for name in ("fits-2000", "fits-4000")}

    @cached_property
    def line_searches(self) -> FitRuns:
        """L-BFGS by what answers it."""
        return self._read("fits-lbfgs-2000", _fit_runs)

    @cached_property
    def large_fits(self) -> dict[str, dict[str, Any]]:
        """``gp-rangeformer fit`` of all rows of a set, by file."""
        return {name: self._read(name, lambda content: content) for name in ("fit-kin40k-36000", "fit-protein-36584")}

    @cached_property
    def predictions(self) -> PredictionRun:
        """What follows a fit."""

        def made(content: Any) -> PredictionRun:
            cells, few = ([predictions.Cell.from_json(cell) for cell in content[key]] for key in ("cells", "small"))
            further = [Further.from_json(part) for part in content["further"]]
            return PredictionRun(predictions.Plan(**content["plan"]), cells, few, further)

        return self._read("predictions", made)

    @cached_property
    def estimators(self) -> EstimatorRun:
        """The estimator beside scikit-learn's."""

        def made(content: Any) -> EstimatorRun:
            return EstimatorRun(content["plan"]["seed"], [EstimatorCell.from_json(cell) for cell in content["cells"]])

        return self._read("sklearn", made)

    @cached_property
    def robust(self) -> RobustRun:
        """Fits of many kinds of data, and from many starts."""

        def made(content: Any) -> RobustRun:
            return RobustRun(content["plan"]["seed"], [RobustCell.from_json(cell) for cell in content["cells"]])

        return self._read("robust", made)

    @cached_property
    def stages(self) -> list[Breakdown]:
        return self._read("stages", lambda content: [Breakdown(**size) for size in content["sizes"]])

    @cached_property
    def products(self) -> dict[int, list[Product]]:
        return self._read(
            "products",
            lambda content: {
                size["n"]: [
                    Product(**{**found, "left": None if found["left"] is None else tuple(found["left"])})
                    for found in size["products"]
                ]
                for size in content["sizes"]
            },
        )

    @cached_property
    def small(self) -> tuple[small_tasks.Plan, list[small.Cell]]:
        return self._read(
            "small",
            lambda content: (
                small_tasks.Plan(**content["plan"]),
                [small.Cell.from_json(cell) for cell in content["cells"]],
            ),
        )

    @cached_property
    def contention(self) -> Contention:
        return self._read(
            "contention",
            lambda content: Contention(
                content["n"],
                content["dtype"],
                content["threads"],
                {(row["conditions"], row["solver"]): (row["seconds"], row["steps"]) for row in content["rows"]},
            ),
        )

    @cached_property
    def report(self) -> str:
        """The summary of one training step's report."""
        return self._read("report", lambda content: str(content["summary"]))

    @cached_property
    def logdet(self) -> dict[str, list[dict[str, Any]]]:
        """The value of log|A| on unseen UCI kernels, by which systems they are: one record for every method."""
        files = {
            "200 systems, n = 1,000 to 10,000": "log_determinant",
            "30 systems, n = 16,000 and 36,000": "log_determinant_large",
        }
        folder = self.root / "pretrain" / "results"
        return {title: self._read(name, lambda content: content["uci"], folder) for title, name in files.items()}

    def machine(self, name: str) -> str:
        """What the file's numbers were measured on, in a few words."""

        def described(content: Any) -> str:
            found, versions = content["machine"], content["machine"]["versions"]
            packages = ", ".join(f"{package} {versions[package]}" for package in ("torch", "gpytorch"))
            return f"{found['processor']}, {found['cores']} cores, {found['torch_threads']} threads, {packages}"

        return self._read(name, described)

    def _run(self, name: str) -> PeerRun:
        return self._read(
            name, lambda content: PeerRun(Plan(**content["plan"]), [Size.from_json(size) for size in content["sizes"]])
        )

    def _read(self, name: str, make: Callable[[Any], Any], folder: Path | None = None) -> Any:
        path = self._path(name, folder)
        try:
            return make(json.loads(path.read_text("utf-8")))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GuideError(
                f"{path} is no result of the command that measurements.md names for it ({error!r}): run that again"
            ) from None

    def _path(self, name: str, folder: Path | None = None) -> Path:
        return (folder or self.root / "examples" / "guide" / "results") / f"{name}.json"
