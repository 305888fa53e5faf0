"""What the network read on the systems of a result file, kept beside it as .npz: one row per record."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.logdet.evidence import TailEvidence

Record = dict[str, float | int | str]


def write_evidence(path: Path, evidence: Sequence[TailEvidence]) -> None:
    """Write ``path`` atomically: scalars and tokens as float32, both estimates of z as float64."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        scalars=np.stack([one.scalars.float().numpy() for one in evidence]),
        tokens=np.stack([one.tokens.float().numpy() for one in evidence]),
        estimate=np.array([one.estimate for one in evidence]),
        upper=np.array([one.upper for one in evidence]),
    )
    write_bytes(path, buffer.getvalue())


def read_evidence(path: Path, records: Sequence[Record]) -> dict[str, Tensor]:
    """``scalars`` (s x f), ``tokens`` (s x g x c), ``estimate`` and ``upper`` (s) of the systems of ``records``.

    :raises ValueError: the evidence is not that of the records.
    """
    with np.load(path) as stored:
        arrays = {name: torch.from_numpy(stored[name]) for name in stored.files}
    if len(arrays["scalars"]) != len(records):
        raise ValueError(f"{path} holds {len(arrays['scalars'])} systems, the result file {len(records)} records")
    known = np.array([float(record["quadrature"]) for record in records])
    other = np.flatnonzero(~np.isclose(arrays["estimate"].numpy(), known, rtol=1e-6, atol=0))
    if len(other):
        raise ValueError(f"row {other[0]} of {path} belongs to another system than that record")
    return arrays
