"""Build the notebooks of examples/ from their scripts, with thumbnails and the gallery page; or say what differs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.gallery.build import BuildError, build, stored
from gp_rangeformer.lab.gallery.page import page, page_of
from gp_rangeformer.lab.gallery.small import run_small
from gp_rangeformer.lab.gallery.source import SourceError, notebook_of, read_source, same_cells, scripts
from gp_rangeformer.lab.gallery.thumbnail import shows, thumbnail_of, write_thumbnail

ROOT = Path(__file__).resolve().parents[3]


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 1 where something differs, does not run, or cannot be made."""
    parser = argparse.ArgumentParser(prog="python -m gp_rangeformer.lab.gallery", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="Scripts, as 02_compare_with_cholesky; all if none.")
    parser.add_argument("--check", action="store_true", help="Write nothing; name what is out of date.")
    parser.add_argument("--small", action="store_true", help="Write nothing; run every cell with small sizes.")
    parser.add_argument("--root", type=Path, default=ROOT, help="A clone of the repository.")
    options = parser.parse_args(arguments)
    try:
        chosen = _chosen(options.root, options.names)
        if options.check:
            return _check(options.root)
        return _run_small(chosen) if options.small else _build(options.root, chosen)
    except (SourceError, BuildError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1


def _chosen(root: Path, names: Sequence[str]) -> list[Path]:
    found = {path.stem: path for path in scripts(root.resolve())}
    for name in names:
        if name not in found:
            raise SourceError(f"no script {name!r}; there are {', '.join(found)}")
    return [found[name] for name in names or found]


def _build(root: Path, chosen: Sequence[Path]) -> int:
    for script in chosen:
        source = read_source(script)
        print(f"{source.name} ...", flush=True)
        notebook, left_out = build(source)
        for text in left_out:
            print(f"{source.name} wrote to stderr, which is left out: {text.rstrip()}", file=sys.stderr)
        write_thumbnail(script, notebook)
        print(f"{notebook_of(script)}: written", flush=True)
    write_bytes(page_of(root), _page(root).encode())
    return 0


def _check(root: Path) -> int:
    differing = stale(root)
    for path, why in differing.items():
        print(f"{path}: {why}")
    return int(bool(differing))


def _run_small(chosen: Sequence[Path]) -> int:
    failures = 0
    for script in chosen:
        seconds, failed = run_small(script)
        print(f"{script.stem}: {failed or f'{seconds:.1f} s'}", flush=True)
        failures += failed is not None
    return int(failures > 0)


def stale(root: Path) -> dict[Path, str]:
    """What :func:`main` would write anew, and why.

    :raises SourceError: as :func:`~gp_rangeformer.lab.gallery.source.read_source`.
    """
    found = {}
    known = scripts(root)
    for script in known:
        notebook = stored(script)
        if notebook is None:
            found[notebook_of(script)] = "not built yet"
        elif not same_cells(read_source(script).notebook, notebook):
            found[notebook_of(script)] = f"its cells differ from {script.name}"
        elif not shows(script, notebook):
            found[thumbnail_of(script)] = "missing, or not of the notebook's figure"
    for path in sorted((root / "examples").glob("*.ipynb")):
        if path.with_suffix(".py") not in known:
            found[path] = f"has no script {path.stem}.py"
    if not page_of(root).is_file() or page_of(root).read_text("utf-8") != _page(root):
        found[page_of(root)] = "differs from the notebooks"
    return found


def _page(root: Path) -> str:
    """The page as it should be, of the notebooks that have been built."""
    notebooks = [(script, stored(script)) for script in scripts(root)]
    return page([(read_source(script), notebook) for script, notebook in notebooks if notebook is not None])


if __name__ == "__main__":
    sys.exit(main())
