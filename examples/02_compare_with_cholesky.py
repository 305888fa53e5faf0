# %% [markdown]
# # Compared with Cholesky
#
# Over length-scale and noise the exact likelihood is always in the interval that the flag certifies, while conjugate
# gradients drift away without a word; and training arrives sooner.
#
# Two questions: is the value right, everywhere and not only where a fit happens to pass? And how many seconds does a
# training take to come near the optimum? Cholesky in float64 is the judge of both.

# %%
import contextlib
import time

import gpytorch
import linear_operator
import matplotlib.pyplot as plt
import numpy as np
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.plots import style

style.use_in_notebooks()
COLOURS = style.SOLVER_COLOURS

# %% tags=["parameters"] small={"N": 250, "GRID": 3, "N_FIT": 300, "STEPS": 3}
N, GRID = 1000, 11  # points, and values of either hyperparameter
N_FIT, STEPS = 2000, 60  # points of the training, steps of Adam

# %% [markdown]
# ## A surface
#
# A small set of a simulator that ships with the package, one length-scale for all inputs, and three ways to ask for the
# same number, log p(y) / n. None remembers anything from one place to the next (`settings.deterministic()`), so that no
# seconds are gained here: a set this small needs no iterative solver, but has an exact answer at every place.

# %%
data = datasets.load("robot_arm", n=N)
print(data.source)


class Model(gpytorch.models.ExactGP):
    def __init__(self, data, **lengthscale):
        super().__init__(data.train_x, data.train_y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, **lengthscale))

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


@contextlib.contextmanager
def cholesky():
    with gpytorch.settings.fast_computations(False, False, False):
        yield


@contextlib.contextmanager
def conjugate_gradients():  # GPyTorch's default for large n, here at any n
    with linear_operator.settings.max_cholesky_size(1):
        yield


@contextlib.contextmanager
def flag():
    with settings.rangeformer(), settings.min_size(1):  # the iterative solver at any n
        yield


# %%
lengthscales = np.geomspace(0.3, 10, GRID)
noises = np.geomspace(1e-3, 1, GRID)
model = Model(data).double()
mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)


def surface(solver):
    """log p(y) / n at every place, and the reports of the plug-in."""
    values = np.empty((GRID, GRID))
    torch.manual_seed(0)
    started = time.perf_counter()
    with solver(), settings.deterministic(), gp_rangeformer.collect_reports() as reports, torch.no_grad():
        for i, noise in enumerate(noises):
            for j, lengthscale in enumerate(lengthscales):
                model.likelihood.noise, model.covar_module.base_kernel.lengthscale = noise, lengthscale
                values[i, j] = mll(model(data.train_x), data.train_y)
    print(f"{solver.__name__:20} {time.perf_counter() - started:5.1f} s for {GRID**2} likelihoods")
    return values, reports


exact, _ = surface(cholesky)
with_cg, _ = surface(conjugate_gradients)
with_flag, reports = surface(flag)
assert {report.solver for report in reports} == {"rangeformer"}

# %%
certain = np.array([[r.mll_interval.lower / N, r.mll_interval.upper / N] for r in reports]).reshape(GRID, GRID, 2)
likely = np.array([[r.mll_statistical.lower / N, r.mll_statistical.upper / N] for r in reports]).reshape(GRID, GRID, 2)
errors = {"with the flag": np.abs(with_flag - exact), "GPyTorch's CG": np.abs(with_cg - exact)}
half_widths = {
    "statistical interval": (likely[..., 1] - likely[..., 0]) / 2,
    "certain interval": (certain[..., 1] - certain[..., 0]) / 2,
}

inside = (certain[..., 0] <= exact) & (exact <= certain[..., 1])
share = ((likely[..., 0] <= exact) & (exact <= likely[..., 1])).mean()
print(f"inside the certain interval: {inside.sum()} of {inside.size}; inside the statistical one: {share:.0%}")
for name, error in errors.items():
    print(f"{name:14} off by {np.median(error):.1e} nats per point (median), {error.max():.1e} (most)")
assert inside.all()

# %% [markdown]
# ### What the three look like
#
# The lines are the same in all panels; the cross marks the highest value of the grid.

# %%
levels = -np.array([3, 2, 1.5, 1, 0.7, 0.4, 0.2, 0.1, 0.05, 0.02, 0])
norm = plt.matplotlib.colors.BoundaryNorm(levels, 256, extend="both")
fig, panels = plt.subplots(1, 3, figsize=(11, 3.6), sharey=True)
for axes, (name, values) in zip(
    panels, {"exact": exact, "with the flag": with_flag, "GPyTorch's CG": with_cg}.items(), strict=True
):
    below = values - exact.max()
    filled = axes.contourf(lengthscales, noises, below, levels, norm=norm, cmap="cividis", extend="both")
    axes.contour(lengthscales, noises, below, levels, colors="white", linewidths=0.5, linestyles="-")
    row, column = np.unravel_index(values.argmax(), values.shape)
    axes.plot(lengthscales[column], noises[row], "x", color="black", ms=8, mew=2)
    axes.set(xscale="log", yscale="log", title=name, xlabel="length-scale")
panels[0].set_ylabel("noise")
fig.colorbar(filled, ax=panels, label="log p(y) / n, less the highest exact")
plt.show()

