"""Functions drawn from the posterior of a trained model, by pathwise conditioning.

Wilson et al., "Efficiently sampling functions from Gaussian process posteriors" (2020) and "Pathwise conditioning of
Gaussian processes" (2021). By Matheron's rule

    f*(x) = f(x) + k(x, X) A^-1 (y - f(X) - e),  A = K + D,  e ~ N(0, D),

is drawn from the posterior where f is from the prior. The prior's f is a sum of random waves; the update is exact to
the tolerance of its solve.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from gp_rangeformer import settings
from gp_rangeformer.kernels.cross import CrossKernel
from gp_rangeformer.kernels.embedding import embed
from gp_rangeformer.kernels.features import RandomFunctions, SpectralFeatures, coordinates
from gp_rangeformer.plugin.fitted import fitted_model
from gp_rangeformer.predict.prior import FrozenPrior, recordable_tensors, strategy_of
from gp_rangeformer.report import SolveReport, collect_reports
from gp_rangeformer.torch_modes import no_autocast

# Beside data they leave posterior variances 2 to 6 % off (Matern-3/2 on kin40k, bike, pol and elevators, and an RBF
# kernel, n = 1500): about the sampling error of a thousand paths.
FEATURES = 2048


def sample_paths(model: torch.nn.Module, count: int, *, features: int = FEATURES, seed: int = 0) -> SamplePaths:
    """``count`` independent functions from the posterior of a trained :class:`gpytorch.models.ExactGP`.

    The model is one of a single output, without a batch, in either mode, BoTorch's SingleTaskGP among them; it is left
    as it is. Two solves by the plug-in, whatever the flag: one column for the mean, as accurate as predictive means
    (:func:`~gp_rangeformer.solvers.predictive_means.mean_solve`) and that of predictions made before, and one of
    ``count`` columns; ``settings.solver`` and the fallbacks apply.

    Cost: the solves, O(n features (d + count)) for the prior at the training points, and n x count memory beside K's.

    :param count: of functions. Each costs a column of every pass over K.
    :param features: of the prior, sines and cosines, shared by all functions; the weights are each function's own.
        Given the waves, what is drawn is Gaussian, with a covariance that is off by their error, which falls as
        features^-1/2 or faster: measured with the default, 0.3 to 2 % of the prior variance, and 2 to 6 % of the
        posterior's next to data. Evaluation costs as much for a feature as for a training point.
    :param seed: of waves, weights and noise. The same seed gives the same functions, on one machine; PyTorch's global
        generator is neither read nor moved.
    :raises ValueError: a model, kernel, likelihood or argument that is not covered, naming the remedy; data with NaN.
    :raises NanError: hyperparameters with NaN, as GPyTorch.
    """
    _check_integer("count", count, 1)
    _check_integer("features", features, 2)
    _check_integer("seed", seed, 0)
    with recordable_tensors(), no_autocast(), collect_reports(own_thread=True) as reports:
        prior = FrozenPrior(model)
        generator = torch.Generator().manual_seed(seed)
        arguments = embed(prior.expression, prior.points, prior.parameters)
        spectrum = SpectralFeatures.draw(prior.expression, arguments, features, generator)
        functions = RandomFunctions(spectrum, count, generator, prior.dtype)
        n = len(prior.points)
        unit = torch.randn(n, count, generator=generator, dtype=torch.float64, device="cpu").to(
            prior.device, prior.dtype
        )
        with settings.rangeformer():
            fitted = fitted_model(strategy_of(model))
            values = functions(coordinates(arguments, n))
            # The mean by itself: it deserves more accuracy than what varies about it.
            if fitted is not None:
                mean = fitted.solution
                varying = fitted.solve_draws(values + fitted.noise.sqrt()[:, None] * unit)
            else:
                system = prior.training_system()
                mean = system.covariance.solve(system.residual[:, None])
                varying = system.covariance.solve(values + system.noise.sqrt()[:, None] * unit)
    return SamplePaths(prior, functions, mean, varying, tuple(reports))


class SamplePaths:
    """Functions f_1, ..., f_s from the posterior of a model as it was when they were drawn: see :func:`sample_paths`.

    ``paths(x)`` are their values; ``len(paths)`` is their number; ``paths[2:5]``, ``paths[[0, 7]]`` and ``paths[3]``
    are some of them, as an object of this kind. ``reports``: of the solves behind them. They are draws of the
    noise-free f, as ``model(x)`` has it; of a BoTorch model, as ``model.posterior(x)`` has it, with its input and
    outcome transforms.
    """

    def __init__(
        self,
        prior: FrozenPrior,
        functions: RandomFunctions,
        mean: Float[Tensor, "n 1"],
        varying: Float[Tensor, "n s"],
        reports: tuple[SolveReport, ...],
    ) -> None:
        self._prior, self._functions = prior, functions
        self._mean, self._varying = mean, varying
        self.reports = reports

    def __len__(self) -> int:
        return self._varying.shape[1]

    def __iter__(self) -> Iterator[SamplePaths]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int | slice | list[int]) -> SamplePaths:
        """:raises IndexError: a number beyond the last."""
        everything = range(len(self))
        if isinstance(index, slice):
            chosen = list(everything[index])
        else:
            chosen = [everything[operator.index(one)] for one in (index if isinstance(index, list) else [index])]
        if not chosen:
            raise IndexError(f"no path of {len(self)} is chosen by {index!r}")
        return SamplePaths(
            self._prior, self._functions.some(chosen), self._mean, self._varying[:, chosen], self.reports
        )

    def __call__(self, x: Tensor) -> Float[Tensor, "s *batch t"]:
        """The values of every function at every point, s x (*batch) x t in the model's dtype, in the graph of ``x``.

        K(x, X) is made strip by strip, once, and once more in a backward pass: t n (2 D + 2 s) flops, no t x n memory.
        Second derivatives (``create_graph=True``) do take a matrix of n + t points.

        :param x: (*batch) t x d, of the model's dtype and on its device; may require a gradient.
        :raises ValueError: another shape, dtype or device, or NaN.
        """
        self._check(x)
        with no_autocast():
            inputs = self._prior.transformed(x)
            if inputs.shape[-1] != self._prior.dimensions:
                expected = self._prior.dimensions
                raise ValueError(
                    f"x has {inputs.shape[-1]} columns, the training inputs {expected}: give (*batch) t x d"
                )
            if not inputs.numel():
                return x.new_zeros(len(self), *inputs.shape[:-1])
            values = self._at(inputs.reshape(-1, inputs.shape[-1]))
            return self._prior.untransformed(values.mT.reshape(len(self), *inputs.shape[:-1]), inputs)

    def _at(self, x: Float[Tensor, "t d"]) -> Float[Tensor, "t s"]:
        prior = self._prior
        mean, inputs = prior.at(x)
        cross = CrossKernel(prior.expression, prior.points, inputs, prior.parameters)
        # Summed in float64, as a predictive mean is.
        mean = mean[:, None] + cross.product(self._mean).to(x.dtype)
        return mean + self._functions(coordinates(cross.of_others, cross.t)) - cross.product(self._varying)

    def _check(self, x: Tensor) -> None:
        if x.dim() < 2:
            raise ValueError(f"x has the shape {tuple(x.shape)}: give (*batch) t x d, one dimension as x.unsqueeze(-1)")
        if x.dtype != self._prior.dtype or x.device != self._prior.device:
            raise ValueError(
                f"x is {x.dtype} on {x.device}, the model {self._prior.dtype} on {self._prior.device}: move it with "
                f"x.to({self._prior.dtype}, device={str(self._prior.device)!r})"
            )
        if not bool(x.isfinite().all()):
            raise ValueError("x holds NaN or infinity: leave those points out")


def _check_integer(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")
