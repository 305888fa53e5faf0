"""The two ways in which a scikit-learn kernel is evaluated."""

from __future__ import annotations

import pytest

from gp_rangeformer.sklearn import training


@pytest.fixture(params=["few", "general"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """By scikit-learn's own kernels, as so few points are, and by the plug-in's, as more are."""
    if request.param == "general":
        monkeypatch.setattr(training, "_FEW", 0)
