"""Which solvers can be compared, and how each is switched on. A solver is a set of host and plug-in settings."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import gpytorch
import torch

from gp_rangeformer import settings
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.exact import Exact

REFERENCE = "reference"
BASES = {
    "exact": "the plug-in's closed-form Cholesky path",
    "cholesky": "GPyTorch's Cholesky path",
    "cg": "GPyTorch's conjugate gradients, default settings, at any n",
    "cg-tight": "GPyTorch's conjugate gradients, tolerance 0.01, preconditioner of rank 100",
    "rangeformer": "the plug-in",
    "rangeformer-fit": "the plug-in, trained to convergence by fit_mll",
    "cholesky-lbfgs": "GPyTorch's Cholesky path, trained by scipy's L-BFGS as BoTorch does",
    "rangeformer-direct": "the pretrained network's own answers, not corrected",
}
DEFAULT_SOLVERS = tuple(base for base in BASES if base not in ("cholesky-lbfgs", "rangeformer-direct"))
_SWITCH = {"on": True, "true": True, "off": False, "false": False}
# Settings that are the same for all, or that say who answers.
_NOT_A_CONTENDERS = ("rangeformer", "solver", "process_group")
PLUGIN = ("exact", "rangeformer", "rangeformer-fit", "rangeformer-direct")
# Adam takes a number of steps with the others.
CONVERGING = ("rangeformer-fit", "cholesky-lbfgs")
# Where former settings and values went, as gp_rangeformer.settings says of its own: kept for one release.
_MOVED = {
    "mode": "name the solver rangeformer-direct for mode=direct",
    "compiled_kernels": "fused_kernels=tensors for compiled_kernels=off",
    "verbose": 'in a script, logging.getLogger("gp_rangeformer").setLevel(logging.DEBUG)',
}
_MOVED_VALUES = {"logdet=exact": "name the solver exact", "fused_kernels=on": "fused_kernels=compiled"}
# Largest n at which the reference is GPyTorch's own float64 Cholesky (2 s a step on two cores); the plug-in's
# closed form answers above, checked once against GPyTorch's.
REFERENCE_CHOLESKY_SIZE = 2500


class SolverError(ValueError):
    """A solver that does not exist, or a setting it does not take; the message names what does."""


@dataclass(frozen=True)
class SolverSpec:
    """One competitor. ``overrides``: arguments of its solver, and settings, by name, on top of what ``base`` means."""

    name: str
    base: str
    dtype: str
    overrides: Mapping[str, object] = field(default_factory=dict)
    timing_only: bool = False

    @property
    def is_plugin(self) -> bool:
        return self.base in PLUGIN

    @property
    def is_reference(self) -> bool:
        return self.name == REFERENCE

    @property
    def converges(self) -> bool:
        """Whether it trains until nothing is left to gain, by an optimiser of its own."""
        return self.base in CONVERGING

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def uses_cg(self) -> bool:
        return self.base in ("cg", "cg-tight")

    def describe(self) -> str:
        text = BASES[self.base]
        if self.overrides:
            text += " with " + ", ".join(f"{name}={value}" for name, value in self.overrides.items())
        return f"{text}, {self.dtype}"

    @property
    def solver(self) -> Certified | Exact | Direct:
        """What answers where the plug-in does.

        :raises ValueError: from the solver, for a value that it refuses.
        """
        arguments: Any = {name: value for name, value in self.overrides.items() if name in _arguments(self.base)}
        if self.base == "exact":
            return Exact(**arguments)
        certified = Certified(**arguments)
        return Direct(certified) if self.base == "rangeformer-direct" else certified

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Everything inside is answered by this solver."""
        with contextlib.ExitStack() as stack:
            if self.is_plugin:
                stack.enter_context(settings.rangeformer())
                stack.enter_context(settings.solver(self.solver))
                for name, value in self.overrides.items():
                    if name not in _arguments(self.base):
                        stack.enter_context(getattr(settings, name)(value))
            elif self.base in ("cholesky", "cholesky-lbfgs"):
                stack.enter_context(settings.rangeformer(False))
                stack.enter_context(gpytorch.settings.fast_computations(False, False, False))
            else:
                stack.enter_context(settings.rangeformer(False))
                stack.enter_context(gpytorch.settings.fast_computations(True, True, True))
                stack.enter_context(gpytorch.settings.max_cholesky_size(0))
                if self.base == "cg-tight":
                    stack.enter_context(gpytorch.settings.cg_tolerance(0.01))
                    stack.enter_context(gpytorch.settings.max_preconditioner_size(100))
                    stack.enter_context(gpytorch.settings.min_preconditioning_size(0))
            yield


