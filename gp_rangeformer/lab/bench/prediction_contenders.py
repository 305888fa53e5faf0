"""Who predicts: this package, GPyTorch by Cholesky and by LOVE, gpflash, scikit-learn; the same model for all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gpytorch
import torch
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.allocation.free_memory import free_bytes
from gp_rangeformer.lab.bench.contenders import UnavailableError, import_peer
from gp_rangeformer.lab.bench.prediction_data import Fitted

Predict = Callable[[Tensor], tuple[Tensor, Tensor]]  # points to mean and variance of f
_GIB = 2**30
_SHARE = 0.9  # of the free memory that may be asked for
# Test points that GPyTorch is given at once: it makes matrices of them against each other, which its users avoid so.
BLOCK = 1000


@dataclass(frozen=True)
class Contender:
    """A row of the table.

    :param build: a fresh model without anything computed; its first call pays for all.
    :param numbers: that are held at once, of n and t points; None: it looks at the memory itself.
    :param itemsize: bytes of a number; None: as the model's.
    :param largest: n beyond which it is not asked.
    """

    name: str
    description: str
    build: Callable[[Fitted], Predict]
    numbers: Callable[[int, int], int] | None = None
    itemsize: int | None = None
    largest: int | None = None

    def check(self, fitted: Fitted, t: int) -> None:
        """:raises UnavailableError: it would need more memory than is free, or is not asked at this n."""
        if self.largest is not None and fitted.n > self.largest:
            raise UnavailableError(f"not asked beyond n = {self.largest:,}")
        if self.numbers is not None:
            check_memory((self.itemsize or fitted.itemsize) * self.numbers(fitted.n, t))


def check_memory(needed: int) -> None:
    """:raises UnavailableError: so many bytes are more than nine tenths of what is free."""
    free = free_bytes(torch.device("cpu"))
    if free is not None and needed > _SHARE * free:
        raise UnavailableError(f"refused: {needed / _GIB:.3g} GiB needed, {free / _GIB:.3g} GiB free")


def _under(
    context: Callable[[], contextlib.AbstractContextManager[Any]], *, split: bool = False
) -> Callable[[Fitted], Predict]:
    """GPyTorch's code under some settings.

    :param split: in blocks of :data:`BLOCK` points; what the first one leaves with the model serves all.
    """

    def build(fitted: Fitted) -> Predict:
        model: Any = fitted.build()

        def predict(x: Tensor) -> tuple[Tensor, Tensor]:
            with context(), torch.no_grad():
                parts = [model(part) for part in x.split(BLOCK)] if split else [model(x)]
                return torch.cat([part.mean for part in parts]), torch.cat([part.variance for part in parts])

        return predict

    return build


@contextlib.contextmanager
def _certified() -> Iterator[None]:
    with settings.rangeformer(), settings.solver(variances="certified"):
        yield


@contextlib.contextmanager
def cholesky(fast: bool) -> Iterator[None]:
    """GPyTorch's at every n; ``fast``: under ``fast_pred_var``."""
    host = gpytorch.settings
    with host.fast_computations(False, False, False), host.max_cholesky_size(10**9), host.fast_pred_var(fast):
        yield


def _host_numbers(n: int, t: int) -> int:
    """In blocks."""
    return _whole_numbers(n, min(t, BLOCK)) + 2 * t


def _whole_numbers(n: int, t: int) -> int:
    """All points at once. Measured with Matern-3/2: four matrices of the test points, or six of the training points;
    and their product."""
    return max(4 * t * t, 6 * n * n) + 2 * n * t


def _peer_numbers(n: int, t: int) -> int:
    return 3 * n * n + 3 * n * t


