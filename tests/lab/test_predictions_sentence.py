"""The README's sentence about predictions: who is named, and what is told of both calls."""

from __future__ import annotations

from types import SimpleNamespace

from gp_rangeformer.lab.bench.prediction_calls import Calls, Row
from gp_rangeformer.lab.bench.prediction_contenders import CERTIFIED, CHOLESKY, FAST, FLAG, GPFLASH, LOVE, WHOLE
from gp_rangeformer.lab.bench.prediction_exact import Errors
from gp_rangeformer.lab.bench.prediction_tables import predictions_grid
from gp_rangeformer.lab.bench.predictions import Cell, Plan
from gp_rangeformer.lab.guide.predictions import predictions_sentence

PLAN = Plan(t=60, few=20, wide=64, paths=4, dtype="float32", seed=0, threads=1)
OLD = {FLAG.name: (2.0, 1.0, 0.01), CHOLESKY: (4.0, 6.0, 0.001), LOVE: (1.0, 0.1, 5.0)}
NEW = {
    **OLD,
    CERTIFIED: (3.0, 4.0, 0.0001),
    CHOLESKY: (9.0, 9.0, 0.001),
    WHOLE: (8.0, 8.0, 0.001),
    FAST: (4.0, 2.0, 0.002),
    GPFLASH: (2.0, 0.5, 0.003),
}


def row(name: str, first: float, second: float, off: float, warned: tuple[str, ...] = ()) -> Row:
    errors = Errors(0.0, off, off)
    calls = tuple(Calls(t, first, second, (1, 1), errors=errors, warned=warned) for t in PLAN.sizes)
    return Row(name, "", calls)


def sentence(rows: list[Row], block: int | None) -> str:
    plan = Plan(**{**vars(PLAN), "block": block})
    run = SimpleNamespace(plan=plan, cells=[Cell("kin40k", 8000, 8, "", 0.1, tuple(rows))])
    return predictions_sentence(SimpleNamespace(predictions=run))  # type: ignore[arg-type]


def test_the_fastest_of_gpytorch_is_named_with_both_calls() -> None:
    assert sentence([row(name, *found) for name, found in NEW.items()], 1000) == (
        "At n = 8,000 means and variances of 60 points take 2.00 s the first time, 1.00 for as many others (variances "
        "off by 1 %); certified variances 1.5, then 4.0 times as long (off by 0.01 %); GPyTorch's Cholesky in blocks "
        "of 1,000 with fast_pred_var 2.0 times as long (off by 0.2 %); gpflash (float64) 1.0, then 0.5 times as long "
        "(off by 0.3 %)."
    )


def test_a_file_without_the_others_gives_a_sentence_without_them() -> None:
    text = sentence([row(name, *found) for name, found in OLD.items()], None)
    assert text.endswith("; GPyTorch's Cholesky 2.0, then 6.0 times as long (off by 0.1 %).")
    assert "blocks" not in text
    assert "gpflash" not in text


def test_both_are_named_where_each_wins_once() -> None:
    text = sentence([row(name, *found) for name, found in {**NEW, WHOLE: (3.0, 8.0, 0.001)}.items()], 1000)
    assert "of all points at once 1.5, then 8.0 times as long" in text
    assert "with fast_pred_var 2.0 times as long" in text


def test_conjugate_gradients_that_did_not_converge_are_told_so() -> None:
    warned = ("NumericalWarning: CG terminated in 1000 iterations with average residual norm 0.2",)
    rows = [row(FLAG.name, *NEW[FLAG.name]), row(LOVE, *NEW[LOVE], warned), row(FAST, *NEW[FAST], warned)]
    table = predictions_grid([Cell("kin40k", 8000, 8, "", 0.1, tuple(rows))], PLAN, "").to_markdown()
    assert table.count("| not converged |") == 2
    assert "(off by 0.2 %, not converged)" in sentence(rows, 1000)
