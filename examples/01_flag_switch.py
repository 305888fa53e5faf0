# %% [markdown]
# # One flag
#
# The same GPyTorch code fits the CO2 record of Mauna Loa twice, with Cholesky and inside one flag: the same likelihood,
# the same forecast, in a fraction of the time.
#
# The weekly record (Keeling and Whorf, Scripps Institution of Oceanography) ships with the package. The model, the
# optimiser and the predictions do not change inside `gp_rangeformer.settings.rangeformer()`. What changes is who solves
# with the kernel matrix, and that every call comes with a report of how accurate it was.

# %%
import time

import gpytorch
import matplotlib.pyplot as plt
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab import datasets, models
from gp_rangeformer.lab.plots import style

style.use_in_notebooks()

# %% tags=["parameters"] small={"N": 1500, "STEPS": 1}
N = 1780  # weeks to train on: all of them
STEPS = 30  # of Adam

# %%
data = datasets.load("co2", n=N)
print(data.source)
print(f"{len(data.train_x)} weeks to train on, {len(data.test_x)} later weeks to forecast")

# %% [markdown]
# ## An ordinary GPyTorch model
#
# A long trend, a yearly cycle whose shape drifts, and medium-term irregularities (Rasmussen and Williams 2006, section
# 5.4.3). Inputs and targets are standardised, so a year has to be expressed in standardised units.

# %%
K = gpytorch.kernels
YEAR = models.year_length(data)


class CO2Model(gpytorch.models.ExactGP):
    def __init__(self, x, y, likelihood):
        super().__init__(x, y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.trend = K.ScaleKernel(K.RBFKernel())
        self.cycle = K.PeriodicKernel()
        self.drift = K.ScaleKernel(K.RBFKernel())
        self.medium = K.ScaleKernel(K.RQKernel())
        self.cycle.period_length = YEAR
        self.cycle.raw_period_length.requires_grad_(False)  # a year is a year
        for kernel, variance, lengthscale in (
            (self.trend, 5.0, 50 * YEAR),
            (self.drift, 0.05, 40 * YEAR),
            (self.medium, 0.01, YEAR),
        ):
            kernel.outputscale, kernel.base_kernel.lengthscale = variance, lengthscale

    def forward(self, x):
        covariance = self.trend(x) + self.drift(x) * self.cycle(x) + self.medium(x)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), covariance)


def new_model():
    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    likelihood.noise = 0.01
    return CO2Model(data.train_x, data.train_y, likelihood).double(), likelihood.double()


def fit(model, likelihood):
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.05)
    values, seconds = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = -mll(model(data.train_x), data.train_y)
        loss.backward()
        optimizer.step()
        values.append(-loss.item())
        seconds.append(time.perf_counter() - started)
    return values, seconds


def forecast(model, likelihood):
    model.eval()
    likelihood.eval()
    with torch.no_grad():
        predicted = likelihood(model(data.test_x))
    return predicted.mean, predicted.stddev


# %% [markdown]
# ## Without the flag
#
# `fast_computations(False, False, False)` is GPyTorch's way of asking for its Cholesky path, its most accurate one. (At
# this size its default is conjugate gradients.)

# %%
plain_model, plain_likelihood = new_model()
with gpytorch.settings.fast_computations(False, False, False):
    plain_values, plain_seconds = fit(plain_model, plain_likelihood)
    plain_mean, plain_std = forecast(plain_model, plain_likelihood)
print(f"log marginal likelihood per week {plain_values[-1]:.4f}, {sum(plain_seconds):.1f} s")

# %% [markdown]
# ## With the flag: the same code in one more context

# %%
flag_model, flag_likelihood = new_model()
with settings.rangeformer(), gp_rangeformer.collect_reports() as reports:
    flag_values, flag_seconds = fit(flag_model, flag_likelihood)
    training_reports = [report for report in reports if report.operation == "inv_quad_logdet"]
    flag_mean, flag_std = forecast(flag_model, flag_likelihood)
