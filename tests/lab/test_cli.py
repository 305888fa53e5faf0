"""The command line: what it prints and writes, and how it refuses."""

import errno
import itertools
import json
import math
import os
import re
import runpy
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
from tests.lab.commands import invoke

SMALL = ["--n", "150", "--n-test", "30", "--steps", "2"]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """200 rows: y = sin(3 a) + b / 2, with a missing value in one row."""
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(200, 2, generator=generator)
    y = (3 * x[:, 0]).sin() + 0.5 * x[:, 1] + 0.05 * torch.randn(200, generator=generator)
    rows = [f"{a:.6f},{b:.6f},{t:.6f}" for (a, b), t in zip(x.tolist(), y.tolist(), strict=True)]
    path = tmp_path / "table.csv"
    path.write_text("\n".join(["a,b,y", *rows, "0.5,,1.0"]) + "\n")
    return path


# --------------------------------------------------------------------------------------------------------------------
# compare


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


# --------------------------------------------------------------------------------------------------------------------
# Files that cannot be written

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


@pytest.mark.parametrize(("command", "option"), [("compare", "--plots"), ("bench", "--json")])
def test_a_folder_that_cannot_be_made_costs_a_file_and_no_results(command, option, table):
    arguments, title = COMMANDS[command]
    before = table.read_bytes()
    result = invoke(*arguments, option, table / "out")
    fails_in_a_line_each(result, [table / "out"], "choose another path")
    assert title in result.stdout
    assert table.read_bytes() == before


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


def test_one_file_that_fails_does_not_cost_the_others(table, tmp_path):
    good = tmp_path / "t.md"
    result = invoke(
        "compare", "--dataset", "robot_arm,borehole", *SMALL, "--solvers", "exact", "--markdown", good,
        "--plots", table / "plots",
    )  # fmt: skip
    fails_in_a_line_each(result, [table / "plots"])
    assert "borehole" in good.read_text()
    assert f"written: {good}" in result.stdout


# --------------------------------------------------------------------------------------------------------------------
# fit, info, help


def test_fit_prints_hyperparameters_errors_and_the_report_and_writes_predictions(table, tmp_path):
    path = tmp_path / "predictions.csv"
    result = invoke("fit", table, "--target", "y", "--steps", 10, "--min-size", 100, "--predictions", path)
    assert result.exit_code == 0, result.output
    for said in ("lengthscale[a]", "noise", "test RMSE", "test NLL", "inv_quad_logdet n=180 -> rangeformer"):
        assert said in result.stdout
    assert re.search(
        r"^\d+\.\d{3} s/step \(median\), \d+\.\d passes over K; training .*; "
        r"peak memory \d+ MiB, with the prediction \d+ MiB, beside what was held before$",
        result.stdout,
        re.MULTILINE,
    )
    lines = path.read_text().splitlines()
    assert lines[0] == "line,y,mean,sd,lower95,upper95,a,b"
    assert len(lines) == 1 + 20
    for line in lines[1:]:
        _, _, mean, deviation, lower, upper, *_ = map(float, line.split(","))
        assert lower < mean < upper
        assert deviation > 0


def test_fit_trains_to_convergence_unless_adam_is_asked_for(table, tmp_path):
    path = tmp_path / "fit.json"
    converged = invoke("fit", table, "--target", "y", "--json", path)
    assert converged.exit_code == 0, converged.output
    found = json.loads(path.read_text())
    assert found["reason"] == "converged"
    assert found["rmse"] > 0
    assert found["history"][-1]["points"] == found["n"]
    assert "left to gain" in converged.output
    assert "converged" in converged.output
    assert found["leave_one_out"]["log_density"] == pytest.approx(-found["nll"], abs=0.5)
    assert [one["level"] for one in found["leave_one_out"]["coverage"]] == [0.5, 0.8, 0.95]
    assert "leave-one-out" in converged.output
    by_adam = invoke("fit", table, "--target", "y", "--optimizer", "adam", "--steps", 3)
    assert by_adam.exit_code == 0
    assert "left to gain" not in by_adam.output


def test_predictions_that_fail_do_not_cost_the_training(table, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("too little memory")

    monkeypatch.setattr("gp_rangeformer.regression.TableRegression.predict", fail)
    path = tmp_path / "fit.json"
    result = invoke("fit", table, "--target", "y", "--json", path)
    assert result.exit_code == 1
    assert "the predictions failed: too little memory" in result.output
    assert "left to gain" in result.output
    assert json.loads(path.read_text())["reason"] == "converged"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--optimizer", "sgd"), "--optimizer 'sgd': fit_mll or adam"),
        (("--optimizer", "fit_mll", "--steps", 3), "--steps and --lr belong to --optimizer adam"),
    ],
)
def test_fit_refuses_an_optimizer_that_cannot_be(table, options, said):
    result = invoke("fit", table, "--target", "y", *options)
    assert result.exit_code == 2
    assert said in result.output.replace("\n", " ")


def test_fit_refuses_a_missing_file():
    result = invoke("fit", "missing.csv", "--target", "y")
    assert result.exit_code == 2
    assert "no file missing.csv" in result.output


def test_fit_takes_a_data_set_by_name():
    result = invoke("fit", "--dataset", "robot_arm", "--n", 150, "--steps", 2)
    assert result.exit_code == 0, result.output
    assert "150 training" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "nothing to fit: give DATA.csv with --target COLUMN, or --dataset NAME"),
        (("--dataset", "robot_arm,borehole"), "fit trains one GP: give one --dataset"),
    ],
)
def test_fit_refuses_nothing_and_too_much(arguments, said):
    result = invoke("fit", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.output.split())


def test_fit_says_in_one_line_why_training_failed(table, monkeypatch):
    def fail(*arguments, **options):
        raise FloatingPointError("the log marginal likelihood is nan at step 3")

    monkeypatch.setattr("gp_rangeformer.lab.compare.fit.train", fail)
    result = invoke("fit", table, "--target", "y", "--optimizer", "adam")
    assert result.exit_code == 1
    assert "Training failed: the log marginal likelihood is nan at step 3" in result.output


def test_info_names_versions_settings_data_sets_and_models():
    result = invoke("info")
    assert result.exit_code == 0, result.output
    for name in ("gp-rangeformer", "torch", "gpytorch", "linear-operator"):
        assert re.search(rf"^{name} +\d", result.stdout, re.MULTILINE)
    for said in ("torch threads", "CUDA device", "co2, robot_arm", "num_probes", "min_size"):
        assert said in result.stdout
    assert re.search(r"^pretrained +base *$", result.stdout, re.MULTILINE)


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
