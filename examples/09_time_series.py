# %% [markdown]
# # A time series and its parts
#
# A sum of kernels splits the CO2 record of Mauna Loa into trend, season and weather, each with a posterior of its own,
# and forecasts eleven years; two trends that fit the past alike forecast differently.
#
# The weekly record (Keeling and Whorf, Scripps Institution of Oceanography) ships with the package. The kernel is close
# to that of Rasmussen and Williams (2006, section 5.4.3).

# %%
import gpytorch
import matplotlib.pyplot as plt
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.plots import style

style.use_in_notebooks()
torch.set_default_dtype(torch.float64)

# %% tags=["parameters"] small={"EVERY": 8, "EVALUATIONS": 3}
SPLIT = 1991.0  # what is forecast begins here
EVERY = 1  # of so many weeks one is kept
EVALUATIONS = 40  # of the likelihood, at most

# %% [markdown]
# ## The data
#
# Years and ppm, as they are; `load` standardises, which is undone here so that length-scales are in years.

# %%
data = datasets.load("co2")
standardised = torch.cat([data.train_x, data.test_x])[:, 0]
ppm = torch.cat([data.train_y, data.test_y]) * data.target_scale + data.target_mean
FIRST, LAST = 1958 + 87 / 365, 2001 + 362 / 365  # 29 March and 29 December
fraction = (standardised - standardised[0]) / (standardised[-1] - standardised[0])
years = (FIRST + (LAST - FIRST) * fraction)[::EVERY]
ppm = ppm[::EVERY]

past = years < SPLIT
train_x, test_x = years[past] - SPLIT, years[~past] - SPLIT
centre = ppm[past].mean()
train_y, test_y = ppm[past] - centre, ppm[~past] - centre
print(f"{len(train_x)} weeks to train on, {len(test_x)} to forecast")

# %% [markdown]
# ## A kernel of named parts
#
# A long trend, a season whose shape drifts, changes over about a year, and weather, which one week shares with the
# next. The trend is smooth (RBF) or somewhat less so (Matérn-5/2).

# %%
K = gpytorch.kernels


def scaled(kernel, deviation, **values):
    kernel.initialize(**values)
    outer = K.ScaleKernel(kernel)
    outer.outputscale = deviation**2
    return outer


class Record(gpytorch.models.ExactGP):
    def __init__(self, trend):
        likelihood = gpytorch.likelihoods.GaussianLikelihood()
        likelihood.noise = 0.2**2
        super().__init__(train_x, train_y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        year = K.PeriodicKernel()
        year.initialize(period_length=1.0, lengthscale=1.0)
        year.raw_period_length.requires_grad_(False)  # a year is a year
        self.parts = torch.nn.ModuleDict(
            {
                "trend": scaled(trend, 50.0, lengthscale=50.0),
                "season": scaled(K.RBFKernel(), 2.5, lengthscale=90.0) * year,
                "medium": scaled(K.RBFKernel(), 0.7, lengthscale=1.0),
                "weather": scaled(K.MaternKernel(nu=0.5), 0.3, lengthscale=0.05),
            }
        )

    def forward(self, x):
        covariance = sum(kernel(x) for kernel in self.parts.values())
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), covariance)


TRENDS = {"RBF": K.RBFKernel, "Matérn-5/2": lambda: K.MaternKernel(nu=2.5)}
COLOURS = dict(zip(TRENDS, (style.VERMILION, style.BLUE), strict=True))
models, results, left_out = {}, {}, {}
for name, trend in TRENDS.items():
    models[name] = model = Record(trend())
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    with settings.rangeformer():
        results[name] = gp_rangeformer.fit.fit_mll(mll, max_evaluations=EVALUATIONS)
    left_out[name] = gp_rangeformer.predict.leave_one_out(model)
    print(f"{name}: {results[name].summary()}")
    print(f"  {left_out[name].summary()}")
    scales = {part: kernel for part, kernel in model.parts.items() if part != "season"}
    scales["season's shape"] = model.parts["season"].kernels[0]
    told = (f"{part} {kernel.base_kernel.lengthscale.item():.2g}" for part, kernel in scales.items())
    print(f"  length-scales in years: {', '.join(told)}; noise {model.likelihood.noise.sqrt().item():.2f} ppm")

