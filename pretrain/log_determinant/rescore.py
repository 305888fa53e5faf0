"""The answers of the shipped network in a result file, from kept evidence: nothing is solved or factorised again.

    python -m pretrain.log_determinant.rescore EVIDENCE [--out pretrain/results/log_determinant.json] [--cache CACHE]

EVIDENCE is what :mod:`pretrain.log_determinant.evaluate` wrote with --evidence in the run that made OUT. With --cache
the MLP that competes with the network is trained, and answers too.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from gp_rangeformer.logdet import learned
from gp_rangeformer.logdet.evidence import TailEvidence
from pretrain.log_determinant.baselines import BlockMLP
from pretrain.log_determinant.evaluate import RESULT, answer, mlp_answer, trained_mlp, write_result
from pretrain.log_determinant.evidence import Record, read_evidence

_TABLES = ("uci", "uci_by_size", "simulated", "records")


@click.command()
@click.argument("evidence", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--out", default=RESULT, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--cache", "folder", type=click.Path(exists=True, path_type=Path), help="to train the block MLP on")
@click.option("--mlp-steps", default=10_000)
def main(evidence: Path, out: Path, folder: Path | None, mlp_steps: int) -> None:
    """Replace the network's answers in OUT."""
    stored = json.loads(out.read_text())
    described = {name: value for name, value in stored.items() if name not in _TABLES}
    mlp = None if folder is None else trained_mlp(folder, out, steps=mlp_steps, seed=stored["seed"])
    write_result(out, described, rescored(stored["records"], evidence, mlp))


def rescored(records: list[Record], evidence: Path, mlp: BlockMLP | None = None) -> list[Record]:
    """The records with the network's value, interval and refusal replaced, and the MLP's value if there is one.

    :raises ValueError: the evidence is not that of the records.
    """
    kept = read_evidence(evidence, records)
    found = []
    for index, record in enumerate(records):
        read = TailEvidence(
            scalars=kept["scalars"][index],
            upper=float(kept["upper"][index]),
            estimate=float(kept["estimate"][index]),
            definite=True,
            tokens=kept["tokens"][index],
        )
        further: Record = {} if mlp is None else {"block_mlp": mlp_answer(mlp, read)}
        found.append({**record, **answer(learned.read(read)), **further})
    return found


if __name__ == "__main__":
    main()