print(f"log marginal likelihood per week {flag_values[-1]:.4f}, {sum(flag_seconds):.1f} s")
largest = max(abs(a - b) for a, b in zip(plain_values, flag_values, strict=True))
print(f"largest difference to Cholesky over the fit: {largest:.1e}")

# %% [markdown]
# ## What the reports say
#
# `last_report()` is the most recent call, `collect_reports()` gathers all of them. With every training step comes an
# interval that *certainly* contains the log marginal likelihood; where the log determinant is estimated, as it is from
# 1,500 points on, a tighter statistical one besides. The two are never mixed up.

# %%
print(training_reports[0].summary())
print(training_reports[-1].summary())
print(gp_rangeformer.last_report().summary())
for (operation, solver, reason), count in reports.counts.items():
    print(f"{count:3d} x {operation} by {solver}: {reason}")
print("answers outside tolerance, hence replaced by Cholesky:", reports.fallbacks)
assert reports.fallbacks == 0

# %%
n = len(data.train_x)
steps = range(1, STEPS + 1)
inside = [r.mll_interval.contains(n * value) for r, value in zip(training_reports, plain_values, strict=True)]
# Both fits take the same steps to rounding at first; later each has parameters of its own.
assert inside[0]
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
left.plot(steps, plain_values, color=style.ORANGE, lw=4, alpha=0.6, label="GPyTorch, Cholesky")
left.plot(steps, flag_values, color=style.BLUE, lw=1.2, label="with the flag")
left.fill_between(
    steps,
    [r.mll_interval.lower / n for r in training_reports],
    [r.mll_interval.upper / n for r in training_reports],
    color=style.BLUE,
    alpha=0.2,
    lw=0,
    label="certified interval",
)
left.set(xlabel="Adam step", ylabel="log marginal likelihood per week")
left.legend()
residuals = [r.residual for r in training_reports]
right.semilogy(steps, residuals, "o", ms=4, color=style.BLUE, label="largest relative residual")
right.axhline(settings.solver.value().tolerance, color="#444444", ls="--", lw=1, label="tolerance")
right.set(xlabel="Adam step", ylabel="certified residual", ylim=(1e-5, 1))
right.legend(loc="upper right", ncols=2)
plt.show()

# %% [markdown]
# ## Forecast, 95 % bands


# %% tags=["thumbnail"]
def years(x):
    return 1958.24 + (x - data.train_x[0, 0]).squeeze(-1) / YEAR


def ppm(standardised):
    return standardised * data.target_scale + data.target_mean


fig, axis = plt.subplots(figsize=(11, 3.8))
axis.plot(years(data.train_x)[-400:], ppm(data.train_y)[-400:], ".", ms=2, color="#999999", label="training weeks")
axis.plot(years(data.test_x), ppm(data.test_y), ".", ms=3, color="black", label="what happened")
for mean, std, color, width, label in (
    (plain_mean, plain_std, style.ORANGE, 5, "GPyTorch, Cholesky"),
    (flag_mean, flag_std, style.BLUE, 1.5, "with the flag"),
):
    axis.plot(years(data.test_x), ppm(mean), color=color, lw=width, label=label)
    axis.fill_between(years(data.test_x), ppm(mean - 2 * std), ppm(mean + 2 * std), color=color, alpha=0.15, lw=0)
axis.set(xlabel="year", ylabel="CO2 (ppm)")
axis.legend(loc="upper left")
plt.show()

# %%
rmse = ((flag_mean - data.test_y).square().mean().sqrt() * data.target_scale).item()
mean_apart = ((flag_mean - plain_mean).abs().max() * data.target_scale).item()
std_apart = ((flag_std - plain_std).abs().max() * data.target_scale).item()
print(f"forecast error with the flag {rmse:.2f} ppm")
print(
    f"largest difference to Cholesky: {mean_apart:.3f} ppm in the mean, {std_apart:.4f} ppm in the standard deviation"
)
assert mean_apart < 0.1 * (flag_std.min() * data.target_scale)
