# %% [markdown]
# # Several outputs at once
#
# Batches, lists of models and tasks with inputs of their own are answered by the plug-in; a Kronecker product goes to
# GPyTorch's own code, which knows better, and the report says so.
#
# Four related functions of one input are modelled in the four ways that GPyTorch has for them. In BoTorch they are
# called `SingleTaskGP` (of several outputs), `ModelListGP`, `MultiTaskGP` and `KroneckerMultiTaskGP`.

# %%
import statistics
import time

import gpytorch
import matplotlib.pyplot as plt
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab.plots import style

style.use_in_notebooks()
kernels, likelihoods, means = gpytorch.kernels, gpytorch.likelihoods, gpytorch.means
Normal, MultitaskNormal = gpytorch.distributions.MultivariateNormal, gpytorch.distributions.MultitaskMultivariateNormal

# %% tags=["parameters"] small={"N": 110, "STEPS": 2, "REPEATS": 1}
N = 400  # points of every function
STEPS, REPEATS = 80, 5  # steps of Adam, and of what is timed

# %%
TASKS = 4
torch.manual_seed(0)
mixing = torch.tensor([[1.0, 0.2], [0.8, -0.5], [-0.3, 1.0], [0.6, 0.8]], dtype=torch.float64)


def truth(x):
    """Four mixtures of two functions; len(x) x 4."""
    return torch.stack([(16 * x).sin() + x, (11 * x).cos() * (1 - x)], dim=-1) @ mixing.mT


# Every function has inputs of its own, and the first was never observed between 0.3 and 0.8.
own_x = torch.rand(TASKS, N, dtype=torch.float64)
own_x[0] = torch.where(own_x[0] < 0.5, 0.6 * own_x[0], 0.8 + 0.4 * (own_x[0] - 0.5))
own_y = torch.stack([truth(own_x[task])[:, task] for task in range(TASKS)])
own_y += 0.2 * torch.randn(TASKS, N, dtype=torch.float64)
common_x = torch.rand(N, 1, dtype=torch.float64)
common_y = truth(common_x[:, 0]) + 0.2 * torch.randn(N, TASKS, dtype=torch.float64)

# %% [markdown]
# ## Four models


# %%
class Batch(gpytorch.models.ExactGP):
    """Independent models, evaluated together."""

    def __init__(self, x, y, shape):
        super().__init__(x, y, likelihoods.GaussianLikelihood(batch_shape=shape))
        self.mean_module = means.ConstantMean(batch_shape=shape)
        self.covar_module = kernels.ScaleKernel(kernels.RBFKernel(batch_shape=shape), batch_shape=shape)

    def forward(self, x):
        return Normal(self.mean_module(x), self.covar_module(x))


class Tasks(gpytorch.models.ExactGP):
    """One model of all (input, task) pairs: a task may be observed anywhere."""

    def __init__(self, x, task, y):
        super().__init__((x, task), y, likelihoods.GaussianLikelihood())
        self.mean_module = means.ConstantMean()
        self.covar_module = kernels.RBFKernel()
        self.task_covar_module = kernels.IndexKernel(num_tasks=TASKS, rank=2)
        self.task_covar_module.var = torch.full((TASKS,), 0.05)  # of what a task has for itself

    def forward(self, x, task):
        return Normal(self.mean_module(x), self.covar_module(x).mul(self.task_covar_module(task)))


class Kronecker(gpytorch.models.ExactGP):
    """All tasks at the same inputs: K is a Kronecker product."""

    def __init__(self, x, y):
        super().__init__(x, y, likelihoods.MultitaskGaussianLikelihood(num_tasks=TASKS))
        self.mean_module = means.MultitaskMean(means.ConstantMean(), num_tasks=TASKS)
        self.covar_module = kernels.MultitaskKernel(kernels.RBFKernel(), num_tasks=TASKS, rank=2)

    def forward(self, x):
        return MultitaskNormal(self.mean_module(x), self.covar_module(x))


every_task = torch.arange(TASKS).repeat_interleave(N).unsqueeze(-1)
batch = Batch(own_x.unsqueeze(-1), own_y, torch.Size([TASKS])).double()
each = [Batch(own_x[task].unsqueeze(-1), own_y[task], torch.Size()).double() for task in range(TASKS)]
model_list = gpytorch.models.IndependentModelList(*each)
pairs = Tasks(own_x.reshape(-1, 1), every_task, own_y.reshape(-1)).double()
kronecker = Kronecker(common_x, common_y).double()

exact = gpytorch.mlls.ExactMarginalLogLikelihood
MODELS = {
    "a batch": (batch, exact(batch.likelihood, batch)),
    "a list": (model_list, gpytorch.mlls.SumMarginalLogLikelihood(model_list.likelihood, model_list)),
    "tasks with inputs of their own": (pairs, exact(pairs.likelihood, pairs)),
    "a Kronecker product": (kronecker, exact(kronecker.likelihood, kronecker)),
}

# %% [markdown]
# ## Who answers
#
# One step each, likelihood and gradient: by GPyTorch's Cholesky, and with the flag.


# %%
def step(model, mll):
    """The loss; its gradient is in the parameters."""
    model.zero_grad()
    listed = isinstance(model, gpytorch.models.IndependentModelList)
    output = model(*model.train_inputs)
    loss = -mll(output, model.train_targets) if listed else -mll(output, model.train_targets).sum()
    loss.backward()
    return float(loss.detach())


