# %% [markdown]
# # Functions from the posterior, and where to measure next
#
# Posterior functions that can be evaluated anywhere find where a maximum may be, and choosing where to measure needs
# fewer measurements than chance where chance is wasteful.
#
# `sample_paths` draws the functions, `set_train_data` and `get_fantasy_model` take new measurements, all inside the
# flag.

# %%
import math
import time

import gpytorch
import matplotlib.pyplot as plt
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab.plots import style

style.use_in_notebooks()
torch.set_default_dtype(torch.float64)

# %% tags=["parameters"] small={"PATHS": 16, "POOL": 100, "ROUNDS": 2, "REFERENCES": 50, "SEEDS": 1, "LARGE": 200}
N, PATHS = 60, 256  # measurements, functions
START, BATCH, ROUNDS, POOL = 30, 10, 12, 600  # of active learning: measurements, rounds, and where more can be had
REFERENCES, SEEDS = 200, 3  # points that errors are averaged over, repetitions
LARGE = 2500  # measurements that a few are added to

# %% [markdown]
# ## A function of two variables, measured with noise

# %%
NOISE = 0.1


def truth(x):
    """Two hills of nearly the same height, and waves between them. x: n x 2 in [-1, 1]."""
    one = torch.exp(-8 * (x - torch.tensor([0.5, 0.4])).square().sum(-1))
    other = 1.02 * torch.exp(-8 * (x + torch.tensor([0.5, 0.3])).square().sum(-1))
    return 2 * (one + other) + 0.3 * torch.sin(5 * x[..., 0]) * torch.cos(4 * x[..., 1])


def measured(x, generator):
    return truth(x) + NOISE * torch.randn(len(x), generator=generator)


class Surface(gpytorch.models.ExactGP):
    def __init__(self, x, y):
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=2.5, ard_num_dims=2))

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def fitted(x, y):
    model = Surface(x, y)
    with settings.rangeformer():
        result = gp_rangeformer.fit.fit_mll(gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model))
    return model.eval(), result


generator = torch.Generator().manual_seed(0)
x = 2 * torch.rand(N, 2, generator=generator) - 1
model, result = fitted(x, measured(x, generator))
print(result.summary())

# %% [markdown]
# ## Functions
#
# Each path is a function: the same values whenever it is asked, with a gradient. Along a line through both hills, their
# mean and spread are those of the posterior, within what so many draws allow.

# %%
paths = gp_rangeformer.predict.sample_paths(model, PATHS)
along = torch.linspace(-1, 1, 200)
line = torch.stack([along, 0.7 * along + 0.05], dim=1)
with settings.rangeformer(), torch.no_grad():
    posterior = model(line)
    mean, deviation = posterior.mean, posterior.stddev
values = paths(line).detach()
print(paths.reports[0].summary())

standard = (values.mean(0) - mean) / deviation * math.sqrt(PATHS)
spread = values.var(0) / deviation.square()
print(f"mean of the paths off by at most {standard.abs().max():.1f} standard errors,")
print(f"variance {spread.min():.2f} to {spread.max():.2f} times the posterior's")
# Draws of a point are Gaussian: five standard errors, and what the paths' waves may add to the variance.
assert standard.abs().max() < 5.5
assert (spread - 1).abs().max() < 5 * math.sqrt(2 / (PATHS - 1)) + 0.15

fig, axis = plt.subplots()
axis.plot(along, values[:8].mT, lw=0.8, color=style.SKY)
axis.plot(along, mean, color=style.BLUE, label="mean")
axis.fill_between(along, mean - 1.96 * deviation, mean + 1.96 * deviation, color=style.BLUE, alpha=0.2, lw=0)
axis.plot(along, truth(line), "--", color=style.BLACK, lw=1, label="truth")
axis.set(xlabel="along a line through both hills", title="Eight functions from the posterior, and its 95 % band")
axis.legend()
plt.show()

# %% [markdown]
# ## Where is the maximum?
#
# Every path has one. Gradients take it there from the best of a grid: all paths at once, each from its own start. The
# share of paths on a hill is the probability that the maximum is there; Thompson sampling would measure at one of these
# points, drawn at random.

# %%
side = torch.linspace(-1, 1, 41)
grid = torch.cartesian_prod(side, side)
on_grid = paths(grid).detach()
points = grid[on_grid.argmax(1)].clone().requires_grad_()
optimizer = torch.optim.Adam([points], lr=0.01)
for _ in range(30):
    optimizer.zero_grad()
    own = paths(points).diagonal()  # path i at point i
    (-own.sum()).backward()
    optimizer.step()
    with torch.no_grad():
        points.clamp_(-1, 1)
best = paths(points.detach()).diagonal()
assert (best >= on_grid.amax(1) - 0.02).all()  # an ascent that overshoots loses no more

on_first = (points.detach() - torch.tensor([0.5, 0.4])).norm(dim=1) < 0.5
print(f"{on_first.double().mean():.0%} of the functions have their maximum on the right hill, which is the higher one")

# %% tags=["thumbnail"]
fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.4))
extent = (-1, 1, -1, 1)
with settings.rangeformer(), torch.no_grad():
    surface = model(grid).mean
for axis, field, title in (
    (left, surface, "Mean, and maxima of functions"),
    (right, on_grid[0], "One function"),
):
    image = axis.imshow(field.view(41, 41).mT, origin="lower", extent=extent, interpolation="bilinear")
    axis.set(xlabel="$x_1$", ylabel="$x_2$", title=title)
    axis.grid(visible=False)
    fig.colorbar(image, ax=axis, shrink=0.85)
