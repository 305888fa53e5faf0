"""The estimator beside scikit-learn's: the guide's table, and a sentence."""

from __future__ import annotations

from gp_rangeformer.lab.bench.estimator_tables import grid, times
from gp_rangeformer.lab.bench.fit_tables import spoken
from gp_rangeformer.lab.guide.results import Results


def estimators_table(results: Results) -> str:
    """Without a title: the page has one."""
    run = results.estimators
    note = f"float64, seed {run.seed}; {results.machine('sklearn')}"
    return grid(run.cells, note).to_markdown(titled=False)


def estimators_sentence(results: Results) -> str:
    """What a fit takes at the largest size, by set."""
    cells = results.estimators.cells
    n = max(cell.n for cell in cells)
    parts = [
        f"{spoken(cell.ours.fit)} s on {cell.dataset}, where GaussianProcessRegressor takes {times(cell)} times as long"
        for cell in cells
        if cell.n == n
    ]
    return f"At n = {n:,} a fit takes {'; '.join(parts).replace('> ', 'more than ')}."
