"""Rewrite what is generated in README.md and examples/guide, and the figures; or say what differs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.guide import estimators, fits, measured, optimum, peers, predictions, reference, robust
from gp_rangeformer.lab.guide.figures import stale_figures, write_figures
from gp_rangeformer.lab.guide.pages import GuideError, fill, pages
from gp_rangeformer.lab.guide.results import Results

ROOT = Path(__file__).resolve().parents[3]
BLOCKS: dict[str, Callable[[Results], str]] = {
    "peers": peers.peers_table,
    "peers-sentence": peers.peers_sentence,
    "kept-sentence": peers.kept_sentence,
    "crossing-sentence": peers.crossing_sentence,
    "growth": peers.growth_table,
    "growth-sentence": peers.growth_sentence,
    "optimum": optimum.optimum_table,
    "optimum-sentence": optimum.optimum_sentence,
    "fits": fits.fits_tables,
    "fits-sentence": fits.fits_sentence,
    "line-searches": fits.line_searches_table,
    "robust": robust.robust_tables,
    "robust-sentence": robust.robust_sentence,
    "large-fits": fits.large_fits_table,
    "predictions": predictions.predictions_table,
    "predictions-sentence": predictions.predictions_sentence,
    "predictions-small": predictions.small_table,
    "predictions-paths": predictions.paths_table,
    "predictions-paths-sentence": predictions.paths_sentence,
    "predictions-left-out": predictions.left_out_table,
    "predictions-further": predictions.further_table,
    "estimators": estimators.estimators_table,
    "estimators-sentence": estimators.estimators_sentence,
    "stages": measured.stages_table,
    "stages-sentence": measured.stages_sentence,
    "products": measured.products_tables,
    "small-seconds": measured.small_seconds,
    "small-differences": measured.small_differences,
    "small-sentence": measured.small_sentence,
    "contention": measured.contention_table,
    "contention-sentence": measured.contention_sentence,
    "logdet": measured.logdet_table,
    "networks": measured.networks,
    "report": measured.report_line,
    "settings": lambda results: reference.settings_section(),
    "solvers": lambda results: reference.solvers_section(),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where something differs or cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m gp_rangeformer.lab.guide", description=__doc__)
    parser.add_argument("--check", action="store_true", help="Write nothing; name what differs, and exit with 1.")
    parser.add_argument("--root", type=Path, default=ROOT, help="A clone of the repository.")
    options = parser.parse_args(arguments)
    try:
        changed = stale(options.root) if options.check else rewrite(options.root)
    except (GuideError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    for path in changed:
        print(f"{path}: {'differs from the result files and docstrings' if options.check else 'written'}")
    return int(options.check and bool(changed))


def rewrite(root: Path) -> list[Path]:
    """Write what is not up to date. Returns those files.

    :raises GuideError: as :func:`filled`, before anything is written.
    :raises WriteError: as :func:`gp_rangeformer.atomic.write_bytes`.
    """
    texts = filled(root)
    changed = [path for path, text in texts.items() if path.read_text("utf-8") != text]
    for path in changed:
        write_bytes(path, texts[path].encode())
    return changed + write_figures(Results(root), _figures(root))


def stale(root: Path) -> list[Path]:
    """Pages that differ from what :func:`rewrite` would write, and figures of other numbers.

    :raises GuideError: as :func:`filled`.
    """
    changed = [path for path, text in filled(root).items() if path.read_text("utf-8") != text]
    return changed + stale_figures(Results(root), _figures(root))


def filled(root: Path) -> dict[Path, str]:
    """Every page as it should be.

    :raises GuideError: a page's markers, or a result file, are not as they should be; the message names it.
    """
    results = Results(root)
    blocks = {name: partial(make, results) for name, make in BLOCKS.items()}
    found = {}
    for path in pages(root):
        try:
            found[path] = fill(path.read_text("utf-8"), blocks)
        except GuideError as error:
            raise GuideError(f"{path}: {error}") from None
    return found


def _figures(root: Path) -> Path:
    return root / "examples" / "figures"


if __name__ == "__main__":
    sys.exit(main())
