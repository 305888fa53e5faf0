"""What ``import gp_rangeformer`` brings along: a user who has torch and gpytorch should hardly notice it."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import gp_rangeformer

IMPORTED = """
import sys, torch, gpytorch
before = set(sys.modules)
import gp_rangeformer
print(*sorted(set(sys.modules) - before))
"""
# Seconds of a first import that only some calls need: those import it themselves.
HEAVY = (
    "sympy",
    "typer",
    "rich",
    "matplotlib",
    "pandas",
    "sklearn",
    "scipy",
    "gp_rangeformer.regression",
    "gp_rangeformer.lab.compare",
)


def test_the_import_brings_no_heavy_module_that_torch_and_gpytorch_had_not() -> None:
    run = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True, timeout=120)
    brought = run.stdout.splitlines()[-1].split()  # GPyTorch may print a line of its own before
    assert "gp_rangeformer.plugin.hooks" in brought
    assert not [name for name in brought if name.startswith(HEAVY)]


def test_from_a_zip_it_is_refused_at_once(tmp_path: Path) -> None:
    """It failed at the first step, for want of a network's weights."""
    package = Path(gp_rangeformer.__file__).parent
    with zipfile.ZipFile(tmp_path / "package.zip", "w") as archive:
        for file in package.rglob("*.py"):
            archive.write(file, file.relative_to(package.parent))
    code = f"import sys; sys.path.insert(0, {str(tmp_path / 'package.zip')!r}); import gp_rangeformer"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 1
    assert "ImportError: gp_rangeformer reads files beside its code: install it unpacked" in run.stderr
