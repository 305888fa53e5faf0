"""What the guide says of peers: disturbed seconds are marked and not told, scattered ratios are ranges, and an empty
cell has its reason."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from gp_rangeformer.lab.bench.peer_run import Plan
from gp_rangeformer.lab.bench.peers import Row, Size
from gp_rangeformer.lab.bench.replay import Outcome
from gp_rangeformer.lab.guide import optimum, peers
from gp_rangeformer.lab.guide.__main__ import ROOT
from gp_rangeformer.lab.guide.results import PeerRun, Results
from gp_rangeformer.lab.guide.steadiness import bounds, disturbed, steady_seconds, times

PLAN = Plan("kin40k", None, "cholesky,cg,gpflash,rangeformer", 8, 0, "float32", "cpu")
NAMES = ("floor", "cholesky", "cg", "gpflash", "rangeformer")


def row(name: str, seconds: float | Sequence[float], share: float = 1.0, system: float = 0.0) -> Row:
    """Of two cores; ``system``: the kernel's part of the processor's seconds."""
    steps = [float(each) for each in (seconds if isinstance(seconds, Sequence) else [seconds] * 8)]
    processor = [2 * share * each for each in steps]
    outcome = Outcome(
        name,
        steps,
        iterations=[1] * 8,
        value_error=[0.1],
        gradient_error=[0.1],
        processor=processor,
        system=[system * each for each in processor],
    )
    return Row(outcome, "", first_call=0.1, peak=1.0)


def sized(n: int, share: float = 1.0, **seconds: float | list[float]) -> Size:
    """The floor has ``share`` of the cores, everybody else all of them."""
    rows = [row(name, seconds.get(name, 1.0), share if name == "floor" else 1.0) for name in NAMES]
    return Size(n, 8, "matern32", "a machine", 2, rows)


def results(monkeypatch: pytest.MonkeyPatch, **runs: object) -> Results:
    """The repository's, but for ``runs``."""
    found = Results(ROOT)
    for name, run in runs.items():
        monkeypatch.setitem(found.__dict__, name, run)
    return found


def test_kernel_seconds_are_not_the_own_work_of_who_keeps_its_memory() -> None:
    size = Size(8000, 8, "matern32", "a machine", 2, [row(name, 1.0, system=0.5) for name in NAMES[1:]])
    assert [name for name in NAMES[1:] if disturbed(size, name)] == ["rangeformer"]


def test_a_floor_that_was_disturbed_took_turns_with_the_others() -> None:
    size = sized(8000, share=0.3)
    assert all(disturbed(size, name) for name in NAMES)
    assert not any(disturbed(sized(8000), name) for name in NAMES)
    assert times(size, "cg", "rangeformer") is None
    assert steady_seconds([sized(4000), size], "cg") == {4000: 1.0}


def test_ratios_that_scatter_are_a_range() -> None:
    steady = sized(4000, cholesky=10.0)
    assert bounds(steady, "cholesky", "rangeformer") == (10.0, 10.0)
    assert times(steady, "cholesky", "rangeformer") == "10"
    scattered = sized(4000, cholesky=[9.0, 9.0, 9.0, 2.0, 10.0, 20.0, 30.0, 99.0])
    assert times(scattered, "cholesky", "rangeformer") == "10 to 30"
    one_slow_step = sized(4000, cholesky=[9.0, 9.0, 9.0, 10.0, 10.0, 10.0, 10.0, 99.0])
    assert times(one_slow_step, "cholesky", "rangeformer") == "10"


