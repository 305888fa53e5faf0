"""Write the tables of pretrain/README.md that are made from the files in pretrain/results, or say what differs.

    python -m pretrain.report [--check]

Only parts between ``<!-- generated: NAME -->`` and ``<!-- end -->`` are made; the other tables are as their commands
printed them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide.pages import fill

FOLDER = Path(__file__).parent
GROUPS = {
    "identity (held out)": ("held out", "identity"),
    "diagonal (held out)": ("held out", "diagonal"),
    "Toeplitz (held out)": ("held out", "toeplitz"),
    "training families": ("training family", ""),
    "Matrix Market": ("matrix market", ""),
}
LOOPS = (1, 2, 4, 8, 16)


def evaluation() -> str:
    """Medians per group of matrices with more rows than the range has columns: the network, the untrained one, and what
    needs neither."""
    rows = _beyond_the_range(_read("evaluation"))
    columns = (
        ("lambda_max, relative", "rangeformer", "lambda_max"),
        ("untrained", "untrained", "lambda_max"),
        ("log|A|, nats per point", "rangeformer", "logdet"),
        ("untrained", "untrained", "logdet"),
        ("the range's bound", "rangeformer", "logdet_bound"),
        ("solve, norm of A", "rangeformer", "energy"),
        ("untrained", "untrained", "energy"),
        ("CG, as many iterations", "cg", "energy"),
        ("CG, as many products", "cg_equal_columns", "energy"),
        ("Jacobi-CG, as many products", "jacobi_equal_columns", "energy"),
    )
    lines = [
        [label, *(_short(median(row[who][what] for row in group)) for _, who, what in columns)]
        for label, group in _groups(rows)
    ]
    return _table(["", *(name for name, *_ in columns)], lines)


def seeds() -> str:
    """The shipped weights and those of two later trainings, on the same matrices, codes and right-hand sides."""
    files = ("evaluation", "evaluation_again_seed0", "evaluation_again_seed1")
    shipped, *others = (dict(_groups(_beyond_the_range(_read(name)))) for name in files)
    lines = [
        [
            label,
            *(
                _short(median(row["rangeformer"][what] for row in rows[label]))
                for what in ("logdet", "lambda_max")
                for rows in (shipped, *others)
            ),
        ]
        for label in shipped
    ]
    return _table(
        [
            "",
            *(
                f"{what}, {of}"
                for what in ("log|A|", "lambda_max")
                for of in ("shipped", "again, seed 0", "again, seed 1")
            ),
        ],
        lines,
    )


def over_loops() -> str:
    """Medians over the Matrix Market files after some loops."""
    rows = [row for row in _beyond_the_range(_read("evaluation")) if row["kind"] == "matrix market"]
    lines = []
    for what, label in (
        ("energy", "solve, norm of A"),
        ("logdet", "log|A|, nats per point"),
        ("lambda_max", "lambda_max"),
    ):
        # A range of all n columns ends the loops.
        ends = [[row["over_loops"][min(loop, len(row["over_loops"])) - 1][what] for row in rows] for loop in LOOPS]
        lines.append([label, *(_short(median(values)) for values in ends)])
    return _table(["after so many loops", *map(str, LOOPS)], lines)


def direct() -> str:
    """Gaussian processes trained by the network's own answers."""
    lines = []
    for row in _read("downstream_gp")["problems"]:
        exact, ours = row["summary"]["exact"], row["summary"]["direct"]
        low, high = ours["bias_range"]
        lines.append(
            [
                f"{row['name']}, n = {row['n']}",
                f"{exact['rmse']:.4f}",
                f"{ours['rmse']:.4f}",
                f"{ours['likelihood_lost']:.5f}",
                f"{low:+.4f} to {high:+.4f}",
                f"{ours['residual_largest']:.4f}",
                f"{ours['steps_inside_interval']:.0%}",
                f"{exact['seconds_per_step']:.2f} / {ours['seconds_per_step']:.2f}",
            ]
        )
    return _table(
        [
            "",
            "test RMSE, Cholesky",
            "by the network",
            "likelihood lost, nats per point",
            "its value less the exact one, along the way",
            "largest residual",
            "steps inside the certain interval",
            "s a step, Cholesky / network",
        ],
        lines,
    )


def length_scale() -> str:
    """The paper's setting: one length-scale by values of the likelihood."""
    lines = []
    for row in _read("downstream_gp")["problems"]:
        for number, seed in enumerate(row["seeds"]):
            exact, ours = seed["length_scale"]["exact"], seed["length_scale"]["direct"]
            lines.append(
                [
                    f"{row['name']}, n = {row['n']}, seed {number}",
                    *(f"{found['value']:.4f}" for found in (exact, ours)),
                    *(f"{found['rmse']:.5f}" for found in (exact, ours)),
                ]
            )
    return _table(
        ["", "length-scale, Cholesky", "by the network", "test RMSE, Cholesky", "by the network"],
        lines,
    )


