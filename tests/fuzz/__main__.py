"""Run trajectories, or one of them again."""

from __future__ import annotations

import argparse
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__":  # before torch is imported; not where the tests import this, whose processes inherit it
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from rich import print_json

import gp_rangeformer
from tests.fuzz.tally import Record, claims_about_nothing, is_miss, show, write_json
from tests.fuzz.trajectory import run_trajectory

_EVERY = 200


def records_until(steps: int, seed: int, largest: int = 1600) -> Iterator[Record]:
    """Of trajectories 0, 1, ... until there are ``steps`` of them."""
    done, index = 0, 0
    while done < steps:
        for record in run_trajectory(seed, index, largest):
            yield record
            done += 1
        index += 1


def _content(records: list[Record], seed: int, largest: int, started: float) -> dict[str, object]:
    return {
        "package": str(Path(gp_rangeformer.__file__).parent),
        "torch": torch.__version__,
        "seed": seed,
        "largest": largest,
        "seconds": round(time.perf_counter() - started, 1),
        "misses": [
            {"recipe": f"--seed {seed} --only {r['trajectory']}", **r}
            for r in records
            if is_miss(r) or claims_about_nothing(r)
        ],
        "records": records,
    }


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--steps", type=int, default=1000, help="stop after so many (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--largest", type=int, default=1600, metavar="N", help="number of points, at most")
    parser.add_argument("--json", type=Path, help=f"written every {_EVERY} steps")
    parser.add_argument("--only", type=int, metavar="INDEX", help="this trajectory alone, every record printed")
    parser.add_argument("--show", type=Path, metavar="FILE", help="the tables of a file written before, no run")
    options = parser.parse_args()
    if options.show is not None:
        show(json.loads(options.show.read_text())["records"])
        return
    torch.set_num_threads(1)
    if options.only is not None:
        logging.basicConfig(format="%(message)s")
        logging.getLogger("gp_rangeformer").setLevel(logging.DEBUG)  # a line for every call
        for record in run_trajectory(options.seed, options.only, options.largest):
            print_json(data=record)
        return
    started, records = time.perf_counter(), []
    for record in records_until(options.steps, options.seed, options.largest):
        records.append(record)
        if len(records) % _EVERY == 0 and options.json is not None:
            write_json(options.json, _content(records, options.seed, options.largest, started))
    if options.json is not None:
        write_json(options.json, _content(records, options.seed, options.largest, started))
    show(records)


if __name__ == "__main__":
    main()