# %% [markdown]
# The two likelihoods differ by less than their intervals, the leave-one-out scores by a few thousandths: the past does
# not say which trend it is.
#
# ## The forecast

# %%
grid = torch.linspace(float(train_x[0]), float(test_x[-1]) + 4, 1200)
forecasts = {}
for name, model in models.items():
    model.eval()
    with settings.rangeformer(), torch.no_grad():
        predicted, whole = model.likelihood(model(test_x)), model(grid)
        mean, deviation = predicted.mean, predicted.stddev
        forecasts[name] = whole.mean, whole.stddev
    error = test_y - mean
    inside = (error.abs() < 1.96 * deviation).double().mean().item()
    print(
        f"{name:11} {len(test_y)} weeks: RMSE {error.square().mean().sqrt():.2f} ppm, {inside:.0%} inside the 95 % "
        f"band, +- {1.96 * deviation[0]:.1f} ppm at first, +- {1.96 * deviation[-1]:.1f} at last"
    )
    assert deviation[-1] > deviation[0]

# %% tags=["thumbnail"]
fig, axis = plt.subplots()
recent, ahead = train_x > -8, grid > -8
axis.plot(train_x[recent] + SPLIT, train_y[recent] + centre, ".", ms=2.5, color="#999999", label="training weeks")
axis.plot(test_x + SPLIT, test_y + centre, ".", ms=2.5, color=style.BLACK, label="what happened")
for name, (mean, deviation) in forecasts.items():
    half = 1.96 * torch.sqrt(deviation.square() + models[name].likelihood.noise.detach())
    middle = mean + centre
    axis.plot((grid + SPLIT)[ahead], middle[ahead], color=COLOURS[name], lw=1, label=f"{name} trend, 95 %")
    axis.fill_between(
        (grid + SPLIT)[ahead], (middle - half)[ahead], (middle + half)[ahead], color=COLOURS[name], alpha=0.2, lw=0
    )
axis.axvline(SPLIT, color="#888888", lw=0.8, ls=":")
axis.set(xlabel="year", ylabel="CO2 (ppm)")
axis.legend(loc="upper left")
plt.show()

# %% [markdown]
# The weeks of a forecast are not independent draws: a trend is above or below for years on end, so the share of weeks
# inside is one outcome, not hundreds. Still, the smooth trend is too sure of itself: it takes 33 years of slow growth
# for a promise. What is far ahead is decided by the prior.

# %% [markdown]
# ## The parts
#
# A sum of independent functions is observed, $y = m + f_1 + \dots + f_4 + e$. Each has the posterior
#
# $$ E f_k(x) = k_k(x, X) A^{-1} (y - m), \quad
#    \mathrm{var} f_k(x) = k_k(x, x) - k_k(x, X) A^{-1} k_k(X, x), $$
#
# with the one $A = K + D$ of the whole model. So all of them are one `solve` with many columns, which goes through the
# plug-in. It is asked for a factorisation here: variances of 0.01 are differences of variances of 1000, which takes
# more digits than iterations give.
#
# One thing the sum leaves open: a constant can be moved from trend to season. The season's average is given to the
# trend.

# %%
model = models["Matérn-5/2"]
mean, deviation = forecasts["Matérn-5/2"]
model.train()
with settings.rangeformer(), settings.solver(gp_rangeformer.Exact()), torch.no_grad():
    prior = model(train_x)
    A = model.likelihood(prior).lazy_covariance_matrix
    crosses = {name: kernel(train_x, grid).to_dense() for name, kernel in model.parts.items()}
    variances = {name: kernel(grid, diag=True) for name, kernel in model.parts.items()}

    average = model.parts["season"](grid).to_dense().mean(1)  # its covariance with the season
    variances["season"] += average.mean() - 2 * average
    variances["trend"] += average.mean()
    shift = crosses["season"].mean(1, keepdim=True)
    crosses["season"] -= shift
    crosses["trend"] += shift

    solved = A.solve(torch.cat([(train_y - prior.mean)[:, None], *crosses.values()], dim=1))
    print(gp_rangeformer.last_report().summary())

