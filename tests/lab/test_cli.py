"""Commands from end to end: what they print, refuse and leave behind."""

import io
import itertools
import json
import math
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from rich.console import Console

import gp_rangeformer
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.commands import console
from gp_rangeformer.lab.compare import machine, tables, training
from tests.lab.commands import SMALL, invoke


def test_a_csv_is_compared_from_end_to_end(table, tmp_path):
    files = {name: tmp_path / "out" / name for name in ("r.json", "plots", "t.md")}
    result = invoke(
        "compare", table, "--target", "y", "--steps", 2, "--solvers", "cholesky,rangeformer", "--min-size", 120,
        "--json", files["r.json"], "--plots", files["plots"], "--markdown", files["t.md"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "dropped 1 of 201 rows" in result.output
    for title in ("Arrival: table.csv, n = 180", "Audit: table.csv", "Cost: table.csv"):
        assert title in result.stdout
    content = json.loads(files["r.json"].read_text())
    assert [solver["name"] for solver in content["comparisons"][0]["solvers"]] == [
        "reference",
        "cholesky",
        "rangeformer",
    ]
    assert content["arguments"]["steps"] == 2
    assert content["settings"]["solver"]["rank"] == 400
    assert content["machine"]["versions"]["torch"] == torch.__version__
    assert content["command"].startswith("gp-rangeformer compare ")
    assert content["command"].endswith(f"--markdown {files['t.md']}")
    assert "--seed" not in content["command"], "defaults are not repeated"
    assert {path.name for path in files["plots"].iterdir()} >= {"table-likelihood.png", "table-cost.png"}
    text = files["t.md"].read_text()
    assert "| rangeformer |" in text
    assert "2 Adam steps, float32, seed 0" in text


def test_several_data_sets_are_compared_one_after_another(tmp_path):
    path = tmp_path / "r.json"
    result = invoke("compare", "--dataset", "robot_arm,borehole", *SMALL, "--solvers", "exact", "--json", path)
    assert result.exit_code == 0, result.output
    names = [comparison["dataset"]["name"] for comparison in json.loads(path.read_text())["comparisons"]]
    assert names == ["robot_arm", "borehole"]


def test_a_table_with_text_and_gaps_is_compared_as_asked(tmp_path: Path) -> None:
    table = tmp_path / "mixed.csv"
    rows = [f"{'ab'[i % 2]};{'' if i == 7 else i / 60};{(i % 2) + i / 60}" for i in range(60)]
    table.write_text("\n".join(["kind;x;y", *rows]))
    options = ("--target", "y", "--steps", 1, "--solvers", "cholesky", "--n-test", 6)
    refused = invoke("compare", table, *options)
    assert refused.exit_code == 2
    assert "'kind' holds text" in refused.stderr
    result = invoke("compare", table, *options, "--sep", ";", "--encode", "one-hot", "--missing", "mean")
    assert result.exit_code == 0, result.stderr
    assert "n = 54, d = 3" in result.stdout


def test_without_a_data_set_it_is_co2_with_its_seasonal_kernel():
    result = invoke("compare", *SMALL, "--solvers", "rangeformer", "--min-size", 100)
    assert result.exit_code == 0, result.output
    assert "co2, n = 150, d = 1, kernel trend-seasonal, 2 Adam steps" in result.stdout


def test_tables_fit_into_files_of_120_columns_and_every_terminal(monkeypatch):
    made = []

    def remember(comparison):
        made.extend(original(comparison))
        return made

    original = tables.tables
    monkeypatch.setattr(tables, "tables", remember)
    result = invoke("compare", "--dataset", "robot_arm", *SMALL, "--solvers", "cg-tight,rangeformer:rank=40+history=1")
    assert result.exit_code == 0, result.output
    assert len(made) == 3
    for width in (60, 80, 100, 120, 160):
        terminal = Console(width=width, highlight=False)
        with terminal.capture() as capture:
            for grid in made:
                terminal.print(grid)
        text = capture.get()
        assert max(map(len, text.splitlines())) <= width
        assert "…" not in text
        for grid in made:
            for cell in [*grid.headers, *itertools.chain.from_iterable(grid.rows)]:
                assert all(part in text for part in cell.split("\n")), (width, cell)
        assert width != 120 or text == result.stdout


def test_letters_that_a_streams_encoding_has_not_are_escaped(monkeypatch):
    """A file on Windows; the name of a column ended a fit after it was done."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", stream)
    console.open_console().print("größe, 温度")
    stream.flush()
    assert stream.buffer.getvalue().decode("cp1252").strip() == r"größe, \u6e29\u5ea6"


def test_what_another_library_prints_during_a_command_is_on_stderr(monkeypatch):
    def load(*arguments, **options):
        print("[KeOps] Warning : there is no GPU")
        return original(*arguments, **options)

    original = datasets.load
    monkeypatch.setattr(datasets, "load", load)
    result = invoke("compare", "--dataset", "robot_arm", *SMALL, "--solvers", "exact")
    assert result.exit_code == 0, result.output
    assert "[KeOps]" in result.stderr
    assert "[KeOps]" not in result.stdout
    assert result.stdout.startswith("Arrival: robot_arm")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (
            0.0,
            ["exact 0/2", "exact 1/2: 1.5 nats", "exact 2/2: 1.7 nats", "cg:x=[1] 0/2", "cg:x=[1] 1/2: 1.6 nats"],
        ),
        (math.inf, ["exact 0/2", "exact 2/2: 1.7 nats", "cg:x=[1] 0/2", "cg:x=[1] 1/2: 1.6 nats"]),
    ],
)
def test_without_a_terminal_progress_is_lines_at_the_start_and_end_of_a_solver_and_every_minute(
    seconds, said, monkeypatch, capsys
):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", seconds)

    def interrupted():
        with console.show_progress() as show:
            show("exact", 0, 2, "")
            show("exact", 1, 2, "1.5 nats")
            show("exact", 2, 2, "1.7 nats")
            show("cg:x=[1]", 0, 2, "")
            show("cg:x=[1]", 1, 2, "1.6 nats")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    printed = capsys.readouterr()
    assert printed.err.splitlines() == said
    assert printed.out == ""


def test_a_comparison_in_a_file_tells_stderr_how_far_it_is():
    result = invoke("compare", "--dataset", "robot_arm", *SMALL, "--solvers", "exact,cg")
    assert result.exit_code == 0, result.output
    for solver in ("reference", "exact", "cg"):
        assert f"{solver} 0/3: the first step" in result.stderr
        last = [line for line in result.stderr.splitlines() if line.startswith(f"{solver} ")][-1]
        assert re.fullmatch(rf"{solver} 3/3: -?\d\.\d{{4}} nats/point, \d+\.\d\d s/step", last)
    assert "3/3" not in result.stdout


def test_an_interrupt_leaves_files_tables_and_exit_code_130(tmp_path, monkeypatch):
    path = tmp_path / "r.json"
    original, calls = training.hyperparameters, []

    def interrupting(*arguments):
        calls.append(1)
        if len(calls) == 5:  # three evaluations of the reference, one of cholesky
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(training, "hyperparameters", interrupting)
    result = invoke(
        "compare", "--dataset", "robot_arm,borehole", *SMALL, "--solvers", "cholesky,exact", "--json", path,
        "--plots", tmp_path / "plots",
    )  # fmt: skip
    assert result.exit_code == 130, result.output
    content = json.loads(path.read_text())
    assert content["interrupted"] is True
    (comparison,) = content["comparisons"]
    assert [(solver["state"], len(solver["steps"])) for solver in comparison["solvers"]] == [
        ("done", 3),
        ("interrupted", 1),
    ]
    assert (tmp_path / "plots" / "robot_arm-likelihood.png").exists()
    assert "Interrupted" in result.stdout
    assert "cholesky: interrupted after 1 steps" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--solvers", "newton"], "no solver 'newton'; solvers: exact, cholesky, cg, cg-tight, rangeformer"),
        (["--solvers", "rangeformer:ranks=1"], "no setting 'ranks'"),
        (["--solvers", "cg", "--timing-only", "exact"], "--timing-only names 'exact'"),
        (["--min-size", "0"], "--min-size"),
        (["--kernel", "matern"], "no kernel 'matern'; kernels: matern32"),
        (["--kernel", "trend-seasonal", "--dataset", "robot_arm"], "'co2' only"),
        (["--dtype", "float16"], "no dtype 'float16': float32 or float64"),
        (["--device", "tpu"], "no device 'tpu'"),
        (["--device", "cuda:99"], "torch finds"),
        (["--dataset", "co3"], "did you mean 'co2'?"),
        (["--dataset", "robot_arm", "--n", "1"], "--n"),
        (["missing.csv", "--target", "y"], "no file missing.csv"),
        (["missing.csv"], "needs --target"),
        (["--target", "y"], "--target names a column of DATA.csv"),
        (["missing.csv", "--target", "y", "--dataset", "co2"], "exclude each other"),
    ],
)
def test_what_cannot_be_done_is_refused_with_exit_code_2_and_no_traceback(arguments, message):
    result = invoke("compare", *arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_a_wrong_column_is_refused_with_the_columns_there_are(table):
    result = invoke("compare", table, "--target", "z")
    assert result.exit_code == 2
    assert "no column 'z'" in result.output
    assert "a, b, y" in result.output


def test_info_names_versions_settings_data_sets_and_models():
    result = invoke("info")
    assert result.exit_code == 0, result.output
    for name in ("gp-rangeformer", "torch", "gpytorch", "linear-operator"):
        assert re.search(rf"^{name} +\d", result.stdout, re.MULTILINE)
    for said in ("torch threads", "CUDA device", "co2, robot_arm", "num_probes", "min_size"):
        assert said in result.stdout
    assert re.search(r"^pretrained +base *$", result.stdout, re.MULTILINE)
    # Of the weights' last steps, by terms that training no longer has all of: nothing that was held out.
    assert re.search(r"^  training loss +1\.76 \(lambda_max \+ logdet \+ solve; mean ", result.stdout, re.MULTILINE)


@pytest.mark.parametrize("width", [60, 80])
def test_info_is_whole_on_a_narrow_terminal(width, monkeypatch):
    wide = invoke("info").stdout
    monkeypatch.setattr(console, "_WIDTH_IN_FILES", width)
    narrow = invoke("info").stdout
    assert max(map(len, narrow.splitlines())) <= width
    assert re.sub(r"\s", "", narrow) == re.sub(r"\s", "", wide)


def test_the_version_is_the_package_s():
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.stdout.strip() == f"gp-rangeformer {gp_rangeformer.__version__}"


def test_what_was_never_installed_has_an_unknown_version(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert invoke("--version").stdout.strip() == "gp-rangeformer unknown"
    assert machine.versions()["gp-rangeformer"] == "not installed"


def test_what_pykeops_prints_when_imported_is_not_in_the_output(tmp_path):
    """GPyTorch imports pykeops if it can, and pykeops prints where there is no GPU."""
    (tmp_path / "pykeops").mkdir()
    (tmp_path / "pykeops" / "__init__.py").write_text("print('[KeOps] Warning')\n")
    (tmp_path / "pykeops" / "torch.py").write_text("class LazyTensor: ...\n")
    program = "from gp_rangeformer.lab.cli import app; app(['info'])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, env=environment)
    assert run.returncode == 0, run.stderr
    assert "[KeOps] Warning" in run.stderr
    assert run.stdout.startswith("python ")
    assert "KeOps" not in run.stdout
