"""The page of settings: from the docstrings of ``gp_rangeformer.settings`` and of the solvers."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from typing import Any

from linear_operator.settings import _feature_flag, _value_context

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab.grid import Grid

SOLVERS = ("Certified", "Exact", "Direct")
_WIDTH = 120
_DEFAULT = re.compile(r"\(Default: (.*?)\)\s*$", re.DOTALL)
_ROLE = re.compile(r":\w+:`~?([^`]*)`")
_FIELD = re.compile(r"^:(?:param (?P<name>\w+)|raises (?P<error>[\w, ]+)):", re.MULTILINE)


def setting_classes() -> dict[str, type]:
    """Every public setting by name, in the order of the file."""
    return {
        name: found
        for name, found in vars(settings).items()
        if isinstance(found, type) and name[0] != "_" and issubclass(found, (_feature_flag, _value_context))
    }


def settings_section() -> str:
    """A table of all settings, then what each docstring says."""
    described = {name: _split(found) for name, found in setting_classes().items()}
    rows = tuple((f"[`{name}`](#{name})", f"`{default}`") for name, (_, default) in described.items())
    parts = [Grid("", ("setting", "default"), rows).to_markdown(titled=False).replace("---:", "---")]
    for name, (text, default) in described.items():
        parts += [f"### {name}", f"Default: `{default}`", _paragraphs(text)]
    return "\n\n".join(parts)


def solvers_section() -> str:
    """Every solver that ``settings.solver`` takes, with its arguments and their defaults."""
    parts = []
    for name in SOLVERS:
        solver: Any = getattr(gp_rangeformer, name)
        text, arguments = _arguments(solver)
        defaults = {field.name: _default(field) for field in dataclasses.fields(solver)}
        listed = [
            textwrap.fill(
                f"* `{argument}` (`{defaults[argument]}`): {_flat(meaning)}",
                _WIDTH,
                subsequent_indent="  ",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for argument, meaning in arguments.items()
        ]
        parts += [f"### {name}", _paragraphs(text), "\n".join(listed)]
    return "\n\n".join(parts)


def _split(setting: type) -> tuple[str, str]:
    """The docstring without its default, and that."""
    text = inspect.getdoc(setting) or ""
    default = _DEFAULT.search(text)
    assert default is not None, f"settings.{setting.__name__} does not end with its default"
    return text[: default.start()].strip(), default[1]


def _arguments(solver: type) -> tuple[str, dict[str, str]]:
    """The docstring before its fields, and what it says of every argument."""
    text = inspect.getdoc(solver) or ""
    found = list(_FIELD.finditer(text))
    ends = [match.start() for match in found[1:]] + [len(text)]
    fields = {match["name"]: text[match.end() : end] for match, end in zip(found, ends, strict=True) if match["name"]}
    return text[: found[0].start() if found else len(text)].strip(), fields


def _default(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return f"{getattr(field.default_factory, '__name__', field.default_factory)}()"
    return repr(field.default).replace("'", '"')


def _flat(text: str) -> str:
    """One line, with code instead of Sphinx's roles and double backticks."""
    return _ROLE.sub(lambda match: f"`{_shown(match[1])}`", " ".join(text.split())).replace("``", "`")


def _shown(target: str) -> str:
    """A name as a reader writes it: what the package exports by that, everything else by its last part."""
    package, last = "gp_rangeformer", target.rpartition(".")[2]
    return f"{package}.{last}" if last in gp_rangeformer.__all__ else last


def _paragraphs(text: str) -> str:
    found = (_flat(paragraph) for paragraph in text.split("\n\n"))
    return "\n\n".join(textwrap.fill(each, _WIDTH, break_long_words=False, break_on_hyphens=False) for each in found)