def _scikit_learn(fitted: Fitted) -> Predict:
    """:raises UnavailableError: it is not installed."""
    process = import_peer("sklearn.gaussian_process", "scikit-learn")
    wide = fitted.widened()
    model: Any = wide.build()
    mean, noise = model.mean_module.constant.item(), model.likelihood.noise.item()
    base = process.kernels.Matern(model.covar_module.base_kernel.lengthscale.detach().flatten().numpy(), nu=1.5)
    kernel = process.kernels.ConstantKernel(model.covar_module.outputscale.item()) * base
    regressor = process.GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    x, y = wide.data.train_x.numpy(), wide.data.train_y.numpy() - mean
    known: list[Any] = []

    def predict(points: Tensor) -> tuple[Tensor, Tensor]:
        if not known:
            known.append(regressor.fit(x, y))
        found, deviation = known[0].predict(points.double().numpy(), return_std=True)
        return torch.from_numpy(found) + mean, torch.from_numpy(deviation).square()

    return predict


def _gpflash(fitted: Fitted) -> Predict:
    """:raises UnavailableError: it is not installed."""
    gpflash = import_peer("gpflash")
    wide = fitted.widened()
    model: Any = wide.build()
    mean = model.mean_module.constant.item()
    data, options, values = gpflash.TrainingData(), gpflash.ModelOptions(), gpflash.HpVal()
    data.X_ndim_ntrain_mat = wide.data.train_x.numpy().T
    data.f_train_vec = wide.data.train_y.numpy() - mean
    data.sig2_f_val = model.likelihood.noise.item()
    options.kernel_id = gpflash.KernelId.Matern32
    options.has_mean_model_constant = False
    values.hp_gamma_vec = model.covar_module.base_kernel.lengthscale.detach().reciprocal().flatten().numpy()
    values.hp_sig2_k = model.covar_module.outputscale.item()
    asked = gpflash.PosteriorOptions()
    asked.return_mean = asked.return_var = True
    known: list[Any] = []

    def predict(points: Tensor) -> tuple[Tensor, Tensor]:
        if not known:
            known.append(gpflash.make_posterior(data, values, options))
        found = known[0].eval(points.double().numpy().T, asked)
        return torch.as_tensor(found.mean_post_vec) + mean, torch.as_tensor(found.var_post_vec)

    return predict


FLAG = Contender("rangeformer", "the flag, with its defaults", _under(settings.rangeformer))
HOST = Contender(
    "GPyTorch", "the flag off, GPyTorch's defaults", _under(contextlib.nullcontext, split=True), _host_numbers
)  # at small n: its Cholesky
HOST_WHOLE = Contender(
    "GPyTorch, all at once", "the same, given all points at once", _under(contextlib.nullcontext), _whole_numbers
)
CHOLESKY = "GPyTorch Cholesky"
WHOLE = "GPyTorch Cholesky, all at once"
CERTIFIED, FAST, LOVE = "rangeformer, certified", "GPyTorch Cholesky, fast_pred_var", "GPyTorch LOVE"
GPFLASH, SCIKIT_LEARN = "gpflash", "scikit-learn"
CONTENDERS = (
    FLAG,
    Contender(CERTIFIED, 'the flag with settings.solver(variances="certified")', _under(_certified)),
    Contender(CHOLESKY, "GPyTorch's Cholesky at every n", _under(lambda: cholesky(False), split=True), _host_numbers),
    # Without fast_pred_var it factorises for every block: more points at once may take less.
    Contender(WHOLE, "the same, given all points at once", _under(lambda: cholesky(False)), _whole_numbers),
    Contender(FAST, "under fast_pred_var", _under(lambda: cholesky(True), split=True), _host_numbers),
    Contender(
        LOVE,
        "GPyTorch's defaults, conjugate gradients above n = 800, under fast_pred_var",
        _under(gpytorch.settings.fast_pred_var, split=True),
        _host_numbers,
    ),
    Contender(GPFLASH, "gpflash, float64", _gpflash, _peer_numbers, itemsize=8),
    Contender(
        SCIKIT_LEARN,
        "scikit-learn's GaussianProcessRegressor, float64, the fit at given hyperparameters included",
        _scikit_learn,
        _peer_numbers,
        itemsize=8,
        largest=4000,
    ),
)
