"""Pages and figures are those of the result files and docstrings; what differs is named, and prose is left alone."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab.bench.entrants import parse_peers
from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.bench.replay import Outcome
from gp_rangeformer.lab.guide import contention, reference, report_line
from gp_rangeformer.lab.guide.__main__ import BLOCKS, ROOT, filled, main, rewrite, stale
from gp_rangeformer.lab.guide.figures import FIGURES
from gp_rangeformer.lab.guide.pages import GuideError, fill, names, pages
from gp_rangeformer.lab.guide.peers import peers_table
from gp_rangeformer.lab.guide.results import PeerRun, Results

RESULTS = sorted((ROOT / "examples" / "guide" / "results").glob("*.json"))
COMMANDS = [
    shlex.split(line)
    for page in pages(ROOT)
    for line in page.read_text("utf-8").splitlines()
    if "--json examples/guide/results/" in line
]


def option(command: list[str], name: str) -> str | None:
    return command[command.index(name) + 1] if name in command else None


def slower(content: Any, factor: float = 1.0) -> Any:
    """Everything that is measured in seconds, twice."""
    if isinstance(content, dict):
        return {key: slower(value, 2.0 if key == "seconds" else factor) for key, value in content.items()}
    if isinstance(content, list):
        return [slower(value, factor) for value in content]
    return factor * content if isinstance(content, float) else content


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """What the command reads and writes, to be spoilt."""
    for part in ("README.md", "examples/guide", "examples/figures", "pretrain/results"):
        target = tmp_path / part
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / part).is_dir() else shutil.copy)(ROOT / part, target)
    return tmp_path


def test_pages_and_figures_are_those_of_the_result_files(capsys) -> None:
    assert main(["--check"]) == 0, capsys.readouterr().out


def test_edited_blocks_are_found_and_made_anew(clone: Path, capsys) -> None:
    good = {page: page.read_text("utf-8") for page in pages(clone)}
    assert {name for text in good.values() for name in names(text)} == set(BLOCKS)
    for page, text in good.items():
        page.write_text(re.sub(r"^( *<!-- generated: .* -->\n)", r"\1typed\n", text, flags=re.MULTILINE), "utf-8")
    assert main(["--check", "--root", str(clone)]) == 1
    said = capsys.readouterr().out
    for page, text in good.items():
        assert (str(page) in said) == (page.read_text("utf-8") != text)
        assert page.read_text("utf-8").count("typed\n") - text.count("typed\n") == len(names(text))
    assert main(["--root", str(clone)]) == 0
    assert {page: page.read_text("utf-8") for page in pages(clone)} == good
    assert stale(clone) == []


@pytest.mark.parametrize(
    "name", ["peers", "growth", "optimum-pol", "fit", "fits-2000", "stages", "products", "contention"]
)
def test_an_edited_result_is_found(clone: Path, name: str) -> None:
    path = clone / "examples" / "guide" / "results" / f"{name}.json"
    path.write_text(json.dumps(slower(json.loads(path.read_text("utf-8")))), "utf-8")
    assert stale(clone)


def test_prose_outside_the_markers_is_the_authors(clone: Path) -> None:
    page = clone / "examples" / "guide" / "measurements.md"
    page.write_text(page.read_text("utf-8").replace("# Measurements", "# What was measured", 1), "utf-8")
    assert stale(clone) == []
    assert rewrite(clone) == []


def test_a_figure_that_shows_other_numbers_is_drawn_again(clone: Path) -> None:
    one, *_, other = (clone / "examples" / "figures" / name for name in FIGURES)
    kept = one.read_bytes()
    shutil.copy(one, other)  # a figure, but of other numbers
    assert stale(clone) == [other]
    assert rewrite(clone) == [other]
    assert stale(clone) == []
    assert one.read_bytes() == kept


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda text: text.replace("generated: growth -->", "generated: grwth -->"), "nothing makes 'grwth'"),
        (lambda text: text.replace("<!-- end -->", "", 1), "needs a line"),
        (lambda text: text + "\n<!-- end -->\n", "needs a line"),
    ],
)
def test_damaged_markers_are_named_and_nothing_is_written(clone: Path, spoil, message: str, capsys) -> None:
    page = clone / "examples" / "guide" / "large-n.md"
    page.write_text(spoil(page.read_text("utf-8")), "utf-8")
    before = {path: path.read_bytes() for path in pages(clone)}
    assert main(["--root", str(clone)]) == 1
    said = capsys.readouterr().err
    assert str(page) in said
    assert message in said
    assert before == {path: path.read_bytes() for path in pages(clone)}


@pytest.mark.parametrize("content", [None, "{", "[]", '{"sizes": 3}'])
def test_a_result_file_that_is_none_is_named(clone: Path, content: str | None) -> None:
    path = clone / "examples" / "guide" / "results" / "stages.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(GuideError, match=re.escape(str(path))):
        filled(clone)


def test_a_folder_that_is_no_clone_is_refused(tmp_path: Path, capsys) -> None:
    assert main(["--root", str(tmp_path)]) == 1
    assert "--root" in capsys.readouterr().err


def test_a_block_takes_the_indentation_of_its_list() -> None:
    text = "* a\n  <!-- generated: x -->\n  old\n  <!-- end -->\nend\n"
    made = fill(text, {"x": lambda: "one\n\ntwo\n"})
    assert made == "* a\n  <!-- generated: x -->\n  one\n\n  two\n  <!-- end -->\nend\n"
    assert fill(made, {"x": lambda: "one\n\ntwo\n"}) == made


def test_every_block_stands_on_a_page() -> None:
    used = {name for page in pages(ROOT) for name in names(page.read_text("utf-8"))}
    assert used == set(BLOCKS)


def test_every_setting_and_every_argument_of_a_solver_is_described() -> None:
    text = (ROOT / "examples" / "guide" / "settings.md").read_text("utf-8")
    assert set(reference.setting_classes()) == set(settings.current())
    for name in settings.current():
        assert f"### {name}\n" in text
    for name in reference.SOLVERS:
        section = text.partition(f"### {name}\n")[2].partition("\n### ")[0]
        arguments = [field.name for field in dataclasses.fields(getattr(gp_rangeformer, name))]
        assert re.findall(r"^\* `(\w+)`", section, re.MULTILINE) == arguments


def test_no_markup_of_docstrings_is_left_on_a_page() -> None:
    for page in pages(ROOT):
        text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r":\w+:`|(?<!`)``(?!`)|:param |\(Default:", text), page


def _sizes(content: dict[str, Any]) -> list[int]:
    """Of fits every set has a cell."""
    if "cells" in content:
        return sorted({cell["n"] for cell in content["cells"]})
    return [size["n"] for size in content["sizes"]]


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_command_that_is_shown_for_a_file_is_the_one_that_made_it(path: Path) -> None:
    (command,) = [found for found in COMMANDS if (option(found, "--json") or "").endswith(f"/{path.name}")]
    content = json.loads(path.read_text("utf-8"))
    plan = content.get("plan", {})
    if "steps" in plan:
        assert option(command, "--steps") == str(plan["steps"])
    if "solvers" in plan:
        shown, measured = (option(command, "--solvers") or "").split(","), plan["solvers"].split(",")
        assert measured == shown
        parse_peers(",".join(shown))
    assert ("--keep-memory" in command) == plan.get("keep_memory", False)
    sizes = option(command, "--sizes")
    if sizes is not None:
        assert [int(n) for n in sizes.split(",")] == _sizes(content)


def test_what_shared_the_machine_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    def row(name: str, processor: float) -> Row:
        seconds = [1.0] * 5
        outcome = Outcome(name, seconds, value_error=[0.1], gradient_error=[0.1], processor=[processor] * 5)
        return Row(outcome, "", peak=1.0)

    kept = Results(ROOT).peers
    rows = [row("floor", 1.9), row("cg", 1.0), row("rangeformer", 1.9)]
    size = Size(8000, 8, "matern32", "a machine", 2, rows)
    results = Results(ROOT)
    monkeypatch.setitem(results.__dict__, "peers", PeerRun(kept.plan, [size]))
    table = peers_table(results)
    assert "| GPyTorch CG, default | 1.00* (1) |" in table
    assert "| floor | 1.00 (1) |" in table
    assert "| than GPyTorch CG, default | 1.0x* |" in table
    assert "other work was on the machine" in table


def test_steps_beside_busy_processes_are_timed(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    # The others take as long to import.
    monkeypatch.setattr(contention, "BUSY_PROCESSES", {contention.PASSIVE: 1})
    path = tmp_path / "contention.json"
    plan = contention.Plan(n=150, dimensions=2, threads=1, patience=0.0)
    contention.main(["--json", str(path), "--plan", json.dumps(plan._asdict())])
    rows = json.loads(path.read_text())["rows"]
    assert [(row["conditions"], row["solver"]) for row in rows] == [
        (contention.PASSIVE, solver) for solver in contention.SOLVERS
    ]
    assert all(row["seconds"] > 0 and row["steps"] == 1 for row in rows)
    assert len(capsys.readouterr().out.splitlines()) == len(rows)


def test_the_report_of_the_first_screen_is_one_line() -> None:
    line = report_line.report_of_a_step(n=200)
    assert line.startswith("inv_quad_logdet n=200 -> exact; ")
    assert "\n" not in line
