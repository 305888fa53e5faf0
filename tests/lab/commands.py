"""The command line as tests call it."""

from __future__ import annotations

from typing import Any

from typer.testing import CliRunner

from gp_rangeformer.lab import cli

SMALL = ["--n", "150", "--n-test", "30", "--steps", "2"]


def invoke(*arguments: object) -> Any:
    """``gp-rangeformer`` with these arguments."""
    return CliRunner().invoke(cli.app, [str(argument) for argument in arguments])


def said(result: Any) -> str:
    """All that was printed, in one line: where it is broken depends on the width."""
    return " ".join(result.output.split())