# %% [markdown]
# ### How far off, and how far off it says
#
# The first two panels are errors, which nobody knows in practice; the others are what the report states. (Places
# share their probes, and with them their luck: the share inside the statistical interval is not one of many draws.)

# %%
fig, panels = plt.subplots(1, 4, figsize=(11, 3.1), sharey=True)
norm = plt.matplotlib.colors.LogNorm(1e-6, 1)
for axes, (name, values) in zip(panels, {**errors, **half_widths}.items(), strict=True):
    image = axes.pcolormesh(lengthscales, noises, values.clip(1e-6), norm=norm, cmap="cividis", shading="nearest")
    kind = "error" if name in errors else "half width"
    axes.set(xscale="log", yscale="log", title=f"{kind}: {name}", xlabel="length-scale")
    axes.grid(visible=False)
panels[0].set_ylabel("noise")
fig.colorbar(image, ax=panels, label="nats per point")
plt.show()

# %% [markdown]
# ### One line through it
#
# At the best length-scale, relative to the exact value: zero is right.

# %% tags=["thumbnail"]
column = np.unravel_index(exact.argmax(), exact.shape)[1]
fig, axes = plt.subplots(figsize=(8.2, 3.8))
origin = exact[:, column]
for bounds, alpha, name in ((certain, 0.15, "certain interval"), (likely, 0.45, "statistical interval")):
    lower, upper = bounds[:, column, 0] - origin, bounds[:, column, 1] - origin
    axes.fill_between(noises, lower, upper, color=COLOURS["rangeformer"], alpha=alpha, lw=0, label=name)
axes.axhline(0, color="black", lw=1, ls="--", label="exact")
axes.plot(noises, with_flag[:, column] - origin, color=COLOURS["rangeformer"], lw=2, label="with the flag")
axes.plot(noises, with_cg[:, column] - origin, "o-", color=COLOURS["cg"], ms=4, label="GPyTorch's CG")
axes.set_yscale("symlog", linthresh=1e-3)
axes.set(xscale="log", xlabel="noise", ylabel="log p(y) / n, less the exact value")
fig.legend(loc="outside lower center", ncols=5)
plt.show()

# %% [markdown]
# ## Training, against seconds
#
# A length-scale per input, float32 as such models are usually run, the same start. Adam on three solvers, and
# `fit_mll`, which needs no step size. Where each of them was is judged afterwards by exact float64 likelihoods; the
# best of all is drawn at 1e-5. Adam takes the same steps whoever solves, and is far from the end when it stops here.

# %%
data = datasets.load("robot_arm", n=N_FIT).to(torch.float32)
judge = Model(datasets.load("robot_arm", n=N_FIT), ard_num_dims=data.train_x.shape[1]).double()
judge_mll = gpytorch.mlls.ExactMarginalLogLikelihood(judge.likelihood, judge)


def judged(states):
    """Exact likelihoods of ten of them, spread over the training."""
    chosen = sorted({round(at) for at in np.geomspace(1, len(states), 10)})
    values = []
    for number in chosen:
        judge.load_state_dict(states[number - 1])
        with torch.no_grad(), settings.rangeformer(), settings.solver(gp_rangeformer.Exact()):
            values.append(float(judge_mll(judge(*judge.train_inputs), judge.train_targets)))
    return [number - 1 for number in chosen], values


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def adam(solver):
    model = Model(data, ard_num_dims=data.train_x.shape[1])
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    seconds, states = [], []
    with solver():
        started = time.perf_counter()
        for _ in range(STEPS):
            optimizer.zero_grad()
            loss = -mll(model(data.train_x), data.train_y)
            loss.backward()
            optimizer.step()
            seconds.append(time.perf_counter() - started)
            states.append(copied(model))
    return seconds, states


def converged():
    model = Model(data, ard_num_dims=data.train_x.shape[1])
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    seconds, states = [], []

    def watch(record):
        if record.points == N_FIT:
            seconds.append(record.seconds)
            states.append(copied(model))

    with flag():
        result = gp_rangeformer.fit.fit_mll(mll, callback=watch)
    seconds.append(result.seconds)
    states.append(copied(model))
    print(result.summary())
    return seconds, states


runs = {
    "GPyTorch, Cholesky": adam(cholesky),
    "GPyTorch, CG": adam(conjugate_gradients),
    "with the flag": adam(flag),
    "with the flag, fit_mll": converged(),
}

# %%
curves = {name: judged(states) for name, (_, states) in runs.items()}
best = max(max(values) for _, values in curves.values())
fig, axes = plt.subplots(figsize=(8.2, 3.8))
colours = (COLOURS["cholesky"], COLOURS["cg"], COLOURS["rangeformer"], COLOURS["rangeformer"])
for (name, (places, values)), colour in zip(curves.items(), colours, strict=True):
    seconds = [runs[name][0][place] for place in places]
    dashes = "--" if "fit_mll" in name else "-"
    axes.loglog(seconds, np.maximum(best - np.array(values), 1e-5), dashes, marker="o", ms=4, color=colour, label=name)
    print(f"{name:24} {seconds[-1]:6.1f} s, ends {best - values[-1]:.4f} nats per point below the best")
axes.set(xlabel="seconds", ylabel="nats per point below the best (exact)")
axes.legend()
plt.show()
assert best - curves["with the flag, fit_mll"][1][-1] < 0.01