def gradient(model):
    return torch.cat([parameter.grad.reshape(-1) for parameter in model.parameters()])


answered = {}
for name, (model, mll) in MODELS.items():
    with gpytorch.settings.fast_computations(False, False, False):
        reference = step(model, mll)
        by_cholesky = gradient(model)
    with settings.rangeformer(), gp_rangeformer.collect_reports() as reports:
        value = step(model, mll)
    apart = (gradient(model) - by_cholesky).norm() / by_cholesky.norm()
    print(f"{name}: loss {value:.6f}, off by {abs(value - reference):.0e}, gradient by {apart:.0e}; reports:")
    for report in reports:
        print("   ", report.summary())
    answered[name] = {report.solver for report in reports}
    # What the report of an iterative answer allows; the others are exact.
    allowed = settings.solver.value().tolerance
    assert abs(value - reference) < allowed
assert answered["a Kronecker product"] == {"gpytorch"}
assert not any("gpytorch" in answered[name] for name in list(MODELS)[:3])

# %% [markdown]
# A batch is one call, its report counts its elements (`report.batch_shape`); a list is as many calls as models. Tasks
# with inputs of their own have a dense matrix of all pairs, which GPyTorch evaluates and the plug-in solves with. The
# Kronecker product needs no matrix of all pairs: GPyTorch's eigendecompositions of its factors are exact and fast, so
# there is nothing for the plug-in to gain.
#
# ## What a step takes

# %%
DEFAULT, FLAG = "GPyTorch as it is", "with the flag"


def seconds(model, mll):
    """Median of a few steps; a first one is not counted."""
    step(model, mll)
    found = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        step(model, mll)
        found.append(time.perf_counter() - started)
    return statistics.median(found)


taken = {DEFAULT: [], FLAG: []}
for name, (model, mll) in MODELS.items():
    taken[DEFAULT].append(1000 * seconds(model, mll))
    with settings.rangeformer():
        taken[FLAG].append(1000 * seconds(model, mll))
    print(f"{name:32} {taken[DEFAULT][-1]:7.1f} ms, with the flag {taken[FLAG][-1]:7.1f} ms")

fig, axes = plt.subplots(figsize=(8.2, 2.8))
for offset, (name, colour) in enumerate(((FLAG, style.BLUE), (DEFAULT, style.ORANGE))):
    bars = axes.barh(
        [place + 0.38 * offset for place in range(len(MODELS))], taken[name], 0.36, color=colour, label=name
    )
    axes.bar_label(bars, fmt="%.0f", fontsize=8, padding=2)
axes.set_yticks([place + 0.19 for place in range(len(MODELS))], list(MODELS))
axes.set(xlabel="milliseconds of a step")
axes.grid(visible=False, axis="y")
axes.legend()
plt.show()

# %% [markdown]
# ## What it is good for
#
# Both models of the same observations, trained with the flag on by the same loop. Where the first function was not
# observed, independent models know nothing, and the tasks help each other.


# %%
def train(model, mll):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    started = time.perf_counter()
    with settings.rangeformer():
        for _ in range(STEPS):
            step(model, mll)
            optimizer.step()
    return time.perf_counter() - started


for name in ("a batch", "tasks with inputs of their own"):
    print(f"{name}: {STEPS} steps in {train(*MODELS[name]):.1f} s")

grid = torch.linspace(0, 1, 200, dtype=torch.float64)
batch.eval()
pairs.eval()
with settings.rangeformer(), torch.no_grad(), gp_rangeformer.collect_reports() as reports:
    alone = batch(grid.expand(TASKS, -1).unsqueeze(-1))
    together = pairs(grid.repeat(TASKS).unsqueeze(-1), torch.arange(TASKS).repeat_interleave(200).unsqueeze(-1))
    predictions = {
        "independent": (alone.mean, alone.stddev, style.ORANGE, "--"),
        "tasks": (together.mean.reshape(TASKS, -1), together.stddev.reshape(TASKS, -1), style.BLUE, "-"),
    }
for (operation, solver, reason), count in reports.counts.items():
    print(f"prediction: {count} x {operation} by {solver}: {reason}")

# %% tags=["thumbnail"]
right = truth(grid)
fig, panels = plt.subplots(1, TASKS, figsize=(11, 3.2), sharey=True)
for task, axes in enumerate(panels):
    axes.plot(own_x[task], own_y[task], ".", ms=2, color="#8A8A8A", label="observed")
    axes.plot(grid, right[:, task], color="black", lw=1, label="truth")
    for name, (mean, deviation, colour, dashes) in predictions.items():
        axes.plot(grid, mean[task], dashes, color=colour, label=name)
        low, high = mean[task] - 2 * deviation[task], mean[task] + 2 * deviation[task]
        axes.fill_between(grid, low, high, color=colour, alpha=0.2, lw=0)
    axes.set(title=f"function {task + 1}", xlabel="x")
fig.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
plt.show()

# %%
gap = (grid > 0.3) & (grid < 0.8)
off = {name: float((mean[0] - right[:, 0])[gap].square().mean().sqrt()) for name, (mean, *_) in predictions.items()}
for name, error in off.items():
    print(f"in the gap of function 1, {name:12} off by {error:.3f} (the noise is 0.2)")

# %% [markdown]
# What is not gained: the Kronecker model is GPyTorch's alone; and a kernel over tasks has no fused form, so that
# GPyTorch's evaluation of it is most of a step, which takes about as long as without the flag.
