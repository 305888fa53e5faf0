"""``examples/guide/gallery.md``: a thumbnail, the title and the claim of every notebook, and how long it took where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nbformat import NotebookNode

from gp_rangeformer.lab.gallery.build import BUILT
from gp_rangeformer.lab.gallery.source import Source, notebook_of
from gp_rangeformer.lab.gallery.thumbnail import WIDTH, thumbnail_of

_TOP = """# Gallery

Notebooks to read, and to run: `pip install -c constraints.txt ".[examples,botorch,tables]"` brings what they need.

| | |
| --- | --- |
"""
_BOTTOM = """
Each is made from the script of the same name beside it ([percent format](https://jupytext.readthedocs.io)), which \
Jupyter opens as well. After a change of one:

```bash
python -m gp_rangeformer.lab.gallery 02_compare_with_cholesky  # without names: all of them
python -m gp_rangeformer.lab.gallery --check  # names what is out of date
```
"""


def page_of(root: Path) -> Path:
    return root / "examples" / "guide" / "gallery.md"


def page(built: Sequence[tuple[Source, NotebookNode]]) -> str:
    """The page of notebooks that have been built."""
    machines: dict[str, list[str]] = {}
    rows = []
    for source, notebook in built:
        told = notebook.metadata[BUILT]
        machines.setdefault(told["machine"], []).append(source.name[:2])
        picture = f"../figures/thumbnails/{thumbnail_of(source.path).name}"
        link = f"../{notebook_of(source.path).name}"
        image = f'<img src="{picture}" width="{WIDTH // 2}" alt="{source.title}">'
        rows.append(f"| [{image}]({link}) | [**{source.title}**]({link})<br>{source.claim} ({told['seconds']} s) |")
    whole = len(machines) == 1
    places = [f"{'all' if whole else ', '.join(names)} on {machine}" for machine, names in machines.items()]
    return _TOP + "\n".join(rows) + f"\n\nSeconds: {'; '.join(places)}.\n" + _BOTTOM
