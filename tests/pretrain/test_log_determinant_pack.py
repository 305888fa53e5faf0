"""Packs of shards: nothing is lost in them, and no system is read twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from pretrain.log_determinant import pack
from pretrain.log_determinant.pack import load


def shard(folder: Path, number: int, systems: int = 12) -> dict[str, np.ndarray]:
    """A shard with every type of array that the cache writes."""
    generator = np.random.default_rng(number)
    content = {
        "scalars": generator.standard_normal((systems, 5)).astype(np.float32),
        "tokens": generator.standard_normal((systems, 4, 3)).astype(np.float16),
        "tail": generator.random(systems).astype(np.float32),
        "kernel": np.repeat(np.arange(systems // 4, dtype=np.int64), 4) + 100 * number,
    }
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / f"shard-{number:06d}.npz", allow_pickle=False, **content)
    return content


def run(folder: Path, out: Path, *options: str) -> str:
    result = CliRunner().invoke(pack.main, [str(folder), "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_pack_gives_back_every_bit_of_its_shards(tmp_path: Path) -> None:
    for number in range(3):
        shard(tmp_path / "shards", number)
    run(tmp_path / "shards", tmp_path / "packs")
    assert [path.name for path in (tmp_path / "packs").iterdir()] == ["pack-00.npz"]
    expected, found = load(tmp_path / "shards"), load(tmp_path / "packs")
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def test_shards_and_packs_of_other_systems_are_read_together(tmp_path: Path) -> None:
    first = shard(tmp_path / "shards", 1)
    run(tmp_path / "shards", tmp_path / "both")
    second = shard(tmp_path / "both", 2)
    tails = torch.from_numpy(np.concatenate([first["tail"], second["tail"]]))
    assert torch.equal(load(tmp_path / "both")["tail"], tails)


def test_a_pack_beside_the_shards_it_was_made_of_is_refused(tmp_path: Path) -> None:
    shard(tmp_path / "shards", 1)
    run(tmp_path / "shards", tmp_path / "shards")
    with pytest.raises(ValueError, match=r"shard-000001.npz and pack-00.npz hold the same kernel matrix"):
        load(tmp_path / "shards")


def test_what_does_not_fit_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        shard(tmp_path / "shards", number, systems=400)
    output = run(tmp_path / "shards", tmp_path / "packs", "--megabytes", "0.25", "--files", "1", "--name", "small")
    kept = len(load(tmp_path / "packs")["tail"]) // 400
    assert 0 < kept < 4
    assert f"{4 - kept} shards left out" in output
    assert (tmp_path / "packs" / "small-00.npz").stat().st_size <= 250_000


def test_a_pack_above_its_size_keeps_fewer_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"shard-{number:06d}.npz" for number in range(4)]
    for number in range(4):
        shard(tmp_path, number, systems=400)
    whole = pack._pack(tmp_path / "whole.npz", paths, 10**9)
    assert whole[1] == 0
    limit = int(0.6 * (tmp_path / "whole.npz").stat().st_size)
    text, left = pack._pack(tmp_path / "part.npz", paths, limit)
    assert left == 2
    assert "2 shards, 800 systems" in text
    assert (tmp_path / "part.npz").stat().st_size <= limit


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no shards in"):
        load(tmp_path)
