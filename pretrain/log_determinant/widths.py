"""Three widths of the stated 90 % interval on the same systems: the head's own, the shipped one, a conformal one.

    python -m pretrain.log_determinant.widths CACHE \\
        --evidence UCI.npz pretrain/results/log_determinant.json \\
        --evidence LARGE.npz pretrain/results/log_determinant_large.json [--run RUN [--systems TRAINED]]

The shipped factors cover kernels unlike those of training. The alternative is split conformal calibration, all else
equal, the floor too: factors from one half of the held-out kernel matrices, reported on the other half, which is drawn
like it, and on kernels that are not. UCI.npz is what ``evaluate`` kept with --evidence in the run of that result file.
With --run the groups of kernels left out of training are reported as well, by the heads that ``train`` left in RUN;
those that are not there are trained. Its systems are those of CACHE unless --systems names their folder. Seconds on one
core; half a minute with --run.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.logdet.learned import load_head
from gp_rangeformer.logdet.network import LogDetTail
from pretrain.log_determinant.calibration import calibrate
from pretrain.log_determinant.evaluate import SETS, SIMULATED
from pretrain.log_determinant.evidence import read_evidence
from pretrain.log_determinant.pack import load
from pretrain.log_determinant.train import (
    VALIDATION_SHARE,
    Systems,
    TrainConfig,
    heads_from_outside,
    quantiles,
    select,
    split,
)

RESULT = Path(__file__).resolve().parents[1] / "results" / "log_determinant_widths.json"
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", metavar="CACHE", type=_FOLDER)
@click.option(
    "--evidence",
    "kept",
    nargs=2,
    multiple=True,
    metavar="EVIDENCE RESULT",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="kept evidence and its result file; as often as there are such",
)
@click.option("--run", type=_FOLDER, help="the training's")
@click.option("--systems", type=_FOLDER, help="trained on, if not CACHE")
@click.option("--out", default=RESULT, type=click.Path(dir_okay=False, path_type=Path))
def main(folder: Path, kept: tuple[tuple[Path, Path], ...], run: Path | None, systems: Path | None, out: Path) -> None:
    """Measure on the held-out systems of CACHE and on kept evidence, and write OUT."""
    head = load_head()
    calibrating, reporting = halves(split(load(folder))[1])
    widths = three(head, calibrating)
    rows = [measured("held out, reporting half", head, reporting, widths)]
    for evidence, result in kept:
        rows += [measured(title, head, data, widths) for title, data in of_result(evidence, result)]
    if run is not None:
        rows += left_out(split(load(systems or folder))[0], TrainConfig(), run, widths)
    for row in rows:
        print(row)
    described = {
        "calibrated_on": {"systems": len(calibrating["tail"]), "kernels": len(calibrating["kernel"].unique())},
        "widths": {name: {"factors": width.factors.tolist(), "floor": width.floor} for name, width in widths.items()},
        "rows": [dataclasses.asdict(row) for row in rows],
    }
    write_bytes(out, json.dumps(described, indent=1).encode())


def halves(held: Systems) -> tuple[Systems, Systems]:
    """(to calibrate on, to report on): no kernel matrix contributes to both."""
    first = held["kernel"] // VALIDATION_SHARE % 2 == 0
    return select(held, first), select(held, ~first)


@dataclass(frozen=True)
class Width:
    """What widens a head's own interval: a factor per bin of n and of z, and nats per point at either end."""

    factors: Float[Tensor, "r c"]
    floor: float

    def give(self, head: LogDetTail) -> None:
        head.widening.copy_(self.factors)
        head.floor.fill_(self.floor)


@torch.no_grad()
def three(head: LogDetTail, calibrating: Systems) -> dict[str, Width]:
    """The widths to compare, for a ``head`` that has the shipped one; afterwards it has another."""
    shipped = Width(head.widening.clone(), float(head.floor))
    own = Width(torch.ones_like(head.widening), 0.0)
    own.give(head)
    calibrate(head, quantiles(head, calibrating), calibrating)
    return {"own": own, "shipped": shipped, "conformal": Width(head.widening.clone(), shipped.floor)}


@dataclass(frozen=True)
class Row:
    """Of one set and per width: share of the systems inside the interval, its median half width in nats per point."""

    title: str
    systems: int
    coverage: dict[str, float]
    half_width: dict[str, float]

    def __str__(self) -> str:
        cells = (f"{name} {self.coverage[name]:.4f}, {self.half_width[name]:.2g}" for name in self.coverage)
        return f"{self.title}, {self.systems} systems: " + "; ".join(cells)


@torch.no_grad()
def measured(title: str, head: LogDetTail, data: Systems, widths: dict[str, Width]) -> Row:
    """What ``head`` states with every width; it keeps the last."""
    coverage, half_width = {}, {}
    # Rounding may put z itself outside the certain interval, where no stated interval can follow.
    exact = data["tail"].clamp_min(0).minimum(data["upper"])
    for name, width in widths.items():
        width.give(head)
        lower, _, upper = quantiles(head, data).unbind(-1)
        coverage[name] = float(((lower <= exact) & (exact <= upper)).double().mean())
        half_width[name] = float((0.5 * (upper - lower)).quantile(0.5))
    return Row(title, len(exact), coverage, half_width)


def of_result(evidence: Path, result: Path) -> Iterator[tuple[str, Systems]]:
    """(title, systems) of the UCI kernels and of the simulated ones in a result file."""
    records = json.loads(result.read_text())["records"]
    data = {name: value.float() for name, value in read_evidence(evidence, records).items()}
    data["tail"] = torch.tensor([record["z"] for record in records])
    for kind, names in (("UCI", SETS), ("simulated", SIMULATED)):
        own = torch.tensor([record["data"] in names for record in records])
        if own.any():
            yield f"{kind}, {result.name}", select(data, own)


def left_out(data: Systems, config: TrainConfig, run: Path, widths: dict[str, Width]) -> list[Row]:
    """A row per group of kernels, answered by a head that was trained on the others, and one of their means."""
    rows = [
        measured(f"left out of training, group {number}", head, select(data, own), widths)
        for number, (head, own) in enumerate(heads_from_outside(data, config, run))
    ]
    coverage = {name: sum(row.coverage[name] for row in rows) / len(rows) for name in widths}
    half_width = {name: sum(row.half_width[name] for row in rows) / len(rows) for name in widths}
    return [*rows, Row("left out of training, mean of the groups", len(data["tail"]), coverage, half_width)]


if __name__ == "__main__":
    main()
