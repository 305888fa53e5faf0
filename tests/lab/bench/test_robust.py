"""Fits of many kinds of data: what is drawn, what is measured, tables, sentence and command."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gp_rangeformer.lab.bench import robust
from gp_rangeformer.lab.bench.command import bench_app
from gp_rangeformer.lab.bench.robust import End, RobustCell, cases
from gp_rangeformer.lab.bench.robust_sets import KINDS, RESTARTED
from gp_rangeformer.lab.bench.robust_tables import cells_grid, differing, summary_grid
from gp_rangeformer.lab.bench.small_tasks import has_botorch
from gp_rangeformer.lab.guide.results import Results
from gp_rangeformer.lab.guide.robust import robust_sentence

WITH_BOTORCH = pytest.mark.skipif(not has_botorch(), reason="BoTorch is an extra")
EQUAL = RobustCell("steps", 20, 1, "float64", 0, End(-1.0, 2.0, 40, None, ()), End(-1.001, 1.0, 8, None, ()), None)
LOWER = replace(EQUAL, start=3, ours=End(-1.2, 1.0, 9, None, ()), onward=-1.2)
HIGHER = replace(EQUAL, start=4, theirs=End(-1.5, 2.0, 40, None, ("OptimizationWarning",)), onward=-1.5)
RAISED = replace(EQUAL, start=5, theirs=End(None, 2.0, 40, "ModelFittingError: all failed", ()))


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_can_be_drawn_and_again(name) -> None:
    kind = KINDS[name]
    x, y = kind.data(40, 1)
    again, _ = kind.data(40, 1)
    assert (len(x), len(y), x.dim()) == (40, 40, 2)
    assert str(x.dtype) == str(y.dtype) == f"torch.{kind.dtype}"
    assert x.isfinite().all()
    assert y.isfinite().all()
    assert torch.equal(x, again)


def test_cases_are_all_sets_and_restarts_in_turn() -> None:
    assert len(cases(list(KINDS), 3000, 30)) == 50
    found = cases(["steps", "outliers", "series"], 50, 3)
    assert found[:3] == [("steps", 50, 0), ("outliers", 50, 0), ("series", 50, 0)]
    assert found[3:] == [("steps", 50, 1), ("outliers", 50, 2), ("steps", 50, 3)]
    assert cases(["series"], 50, 3) == [("series", 50, 0)]
    assert set(RESTARTED) <= set(KINDS)


@WITH_BOTORCH
def test_values_are_those_of_the_density() -> None:
    x, y = KINDS["outliers"].data(30, 0)
    mll = robust.build(x, y)
    model: Any = mll.model
    prior = sum(prior.log_prob(of(module)).sum() for _, module, prior, of, _ in model.named_priors())
    with torch.no_grad():
        targets = (y - y.mean()) / y.std()
        distances = torch.cdist(x / model.covar_module.lengthscale, x / model.covar_module.lengthscale)
        covariance = (-0.5 * distances.square()).exp() + model.likelihood.noise * torch.eye(30, dtype=torch.float64)
        normal = torch.distributions.MultivariateNormal(torch.zeros(30, dtype=torch.float64), covariance)
        expected = float(normal.log_prob(targets) + prior) / 30
    assert robust.exact_value(mll) == pytest.approx(expected, abs=1e-9)


@WITH_BOTORCH
def test_both_start_at_the_same_random_place() -> None:
    found = []
    for seed in (1, 1, 2):
        mll = robust.build(*KINDS["outliers"].data(30, 0))
        robust.move(mll, seed)
        found.append(torch.cat([parameter.detach().flatten() for parameter in mll.parameters()]))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_tables_count_what_ends_higher_and_lower() -> None:
    cells = [EQUAL, LOWER, HIGHER, RAISED]
    assert differing(cells) == ([HIGHER], [LOWER])
    summary = summary_grid(cells, "a note")
    assert summary.rows[-1] == ("all", "4", "1", "1", "1", "+0.4990", "-0.2000", "1, 0", "1, 0", "40, 8", "2.0")
    text = cells_grid(cells).to_markdown()
    assert "BoTorch: ModelFittingError |" in text
    assert "BoTorch: OptimizationWarning |" in text
    assert "-0.2000 | 0.0000 | 40, 9 |" in text


def test_the_sentence_says_what_is_a_maximum(tmp_path) -> None:
    folder = tmp_path / "examples" / "guide" / "results"
    folder.mkdir(parents=True)
    cells = [cell.to_json() for cell in (EQUAL, LOWER, HIGHER, replace(LOWER, start=7, onward=-1.0))]
    (folder / "robust.json").write_text(json.dumps({"plan": {"seed": 0}, "cells": cells}))
    assert robust_sentence(Results(tmp_path)) == (
        "Of 4 fits none raised; 1 ended more than 0.01 nats per point higher than BoTorch's own and 2 lower, where "
        "BoTorch's fit, begun at the end of 1 of those, gains nothing: another maximum."
    )


@WITH_BOTORCH
def test_the_command_resumes_and_refuses(tmp_path) -> None:
    path = tmp_path / "robust.json"
    options = ["robust", "--sets", "steps,outliers", "--largest", "20", "--restarts", "1", "--json", str(path)]
    first = CliRunner().invoke(bench_app, options)
    assert first.exit_code == 0, first.output
    written = path.read_text()
    cells = [RobustCell.from_json(cell) for cell in json.loads(written)["cells"]]
    assert [cell.key for cell in cells] == [("steps", 20, 0), ("outliers", 20, 0), ("steps", 20, 1)]
    assert all(cell.ours.raised is None and cell.ours.evaluations > 1 for cell in cells)
    again = CliRunner().invoke(bench_app, options)
    assert again.exit_code == 0
    assert path.read_text() == written
    other = CliRunner().invoke(bench_app, [*options, "--seed", "5"])
    assert other.exit_code == 2
    assert "seed" in other.output
    unknown = CliRunner().invoke(bench_app, ["robust", "--sets", "nothing"])
    assert unknown.exit_code == 2
    assert "nothing" in unknown.output
