"""The comparison of three widths of the tail's interval, and its published file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from gp_rangeformer.logdet.evidence import TailEvidence
from gp_rangeformer.logdet.learned import load_head
from gp_rangeformer.logdet.network import LogDetTail, LogDetTailConfig
from pretrain.log_determinant import train
from pretrain.log_determinant.evaluate import SETS, SIMULATED
from pretrain.log_determinant.evidence import write_evidence
from pretrain.log_determinant.pack import write_pack
from pretrain.log_determinant.train import Systems, TrainConfig, quantiles
from pretrain.log_determinant.widths import halves, left_out, main, measured, three

FEATURES, TOKEN_FEATURES = 5, 3
RESULTS = Path(__file__).parents[2] / "pretrain" / "results"
STORED = json.loads((RESULTS / "log_determinant_widths.json").read_text())
ROWS = {row["title"]: row for row in STORED["rows"]}


def network() -> LogDetTail:
    torch.manual_seed(0)
    head = LogDetTail(LogDetTailConfig(FEATURES, TOKEN_FEATURES, dim=8, hidden=16))
    head.widening.fill_(5.0)
    head.floor.fill_(1e-4)
    return head


def answered(head: LogDetTail, spread: float = 2.0, kernels: int = 600, per_kernel: int = 8) -> Systems:
    """Systems whose z is off ``head``'s answer by up to ``spread`` half widths of its own, uniformly."""
    generator = torch.Generator().manual_seed(1)
    count = kernels * per_kernel
    features = head.config.token_features
    scalars = head.scalar_mean + head.scalar_scale * torch.randn(count, head.config.scalars, generator=generator)
    estimate = 0.1 * 40 ** torch.rand(count, generator=generator)
    data = {
        "kernel": torch.arange(kernels).repeat_interleave(per_kernel),
        "scalars": scalars,
        "tokens": (head.token_mean + torch.randn(count, 16, features, generator=generator)).half(),
        "estimate": estimate,
        "upper": 3 * estimate,
    }
    kept = head.widening.clone(), head.floor.clone()
    head.widening.fill_(1)
    head.floor.zero_()
    with torch.no_grad():
        lower, value, upper = quantiles(head, data).unbind(-1)
    head.widening.copy_(kept[0])
    head.floor.copy_(kept[1])
    error = spread * (2 * torch.rand(count, generator=generator) - 1)
    data["tail"] = value + torch.where(error < 0, error * (value - lower), error * (upper - value))
    return data


def test_no_held_out_kernel_both_calibrates_and_reports() -> None:
    held = {"kernel": torch.arange(0, 4000, train.VALIDATION_SHARE).repeat_interleave(3)}
    calibrating, reporting = (set(half["kernel"].tolist()) for half in halves(held))
    assert calibrating.isdisjoint(reporting)
    assert calibrating | reporting == set(held["kernel"].tolist())
    assert len(calibrating) == len(reporting) == 200


def test_the_conformal_width_covers_its_share_of_other_systems_drawn_alike() -> None:
    head = network()
    calibrating, reporting = halves(answered(head))
    row = measured("", head, reporting, three(head, calibrating))
    assert row.coverage["own"] == pytest.approx(0.5, abs=0.04)
    assert row.coverage["conformal"] == pytest.approx(0.9, abs=0.03)
    assert row.coverage["shipped"] == 1


def test_the_conformal_width_differs_from_the_shipped_one_in_its_factors_alone() -> None:
    head = network()
    widths = three(head, answered(head))
    assert widths["conformal"].floor == widths["shipped"].floor == pytest.approx(1e-4)
    torch.testing.assert_close(widths["shipped"].factors, torch.full((3, 4), 5.0))
    torch.testing.assert_close(widths["conformal"].factors, torch.full((3, 4), 1.8), rtol=0.1, atol=0)
    assert widths["own"].floor == 0
    assert torch.equal(widths["own"].factors, torch.ones(3, 4))


def test_groups_left_out_weigh_the_same_however_many_systems_they_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "fit", lambda *given, **options: None)
    head = network()
    data = answered(head, kernels=60)
    *groups, mean = left_out(data, TrainConfig(), tmp_path, three(head, data))
    assert len({row.systems for row in groups}) > 1
    assert sum(row.systems for row in groups) == mean.systems == len(data["tail"])
    for name, found in mean.coverage.items():
        assert found == pytest.approx(np.mean([row.coverage[name] for row in groups]))


def test_the_command_reports_uci_and_simulated_kernels_apart(tmp_path: Path) -> None:
    head = load_head()
    assert head is not None
    data = answered(head, kernels=200, per_kernel=1)
    cache = tmp_path / "cache"
    write_pack(cache / "pack-00.npz", {name: value.numpy() for name, value in data.items()})
    evidence = [
        TailEvidence(
            scalars=data["scalars"][i].double(),
            upper=float(data["upper"][i]),
            estimate=float(data["estimate"][i]),
            definite=True,
            tokens=data["tokens"][i].double(),
        )
        for i in range(5)
    ]
    write_evidence(tmp_path / "kept.npz", evidence)
    with torch.no_grad():
        value = quantiles(head, data)[:, 1].tolist()
    # Three kernels are answered exactly; of two, z is at the upper end, which no interval here reaches.
    exact = [*value[:3], evidence[3].upper, evidence[4].upper]
    names = [*SETS[:3], *SIMULATED]
    records = [
        {"data": name, "z": z, "quadrature": one.estimate} for name, z, one in zip(names, exact, evidence, strict=True)
    ]
    (tmp_path / "result.json").write_text(json.dumps({"records": records}))
    out = tmp_path / "widths.json"
    options = ["--evidence", str(tmp_path / "kept.npz"), str(tmp_path / "result.json"), "--out", str(out)]
    done = CliRunner().invoke(main, [str(cache), *options])
    assert done.exit_code == 0, done.output
    held, uci, simulated = json.loads(out.read_text())["rows"]
    assert held["systems"] == 10
    assert (uci["title"], uci["systems"], uci["coverage"]["own"]) == ("UCI, result.json", 3, 1)
    assert (simulated["title"], simulated["systems"]) == ("simulated, result.json", 2)
    assert simulated["coverage"]["shipped"] == 0


@pytest.mark.parametrize("name", ["log_determinant.json", "log_determinant_large.json"])
def test_the_published_coverage_of_the_shipped_width_is_that_of_the_result_file(name: str) -> None:
    result = json.loads((RESULTS / name).read_text())
    kinds = {"UCI": result["uci"], "simulated": result["simulated"]}
    for kind, rows in kinds.items():
        for network_row in (row for row in rows if row["method"] == "learned"):
            assert ROWS[f"{kind}, {name}"]["coverage"]["shipped"] == pytest.approx(network_row["coverage"])


def test_the_published_factors_of_the_shipped_width_are_those_of_the_shipped_weights() -> None:
    head = load_head()
    assert head is not None
    torch.testing.assert_close(torch.tensor(STORED["widths"]["shipped"]["factors"]), head.widening)
    assert STORED["widths"]["shipped"]["floor"] == pytest.approx(float(head.floor))