weights, *solutions = solved.split([1] + len(crosses) * [len(grid)], dim=1)
part_mean = {name: (cross.mT @ weights).squeeze(1) for name, cross in crosses.items()}
part_deviation = {
    name: (variances[name] - (crosses[name] * solution).sum(0)).clamp_min(0).sqrt()
    for name, solution in zip(crosses, solutions, strict=True)
}

constant = model.mean_module.constant.item()
difference = (sum(part_mean.values()) + constant - mean).abs().max().item()
print(f"the parts add up to the whole within {difference:.1e} ppm")
assert difference < 0.01 * model.likelihood.noise.sqrt().item()  # what a predictive mean is certified to

# %%
fig, axes = plt.subplots(4, 1, figsize=(8.2, 7.2), sharex=True)
for axis, (name, its_mean) in zip(axes, part_mean.items(), strict=True):
    middle = its_mean + (constant + centre if name == "trend" else 0)
    half = 1.96 * part_deviation[name]
    axis.plot(grid + SPLIT, middle, color=style.BLUE, lw=1)
    axis.fill_between(grid + SPLIT, middle - half, middle + half, color=style.BLUE, alpha=0.25, lw=0)
    axis.axvline(SPLIT, color="#888888", lw=0.8, ls=":")
    axis.set(ylabel=f"{name} (ppm)")
axes[0].set_title("Posterior of each part, 95 % bands; the data end at the dotted line")
axes[-1].set_xlabel("year")
plt.show()

# %% [markdown]
# ## What the sum knows better than its parts
#
# The record says what the parts add up to, and less of how to share that out: a warm spell of two years may be trend or
# medium term. Parts that are uncertain against each other are negatively correlated: as if independent, they would be
# less certain together than they are.

# %%
apart = torch.sqrt(sum(value.square() for value in part_deviation.values()))
at = len(grid) // 3
for name, value in {**part_deviation, "all, as if independent": apart, "their sum": deviation}.items():
    print(f"{name:23} +- {1.96 * value[at]:.2f} ppm in {grid[at] + SPLIT:.0f}")
assert deviation[at] < apart[at]

# %% [markdown]
# ## The season
#
# One part alone, at times of one's own: three years of it, each less its average.

# %%
month = torch.linspace(0, 1, 100)
fig, axis = plt.subplots(figsize=(8.2, 3.2))
swings = {}
with settings.rangeformer(), settings.solver(gp_rangeformer.Exact()), torch.no_grad():
    for year, colour in ((1960, style.SKY), (1975, style.GREEN), (1990, style.BLACK)):
        times = month + year - SPLIT
        cross = model.parts["season"](train_x, times).to_dense()
        centring = torch.eye(len(month)) - 1 / len(month)
        cross = cross @ centring
        shape = (cross.mT @ weights).squeeze(1)
        before = centring @ model.parts["season"](times).to_dense() @ centring
        half = 1.96 * (before - cross.mT @ A.solve(cross)).diagonal().clamp_min(0).sqrt()
        swings[year] = (shape.max() - shape.min()).item()
        axis.plot(12 * month, shape, color=colour, lw=1, label=str(year))
        axis.fill_between(12 * month, shape - half, shape + half, color=colour, alpha=0.25, lw=0)
axis.set(xlabel="month", ylabel="season (ppm)", title="The swing has grown; 95 % bands", xticks=range(0, 13, 2))
axis.legend()
plt.show()
print("from highest to lowest: " + ", ".join(f"{year} {swing:.1f} ppm" for year, swing in swings.items()))
