"""``bench --keep-memory``: what is freed stays in the process, the plan says so, and another C library is refused."""

from __future__ import annotations

import ctypes
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gp_rangeformer.lab.bench import peer_run
from gp_rangeformer.lab.bench.peer_run import Plan
from gp_rangeformer.lab.cli import app
from tests.lab.commands import said

ROOT = Path(__file__).parents[3]
SMALL = ["bench", "--keep-memory", "--dataset", "robot_arm", "--sizes", "150", "--solvers", "exact", "--steps", "4"]
PAGES = """
import resource, sys, torch
from gp_rangeformer.lab.bench.kept_memory import keep_memory
if sys.argv[1] == "kept":
    keep_memory()
for repeat in range(9):
    held = torch.ones(3000, 3000)
    if repeat == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    run = subprocess.run(
        [sys.executable, "-c", PAGES, how], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    return int(run.stdout.splitlines()[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's malloc")
def test_matrices_of_36_mb_are_not_mapped_again() -> None:
    default, kept = faults("default"), faults("kept")
    if default < 3000:
        pytest.skip(f"{default} faults by default: this process has another malloc, or large pages")
    # A small block that stays may take a part of the place, so that one more is mapped.
    assert kept < 0.5 * default


@pytest.mark.parametrize("library", [OSError("none"), TypeError("Windows"), object()])
def test_another_c_library_is_refused_before_anything_is_measured(library, monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(name: str | None) -> object:
        if isinstance(library, Exception):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", opened)
    result = CliRunner().invoke(app, SMALL)
    assert result.exit_code == 2
    assert "--keep-memory sets glibc's malloc" in said(result).replace("│ ", "")


def test_the_plan_says_it_and_peaks_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(peer_run, "keep_memory", lambda: asked.append(True))
    path = tmp_path / "kept.json"
    result = CliRunner().invoke(app, [*SMALL, "--json", str(path)])
    assert result.exit_code == 0, result.output
    content = json.loads(path.read_text())
    assert asked == [True]
    assert content["plan"]["keep_memory"] is True
    rows = content["sizes"][0]["rows"]
    assert all(row["peak"] is None for row in rows)
    assert all(len(row["outcome"]["system"]) == len(row["outcome"]["seconds"]) == 4 for row in rows)
    assert "memory kept" in said(result)


def test_a_plan_without_the_word_is_of_the_default_malloc() -> None:
    assert Plan("robot_arm", None, "exact", 4, 0, "float32", "cpu").keep_memory is False