def reference_spec(n: int) -> SolverSpec:
    """Float64: GPyTorch's Cholesky up to n = 2500, the closed-form exact path above."""
    return SolverSpec(REFERENCE, "cholesky" if n <= REFERENCE_CHOLESKY_SIZE else "exact", "float64")


def parse_solvers(
    names: str, dtype: str = "float32", timing_only: str = "", min_size: int | None = None
) -> tuple[SolverSpec, ...]:
    """Solvers from a comma-separated list: ``cholesky,cg,rangeformer:rank=200+predictor=previous``.

    :param names: base names; those of the plug-in take settings after a colon, joined by plus signs.
    :param timing_only: those of ``names`` that run a few steps only.
    :param min_size: ``settings.min_size`` of every ``rangeformer`` and ``rangeformer-fit`` that does not say its own.
    :raises SolverError: unknown or repeated solver, unknown setting or a value it refuses.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    timed = [name.strip() for name in timing_only.split(",") if name.strip()]
    if not wanted:
        raise SolverError(f"no solver named; solvers: {_known()}")
    for name in wanted:
        if wanted.count(name) > 1:
            raise SolverError(f"solver {name!r} is named twice: name each once")
    for name in timed:
        if name not in wanted:
            raise SolverError(f"--timing-only names {name!r}, which is not among the solvers {', '.join(wanted)}")
        if name.partition(":")[0] in CONVERGING:
            raise SolverError(f"--timing-only names {name!r}, which ends where it has converged: leave it out there")
    return tuple(_parse(name, dtype, name in timed, min_size) for name in wanted)


def _parse(name: str, dtype: str, timing_only: bool, min_size: int | None) -> SolverSpec:
    base, _, text = name.partition(":")
    if base not in BASES:
        hint = "; the reference always runs" if base == REFERENCE else ""
        raise SolverError(f"no solver {base!r}; solvers: {_known()}{hint}")
    if text and base not in PLUGIN:
        raise SolverError(f"{name!r}: only {_listed(PLUGIN)} take settings; settings: {_names('rangeformer')}")
    overrides: dict[str, object] = {}
    if base in ("rangeformer", "rangeformer-fit") and min_size is not None:
        overrides["min_size"] = _checked(name, base, "min_size", str(min_size))
    for part in filter(None, text.split("+")):
        setting, equals, value = part.partition("=")
        if not equals:
            raise SolverError(f"{name!r}: {part!r} is not of the form setting=value")
        overrides[setting] = _checked(name, base, setting, value)
    return SolverSpec(name, base, dtype, overrides, timing_only)


def _known() -> str:
    return f"{', '.join(BASES)}, and exact:SETTING=VALUE+... or rangeformer:SETTING=VALUE+..."


def _listed(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _arguments(base: str) -> dict[str, Any]:
    """Arguments of a base's solver with their defaults."""
    if base not in PLUGIN:
        return {}
    solver = Exact() if base == "exact" else Certified()
    return {field.name: getattr(solver, field.name) for field in dataclasses.fields(solver)}


def _settings() -> dict[str, Any]:
    """What else can be set for one contender."""
    return {name: value for name, value in settings.current().items() if name not in _NOT_A_CONTENDERS}


def _names(base: str) -> str:
    return ", ".join([*_arguments(base), *_settings()])


def _checked(solver: str, base: str, name: str, text: str) -> object:
    """``text`` in the type of the present value, accepted by the solver or the setting itself."""
    known = {**_settings(), **_arguments(base)}
    assigned = f"{name}={text}"
    if name in _MOVED or assigned in _MOVED_VALUES:
        gone, successor = (name, _MOVED[name]) if name in _MOVED else (assigned, _MOVED_VALUES[assigned])
        raise SolverError(f"{solver!r}: {gone} is gone: {successor}")
    if name not in known:
        raise SolverError(f"{solver!r}: no setting {name!r}; settings: {_names(base)}")
    present = known[name]
    try:
        if isinstance(present, bool):
            value = _SWITCH[text.lower()]
        else:
            value = int(text) if isinstance(present, int) else type(present)(text)
        if name in _arguments(base):
            _ = SolverSpec(solver, base, "float32", {name: value}).solver
        else:
            getattr(settings, name)(value)
    except KeyError:
        raise SolverError(f"{solver!r}: {assigned}: write on or off") from None
    except ValueError as error:
        raise SolverError(f"{solver!r}: {assigned}: {error}") from None
    return value
