"""RangeFormer downstream, part by part, with everything the network spends on the bill.

    python -m pretrain.experiments.downstream --checkpoint base --matrices DIR --out results/downstream

    cg   conjugate gradients from x0 = RangeFormer(A) b                (:mod:`warm_start`)
    svd  RangeFormer's range in a randomised SVD                        (:mod:`range_finder`)
    gp   hyperparameters from RangeFormer's own log|K| and solves       (:mod:`gp_learning`)

Each part writes OUT/PART.json, atomically, and OUT/PART.png. A part whose JSON has the same arguments, weights
included, is not run again. Seconds are those of the threads that torch is given; set OMP_NUM_THREADS before.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from gp_rangeformer.checkpoint import CheckpointError, load_checkpoint
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.rangeformer.pretrained import load_pretrained, pretrained_names
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from pretrain.experiments.downstream import gp_learning, range_finder, warm_start

# Each has a dataclass ``Plan`` with ``quick``, ``run(plan, model, folder) -> dict`` and ``draw(dict) -> Figure``.
PARTS: dict[str, ModuleType] = {"cg": warm_start, "svd": range_finder, "gp": gp_learning}


def load_model(checkpoint: str) -> RangeFormer:
    """A shipped model by name, or a checkpoint by path; float64, in eval mode, without gradients.

    :raises SystemExit: there is no such checkpoint, it is damaged or of another model.
    """
    try:
        shipped = checkpoint in pretrained_names()
        model = load_pretrained(checkpoint) if shipped else load_checkpoint(Path(checkpoint), RangeFormer)[0]
    except CheckpointError as error:
        raise SystemExit(str(error)) from error
    return model.double().eval().requires_grad_(False)


def digest(model: RangeFormer) -> str:
    """Of the weights, so that results of a model that was trained further are not taken for its own."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.contiguous().numpy().tobytes())
    return total.hexdigest()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts that are not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = ", ".join(pretrained_names()) or "the shipped models, of which there are none"
    parser.add_argument("--checkpoint", required=True, help=f"a file, or one of {known}")
    parser.add_argument("--matrices", type=Path, help="folder of Matrix Market files; a --quick run does without")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--parts", default=",".join(PARTS), help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one seed: checks that it runs")
    options = parser.parse_args(arguments)
    parts = options.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {', '.join(sorted(unknown))}; parts: {', '.join(PARTS)}")
    if options.matrices is None and not options.quick and set(parts) & {"cg", "svd"}:
        parser.error("cg and svd read Matrix Market files: pass --matrices, or --quick for generated matrices alone")
    model = load_model(options.checkpoint)
    for name in parts:
        part = PARTS[name]
        plan = part.Plan.quick(options.matrices) if options.quick else part.Plan()
        asked = {"checkpoint": Path(options.checkpoint).name, "weights": digest(model), "plan": asdict(plan)}
        path = options.out / f"{name}.json"
        if _has(path, asked):
            print(f"{name}: {path} is there", flush=True)
            continue
        content = {
            "part": name,
            "arguments": asked,
            "machine": machine.describe(),
            "torch": torch.__version__,
            "model": asdict(model.config),
            **part.run(plan, model, options.matrices),
        }
        # The figure first: a part is done when its JSON is there.
        options.out.mkdir(parents=True, exist_ok=True)
        part.draw(content).savefig(path.with_suffix(".png"), dpi=150)
        write_json(path, content)
        print(f"{name}: {path}", flush=True)


def _has(path: Path, asked: dict[str, Any]) -> bool:
    if not path.is_file():
        return False
    return json.loads(path.read_text()).get("arguments") == json.loads(json.dumps(asked))
