"""Tables of the small data sets: milliseconds, and how exactly host and flag agree."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from gp_rangeformer.lab.bench.small import Cell, Timing
from gp_rangeformer.lab.bench.small_tasks import FITS, TASKS, TEST_POINTS, Plan
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.grid import Grid


def seconds_grid(cells: Sequence[Cell], plan: Plan, where: str | None = None) -> Grid:
    """One row per size and batch: what each task takes, and how many times faster the flag makes it.

    :param where: what it was measured on; None: this machine.
    """
    shown = [name for name in TASKS if any(name in cell.timings for cell in cells)]
    known = any(cell.floor is not None for cell in cells)
    headers = ["n, batch", *(["step's floor"] if known else [])]
    for name in shown:
        title = name.replace(" p", "\np")
        headers += [f"{title}\nhost, flag", f"{title}\nfaster (10-90 %)"]
    rows = []
    for cell in cells:
        row = [f"{cell.n}, {cell.batch}"]
        if known:
            row.append("-" if cell.floor is None else f"{1e3 * cell.floor:.3g}")
        for name in shown:
            timing = cell.timings.get(name)
            row += ["-", "-"] if timing is None else [_milliseconds(timing), _times(timing)]
        rows.append(tuple(row))
    counts = sorted({len(timing.host) for cell in cells for timing in cell.timings.values()})
    runs = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    notes = [
        "step: likelihood and backward pass; prediction: means and variances at "
        f"{TEST_POINTS} points without caches; fast: with fast_pred_var",
        f"host: BoTorch's settings, Cholesky at every n; medians of {runs} runs, in turn; "
        "faster: ratio of medians, its percentiles in pairs",
        f"d = {plan.dimensions}, {plan.dtype}, seed {plan.seed}, threads: {plan.threads}; "
        f"{where or machine.one_line()}",
    ]
    if known:
        floor = (
            "step's floor: K, a factorisation, its inverse and the contraction of the gradient, as the plug-in "
            "computes them, without GPyTorch, whose own code is a step at n = 20"
        )
        notes.append(floor)
    if "fit" in shown:
        notes.insert(1, "fit: BoTorch's fit_gpytorch_mll of a SingleTaskGP from its start values")
    if "fit by fit_mll" in shown:
        notes.insert(2, "fit by fit_mll: the same, with the flag on by this package's optimiser")
    return Grid("Small data sets: milliseconds", tuple(headers), tuple(rows), tuple(notes))


def accuracy_grid(cells: Sequence[Cell]) -> Grid:
    """One row per size and batch: how far host and flag are apart, the memory of a step, and who answered."""
    headers = ("n, batch", "loss", "gradient", "mean", "variance", "peak MiB", "the flag's step by")
    fitted = [name for name in FITS if any(name in cell.timings for cell in cells)]
    rows = []
    for cell in cells:
        found = [timing.differences for name, timing in cell.timings.items() if name not in FITS]
        largest = (max(each[name] for each in found if name in each) for name in headers[1:5])
        peaks = ", ".join("-" if peak is None else f"{peak:.0f}" for peak in cell.peaks)
        answered = ", ".join(cell.timings["step"].answered_by) or "gpytorch"
        row = [f"{cell.n}, {cell.batch}", *(f"{value:.0e}" for value in largest), peaks, answered]
        for name in fitted:
            fit = cell.timings.get(name)
            evaluations = () if fit is None else fit.evaluations or ()
            row += ["-" if fit is None else f"{fit.differences['loss']:.0e}", ", ".join(map(str, evaluations)) or "-"]
        rows.append(tuple(row))
    notes = ["largest relative differences between host and flag over all runs; peak: memory of a step, host, flag"]
    if fitted:
        for name in fitted:
            headers += (f"loss after {name}", "evaluations")
        notes.append("loss after a fit: of the likelihoods where both ended, after so many evaluations, host, flag")
    return Grid("Small data sets: differences", headers, tuple(rows), tuple(notes))


def one_line(cell: Cell) -> str:
    """For the terminal, while the run goes on."""
    found = ", ".join(f"{name} {_times(timing)}" for name, timing in cell.timings.items())
    return f"n={cell.n} batch={cell.batch}: times faster: {found}"


def _milliseconds(timing: Timing) -> str:
    found = (1e3 * median(seconds) for seconds in (timing.host, timing.flag))
    return ", ".join(f"{value:.0f}" if value >= 100 else f"{value:#.3g}" for value in found)


def _times(timing: Timing) -> str:
    ratio = f"{timing.ratio:.{2 if timing.ratio < 10 else 1}f}"
    if len(timing.host) == 1:
        return ratio
    return f"{ratio} ({'-'.join(f'{bound:#.2g}'.rstrip('.') for bound in timing.spread)})"
