"""What a fit says of the seconds that are left follows from its evaluations."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from gp_rangeformer.fit import Record
from gp_rangeformer.lab import cli
from gp_rangeformer.lab.commands import console
from gp_rangeformer.lab.commands.options import DEFAULT_KERNEL
from gp_rangeformer.lab.compare.remaining import Remaining, about
from gp_rangeformer.lab.models import default_kernel
from gp_rangeformer.regression.kernels import TREND_SEASONAL

N = 5000


def records(*evaluations: tuple[int, float]) -> list[Record]:
    """Of so many points, each done at that second."""
    return [Record(points, seconds, 0.0, 0.0, True) for points, seconds in evaluations]


def told(left: Remaining, name: str, *evaluations: tuple[int, float]) -> str:
    """What is said at the last of them."""
    for record in records(*evaluations):
        said = left(name, record)
    return said


def test_one_fit_has_twelve_evaluations_or_six_more():
    left = Remaining(["rbf"], N)
    # The first tells nothing, and subsets do not.
    assert told(left, "rbf", (N, 2.0)) == ""
    assert told(left, "rbf", (1000, 2.5)) == ""
    assert told(left, "rbf", (N, 7.5)) == "about 50 s left"  # 10 x 5
    assert told(left, "rbf", (N, 10.5)) == "about 40 s left"  # 9 x 4
    assert told(left, "rbf", *((N, 10.5 + 9 * more) for more in range(1, 10))) == "about 50 s left"  # 6 x 9


def test_kernels_that_are_still_to_come_count_like_those_that_were_fitted():
    left = Remaining(["a", "b", "c"], 100)
    assert told(left, "a", (100, 1.0), (100, 2.0)) == "about 30 s left"  # 10, and two of 12
    told(left, "a", (100, 4.0))
    assert told(left, "b", (100, 0.1), (100, 0.6)) == "about 9 s left"  # 10 x 0.5, and one of 4
    assert told(left, "c", (100, 0.1), (100, 0.3)) == "about 2 s left"  # 10 x 0.2


def test_a_fit_of_all_rows_is_to_come_and_cannot_be_known_before():
    left = Remaining(["a", "b"], N)
    assert told(left, "a", (1000, 1.0), (1000, 2.0)) == "about 20 s left, then all 5000 rows"
    assert told(left, "b", (1000, 1.0), (1000, 1.2)) == "about 2 s left, then all 5000 rows"
    # The best is the last one, once more: on all rows, with subsets as large as those of the comparison.
    assert told(left, "b", (N, 8.0), (1000, 9.0)) == ""
    assert told(left, "b", (N, 17.0)) == "about 80 s left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.01, "1 s"), (7.6, "8 s"), (44, "40 s"), (97, "100 s"), (130, "2 min"), (5400, "90 min"), (9000, "2 h")],
)
def test_seconds_are_said_to_a_digit(seconds, said):
    assert about(seconds) == f"about {said}"


@pytest.mark.parametrize("options", [("--kernel", "rbf"), ("--kernel", "rbf,matern32"), ("--steps", "3")])
def test_the_line_of_progress_says_what_is_left(options, tmp_path, monkeypatch):
    monkeypatch.setattr(console, "_SECONDS_BETWEEN_LINES", 0.0)
    rows = [f"{i % 17},{(i % 17) ** 0.5 + 0.1 * (i % 5)}" for i in range(60)]
    (tmp_path / "t.csv").write_text("\n".join(["a,y", *rows]))
    result = CliRunner().invoke(cli.app, ["fit", str(tmp_path / "t.csv"), "--target", "y", *options])
    assert result.exit_code == 0, result.output
    assert re.search(r"^\S+ \d+/\d+: .* nats/point.*, about \d+ (s|min) left$", result.output, re.MULTILINE)


def test_help_names_the_kernel_that_is_the_default():
    assert f"{TREND_SEASONAL} for co2, else {default_kernel(None)}" == DEFAULT_KERNEL
