"""Fits of many kinds of data beside BoTorch's: the guide's tables, and a sentence."""

from __future__ import annotations

from gp_rangeformer.lab.bench.robust import GAP
from gp_rangeformer.lab.bench.robust_tables import cells_grid, differing, summary_grid
from gp_rangeformer.lab.guide.results import Results

_SHOWN = 5  # of those that end higher


def robust_tables(results: Results) -> str:
    """How many end where, then every fit that ends lower, and the widest of those that end higher."""
    run = results.robust
    higher, lower = differing(run.cells)
    summary = summary_grid(run.cells, f"seed {run.seed}; {results.machine('robust')}")
    worst = cells_grid([*lower, *higher[:_SHOWN]])
    return f"{summary.to_markdown(titled=False)}\n\n{worst.to_markdown(titled=False)}"


def robust_sentence(results: Results) -> str:
    """Where the likelihoods end, and whether a lower one is a maximum for BoTorch's fit too."""
    cells = results.robust.cells
    higher, lower = differing(cells)
    raised = sum(cell.ours.raised is not None for cell in cells)
    # Of a fit that ends lower, the value of its end is the lower one.
    ends = [(cell.onward, cell.ours.value) for cell in lower]
    maxima = sum(onward is None or end is None or onward - end <= GAP for onward, end in ends)
    return (
        f"Of {len(cells)} fits {raised or 'none'} raised; {len(higher)} ended more than {GAP:g} nats per point higher "
        f"than BoTorch's own and {len(lower)} lower, where BoTorch's fit, begun at the end of {maxima} of those, gains "
        "nothing: another maximum."
    )
