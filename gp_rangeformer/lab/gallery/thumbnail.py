"""A small picture of a notebook: the figure of its tagged cell, and a digest of the figure that it was made from."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

from nbformat import NotebookNode
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.gallery.source import THUMBNAIL, SourceError, tags

WIDTH = 400  # pixels
_DIGEST = "Description"


def thumbnail_of(script: Path) -> Path:
    """Where the thumbnail of a script is."""
    return script.parent / "figures" / "thumbnails" / f"{script.stem}.png"


def write_thumbnail(script: Path, notebook: NotebookNode) -> None:
    """:raises SourceError: the tagged cell shows no figure."""
    figure = _figure(script, notebook)
    with Image.open(io.BytesIO(figure)) as image:
        height = round(image.height * WIDTH / image.width)
        small = image.convert("RGB").resize((WIDTH, height), Image.Resampling.LANCZOS)
    information = PngInfo()
    information.add_text(_DIGEST, _digest(figure))
    content = io.BytesIO()
    small.save(content, format="png", optimize=True, pnginfo=information)
    write_bytes(thumbnail_of(script), content.getvalue())


def shows(script: Path, notebook: NotebookNode) -> bool:
    """Whether the thumbnail is there, and of the notebook's figure."""
    path = thumbnail_of(script)
    return path.is_file() and _digest(_figure(script, notebook)).encode() in path.read_bytes()


def _figure(script: Path, notebook: NotebookNode) -> bytes:
    """The last one of the tagged cell, as PNG."""
    images = [
        output.data["image/png"]
        for cell in notebook.cells
        if THUMBNAIL in tags(cell)
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    if not images:
        raise SourceError(f"{script}: the cell tagged {THUMBNAIL!r} shows no figure: end it with plt.show()")
    return base64.b64decode(images[-1])


def _digest(figure: bytes) -> str:
    return hashlib.sha256(figure).hexdigest()
