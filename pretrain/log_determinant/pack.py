"""Shards packed into few compact files, and the reader of both.

    python -m pretrain.log_determinant.pack FOLDER --out PACKED [--megabytes 15] [--files 8]

A pack holds the byte planes of every column of its arrays, LZMA compressed: a quarter smaller than the shards it is
made of. It is an .npz file and takes their place in a folder.
"""

from __future__ import annotations

import io
import json
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from gp_rangeformer.atomic import write_bytes

_LAYOUT = "layout"  # of a pack: its arrays' types and shapes, as JSON
_BYTES_PER_SYSTEM = 620  # measured: 580


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--megabytes", default=15.0, help="of a pack, at most")
@click.option("--files", default=8, help="packs at most; shards beyond them are left out, and counted")
@click.option("--name", default="pack", help="packs are called NAME-00.npz, NAME-01.npz, ...")
def main(folder: Path, out: Path, megabytes: float, files: int, name: str) -> None:
    """Pack the shards of FOLDER into OUT. One process per pack."""
    groups: list[list[Path]] = [[]]
    room = per_pack = int(megabytes * 1e6 / _BYTES_PER_SYSTEM)
    for shard in sorted(folder.glob("shard-*.npz")):
        with np.load(shard) as stored:
            count = len(stored["tail"])
        if count > room and groups[-1]:
            groups.append([])
            room = per_pack
        groups[-1].append(shard)
        room -= count
    chosen = [group for group in groups if group][:files]
    with ProcessPoolExecutor(max(1, len(chosen)), mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(_pack, out / f"{name}-{index:02d}.npz", group, int(megabytes * 1e6))
            for index, group in enumerate(chosen)
        ]
        left = sum(len(group) for group in groups[files:])
        for job in jobs:
            text, beyond = job.result()
            left += beyond
            print(text, flush=True)
    if left:
        print(f"{left} shards left out: allow more files", flush=True)


def _pack(path: Path, shards: list[Path], limit: int) -> tuple[str, int]:
    """Write one pack; where it comes out larger than ``limit`` bytes, without its last shards; (what, how many)."""
    count = len(shards)
    while True:
        contents = [_read(shard) for shard in shards[:count]]
        joined = {name: np.concatenate([part[name] for part in contents]) for name in contents[0]}
        size = write_pack(path, joined)
        if size <= limit or count == 1:
            text = f"{path.name}: {count} shards, {len(joined['tail'])} systems, {size / 1e6:.1f} MB"
            return text, len(shards) - count
        count = max(1, int(count * 0.97 * limit / size))


def write_pack(path: Path, content: dict[str, np.ndarray]) -> int:
    """Write ``path`` atomically; its size in bytes."""
    layout = {name: (array.dtype.str, array.shape) for name, array in content.items()}
    described = np.frombuffer(json.dumps(layout).encode(), dtype=np.uint8)
    planes = {_LAYOUT: described, **{name: _to_planes(array) for name, array in content.items()}}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_LZMA) as archive:
        for name, array in planes.items():
            entry = io.BytesIO()
            np.save(entry, array, allow_pickle=False)
            archive.writestr(f"{name}.npy", entry.getvalue())
    write_bytes(path, buffer.getvalue())
    return buffer.tell()


def _to_planes(array: np.ndarray) -> np.ndarray:
    """Byte k of every entry of column j, for all k, then j: neighbours in it resemble each other."""
    columns = np.ascontiguousarray(array.reshape(len(array), -1).T)
    return np.ascontiguousarray(columns.view(np.uint8).reshape(*columns.shape, array.itemsize).transpose(2, 0, 1))


def load(folder: Path) -> dict[str, Tensor]:
    """Every shard and pack of a folder, concatenated in the order of their names.

    :raises FileNotFoundError: no shard and no pack there.
    :raises ValueError: two files hold systems of the same kernel matrix, e.g. a pack and the shards it was made of.
    """
    files = sorted(folder.glob("*.npz"))
    if not files:
        raise FileNotFoundError(f"no shards in {folder}: make some with python -m pretrain.log_determinant.cache")
    contents = [_read(file) for file in files]
    seen: dict[int, Path] = {}
    for file, content in zip(files, contents, strict=True):
        for kernel in np.unique(content["kernel"]).tolist():
            if seen.setdefault(kernel, file) != file:
                raise ValueError(f"{file.name} and {seen[kernel].name} hold the same kernel matrix: keep one of them")
    return {name: torch.from_numpy(np.concatenate([part[name] for part in contents])) for name in contents[0]}


def _read(file: Path) -> dict[str, np.ndarray]:
    with np.load(file) as stored:
        if _LAYOUT not in stored.files:
            return {name: stored[name] for name in stored.files}
        layout: dict[str, tuple[str, list[int]]] = json.loads(stored[_LAYOUT].tobytes())
        return {name: _from_planes(stored[name], dtype, shape) for name, (dtype, shape) in layout.items()}


def _from_planes(planes: np.ndarray, dtype: str, shape: list[int]) -> np.ndarray:
    entries = np.ascontiguousarray(planes.transpose(2, 1, 0))
    return entries.view(np.dtype(dtype)).reshape(shape)


if __name__ == "__main__":
    main()