def test_sentences_leave_a_disturbed_size_out(monkeypatch: pytest.MonkeyPatch) -> None:
    good = [sized(n, cholesky=1e-9 * n**3, cg=1e-6 * n**2, gpflash=1e-9 * n**3) for n in (2000, 4000, 8000)]
    bad = sized(16000, share=0.3, cholesky=1e6, cg=1e6, gpflash=1e6)
    run = PeerRun(PLAN, [*good, bad])
    found = results(monkeypatch, peers=run)
    assert peers.peers_sentence(found).startswith(
        "At n = 8,000 an early step takes 1.00 s; GPyTorch's Cholesky takes 512 "
    )
    assert "16,000" not in peers.crossing_sentence(found)
    growth = peers.growth_sentence(found)
    assert growth.startswith("Seconds a step grow from n = 2,000 to 8,000 as n^0.0; those of the peers, over the same ")
    assert "n^3.0 (GPyTorch Cholesky), n^2.0 (GPyTorch CG, default), n^3.0 (gpflash (float64))" in growth
    assert set(peers.series_by_name(run)["cg"]) == {2000, 4000, 8000}


def test_the_end_of_a_fit_is_in_the_first_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = {"kin40k": PeerRun(PLAN, [sized(8000, rangeformer=2.0, cholesky=34.0)])}
    said = peers.peers_sentence(results(monkeypatch, peers=PeerRun(PLAN, [sized(8000)]), optima=ends))
    assert "; at the end of a fit, where the noise is small, a step takes 2.00 s, Cholesky 17 times as long." in said
    assert said.endswith(" (conjugate gradients: 10.0 %), at the end by 10.0 % of what is left of it.")


def test_conjugate_gradients_that_failed_there_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    end = sized(8000)
    end.rows[2] = Row(Outcome("cg", left_out="failed at step 1: value or gradient is not finite"), "")
    found = results(monkeypatch, peers=PeerRun(PLAN, [sized(8000)]), optima={"kin40k": PeerRun(PLAN, [end])})
    assert peers.peers_sentence(found).endswith(", at the end by 10.0 % of what is left of it.")


def test_an_empty_cell_has_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    size = sized(4000)
    size.rows = [each for each in size.rows if each.name != "gpflash"]
    size.rows[1] = Row(Outcome("cholesky", left_out="step 1 took 186 s, longer than the patience"), "")
    table = peers.peers_table(results(monkeypatch, peers=PeerRun(PLAN, [sized(2000), size])))
    assert "-, n = 4,000: GPyTorch Cholesky: step 1 took 186 s, longer than the patience" in table
    assert "not asked for: gpflash (float64)" in table


def test_gpflash_has_a_column_at_the_end_of_a_fit_where_it_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    size = sized(2000, gpflash=5.0)
    size.rows.append(row("rangeformer:neighbours=0", 3.0))
    machine = {"machine": lambda name: "a machine"}
    found = results(monkeypatch, optima={"pol": PeerRun(PLAN, [size])}, **machine)
    head, _, body = optimum.optimum_table(found).splitlines()[:3]
    assert body.split("|")[head.split("|").index(" gpflash (float64) ")] == " 5.0x "
    assert "gpflash 5.0," in optimum.optimum_sentence(found)
    size.rows = [each for each in size.rows if each.name != "gpflash"]
    assert "gpflash" not in optimum.optimum_table(found) + optimum.optimum_sentence(found)


def test_an_allocator_that_keeps_memory_is_told_of_where_it_was_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = results(monkeypatch, kept=None)
    assert peers.kept_sentence(found) == ""
    assert "allocator" not in peers.peers_sentence(found)
    kept = PeerRun(PLAN, [sized(8000, cholesky=40.0, cg=6.0)])
    found = results(monkeypatch, peers=PeerRun(PLAN, [sized(8000)]), kept=kept)
    said = peers.kept_sentence(found)
    assert "at n = 8,000 GPyTorch's Cholesky takes 40 times as long, its conjugate gradients 6.0 times" in said
    assert "(the first two with an allocator that keeps memory: 40 and 6.0 times)" in peers.peers_sentence(found)
    folder = tmp_path / "examples" / "guide" / "results"
    folder.mkdir(parents=True)
    assert Results(tmp_path).kept is None
    shutil.copy(ROOT / "examples" / "guide" / "results" / "peers.json", folder / "peers-kept.json")
    assert Results(tmp_path).kept is not None
