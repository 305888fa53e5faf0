"""Which contenders the benchmark knows: how each is named, built, described, and expected to grow with n."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gp_rangeformer.lab.bench.contenders import Contender, ModelContender, Problem
from gp_rangeformer.lab.bench.floors import FLOOR, HOST_FLOOR, Floor, HostFloor
from gp_rangeformer.lab.bench.with_gpflash import GpflashContender
from gp_rangeformer.lab.bench.with_keops import NAME as KEOPS
from gp_rangeformer.lab.bench.with_keops import keops_contender
from gp_rangeformer.lab.compare.solvers import BASES, PLUGIN, SolverError, SolverSpec, parse_solvers

_FACTORISATION, _PASSES = 3, 2
_PLUGIN_STEPS = 4  # as many as its history, and the one that uses all of it


@dataclass(frozen=True)
class Entrant:
    """A row of the benchmark.

    :param growth: power of n that its seconds are expected to grow with, to leave it out in time.
    :param steps_to_fill: steps after which its memory no longer grows.
    """

    name: str
    description: str
    build: Callable[[Problem], Contender]
    growth: int = _PASSES
    steps_to_fill: int = 1


FLOORS = (
    Entrant(FLOOR, "the plug-in's fused K once, and one contraction of its gradient with 33 thin columns", Floor),
    Entrant(HOST_FLOOR, "GPyTorch's own dense K once, and its backward for a dense weight that is given", HostFloor),
)
_OTHERS = {
    "gpflash": Entrant(
        "gpflash", "gpflash, exact, float64, without the mean's derivative", GpflashContender, _FACTORISATION
    ),
    KEOPS: Entrant(KEOPS, "GPyTorch's conjugate gradients, default settings, over KeOps kernels", keops_contender),
}


def parse_peers(names: str, dtype: str = "float32") -> tuple[Entrant, ...]:
    """Contenders from a comma-separated list, after the two floors, which always run.

    :param names: names of :func:`gp_rangeformer.lab.compare.parse_solvers` with their settings, gpflash, keops;
        ``rangeformer`` answers at every n unless it says its own ``min_size``.
    :raises SolverError: none, an unknown or a repeated one, or a setting that does not fit.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = (*BASES, *_OTHERS)
    if not wanted:
        raise SolverError(f"no solver named; solvers: {', '.join(known)}")
    for name in wanted:
        if wanted.count(name) > 1:
            raise SolverError(f"solver {name!r} is named twice: name each once")
        if name not in _OTHERS and name.partition(":")[0] not in BASES:
            raise SolverError(f"no solver {name!r}; solvers: {', '.join(known)}; the floors always run")
    return (*FLOORS, *(_OTHERS.get(name) or _entrant(name, dtype) for name in wanted))


def _entrant(name: str, dtype: str) -> Entrant:
    (spec,) = parse_solvers(name, dtype, min_size=1)
    growth = _FACTORISATION if spec.base in ("cholesky", "exact") else _PASSES
    steps = _PLUGIN_STEPS if spec.base in PLUGIN else 1
    return Entrant(name, spec.describe(), _model(spec), growth, steps)


def _model(spec: SolverSpec) -> Callable[[Problem], Contender]:
    return lambda problem: ModelContender(spec, problem.data, problem.kernel)
