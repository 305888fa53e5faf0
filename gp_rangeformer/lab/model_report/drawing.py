"""How a figure gets into the page: as text of its own, without files beside it."""

from __future__ import annotations

import base64
import io
import warnings
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gp_rangeformer.lab.plots.style import dress, new_figure

GREY, PALE = "#666666", "#9A9A9A"
_WIDTH, _HEIGHT = 4.6, 3.0  # inches: type stays readable where a phone shows one figure at a time
_DPI = 150  # of clouds of points, which are pixels
_LONGEST = 24  # characters of a name in a figure


def new_panel(height: float = _HEIGHT) -> tuple[Figure, Axes]:
    """A figure of one panel in the page's size."""
    figure = new_figure(_WIDTH, height)
    return figure, figure.subplots()


def as_image(figure: Figure) -> str:
    """The figure as the address of an image: SVG, whose words stay words. The same figure gives the same text."""
    for axes in figure.axes:
        dress(axes)
    content = io.BytesIO()
    options: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "gp-rangeformer"}
    with matplotlib.rc_context(options), warnings.catch_warnings():
        # The reader's browser has them; only the layout measures with Matplotlib's own font.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(content, format="svg", dpi=_DPI, metadata={"Date": None, "Creator": None})
    return "data:image/svg+xml;base64," + base64.b64encode(content.getvalue()).decode("ascii")


def shortened(name: object) -> str:
    """A name as figures have it: printable, and no longer than fits. Draw it with ``parse_math=False``."""
    text = "".join(character if character.isprintable() else " " for character in str(name))
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\N{HORIZONTAL ELLIPSIS}"
