"""Whole fits: the guide's tables, sentence and figure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from gp_rangeformer.lab.bench.fit_tables import grid, missed
from gp_rangeformer.lab.bench.fits import FitCell, FitRun
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide.results import FitRuns, Results
from gp_rangeformer.lab.plots.style import dress, new_figure

OURS, EXACT, OUR_ADAM, LBFGS = "rangeformer", "exact", "rangeformer, Adam", "GPyTorch Cholesky, L-BFGS"
_GAP = 0.01  # nats per point, of the sentence
_SMALLEST = 1e-4  # gap that a figure shows
_LOOKS = {
    OURS: ("#0072B2", "-", 3.0, "this package's fit, RangeFormer"),
    EXACT: ("#56B4E9", "-", 1.8, "this package's fit, exact path"),
    OUR_ADAM: ("#0072B2", ":", 1.8, "RangeFormer, Adam"),
    "rangeformer, L-BFGS": ("#0072B2", "--", 1.8, "RangeFormer, L-BFGS"),
    "exact path, L-BFGS": ("#56B4E9", "--", 1.8, "this package's exact path, L-BFGS"),
    LBFGS: ("#E69F00", "-", 1.8, "GPyTorch Cholesky, L-BFGS"),
    "GPyTorch Cholesky, Adam": ("#E69F00", ":", 1.8, "GPyTorch Cholesky, Adam"),
    "GPyTorch CG, L-BFGS": ("#CC79A7", "-", 1.8, "GPyTorch CG, L-BFGS"),
    "GPyTorch CG, Adam": ("#CC79A7", ":", 1.8, "GPyTorch CG, Adam"),
}


def fits_tables(results: Results) -> str:
    """A table for every size."""
    return "\n\n".join(_table(run, results.machine(name)) for name, run in results.fits.items())


def _table(run: FitRuns, machine: str) -> str:
    what = f"Matern-3/2 with a length-scale per dimension, {run.dtype}, seed {run.seed}"
    note = f"{what}, stopped after {run.patience:g} s; {machine}"
    return grid(run.cells, note, run.patience).to_markdown(titled=False)


def line_searches_table(results: Results) -> str:
    """L-BFGS by what answers it, beside the fit."""
    return _table(results.line_searches, results.machine("fits-lbfgs-2000"))


def large_fits_table(results: Results) -> str:
    """Whole data sets, trained to convergence, and what is predicted then."""
    rows, machines = [], []
    for name, found in results.large_fits.items():
        n, left_out = found["n"], found["leave_one_out"]
        numbers = 4 if found["dtype"] == "float32" else 8
        rows.append((
            f"{found['dataset']}, {n:,}",
            str(found["evaluations"][str(n)]),
            f"{found['seconds']:.0f}",
            f"{found['prediction_seconds']:.0f} ({found['n_test']:,})",
            f"{found['peak_memory_with_prediction']:,.0f} ({numbers * n * n / 2**20:,.0f})",
            f"{found['value']:.4f} +- {found['value_error']:.4f}",
            f"{found['decrement']:.4f}",
            f"{found['rmse']:.4f}",
            f"{found['nll']:.4f}",
            f"{-left_out['log_density']:.4f}",
        ))  # fmt: skip
        machines.append(f"{found['kernel']}, {found['dtype']}, seed {found['seed']}; {results.machine(name)}")
    headers = (
        "set, n", "evaluations on all points", "fit, s", "prediction, s (points)", "peak MiB (one K)", "log p(y)/n",
        "left to gain", "test RMSE", "test NLL", "leave-one-out NLL",
    )  # fmt: skip
    return Grid("", headers, tuple(rows), tuple(dict.fromkeys(machines))).to_markdown(titled=False)


def fits_sentence(results: Results) -> str:
    """How many evaluations and seconds the fit takes, what others take, and why some do not arrive, by size."""
    parts = []
    for run in results.fits.values():
        own = [(cell, found) for cell in run.cells if (found := _run(cell, OURS)) is not None]
        text = f"at n = {run.cells[0].n:,} {_arrivals(own, run.patience)}"
        others = [
            f"{title}{_tries(run, name)} {_against(run, name)}"
            for name, title in ((OUR_ADAM, "Adam on the same solver"), (LBFGS, "GPyTorch's Cholesky with L-BFGS"))
            if any(_run(cell, name) for cell in run.cells)
        ]
        parts.append(text + (": " + ", ".join(others) if others else ""))
    return f"A fit comes within {_GAP:g} nats per point of the optimum, exact values, {'; '.join(parts)}."


def _arrivals(own: Sequence[tuple[FitCell, FitRun]], patience: float) -> str:
    """Seconds until this package's fit is there, and where it is not."""
    seconds = [(run, run.seconds_to(_GAP, cell.optimum)) for cell, run in own]
    found = [second for _, second in seconds if second is not None]
    short = _missing([missed(run, patience) for run, second in seconds if second is None], len(own))
    return (f"within {_range(found, '{:.1f}')} s" if found else "on none of them") + short


