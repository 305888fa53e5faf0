"""The comparison of quadratures: their rules are told apart, and a range that is everything is no test of any."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from gp_rangeformer.rangeformer.pretrained import load_pretrained
from pretrain.experiments import probe_quadrature
from pretrain.experiments.probe_quadrature import errors
from tests.system.systems import spectrum_matrix


def test_no_rule_is_judged_where_the_range_is_everything() -> None:
    small = spectrum_matrix(torch.linspace(1, 2, 20, dtype=torch.float64))
    assert errors(load_pretrained().double(), small, 4) is None


def test_the_plain_rule_errs_by_its_draw_alone_where_the_probes_are_solved() -> None:
    """The sample error of 16 Rademacher probes is at most sqrt(2 / (16 n)) times the spread of log(eigenvalues), and
    the quadrature of a spectrum this narrow is far closer than that: four times it."""
    spectrum = torch.linspace(1, 3, 300, dtype=torch.float64)
    found = errors(load_pretrained().double(), spectrum_matrix(spectrum), 16)
    assert found is not None
    assert found["plain"] < 4 * float(spectrum.log().std()) * (2 / (16 * 300)) ** 0.5


def test_the_command_writes_a_row_for_every_kind_and_number_of_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe_quadrature, "SETS", ())
    monkeypatch.setattr(probe_quadrature, "PROBES", (2, 4))
    monkeypatch.setattr(sys, "argv", ["probe_quadrature", "--out", str(tmp_path), "--size", "200"])
    probe_quadrature.main()
    rows = json.loads((tmp_path / "probe_quadrature.json").read_text())["rows"]
    assert {(row["kind"], row["probes"]) for row in rows} == {
        (kind, count) for kind in ("held out", "training family") for count in (2, 4)
    }
    assert all(row["median"].keys() == {"plain", "deflated", "answer", "bound"} for row in rows)
