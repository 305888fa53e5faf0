"""Files that cannot be written cost themselves and no results."""

import errno
import json
import os
from pathlib import Path

import pytest

from tests.lab.commands import SMALL, invoke

BENCH = ["--dataset", "robot_arm", "--sizes", "200", "--steps", "4"]

COMMANDS = {
    "compare": (["compare", "--dataset", "robot_arm", *SMALL, "--solvers", "exact"], "Cost: robot_arm"),
    "fit": (["fit", "--dataset", "robot_arm", *SMALL], "test RMSE"),
    "bench": (["bench", *BENCH, "--solvers", "rangeformer"], "Growth: robot_arm"),
    "bench learning": (["bench", "learning", *BENCH, "--seeds", "0"], "log determinant"),
    "bench products": (["bench", "products", "--sizes", "200"], "recomputed"),
    "bench stages": (["bench", "stages", *BENCH], "a step"),
    "bench small": (["bench", "small", "--sizes", "10", "--batches", "1", "--repetitions", "1"], "Small data sets"),
}

FILES = dict.fromkeys(COMMANDS, ("--json", "--markdown")) | {
    "compare": ("--json", "--markdown", "--plots"),
    "fit": ("--predictions",),
    "bench": ("--json", "--markdown", "--figures"),
}


def fails_in_a_line_each(result, paths: list[Path], *said: str) -> None:
    """Exit code 1, no traceback, and lines on stderr with the paths and what to do."""
    assert result.exit_code == 1, result.output
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error")]
    assert len(lines) == len(paths)
    for path in paths:
        (line,) = [line for line in lines if str(path) in line]
        for word in ("Error: cannot write", *said):
            assert word in line


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in ("bench learning", "bench small")])
def test_a_full_disk_costs_the_files_and_no_results(command, tmp_path, monkeypatch):
    arguments, title = COMMANDS[command]

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("gp_rangeformer.atomic.os.replace", full)
    paths = {option: tmp_path / option for option in FILES[command]}
    result = invoke(*arguments, *(word for pair in paths.items() for word in pair))
    fails_in_a_line_each(result, list(paths.values()), "No space left on device", "free some space there")
    assert title in result.stdout
    assert "written:" not in result.stdout
    assert not [found for found in tmp_path.rglob("*") if found.is_file()], "half a file is left"


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "fit"])
def test_a_file_that_cannot_be_made_is_refused_before_anything_is_computed(command, table, tmp_path, monkeypatch):
    arguments, title = COMMANDS[command]
    monkeypatch.chdir(tmp_path)
    before = table.read_bytes()
    for option in FILES[command]:
        folder = option in ("--plots", "--figures")
        for path, said in (
            (table / "out", f"{table} is no folder: choose another path"),
            (table, "is a file: name a folder") if folder else (tmp_path, "is a folder: name a file in it"),
        ):
            result = invoke(*arguments, option, path)
            assert result.exit_code == 2, result.output
            assert f"Error: {option} {path}" in result.stderr
            assert said in result.stderr
            assert title not in result.stdout
    assert table.read_bytes() == before
    assert not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("exists", [False, True])
def test_two_files_that_are_one_are_refused_before_anything_is_computed(command, exists, tmp_path):
    arguments, title = COMMANDS[command]
    first, second = ("--predictions", "--json") if command == "fit" else ("--json", "--markdown")
    (tmp_path / "folder").mkdir()
    path, same = tmp_path / "out", tmp_path / "folder" / ".." / "out"
    if exists:
        path.write_text('{"cells": []}')  # as of a `bench learning`, which goes on from it
    result = invoke(*arguments, second, same, first, path)
    assert result.exit_code == 2, result.output
    assert f"Error: {first} {path} and {second} {same} are one file: choose another path for one" in result.stderr
    assert title not in result.stdout
    assert path.exists() is exists


def test_a_device_may_be_named_twice():
    arguments, title = COMMANDS["fit"]
    result = invoke(*arguments, "--predictions", os.devnull, "--json", os.devnull)
    assert result.exit_code == 0, result.output
    assert title in result.stdout


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="there is no device that is always full")
@pytest.mark.parametrize(("command", "option"), [("compare", "--json"), ("fit", "--predictions"), ("bench", "--json")])
def test_a_device_that_is_full_is_neither_read_nor_replaced(command, option):
    arguments, title = COMMANDS[command]
    result = invoke(*arguments, option, "/dev/full")
    fails_in_a_line_each(result, [Path("/dev/full")], "free some space there")
    assert title in result.stdout
    assert Path("/dev/full").is_char_device()


def test_a_disk_that_has_space_again_is_no_failure(tmp_path, monkeypatch):
    path, original, calls = tmp_path / "r.json", os.replace, []

    def full_at_first(*arguments):
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(*arguments)

    monkeypatch.setattr("gp_rangeformer.atomic.os.replace", full_at_first)
    result = invoke("compare", "--dataset", "robot_arm", *SMALL, "--solvers", "exact", "--json", path)
    assert result.exit_code == 0, result.output
    assert len(json.loads(path.read_text())["comparisons"]) == 1
    assert len(calls) > 1


def test_one_file_that_fails_does_not_cost_the_others(tmp_path, monkeypatch):
    good, original = tmp_path / "t.md", os.replace

    def full_of_figures(source, destination):
        if Path(destination).suffix == ".png":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(source, destination)

    monkeypatch.setattr("gp_rangeformer.atomic.os.replace", full_of_figures)
    result = invoke(
        "compare", "--dataset", "robot_arm,borehole", *SMALL, "--solvers", "exact", "--markdown", good,
        "--plots", tmp_path / "plots",
    )  # fmt: skip
    fails_in_a_line_each(result, [tmp_path / "plots"])
    assert "borehole" in good.read_text()
    assert f"written: {good}" in result.stdout
