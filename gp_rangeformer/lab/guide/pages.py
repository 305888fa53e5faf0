"""Pages whose generated parts stand between markers: prose is written by hand, figures are put in.

    <!-- generated: NAME -->
    what is replaced
    <!-- end -->

The markers are comments, which GitHub does not show. In a list they are indented as its text is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

_BLOCK = re.compile(
    r"^(?P<indent> *)<!-- generated: (?P<name>[\w-]+) -->\n.*?^(?P=indent)<!-- end -->$", re.MULTILINE | re.DOTALL
)
_BEGIN, _END = "<!-- generated:", "<!-- end -->"


class GuideError(ValueError):
    """A page or a result file that cannot be used; the message names it and the remedy."""


def pages(root: Path) -> list[Path]:
    """README.md and the guide, in the repository at ``root``.

    :raises GuideError: they are not there.
    """
    found = [root / "README.md", *sorted((root / "examples" / "guide").glob("*.md"))]
    if len(found) == 1 or not found[0].is_file():
        raise GuideError(f"{root} has no README.md and examples/guide: name a clone of the repository by --root")
    return found


def fill(text: str, blocks: Mapping[str, Callable[[], str]]) -> str:
    """``text`` with every generated part made anew.

    :param blocks: what makes each part, by name; asked once per marker.
    :raises GuideError: a marker with an unknown name, or without its end.
    """

    def made(match: re.Match[str]) -> str:
        name = match["name"]
        if name not in blocks:
            raise GuideError(f"nothing makes {name!r}; known: {', '.join(sorted(blocks))}")
        lines = [f"{_BEGIN} {name} -->", *blocks[name]().strip().splitlines(), _END]
        return "\n".join(match["indent"] + line if line else line for line in lines)

    filled, count = _BLOCK.subn(made, text)
    if not count == text.count(_BEGIN) == text.count(_END):
        raise GuideError(f"every '{_BEGIN} NAME -->' needs a line '{_END}' after it, and no other may be there")
    return filled


def names(text: str) -> list[str]:
    """Of the generated parts, in order."""
    return [match["name"] for match in _BLOCK.finditer(text)]
