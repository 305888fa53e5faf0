"""A fit that was interrupted goes on from where it was: parameters, on subsets too, and kernels that were compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from gp_rangeformer.atomic import WriteError
from gp_rangeformer.fit import Record
from gp_rangeformer.regression import SavedModelError, TableRegression, TableWarning
from gp_rangeformer.regression import choice as choosing
from gp_rangeformer.regression.files import UNFINISHED, unsealed

N = 60
OPTIONS: dict[str, Any] = {"target": "y", "kernel": "rbf", "dtype": "float64"}
COMPARED = {**OPTIONS, "kernel": "matern12,rbf,matern32"}


def table(n: int = N) -> Any:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(size=n), "b": rng.normal(size=n)})
    return frame.assign(y=1000 + 50 * np.sin(2 * frame["a"]) + 5 * rng.normal(size=n))


def fit(frame: Any, **options: Any) -> Any:
    return TableRegression.fit(frame, **options)


class Interrupting:
    """Raises as Ctrl-C does, in the evaluation of this number, or the first one of this kernel."""

    def __init__(self, where: int | str | None = None) -> None:
        self.where, self.records, self.names = where, list[Record](), list[str]()

    def __call__(self, name: str, record: Record) -> None:
        self.records.append(record)
        self.names.append(name)
        if self.where in (len(self.records), name):
            raise KeyboardInterrupt


def interrupted(folder: Path, where: int | str = 6, frame: Any = None, **options: Any) -> Interrupting:
    stop = Interrupting(where)
    with pytest.raises(KeyboardInterrupt):
        fit(table() if frame is None else frame, **{**OPTIONS, **options}, folder=folder, callback=stop)
    return stop


def best_of(records: list[Record]) -> float:
    return max(record.value for record in records if record.accepted)


def test_a_fit_goes_on_from_where_it_was_interrupted(tmp_path):
    best = best_of(interrupted(tmp_path / "m").records)
    assert unsealed((tmp_path / "m" / UNFINISHED).read_bytes())["best"]["value"] == best
    seen = Interrupting()
    with pytest.warns(TableWarning, match=rf"goes on from the parameters in .*, of log p\(y\)/n = {best:.4f}$"):
        found = fit(table(), **OPTIONS, folder=tmp_path / "m", callback=seen)
    assert seen.records[0].value == pytest.approx(best, abs=1e-9)
    whole = fit(table(), **OPTIONS)
    # Both are within 1e-4 nats per point of an optimum, here the same one.
    assert found.fit_result.value == pytest.approx(whole.fit_result.value, abs=3e-4)
    found.save(tmp_path / "m")
    assert not (tmp_path / "m" / UNFINISHED).exists()


def test_what_was_found_on_a_subset_is_gone_on_from_there(tmp_path):
    frame = table(1000)
    stop = interrupted(tmp_path, 7, frame)
    assert [record.points for record in stop.records] == [1000, *[200] * 6]
    best = best_of(stop.records[1:])
    assert best > stop.records[1].value + 0.1, "nothing was found: the test is vacuous"
    seen = Interrupting()
    with pytest.warns(TableWarning, match=rf"of log p\(y\)/n = {best:.4f} on 200 of 1000 rows$"):
        found = fit(frame, **OPTIONS, folder=tmp_path, callback=seen)
    first, second, *_ = seen.records
    assert (first.points, second.points) == (1000, 200)
    assert first.value > stop.records[0].value + 0.1
    assert second.value >= best - 1e-9  # less what held on to the start
    assert found.fit_result.value == pytest.approx(fit(frame, **OPTIONS).fit_result.value, abs=3e-4)


def test_before_anything_was_gained_nothing_is_kept(tmp_path):
    interrupted(tmp_path, 1)
    assert not (tmp_path / UNFINISHED).exists()


@pytest.mark.parametrize("rows", [choosing.MOST_ROWS, 30])
def test_kernels_that_were_compared_are_not_fitted_again(tmp_path, rows, monkeypatch):
    """With rows for the comparison alone, too. The outcome is that of a fit that was not interrupted, bit for bit."""
    monkeypatch.setattr(choosing, "MOST_ROWS", rows)
    interrupted(tmp_path, "matern32", **COMPARED)
    seen = Interrupting()
    with pytest.warns(TableWarning, match=r"goes on from .*unfinished.json: matern12, rbf are fitted already"):
        found = fit(table(), **COMPARED, folder=tmp_path, callback=seen)
    whole_rows = [
        name for name, record in zip(seen.names, seen.records, strict=True) if record.points == rows or rows > N
    ]
    assert set(whole_rows) == {"matern32"}
    plain = fit(table(), **COMPARED)
    timeless = [[replace(one, seconds=0) for one in model.candidates] for model in (found, plain)]
    assert timeless[0] == timeless[1]
    assert found.kernel == plain.kernel == "rbf", "the best was not fitted before the interrupt: the test is vacuous"
    assert found.fit_result.value == plain.fit_result.value
    assert found.level == plain.level
    pd.testing.assert_frame_equal(found.predict(table()), plain.predict(table()), check_exact=True)
    found.save(tmp_path)
    assert TableRegression.load(tmp_path).candidates == found.candidates


def test_a_comparison_goes_on_inside_the_kernel_it_was_interrupted_in(tmp_path):
    kept = tmp_path / UNFINISHED
    interrupted(tmp_path, "rbf", **COMPARED)
    assert list(unsealed(kept.read_bytes())["compared"]) == ["matern12"]
    again = Interrupting(5)
    with pytest.warns(TableWarning, match="matern12 is fitted already"), pytest.raises(KeyboardInterrupt):
        fit(table(), **COMPARED, folder=tmp_path, callback=again)
    assert set(again.names) == {"rbf"}
    last = Interrupting()
    with (
        pytest.warns(TableWarning, match="goes on from the parameters"),
        pytest.warns(TableWarning, match="matern12 is fitted already"),
    ):
        fit(table(), **COMPARED, folder=tmp_path, callback=last)
    assert last.records[0].value == pytest.approx(best_of(again.records), abs=1e-9)


def test_what_is_of_other_data_is_not_gone_on_from(tmp_path):
    interrupted(tmp_path)
    other = table().assign(y=lambda frame: frame["y"] ** 2)
    for frame, options in ((other, {}), (table(), {"kernel": "matern32"}), (table(), {"seed": 1})):
        kept = (tmp_path / UNFINISHED).read_bytes()
        with pytest.warns(TableWarning, match="is of other data, another kernel or other options: the fit begins anew"):
            found = fit(frame, **{**OPTIONS, **options}, folder=tmp_path)
        assert found.fit_result.value == fit(frame, **{**OPTIONS, **options}).fit_result.value
        (tmp_path / UNFINISHED).write_bytes(kept)


def test_what_is_of_another_fit_outlives_this_one_and_is_gone_on_from_under_any_number(tmp_path):
    path, free = tmp_path / UNFINISHED, tmp_path / "unfinished-2.json"
    (tmp_path / "unfinished-1.json").write_text("of a third fit")
    best = best_of(interrupted(tmp_path).records)
    kept = path.read_bytes()
    other = table().assign(y=lambda frame: frame["y"] ** 2)
    with pytest.warns(TableWarning, match=r"unfinished.json stays: it is of other data.*: the fit begins anew$"):
        other_best = best_of(interrupted(tmp_path, frame=other).records)
    with pytest.warns(TableWarning, match=rf"goes on from the parameters in .*-2.json, .*= {other_best:.4f}$"):
        fit(other, **OPTIONS, folder=tmp_path).save(tmp_path)
    assert path.read_bytes() == kept
    assert not free.exists()
    with pytest.warns(TableWarning, match=rf"goes on from the parameters in .*unfinished.json, .*= {best:.4f}$"):
        fit(table(), **OPTIONS, folder=tmp_path).save(tmp_path)
    assert {one.name for one in tmp_path.glob("*.json")} == {"model.json", "unfinished-1.json"}
    assert (tmp_path / "unfinished-1.json").read_text() == "of a third fit"


def test_a_fit_that_ends_takes_away_nothing_of_one_that_runs(tmp_path):
    """The second one begins before the first has kept anything."""
    path, seen = tmp_path / UNFINISHED, []

    def run_another(name: str, record: Record) -> None:
        seen.append(record)
        if len(seen) == 1:
            interrupted(tmp_path, kernel="matern32")
        if len(seen) == 6:
            assert (tmp_path / "unfinished-1.json").is_file()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(table(), **OPTIONS, folder=tmp_path, callback=run_another)
    with pytest.warns(TableWarning, match="goes on from the parameters in .*unfinished-1.json"):
        fit(table(), **OPTIONS, folder=tmp_path).save(tmp_path)
    assert [one.name for one in tmp_path.glob("unfinished*")] == [path.name]
    assert unsealed(path.read_bytes())["best"]["kernel"] == "matern32"


def test_a_file_that_another_fit_has_written_since_is_not_removed(tmp_path):
    interrupted(tmp_path)
    with pytest.warns(TableWarning, match="goes on"):
        found = fit(table(), **OPTIONS, folder=tmp_path)
    (tmp_path / UNFINISHED).write_text("of another fit")
    found.save(tmp_path)
    assert (tmp_path / UNFINISHED).read_text() == "of another fit"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text[:-40],
        lambda text: "",
        lambda text: "[]",
        lambda text: json.dumps({"best": None}),
        lambda text: json.dumps(json.loads(text) | {"compared": {}}),
        lambda text: text.replace("mean_module", "mean"),
        lambda text: text.replace('"value": ', '"value": 1'),
    ],
)
def test_what_is_damaged_or_edited_is_said_and_not_used(tmp_path, spoil):
    interrupted(tmp_path, "matern32", **COMPARED)
    kept = tmp_path / UNFINISHED
    kept.write_text(spoil(kept.read_text()))
    seen = Interrupting()
    with pytest.warns(TableWarning, match=r"unfinished.json is damaged, or was edited .*: the fit begins anew"):
        fit(table(), **COMPARED, folder=tmp_path, callback=seen)
    assert set(seen.names) == {"matern12", "rbf", "matern32"}


def test_a_full_disk_does_not_end_the_fit(tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise WriteError(28, "No space left on device", str(path))

    monkeypatch.setattr("gp_rangeformer.regression.unfinished.write_bytes", full)
    with pytest.warns(TableWarning, match=r"No space left on device.*the fit goes on") as said:
        found = fit(table(), **OPTIONS, folder=tmp_path)
    assert len(said) == 1
    assert found.fit_result.converged


def test_a_model_beside_a_later_fit_that_has_not_ended_is_called_the_former(tmp_path):
    fit(table(), **OPTIONS).save(tmp_path)
    interrupted(tmp_path, frame=table().iloc[:50])
    with pytest.warns(TableWarning, match="holds a later fit .*interrupted: this is the model from before it"):
        former = TableRegression.load(tmp_path)
    assert len(former.training_frame()) == N
    interrupted(tmp_path / "new")
    with pytest.raises(SavedModelError, match=r"model.json is missing: the fit has not ended; the same fit once more"):
        TableRegression.load(tmp_path / "new")