left.plot(*points.detach().mT, ".", ms=4, color=style.VERMILION)
right.plot(*points.detach()[0], "*", ms=11, color=style.VERMILION)
plt.show()

# %% [markdown]
# ## Where to measure next
#
# A pool of points that could be measured, and three ways to choose ten at a time: by chance, the most uncertain ones,
# or those that leave the whole region least uncertain. Hyperparameters stay those of the fit above, so that variances
# do not depend on the values, and ten are chosen one by one, each given those before.
#
# In one pool the points are spread evenly. In the other nine of ten crowd into a corner, as in data that were collected
# where it was easy. Errors are over the whole region.

# %%
references = 2 * torch.rand(REFERENCES, 2, generator=generator) - 1
observation_noise = model.likelihood.noise.detach()


def chosen(model, pool, way, generator):
    """Numbers of the next points of the pool."""
    if way == "chance":
        return torch.randperm(len(pool), generator=generator)[:BATCH].tolist()
    with settings.rangeformer(), torch.no_grad():
        covariance = model(torch.cat([pool, references])).covariance_matrix
    taken = []
    for _ in range(BATCH):
        variance = covariance.diagonal()[: len(pool)]
        uncertain = variance + observation_noise
        known = covariance[: len(pool), len(pool) :].square().sum(1) / uncertain
        best = int((variance if way == "most uncertain" else known).argmax())
        taken.append(best)
        # What is left once it is measured there, whatever the value.
        row = covariance[best].clone()
        covariance = covariance - torch.outer(row, row / uncertain[best])
    return taken


def learn(pool, way, seed):
    """Errors over the region, by round."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randperm(len(pool), generator=generator)[:START]
    x = pool[first]
    y = measured(x, generator)
    learner = Surface(x, y)
    learner.load_state_dict(model.state_dict())
    learner.eval()
    errors = []
    for _ in range(ROUNDS):
        with settings.rangeformer(), torch.no_grad():
            errors.append((learner(references).mean - truth(references)).square().mean().sqrt().item())
        new = pool[chosen(learner, pool, way, generator)]
        x, y = torch.cat([x, new]), torch.cat([y, measured(new, generator)])
        learner.set_train_data(x, y, strict=False)
    return errors


# %%
even = 2 * torch.rand(POOL, 2, generator=generator) - 1
corner = torch.rand(POOL, 2, generator=generator) * 0.5 - 1
corner[: POOL // 10] = even[: POOL // 10]
WAYS = {"chance": "#777777", "most uncertain": style.VERMILION, "least left": style.BLUE}
fig, axes = plt.subplots(1, 2, sharey=True)
started = time.perf_counter()
last = {}
for axis, (kind, pool) in zip(axes, {"even": even, "crowded": corner}.items(), strict=True):
    for way, colour in WAYS.items():
        errors = torch.tensor([learn(pool, way, seed) for seed in range(SEEDS)]).mean(0)
        last[kind, way] = errors[-1].item()
        axis.semilogy(START + BATCH * torch.arange(ROUNDS), errors, color=colour, label=way)
    axis.set(xlabel="measurements", title=f"{kind} pool")
    print(f"{kind:8} error at the end: " + ", ".join(f"{way} {last[kind, way]:.3f}" for way in WAYS))
axes[0].set_ylabel("RMSE over the region")
axes[0].set_yticks([0.05, 0.1, 0.2, 0.4], ["0.05", "0.1", "0.2", "0.4"])
axes[0].minorticks_off()
axes[0].legend()
plt.show()
print(f"{time.perf_counter() - started:.1f} s for {6 * SEEDS} runs of {ROUNDS} rounds")

# %% [markdown]
# Where the pool is even, chance is nearly as good: choosing pays where chance is wasteful. At so few measurements the
# flag saves nothing: GPyTorch answers.
#
# ## A few more measurements
#
# At a few thousand it does. `get_fantasy_model` adds measurements to what a model knows: GPyTorch takes a root of the
# whole matrix, the plug-in one factorisation, to which later measurements are appended; beyond 4,000 points it solves
# once, from the solution that it has.

# %%
x = 2 * torch.rand(LARGE, 2, generator=generator) - 1
y = measured(x, generator)
new_x = references[:BATCH]
new_y = measured(new_x, generator)


def extended(context):
    """Mean with the new measurements, and the seconds until it is there."""
    large = Surface(x, y)
    large.load_state_dict(model.state_dict())
    large.eval()
    with context, torch.no_grad():
        _ = large(references).mean  # what is known before
        started = time.perf_counter()
        mean = large.get_fantasy_model(new_x, new_y)(references).mean
        return mean, time.perf_counter() - started


flag_mean, flag_seconds = extended(settings.rangeformer())
report = gp_rangeformer.last_report()
plain_mean, plain_seconds = extended(gpytorch.settings.fast_computations(False, False, False))
print(f"{BATCH} more measurements: {flag_seconds:.2f} s with the flag, {plain_seconds:.2f} s with GPyTorch's Cholesky")
print(report.summary())
difference = ((flag_mean - plain_mean).abs().max() / observation_noise.sqrt()).item()
print(f"means differ by at most {difference:.1e} deviations of the noise")
assert difference < settings.solver.value().prediction_error
