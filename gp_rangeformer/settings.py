"""The flag and its values, in linear_operator's own dialect: classes with ``on()``, ``off()`` or ``value()``.

    with settings.rangeformer(), settings.rank(200):
        loss = -mll(model(train_x), train_y)

Like linear_operator's own settings they are process-global and seen from other threads.
Defaults come from the measurements in the README's section "Settings".
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from linear_operator.settings import _feature_flag, _value_context


class _checked_flag(_feature_flag):
    """A flag that takes True or False and nothing that merely counts as one of them."""

    def __init__(self, state: bool = True) -> None:
        if not isinstance(state, bool):
            raise ValueError(f"settings.{type(self).__name__} must be True or False, got {state!r}")
        super().__init__(state)


class rangeformer(_checked_flag):
    """
    Whether exact-GP solves, log determinants and inverse roots go through this plug-in.
    Off means GPyTorch's own code, untouched.

    (Default: False)
    """

    _default = False


class verbose(_checked_flag):
    """
    Whether every call prints one line to stderr: solver, iterations, passes, residual, interval, seconds.

    (Default: False)
    """

    _default = False


class exact_line_search(_checked_flag):
    """
    Whether calls made from inside a line search (torch.optim.LBFGS, scipy.optimize, hence BoTorch's fits) are answered
    by the exact path. A line search compares values with their own gradients; a stochastic log determinant and its
    probe gradient agree in expectation only. Costs one Cholesky factorisation and one inverse per evaluation.

    (Default: True)
    """

    _default = True


class deterministic(_checked_flag):
    """
    Whether every call answers without memory of earlier ones: the same call gives the same bits whatever came before.
    Off: the same sequence of calls does (one thread count, one machine), and a step late in a sequence differs from the
    same step alone by less than its tolerances. A training step takes two to five times as long with it on.

    (Default: False)
    """

    _default = False


class fused_kernels(_checked_flag):
    """
    Whether the common stationary kernels, their scalings, sums and products are evaluated and differentiated tile by
    tile instead of by GPyTorch: the same matrix to rounding, several times faster, and no second n x n matrix. They
    evaluate to a DenseLinearOperator, also where GPyTorch would keep a scaled sum as an operator of its own.

    (Default: True)
    """

    _default = True


class compiled_kernels(_checked_flag):
    """
    Whether those tiles are made by compiled code on a CPU: about twice as fast as by tensor operations. The system's
    C++ compiler runs once, for some six seconds; without one a warning says so.

    (Default: True)
    """

    _default = True


class adaptive_rank(_checked_flag):
    """
    Whether training starts with 64 landmarks and doubles them, up to settings.rank, where the iterations of a step say
    that it pays. Off: settings.rank from the start. Predictions use settings.rank in any case.

    (Default: True)
    """

    _default = True


class _checked_value(_value_context):
    """A value that is checked when it is set, so that a typing error is met where it was made."""

    def __init__(self, value):
        self.check(value)
        super().__init__(value)

    @classmethod
    def value(cls) -> Any:
        return cls._global_value

    @classmethod
    def check(cls, value) -> None:
        """Raise ValueError unless ``value`` fits."""

    @classmethod
    def _refuse(cls, value: Any, expected: str) -> None:
        raise ValueError(f"settings.{cls.__name__} must be {expected}, got {value!r}")


class _count(_checked_value):
    _smallest = 1

    @classmethod
    def check(cls, value) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or value < cls._smallest:
            cls._refuse(value, f"an integer of at least {cls._smallest}")


class _share(_checked_value):
    @classmethod
    def check(cls, value) -> None:
        if not isinstance(value, (int, float)) or not 0 < value < 1 or not math.isfinite(value):
            cls._refuse(value, "a number between 0 and 1")


class _choice(_checked_value):
    _choices: tuple[str, ...] = ()

    @classmethod
    def check(cls, value) -> None:
        if value not in cls._choices:
            cls._refuse(value, "one of " + ", ".join(repr(choice) for choice in cls._choices))


class tolerance(_share):
    """
    Relative residual that every training solve certifies, |b - A x| <= tolerance |b|, recomputed from the answer, or
    from one at most four updates before it, with their rounding counted. The quadratic term is off by at most
    tolerance / 10 nats per point (typically 1e-5). Ten times smaller costs about twice the iterations.

    (Default: 0.01)
    """

    _global_value = 0.01


class prediction_tolerance(_share):
    """
    Relative residual of solves outside the likelihood: the predictive mean and covariance, computed once per fitted
    model, so a tight value is cheap.

    (Default: 0.001)
    """

    _global_value = 0.001


class rank(_count):
    """
    Landmarks of the preconditioner, at most. More landmarks mean fewer iterations and O(n rank^2) more set-up.

    (Default: 400)
    """

    _global_value = 400


class num_probes(_count):
    """
    Rademacher probes of the log determinant's gradient, solved together with y. The relative gradient error falls as
    1 / sqrt(num_probes); each probe is one more column in every pass over K.

    (Default: 32)
    """

    _smallest = 2
    _global_value = 32


class gradient_tolerance(_checked_value):
    """
    Largest standard error of the gradient, relative to it (norms over all log hyperparameters), as the probes' own
    spread says at a model's first step, at every 50th and where it grows. Above it, and above 0.01 nats per point,
    further probes are solved, up to four times settings.num_probes; up to n = 5000 one Cholesky factorisation answers
    where even those would not do. What is left stands in the report. Infinity: never.

    (Default: 0.1)
    """

    _global_value = 0.1

    @classmethod
    def check(cls, value) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            cls._refuse(value, "a positive number, or infinity")


class num_logdet_probes(_count):
    """
    How many of the probes also estimate the log determinant by Lanczos quadrature (about 10 to 20 passes with as many
    columns). Capped by num_probes.

    (Default: 16)
    """

    _smallest = 2
    _global_value = 16


class history(_count):
    """
    Solutions kept from earlier steps to predict the next one; n x (1 + num_probes) numbers each, and for the predictor
    "rows" as many again for the corrections of all but one of them. 0 forgets everything.

    (Default: 3)
    """

    _smallest = 0
    _global_value = 3


class predictor(_choice):
    """
    How the next solution is proposed: "rows" (the mixture of remembered solutions and corrections that fits best on 16
    sampled rows of K), "extrapolate" (2 X[t-1] - X[t-2], free), "galerkin" (best combination of the last two solutions,
    one wider pass), "previous" (plain warm start), "none".

    (Default: "rows")
    """

    _choices = ("rows", "extrapolate", "galerkin", "previous", "none")
    _global_value = "rows"


class logdet(_choice):
    """
    "learned": extrapolated by the pretrained network from the step's own solves, no further pass over K; with an error
    estimate, checked by Lanczos at the first step of a model and at every 25th, replaced by it above
    settings.logdet_tolerance. A value to monitor: the gradient, from the probes, is the same.
    "lanczos": stochastic Lanczos quadrature with fixed probes and an error estimate, for first-order optimisers.
    "quadrature": the two-node rule that the network corrects, without the network; for comparison.
    "exact": one Cholesky factorisation per step answers everything; deterministic, with its own gradient.

    (Default: "learned")
    """

    _choices = ("learned", "lanczos", "quadrature", "exact")
    _global_value = "learned"


class logdet_tolerance(_share):
    """
    Largest uncertainty of the learned log determinant, half the width of its stated 90 % interval in nats per point;
    Lanczos answers above.

    (Default: 0.01)
    """

    _global_value = 0.01


class mode(_choice):
    """
    "certified": the network only proposes; every answer is verified and refined, or the exact path answers.
    "direct", for research: solves and log determinants are the pretrained network's own, from settings.exact_size on.
    The report measures them, a warning says when they are outside tolerance, and nothing corrects them. Inverse roots
    stay certified.

    (Default: "certified")
    """

    _choices = ("certified", "direct")
    _global_value = "certified"


class landmarks(_choice):
    """
    How landmarks are drawn: "rp_cholesky" (randomly pivoted Cholesky) or "uniform" (free, slightly more iterations).

    (Default: "rp_cholesky")
    """

    _choices = ("rp_cholesky", "uniform")
    _global_value = "rp_cholesky"


class landmark_refresh(_checked_value):
    """
    Training draws its landmarks again once a step takes more than this many times the iterations of the first one after
    the last draw (at least 4). 1: at every increase; infinity: never.

    (Default: 2.0)
    """

    _global_value = 2.0

    @classmethod
    def check(cls, value) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 1:
            cls._refuse(value, "a number of at least 1, or infinity")


class _ByDevice(int):
    """A default that is another one on CUDA."""

    def __new__(cls, elsewhere: int, cuda: int) -> _ByDevice:
        value = super().__new__(cls, elsewhere)
        value.cuda = cuda
        return value

    cuda: int


class min_size(_count):
    """
    The size n from which the RangeFormer solver answers; the exact path answers below, where one Cholesky is faster.
    On CUDA, where that holds for longer, the default is 5000.

    (Default: 1500)
    """

    _global_value = _ByDevice(1500, cuda=5000)

    @classmethod
    def value_on(cls, device: torch.device) -> int:
        """What holds for a system on ``device``: what was set, else the default there."""
        value = cls._global_value
        return value.cuda if isinstance(value, _ByDevice) and device.type == "cuda" else int(value)


class exact_size(_count):
    """
    The number of points, of all elements of a batch together, from which the plug-in answers at all; smaller systems
    stay with GPyTorch.

    (Default: 100)
    """

    _global_value = 100


class max_passes(_count):
    """
    Passes over K that one block solve may take before the exact path answers instead.

    (Default: 100)
    """

    _global_value = 100


class seed(_count):
    """
    Seed of landmarks and probes. The same sequence of calls with the same seed gives the same bits, on one machine with
    one number of threads (settings.deterministic: also a single call).

    (Default: 0)
    """

    _smallest = 0
    _global_value = 0


class memory_limit(_count):
    """
    Bytes that remembered solutions and landmarks of all models together may take; the least recently used go first. On
    a CPU as many again may be kept, between steps, of memory in which the next kernel matrix is put, and the memory of
    one larger matrix where three of its size are free (:func:`gp_rangeformer.clear_memory` returns it).

    (Default: 512 MiB)
    """

    _smallest = 0
    _global_value = 512 * 2**20


class kernel_storage(_choice):
    """
    How K is held. "dense": n^2 numbers; where they do not fit an error says so beforehand. "tiles": recomputed at every
    product, any n, O(n) memory; an early training step takes 1.1 times as long (n = 4000 and 8000, Matern-3/2, float32,
    two threads, compiled code), one of many iterations up to twice. "auto": dense where that fits into free memory,
    else tiles, with a note in the report.
    Kernels that settings.fused_kernels does not cover, and sums of matrices, are always dense. A model that is pickled
    with the caches of its predictions needs this package to be loaded, unless K was dense.

    (Default: "auto")
    """

    _choices = ("auto", "dense", "tiles")
    _global_value = "auto"


class process_group(_checked_value):
    """
    The torch.distributed group whose processes share K: each holds some of its rows, or recomputes some of its tiles.
    True is the default group, None one process alone. Every process runs the same script with the same data and seeds
    (torchrun); answers are the same in all of them. gloo serves CPUs, nccl GPUs.

    (Default: None)
    """

    _global_value = None

    @classmethod
    def check(cls, value) -> None:
        if value is None or value is True:
            return
        distributed = torch.distributed
        if not distributed.is_available() or not isinstance(value, distributed.ProcessGroup):
            cls._refuse(value, "None, True or a torch.distributed process group")


def current() -> dict[str, object]:
    """Every setting's present value by name, for reports and result files."""
    module = sys.modules[__name__]
    values: dict[str, object] = {}
    for name, setting in vars(module).items():
        if isinstance(setting, type) and not name.startswith("_"):
            if issubclass(setting, _feature_flag):
                values[name] = setting.on()
            elif issubclass(setting, _value_context):
                values[name] = setting.value()
    return values
