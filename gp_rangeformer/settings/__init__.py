"""The flag and its values, in linear_operator's own dialect: classes with ``on()``, ``off()`` or ``value()``.

    with settings.rangeformer(), settings.solver(num_probes=64):
        loss = -mll(model(train_x), train_y)

Contexts of the main thread are seen from all others, as linear_operator's and GPyTorch's own are (autograd's backward
passes may run in some). A thread that has entered a context of its own sees its own, and nobody else does; the host's
overwrite each other's then. Besides, each is a decorator of functions, and its ``set_global`` holds for the
whole process. How A x = b and log|A| are answered, and how accurately,
is said by one of them, ``solver``; the others say when, where and from what.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import torch
from linear_operator.settings import _feature_flag, _value_context

from gp_rangeformer.settings import kinds


class rangeformer(kinds.Flag):
    """
    Whether exact-GP solves, log determinants and inverse roots go through this plug-in.
    Off means GPyTorch's own code, untouched.

    (Default: False)
    """

    _default = False


class exact_line_search(kinds.Flag):
    """
    Whether calls made from inside a line search (torch.optim.LBFGS, scipy.optimize, hence BoTorch's fits) are answered
    by the exact path. A line search compares values with their own gradients; a stochastic log determinant and its
    probe gradient agree in expectation only. Costs one Cholesky factorisation and one inverse per evaluation;
    :func:`gp_rangeformer.fit.fit_mll` needs no line search.

    (Default: True)
    """

    _default = True


class deterministic(kinds.Flag):
    """
    Whether every call answers without memory of earlier ones: the same call gives the same bits whatever came before.
    Off: the same sequence of calls does (one thread count, one machine without other work), and a step late in a
    sequence differs from the same step alone by less than its tolerances. A training step takes two to five times as
    long with it on.

    (Default: False)
    """

    _default = False


class solver(kinds.Value):
    """
    Who answers: :class:`gp_rangeformer.Certified` (few passes over K, every answer certified),
    :class:`gp_rangeformer.Exact` (one Cholesky factorisation for everything, with its own gradient), or, for research,
    :class:`gp_rangeformer.Direct` (the pretrained network's own answers, measured and not corrected). Their arguments
    are what else can be set: tolerances, probes, rank, the log determinant's method. Keywords change some of those of
    the present solver: ``settings.solver(tolerance=0.001)``.

    (Default: Certified())
    """

    # Certified(), which is made further up, once: importlib.reload keeps what there was.
    _global_value: Any = globals()["solver"]._global_value if "solver" in globals() else None

    _present = object()

    def __init__(self, chosen: Any = _present, **changes: Any) -> None:
        kinds.Setting.__init__(self)
        self._chosen, self._changes = chosen, changes
        self._inside()  # what cannot be is refused where it is written

    def _inside(self) -> Any:
        # Of the solver that is present on entry, not of the one when this context was made.
        solver = self.value() if self._chosen is self._present else self._chosen
        self.check(solver)
        names = [field.name for field in dataclasses.fields(solver)]
        for name in self._changes:
            if name not in names:
                kind = type(solver).__name__
                hint = f": {kind}(Certified({name}=...))" if "certified" in names else ""
                raise ValueError(f"settings.solver: {kind} has no argument {name}; it has {', '.join(names)}{hint}")
        return dataclasses.replace(solver, **self._changes) if self._changes else solver

    @classmethod
    def check(cls, value: Any) -> None:
        if isinstance(value, type) or not dataclasses.is_dataclass(value) or not hasattr(value, "prepare"):
            cls._refuse(value, "gp_rangeformer.Certified(...), Exact(...) or Direct(...)")


class fused_kernels(kinds.Choice):
    """
    How the common stationary kernels, their scalings, sums and products are evaluated and differentiated. "compiled":
    tile by tile, on a CPU by code that the system's C++ compiler makes once, in some six seconds (without one a warning
    says so, and tensor operations answer). "tensors": tile by tile by tensor operations, about twice slower on a CPU.
    "off": by GPyTorch, several times slower, with further n x n matrices. True and False mean the first and the last.
    The matrix is the same to rounding; what is fused evaluates to a DenseLinearOperator, also where GPyTorch would keep
    a scaled sum as an operator of its own.

    (Default: "compiled")
    """

    _choices = ("compiled", "tensors", "off")
    _global_value = "compiled"

    def __init__(self, value: str | bool = True) -> None:
        super().__init__({True: "compiled", False: "off"}[value] if isinstance(value, bool) else value)

    @classmethod
    def on(cls) -> bool:
        return cls.value() != "off"

    @classmethod
    def off(cls) -> bool:
        return cls.value() == "off"

    @classmethod
    def compiled(cls) -> bool:
        return cls.value() == "compiled"


class _ByDevice(int):
    """A default that is another one on CUDA."""

    def __new__(cls, elsewhere: int, cuda: int) -> _ByDevice:
        value = super().__new__(cls, elsewhere)
        value.cuda = cuda
        return value

    cuda: int


class min_size(kinds.Count):
    """
    The size n from which the RangeFormer solver answers; the exact path answers below, where one Cholesky is faster.
    On CUDA, where that holds for longer, the default is 5000; elsewhere it is 2500 (2000 by secants) in fits to
    convergence, 2500 for solves outside a likelihood, and 4001 for those that will be differentiated. A model's own
    predictions are factorised for up to 4000 points whatever it is, unless ``variances`` of the solver are "estimated".

    (Default: 1500)
    """

    _global_value = _ByDevice(1500, cuda=5000)

    @classmethod
    def value_on(cls, device: torch.device, at_least: int = 0) -> int:
        """What holds for a system on ``device``: what was set, else the default there, or ``at_least`` so many."""
        value = cls.value()
        if not isinstance(value, _ByDevice):
            return int(value)
        return max(value.cuda if device.type == "cuda" else int(value), at_least)


class exact_size(kinds.Count):
    """
    The number of points from which the plug-in answers at all; smaller systems stay with GPyTorch. A batch counts by
    the numbers that its matrices hold together, and a kernel that has no fused form from twice as many points on.

    (Default: 100)
    """

    _global_value = 100


class memory_limit(kinds.Count):
    """
    Bytes that remembered solutions and landmarks of all models together may take; the least recently used go first. On
    a CPU as many again may be kept, between steps, of memory in which the next kernel matrix is put, and the memory of
    one larger matrix where three of its size are free (:func:`gp_rangeformer.clear_memory` returns it).

    (Default: 512 MiB)
    """

    _smallest = 0
    _global_value = 512 * 2**20


class kernel_storage(kinds.Choice):
    """
    How K is held. "dense": n^2 numbers; where they do not fit an error says so beforehand. "tiles": recomputed at every
    product, any n, O(n) memory; an early training step takes 1.1 to 1.5 times as long (n = 2000 to 8000, Matern-3/2,
    float32, two threads, compiled code), one of many iterations up to twice. "auto": dense where that fits into free
    memory, else tiles, with a note in the report.
    Kernels that settings.fused_kernels does not cover, and sums of matrices, are always dense. A model that is pickled
    with the caches of its predictions needs this package to be loaded, unless K was dense.

    (Default: "auto")
    """

    _choices = ("auto", "dense", "tiles")
    _global_value = "auto"


class process_group(kinds.Value):
    """
    The torch.distributed group whose processes share K: each holds some of its rows, or recomputes some of its tiles.
    True is the default group, None one process alone. Every process runs the same script with the same data and seeds
    (torchrun); answers are the same in all of them. gloo serves CPUs, nccl GPUs.

    (Default: None)
    """

    _global_value = None

    @classmethod
    def check(cls, value: Any) -> None:
        if value is None or value is True:
            return
        distributed = torch.distributed
        if not distributed.is_available() or not isinstance(value, distributed.ProcessGroup):
            cls._refuse(value, "None, True or a torch.distributed process group")


def current() -> dict[str, object]:
    """Every setting's present value by name, for reports and result files; of the solver its name and arguments."""
    module = sys.modules[__name__]
    values: dict[str, object] = {}
    for name, setting in vars(module).items():
        if isinstance(setting, type) and not name.startswith("_"):
            if issubclass(setting, _feature_flag):
                values[name] = setting.on()
            elif issubclass(setting, _value_context):
                values[name] = setting.value()
    chosen = solver.value()
    arguments = {field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen)}
    values["solver"] = {"name": type(chosen).__name__, **arguments}
    return values


# Where former settings went: kept for one release.
_SOLVER_ARGUMENTS = (
    "tolerance",
    "prediction_tolerance",
    "rank",
    "adaptive_rank",
    "num_probes",
    "gradient_tolerance",
    "num_logdet_probes",
    "history",
    "predictor",
    "logdet",
    "logdet_tolerance",
    "landmarks",
    "landmark_refresh",
    "max_passes",
    "seed",
)
_MOVED = {
    **{name: f"settings.solver({name}=...)" for name in _SOLVER_ARGUMENTS},
    "logdet": 'settings.solver(logdet=...), and settings.solver(gp_rangeformer.Exact()) for logdet("exact")',
    "mode": "settings.solver(gp_rangeformer.Direct()) for mode('direct')",
    "compiled_kernels": 'settings.fused_kernels("tensors") for compiled_kernels(False)',
    "verbose": 'logging.getLogger("gp_rangeformer").setLevel(logging.DEBUG)',
}


def __getattr__(name: str) -> Any:
    if name in _MOVED:
        raise AttributeError(f"settings.{name} is gone: {_MOVED[name]}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
