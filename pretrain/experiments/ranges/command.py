"""Do learned ranges pay inside the certified solver? RangeFormer's 16 columns beside landmarks, on UCI systems.

    OMP_NUM_THREADS=1 python -m pretrain.experiments.ranges --out pretrain/results/ranges.json

Every range makes a preconditioner P = Q + D; block CG then solves for y and 32 probes, from zero to a residual of 0.01,
certified as in training (float32). Systems: Matern-3/2 ARD, hyperparameters along 60 Adam steps at rate 0.1 and
n = 2000. Ranges at equal rank r:

* "uniform", "landmarks": r columns of K, drawn uniformly or by RPCholesky; "landmarks, 2 r" and "4 r" have more.
* "compressed": of 4 r landmarks the r leading directions, refined by one pass over K.
* "exact": the r leading eigenvectors, the limit of every range of that rank. Nobody is charged for finding them.
* "A: ..." and "rest: ...": r - 16 landmarks and 16 columns found by products, either with A = K + D or with what the
  landmarks leave, K - Q + D: by the network (T loops; 64 + 16 T columns multiplied), by the untrained network, by
  subspace iteration with the same products, or by block Krylov with as many columns. "limit": converged ones.
* "landmarks for the seconds of ...": as many as are chosen and factored in the seconds of another range.

Seconds are those of the processor, one thread, the least of some repeats: a busy machine does not change them much.
"Build" is all that precedes block CG, the choice of landmarks included.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.audit import Parameters
from pretrain.experiments.ranges.bench import QUICK, Bench, Plan
from pretrain.log_determinant.evaluate import system_at, trajectory


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write OUT after every data set, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the JSON file")
    parser.add_argument("--quick", action="store_true", help="tiny, without UCI: checks that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    plan = QUICK if options.quick else Plan()
    content: dict[str, Any] = {"about": __doc__, "machine": machine.describe(), "plan": asdict(plan), "records": []}
    trained: dict[str, list[tuple[int, Parameters]]] = {}
    for name, n in plan.systems:
        if name not in trained:
            trained[name] = trajectory(name, min(n, plan.trained_size), plan.stages, plan.seed)
        for step, state in trained[name]:
            system, target, _ = system_at(name, n, state, plan.seed)
            records = Bench(system, target, plan).run()
            content["records"] += [{"data": name, "n": n, "step": step, **record} for record in records]
        print(f"{name}, n = {n}: {time.process_time():.0f} s of the processor so far", flush=True)
        write_bytes(options.out, json.dumps(content, indent=1).encode())
    print(tabulate(content["records"]))


def tabulate(records: Sequence[dict[str, Any]]) -> str:
    """Markdown, sums over the systems of every n and rank, build + solve; means of the directions kept.

    "fewer / more": in how many systems the range took fewer or more iterations than the r landmarks.
    """
    lines = []
    for n, rank in sorted({(record["n"], record["rank"]) for record in records}):
        here = [record for record in records if (record["n"], record["rank"]) == (n, rank)]
        base = [record["iterations"] for record in here if record["method"] == "landmarks"]
        lines += [f"n = {n}, r = {rank}, {len(base)} systems", ""]
        lines.append("| range | kept | iterations | fewer / more | passes | columns / 1000 | seconds | in all |")
        lines.append("| --- |" + " ---: |" * 7)
        for method in dict.fromkeys(record["method"] for record in here):
            rows = [record for record in here if record["method"] == method]
            if any("failure" in row for row in rows):
                lines.append(f"| {method} | failed on {sum('failure' in row for row in rows)} |")
                continue
            total = {key: sum(row[key] for row in rows) for key in rows[0] if isinstance(rows[0][key], int | float)}
            change = [row["iterations"] - before for row, before in zip(rows, base, strict=True)]
            build, solve = total["build_seconds"], total["solve_seconds"]
            lines.append(
                f"| {method} | {total['kept'] / len(rows):.0f} | {total['iterations']} "
                f"| {sum(c < 0 for c in change)} / {sum(c > 0 for c in change)} "
                f"| {total['build_passes']} + {total['passes']} "
                f"| {total['build_columns'] / 1000:.1f} + {total['columns'] / 1000:.1f} "
                f"| {build:.2f} + {solve:.2f} | {build + solve:.2f} |"
            )
        lines.append("")
    return "\n".join(lines)
