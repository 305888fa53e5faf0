"""The figures of a comparison. One function a figure returns a matplotlib Figure; :func:`write_figures` saves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from gp_rangeformer.lab.compare.result import Comparison
from gp_rangeformer.lab.plots.costs import cost
from gp_rangeformer.lab.plots.prediction import predictions
from gp_rangeformer.lab.plots.style import save_figure
from gp_rangeformer.lab.plots.training import certificates, hyperparameters, likelihood

FIGURES: dict[str, Callable[[Comparison], Figure | None]] = {
    "likelihood": likelihood,
    "hyperparameters": hyperparameters,
    "predictions": predictions,
    "certificates": certificates,
    "cost": cost,
}


def write_figures(comparison: Comparison, folder: Path) -> list[Path]:
    """Every figure that the data allow, as 150 dpi PNG named after the data set. Returns the files written.

    A comparison that was interrupted gives the figures of what there is.

    :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
    """
    written = []
    for name, draw in FIGURES.items():
        figure = draw(comparison)
        if figure is not None:
            path = folder / f"{Path(comparison.dataset.name).stem}-{name}.png"
            save_figure(figure, path)
            written.append(path)
    return written
