"""README and guide: their code runs, their links resolve, the names they use exist, and the README stays short."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab.bench.small_tasks import has_botorch
from gp_rangeformer.lab.guide.pages import pages

ROOT = Path(__file__).parents[1]
PAGES = pages(ROOT)
TEXTS = {path: path.read_text("utf-8") for path in PAGES}
GUIDE = ROOT / "examples" / "guide"
LONGEST = 130  # lines of the README
SKIPPED = "# Not run by the tests: torchrun"  # how a block that needs more than this process begins


def blocks(path: Path, language: str = "python") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXTS[path], re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """Without code blocks."""
    return re.sub(r"^```.*?^```$", "", TEXTS[path], flags=re.MULTILINE | re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def script(n: int) -> str:
    """The training script to copy, with fewer points."""
    (found,) = blocks(GUIDE / "how-it-works.md")
    assert "torch.rand(2000, 4)" in found
    return found.replace("torch.rand(2000, 4)", f"torch.rand({n}, 4)")


@pytest.fixture
def reader() -> dict[str, Any]:
    """What a reader's script has defined: model, likelihood, mll, train_x, train_y, test_x; in training mode."""
    names: dict[str, Any] = {}
    exec(script(n=200), names)
    names["model"].train()
    names["likelihood"].train()
    return names


def test_the_script_to_copy_trains_and_predicts_with_the_plug_in(capsys) -> None:
    names: dict[str, Any] = {}
    exec(script(n=2000), names)
    solvers = re.findall(r"^(\w+) n=2000 -> (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert solvers[0] == ("inv_quad_logdet", "rangeformer")
    assert len(solvers) > 1
    assert names["mean"].shape == names["variance"].shape == (100,)
    off = names["mean"] - torch.sin(4 * names["test_x"].sum(-1))
    assert off.square().mean() < 0.05


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path)], ids=lambda path: path.stem)
def test_the_code_of_a_page_runs_from_top_to_bottom(path: Path, reader: dict[str, Any]) -> None:
    run = [block for block in blocks(path) if not block.startswith(SKIPPED)]
    if any("botorch" in block for block in run):
        assert has_botorch()  # imported, and what that sets for the process put back
    if path == GUIDE / "how-it-works.md":
        run, reader = [script(n=200)], {}
    assert run
    for block in run:
        exec(block, reader)
    assert gp_rangeformer.last_report()


def test_the_readme_answers_with_the_plug_in(reader: dict[str, Any]) -> None:
    first, *_ = blocks(ROOT / "README.md")
    exec(first, reader)
    report = gp_rangeformer.last_report()
    assert (report.operation, report.n) == ("inv_quad_logdet", 200)
    assert report.solver in ("exact", "rangeformer")
    assert all(parameter.grad is not None for parameter in reader["model"].parameters())


def test_only_what_needs_several_processes_is_not_run() -> None:
    skipped = [block for path in PAGES for block in blocks(path) if block.startswith("# Not run")]
    assert len(skipped) == 1
    assert all(block.startswith(SKIPPED) for block in skipped)
    compile(skipped[0], "guide", "exec")


def test_the_network_of_the_guide_answers() -> None:
    names: dict[str, Any] = {}
    for block in blocks(GUIDE / "papers.md"):
        exec(block, names)
    answers = names["answers"]
    for name in ("lambda_max", "logdet", "basis", "image", "solution", "residual"):
        assert getattr(answers, name).isfinite().all()


def test_the_readme_is_read_in_a_minute() -> None:
    assert len(TEXTS[ROOT / "README.md"].splitlines()) <= LONGEST


def test_what_automation_reads_from_the_readme_is_there() -> None:
    lines = TEXTS[ROOT / "README.md"].splitlines()
    assert [line for line in lines if re.fullmatch(r"pip install .*&& pytest", line)] == [
        'pip install -c constraints.txt -e ".[test]" && pytest'
    ]
    assert "pip install -c constraints.txt . && gp-rangeformer compare" in lines


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_link_resolves(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), target


def test_every_page_is_linked_from_the_readme() -> None:
    text = TEXTS[ROOT / "README.md"]
    assert [page.name for page in PAGES[1:] if f"(examples/guide/{page.name}" not in text] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_name_that_is_written_exists(path: Path) -> None:
    text = TEXTS[path]
    for name in re.findall(r"\bsettings\.(?!md\b)([a-z]\w*)", text):
        assert hasattr(settings, name), f"settings.{name}"
    for name in re.findall(r"\bgp_rangeformer\.([A-Za-z]\w*)", text):
        exported = name in gp_rangeformer.__all__ or importlib.util.find_spec(f"gp_rangeformer.{name}") is not None
        assert exported, f"gp_rangeformer.{name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_file_that_is_named_is_there(path: Path) -> None:
    """In code spans: from the repository's root, or, as the pages shorten it, from the package's or its kernels'."""
    roots = (ROOT, ROOT / "gp_rangeformer", ROOT / "gp_rangeformer" / "kernels")
    for name in re.findall(r"`([\w./-]+/[\w./-]*|[\w-]+\.(?:py|h|cpp|json))`", prose(path)):
        assert any((root / name).exists() for root in (*roots, ROOT / "pretrain" / "results")), name
