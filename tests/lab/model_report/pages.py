"""A report as a reader of HTML sees it, and a table with names that would break one."""

from __future__ import annotations

import base64
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pandas as pd

TAGS = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "strong", "dl", "div", "dt", "dd", "figure",
    "img", "figcaption", "b", "table", "thead", "tbody", "tr", "th", "td", "span", "ul", "li", "footer",
}  # fmt: skip

VOID = {"meta", "img"}

HTML, MATH, TARGET = '<script>alert("1")</script>', "$a_{$ & co", "price <€>"


class Page(HTMLParser):
    """Tags with their attributes, the words between them, and whatever was not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def images(self) -> list[ET.Element]:
        """Every figure, parsed."""
        prefix = "data:image/svg+xml;base64,"
        sources = [str(attributes["src"]) for tag, attributes in self.tags if tag == "img"]
        assert all(source.startswith(prefix) for source in sources)
        return [ET.fromstring(base64.b64decode(source.removeprefix(prefix))) for source in sources]


def mixed_table() -> pd.DataFrame:
    """Numbers, text, dates and booleans, a constant, missing cells, and names that are HTML or formulas."""
    random = np.random.default_rng(0)
    n = 80
    height, city = random.uniform(150, 200, n), random.choice(["Oslo", "<b>Rome</b>", "São Paulo"], n)
    member, days = random.random(n) < 0.4, random.integers(0, 900, n)
    y = 5 * np.sin(height / 8) + 4 * (city == "Oslo") + 2 * member + days / 200 + random.normal(0, 0.7, n)
    joined = pd.Timestamp("2020-01-01") + pd.to_timedelta(days, unit="D")
    columns = {HTML: height, MATH: city, "member": member, "joined": joined, "constant": 1.0, TARGET: y}
    frame = pd.DataFrame(columns).astype({"member": "boolean"})
    frame.loc[frame.index[::17], MATH] = None
    frame.loc[frame.index[1::20], "member"] = None
    return frame