def _against(run: FitRuns, name: str) -> str:
    """How many times as long another takes where both arrive, and why it does not elsewhere."""
    ratios, reasons, alone, count = [], [], 0, 0
    for cell in run.cells:
        own, other = _run(cell, OURS), _run(cell, name)
        if own is None or other is None:
            continue
        count += 1
        mine, its = own.seconds_to(_GAP, cell.optimum), other.seconds_to(_GAP, cell.optimum)
        if its is None:
            reasons.append(missed(other, run.patience))
        elif mine is None:
            alone += 1
        else:
            ratios.append(its / mine)
    text = f"{_times(ratios)} times as long" if ratios else "ahead" if alone else "nowhere as near"
    return text + _missing(reasons + alone * ["there alone"], count)


def _tries(run: FitRuns, name: str) -> str:
    """By which of its tries it counts: " at rate 0.1 or rate 0.3"; nothing where there is one only."""
    found = sorted({other.how for cell in run.cells if (other := _run(cell, name)) is not None and other.how})
    return f" at {' or '.join(found)}" if found else ""


def _missing(reasons: Sequence[str], count: int) -> str:
    """How many of ``count`` sets there is a reason for, and which; nothing where there is none."""
    found = [f"{number} {reason}" for reason, number in Counter(reasons).items()]
    return f" ({', '.join(found).replace(' ', f' of {count} ', 1)})" if found else ""


def _run(cell: FitCell, name: str) -> FitRun | None:
    return next((run for run in cell.runs if run.name == name), None)


def _times(ratios: Sequence[float]) -> str:
    """The smallest and the largest to two digits; another may take less than once as long."""
    low, high = (f"{ratio:.2g}" if ratio < 99.5 else f"{ratio:.0f}" for ratio in (min(ratios), max(ratios)))
    return low if low == high else f"{low} to {high}"


def _range(numbers: Sequence[float], form: str) -> str:
    low, high = form.format(min(numbers)), form.format(max(numbers))
    return low if low == high else f"{low} to {high}"


def fits_figure(results: Results) -> tuple[Figure, dict[str, dict[str, list[float]]]]:
    """Nats per point below the optimum against seconds, of the best evaluation so far: a panel for every set."""
    run = list(results.fits.values())[-1]
    lines: dict[str, dict[str, list[float]]] = {}
    figure = new_figure(10, 5.6)
    panels = figure.subplots(2, 3, sharey=True).flatten()
    for axes, cell in zip(panels, run.cells, strict=False):
        for one in cell.runs:
            gaps, seconds = _best_so_far(cell, one)
            lines[f"{cell.dataset}: {one.name}"] = {"seconds": seconds, "gaps": gaps}
            colour, style, width, _ = _LOOKS[one.name]
            axes.plot(seconds, gaps, color=colour, linestyle=style, linewidth=width, drawstyle="steps-post")
        axes.set(xscale="log", yscale="log", title=cell.dataset, ylim=(_SMALLEST, 3))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda second, _: f"{second:g} s"))
        axes.yaxis.set_major_locator(LogLocator())
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        dress(axes)
    for axes in panels[len(run.cells) :]:
        axes.axis("off")
    panels[0].set_ylabel("nats per point below the optimum")
    names = [one.name for one in run.cells[0].runs]
    handles = [
        panels[-1].plot([], [], color=_LOOKS[name][0], linestyle=_LOOKS[name][1], linewidth=_LOOKS[name][2])[0]
        for name in names
    ]
    panels[-1].legend(handles, [_LOOKS[name][3] for name in names], frameon=False, loc="center left", fontsize=9)
    figure.suptitle(
        f"A fit against seconds (n = {run.cells[0].n:,}, {run.dtype}, exact values)", x=0.01, ha="left", fontsize=11
    )
    return figure, lines


def _best_so_far(cell: FitCell, run: FitRun) -> tuple[list[float], list[float]]:
    best, gaps = -float("inf"), []
    for value in run.values:
        best = max(best, value)
        gaps.append(max(cell.optimum - best, _SMALLEST))
    return gaps, list(run.seconds)
