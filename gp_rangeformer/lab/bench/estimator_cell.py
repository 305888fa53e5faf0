"""What was measured of two estimators on one data set. scikit-learn is not needed to read it."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Contender:
    """Seconds of one likelihood with its gradient at the start, of the fit, and of means and standard deviations of the
    test points after it; ``evaluations`` of the fit on all points, ``ended``: whether it stopped by itself; ``value``:
    exact log p(y) / n where it ended; ``rmse``: of standardised test targets."""

    evaluation: float
    fit: float
    evaluations: int
    ended: bool
    prediction: float
    value: float
    rmse: float


@dataclass(frozen=True)
class EstimatorCell:
    """A data set at a size. ``mean_off``, ``deviation_off``: the largest differences between the two predictions of
    ours and of scikit-learn's at our theta, in standard deviations of the targets."""

    dataset: str
    n: int
    d: int
    t: int
    theirs: Contender
    ours: Contender
    mean_off: float
    deviation_off: float

    @property
    def key(self) -> tuple[str, int]:
        return self.dataset, self.n

    @classmethod
    def from_json(cls, content: dict) -> EstimatorCell:
        parts = {name: Contender(**content[name]) for name in ("theirs", "ours")}
        return cls(**{**content, **parts})

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @property
    def faster(self) -> float:
        """How many times as long scikit-learn's fit took: at least so many, where it was stopped."""
        return self.theirs.fit / self.ours.fit
