"""Annotated shapes: jaxtyping leaves an argument unchecked, without a word, where it cannot read one."""

from __future__ import annotations

import ast
from pathlib import Path

import jaxtyping
from torch import Tensor

import gp_rangeformer

PACKAGE = Path(gp_rangeformer.__file__).parent


def shapes(file: Path) -> list[tuple[str, object]]:
    """Kind and shape of every ``Kind[array, shape]`` whose kind the file takes from jaxtyping."""
    nodes = list(ast.walk(ast.parse(file.read_text("utf-8"))))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"]
    kinds = {alias.name for node in imports for alias in node.names}
    return [
        (node.value.id, ast.literal_eval(node.slice.elts[-1]))
        for node in nodes
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in kinds
        if isinstance(node.slice, ast.Tuple)
    ]


def test_every_annotated_shape_can_be_read() -> None:
    found = [(file, *annotated) for file in sorted(PACKAGE.rglob("*.py")) for annotated in shapes(file)]
    assert len(found) > 500
    unread = []
    for file, kind, shape in found:
        try:
            getattr(jaxtyping, kind)[Tensor, shape]
        except (ValueError, AttributeError) as error:
            unread.append(f"{file.relative_to(PACKAGE)}: {kind}[Tensor, {shape!r}]: {error}")
    assert not unread
