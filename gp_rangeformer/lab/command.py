"""What the script ``gp-rangeformer`` runs: help is not kept waiting for PyTorch.

Installed it is the module ``gp_rangeformer_command`` beside the package (pyproject.toml): what is inside a package is
imported after the package itself, and that after PyTorch and GPyTorch, which take two seconds.
"""

from __future__ import annotations

import importlib.util
import sys

_ANSWERED_AT_ONCE = ("--help", "--version")


def main() -> None:
    """The command line. Where nothing is computed the package is there, and its ``__init__`` has not run."""
    arguments = sys.argv[1:]
    if not arguments or any(word in arguments for word in _ANSWERED_AT_ONCE):
        spec = importlib.util.find_spec("gp_rangeformer")
        assert spec is not None
        sys.modules["gp_rangeformer"] = importlib.util.module_from_spec(spec)
    from gp_rangeformer.lab.cli import app

    app()
