"""Help is answered at once, and imports nothing heavy."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import gp_rangeformer

SCRIPT = Path(__file__).parents[2] / "gp_rangeformer" / "lab" / "command.py"  # installed beside the package

AT_ONCE = [[], ["--help"], ["--version"], ["compare", "--help"], ["bench", "stages", "--help"], ["fit", "--help"]]


def test_help_is_answered_without_pytorch():
    program = f"""
import sys
import runpy
main = runpy.run_path({str(SCRIPT)!r})["main"]
for arguments in {AT_ONCE!r}:
    sys.argv = ["gp-rangeformer", *arguments]
    try:
        main()
    except SystemExit as end:
        print("ended:", end.code)
print("slow:", sorted({{"torch", "gpytorch", "numpy", "gp_rangeformer.settings"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert re.findall("ended: (.*)", run.stdout)[1:] == ["0"] * 5
    assert (run.stdout + run.stderr).count("Usage") == 5
    assert "slow: []" in run.stdout


def test_what_computes_does_so_with_the_package(monkeypatch, capsys):
    package = sys.modules["gp_rangeformer"]
    monkeypatch.setattr(sys, "argv", ["gp-rangeformer", "info"])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(SCRIPT))["main"]()
    assert end.value.code == 0
    assert sys.modules["gp_rangeformer"] is package
    assert capsys.readouterr().out.startswith("python ")


LIGHT = [["--help"], ["--version"], ["compare", "--help"], ["bench", "stages", "--help"], ["fit", "--n", "1"]]


def test_what_needs_no_computation_imports_nothing_heavy():
    """One after another in a process that has imported nothing else."""
    program = f"""
import sys
from gp_rangeformer.lab.cli import app
heavy = {{"matplotlib", "sympy", "pandas", "scipy.optimize", "gp_rangeformer.lab.compare",
         "gp_rangeformer.lab.datasets"}}
for arguments in {LIGHT!r}:
    try:
        app(arguments)
    except SystemExit as end:
        print("ended:", end.code)
    print("heavy:", sorted(heavy & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("heavy: []") == len(LIGHT), run.stdout
    assert re.findall("ended: (.*)", run.stdout) == ["0", "0", "0", "0", "2"]
    assert run.stdout.count("Usage") == 3
    assert "Usage" in run.stderr
    assert gp_rangeformer.__version__ in run.stdout