def probes() -> str:
    """The log determinant from probes of one's own, by the rule that reads it off the range."""
    rules = ("plain", "deflated", "answer", "bound")
    lines = [
        [
            f"{row['kind']}, {row['matrices']} of them",
            str(row["probes"]),
            *(f"{row['median'][rule]:.4f} ({row['mean'][rule]:.4f})" for rule in rules),
        ]
        for row in _read("probe_quadrature")["rows"]
    ]
    header = ("", "probes", "plain quadrature", "pairs to 0.1 left out", "what answers", "the range's bound")
    return _table(header, lines)


def svd() -> str:
    """Frobenius error of rank r over the best one: least and largest mean over the matrices, and seconds."""
    content = _read("downstream_svd")
    lines = []
    for method in content["methods"]:
        ends = [row["methods"][method] for row in content["matrices"]]
        ratios = [end["nested"][-1]["frobenius"] for end in ends]
        seconds = [end["seconds"] for end in ends]
        lines.append(
            [
                method,
                str(max(end["columns"] for end in ends)),
                f"{min(ratios):.4f} to {max(ratios):.4f}",
                f"{1000 * median(seconds):.1f}",
            ]
        )
    return _table(["", "columns multiplied", "error over the best of its rank", "ms, median"], lines)


def warm_start() -> str:
    """Iterations of CG to 1e-6 from each start."""
    content = _read("downstream_cg")
    lines = []
    for row in sorted(content["systems"], key=lambda row: row["condition"]):
        methods = row["methods"]
        iterations = [methods[name]["to"][0]["iterations"] for name in ("zero", "rangeformer", "untrained", "jacobi")]
        products = [methods[name]["to"][0]["products"] for name in ("zero", "rangeformer")]
        seconds = [methods[name]["to"][0]["seconds"] for name in ("zero", "rangeformer")]
        lines.append(
            [
                row["name"],
                f"{row['condition']:.0e}",
                *("-" if value is None else f"{value:.0f}" for value in iterations),
                " / ".join("-" if value is None else f"{value:.0f}" for value in products),
                " / ".join("-" if value is None else f"{1000 * value:.2g}" for value in seconds),
            ]
        )
    return _table(
        [
            "",
            "condition",
            "iterations from 0",
            "from RangeFormer",
            "from an untrained one",
            "Jacobi, from 0",
            "products, from 0 / from RangeFormer",
            "ms, from 0 / from RangeFormer",
        ],
        lines,
    )


BLOCKS: dict[str, Callable[[], str]] = {
    "evaluation": evaluation,
    "seeds": seeds,
    "over-loops": over_loops,
    "direct": direct,
    "length-scale": length_scale,
    "probes": probes,
    "svd": svd,
    "warm-start": warm_start,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where ``--check`` finds a table that differs from its file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something differs")
    options = parser.parse_args(arguments)
    page = FOLDER / "README.md"
    before = page.read_text("utf-8")
    after = fill(before, BLOCKS)
    if before == after:
        return 0
    if options.check:
        print(f"{page} differs from the result files", file=sys.stderr)
        return 1
    write_bytes(page, after.encode())
    return 0


def _beyond_the_range(content: dict[str, Any]) -> list[dict[str, Any]]:
    model = content["model"]
    columns = model["sketch"] + model["loops"] * model["width"]
    return [row for row in content["rows"] if row["n"] > columns]


def _groups(rows: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """Rows by what they are of, with sizes and number in the label; groups without rows left out."""
    found = []
    for label, (kind, prefix) in GROUPS.items():
        group = [row for row in rows if row["kind"] == kind and row["name"].startswith(prefix)]
        sizes = [row["n"] for row in group]
        if group:
            span = f"{min(sizes)} to {max(sizes)}" if min(sizes) < max(sizes) else str(min(sizes))
            found.append((f"{label}, n = {span}, {len(group)} of them", group))
    return found


def _read(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / "results" / f"{name}.json").read_text("utf-8"))


def _short(value: float) -> str:
    if value == 0:
        return "0"
    return f"{value:.0e}" if abs(value) < 1e-3 else f"{value:.2g}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return Grid("", tuple(header), tuple(map(tuple, rows))).to_markdown(titled=False)


if __name__ == "__main__":
    sys.exit(main())
