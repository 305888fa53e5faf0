"""Who answers during a fit, and from how many points on."""

from __future__ import annotations

import pytest
import torch

from gp_rangeformer import Certified, Exact, settings
from gp_rangeformer.fit.solver import solver_of_fit
from tests.fit.models import build

CPU = torch.device("cpu")


def test_without_the_flag_the_exact_path_answers_whatever_was_chosen() -> None:
    with settings.solver(Certified(num_probes=8)), solver_of_fit(build(20)):
        assert settings.rangeformer.on()
        assert isinstance(settings.solver.value(), Exact)


@pytest.mark.parametrize(("least", "found"), [(None, 2500), (1, 1), (3000, 3000)])
def test_fits_are_factorised_further_unless_somebody_said_from_where(least, found) -> None:
    with settings.rangeformer():
        if least is None:
            with solver_of_fit(build(20)):
                assert settings.min_size.value_on(CPU) == found
        else:
            with settings.min_size(least), solver_of_fit(build(20)):
                assert settings.min_size.value_on(CPU) == found
        assert settings.min_size.value_on(CPU) == 1500


def test_by_secants_not_quite_so_far() -> None:
    mll = build(20)
    mll.register_parameter("more", torch.nn.Parameter(torch.zeros(65)))
    with settings.rangeformer(), solver_of_fit(mll):
        assert settings.min_size.value_on(CPU) == 2000


def test_the_chosen_certified_solver_keeps_what_was_said_of_it() -> None:
    with settings.rangeformer(), settings.solver(tolerance=0.003), solver_of_fit(build(20)):
        solver = settings.solver.value()
    assert isinstance(solver, Certified)
    assert (solver.tolerance, solver.logdet, solver.neighbours_above) == (0.003, "lanczos", 0.0)
