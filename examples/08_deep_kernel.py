# %% [markdown]
# # A deep kernel
#
# A small network in front of an RBF kernel trains inside the flag as it does with Cholesky, in a fraction of the time;
# the kernel is fused, the network is PyTorch's.
#
# Deep kernel learning (Wilson et al. 2016): the kernel sees features of the inputs, and the marginal likelihood trains
# the network that makes them.

# %%
import time

import gpytorch
import matplotlib.pyplot as plt
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab.plots import style

style.use_in_notebooks()

# %% tags=["parameters"] small={"N": 200, "STEPS": 4, "EVALUATIONS": 3}
N, STEPS = 1500, 120  # points, steps of Adam
EVALUATIONS = 40  # of fit_mll on the plain kernel, at most

# %% [markdown]
# ## Data and model
#
# Waves around the origin of four dimensions, made for the purpose: what matters is the distance, which no length-scale
# of single inputs can say.

# %%
D, NOISE = 4, 0.1
generator = torch.Generator().manual_seed(0)
x = 2 * torch.rand(N + 1000, D, generator=generator) - 1
square = x.square().sum(1)
y = torch.cos(3.5 * square) + NOISE * torch.randn(len(x), generator=generator)
train_x, train_y, test_x, test_y = x[:N], y[:N], x[N:], y[N:]


def network():
    layers = torch.nn.Linear(D, 32), torch.nn.SiLU(), torch.nn.Linear(32, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2)
    return torch.nn.Sequential(*layers)


class DeepGP(gpytorch.models.ExactGP):
    """The features are made in `forward`, and an ordinary kernel is called with them."""

    def __init__(self, likelihood):
        super().__init__(train_x, train_y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.network = network()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=2))
        self.covar_module.base_kernel.lengthscale = 0.3

    def forward(self, x):
        features = self.network(x)
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(features))


def made(kind):
    """A model and its likelihood, from the same start every time."""
    torch.manual_seed(0)
    model = kind(gpytorch.likelihoods.GaussianLikelihood())
    return model, gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)


# %% [markdown]
# ## The same training, twice
#
# Adam, from the same start. The flag's gradient comes from probes: the two paths are near each other, not the same.


# %%
def train(model, mll):
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith("network")]
    optimizer = torch.optim.Adam([{"params": model.network.parameters()}, {"params": others, "lr": 0.02}], lr=0.01)
    values, seconds = [], []
    for _ in range(STEPS):
        started = time.perf_counter()
        optimizer.zero_grad()
        loss = -mll(model(train_x), train_y)
        loss.backward()
        optimizer.step()
        values.append(-loss.item())
        seconds.append(time.perf_counter() - started)
    return values, seconds


def median(seconds):
    return torch.tensor(seconds).median().item()


models, values, seconds = {}, {}, {}
name = "deep, Cholesky"
models[name], mll = made(DeepGP)
with gpytorch.settings.fast_computations(False, False, False):  # GPyTorch's Cholesky path
    values[name], seconds[name] = train(models[name], mll)

name = "deep, with the flag"
models[name], mll = made(DeepGP)
with settings.rangeformer(), gp_rangeformer.collect_reports() as reports:
    values[name], seconds[name] = train(models[name], mll)

for name in models:
    print(f"{name:20} log p(y)/n {values[name][-1]:.3f}, {median(seconds[name]):.3f} s a step")
print(f"{reports.fallbacks} of {len(reports)} steps did not certify, and were answered by Cholesky")
print(reports[-1].summary())

# The first values are of the same parameters: the certain interval has Cholesky's, but for the float32 of both.
certain = reports[0].mll_interval.scaled(1 / N)
assert certain.lower - 1e-3 <= values["deep, Cholesky"][0] <= certain.upper + 1e-3

# %% [markdown]
# At one and the same place the gradients are the same, the network's too:


# %%
def gradient(model, mll):
    """Of the network's weights."""
    model.zero_grad()
    loss = -mll(model(train_x), train_y)
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.network.parameters()])


model, mll = made(DeepGP)
model.load_state_dict(models["deep, with the flag"].state_dict())
with gpytorch.settings.fast_computations(False, False, False):
    expected = gradient(model, mll)
with settings.rangeformer():
    found = gradient(model, mll)
off = ((found - expected).norm() / expected.norm()).item()
print(f"gradient of {len(found)} weights: off by {off:.2%} from Cholesky's")
assert off < 0.1

# %% [markdown]
# ## What is fused, what is not
#
# `covar_module(features)` is an RBF kernel of some points, so it is evaluated and differentiated tile by tile like any
# other; its gradient with respect to the features goes on to the network, which PyTorch differentiates. A kernel that
# makes the features *inside itself* is one the package does not know: GPyTorch evaluates it, with n x n matrices in the
# graph. The numbers are the same.


# %%
class DeepKernel(gpytorch.kernels.Kernel):
    """The same covariance, with the network hidden in the kernel."""

    def __init__(self):
        super().__init__()
        self.network = network()
        self.rbf = gpytorch.kernels.RBFKernel(ard_num_dims=2)
        self.rbf.lengthscale = 0.3

    def forward(self, x1, x2, diag=False, **params):
        return self.rbf.forward(self.network(x1), self.network(x2), diag=diag, **params)


class HiddenGP(gpytorch.models.ExactGP):
    def __init__(self, likelihood):
        super().__init__(train_x, train_y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(DeepKernel())

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def timed(kind, repetitions=5):
    model, mll = made(kind)
    seconds = []
    for _ in range(1 + repetitions):
        started = time.perf_counter()
        model.zero_grad()
        loss = -mll(model(train_x), train_y)
        loss.backward()
        seconds.append(time.perf_counter() - started)
    return loss.item(), median(seconds[1:])


steps = {}
with settings.rangeformer():
    steps["flag, network in forward"] = timed(DeepGP)
    steps["flag, network in the kernel"] = timed(HiddenGP)
with gpytorch.settings.fast_computations(False, False, False):
    steps["Cholesky"] = timed(DeepGP, repetitions=2)
for name, (loss, seconds) in steps.items():
    print(f"{name:28} log p(y)/n {-loss:.4f}, {seconds:.3f} s a step")
assert abs(steps["flag, network in forward"][0] - steps["flag, network in the kernel"][0]) < 0.02

# %% [markdown]
# ## Was it worth it?
#
# Beside it a plain kernel with a length-scale per input, trained to convergence by `fit_mll`. (`fit_mll` takes networks
# too, with curvature from secants, whose cost grows with the cube of the number of parameters; for more than some
# hundred Adam is the better choice.)


# %%
class PlainGP(gpytorch.models.ExactGP):
    def __init__(self, likelihood):
        super().__init__(train_x, train_y, likelihood)
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=D))

    def forward(self, x):
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


name = "plain RBF, fit_mll"
models[name], mll = made(PlainGP)
with settings.rangeformer():
    result = gp_rangeformer.fit.fit_mll(mll, max_evaluations=EVALUATIONS)
values[name] = [result.value]
print(result.summary())

predictions = {}
print(f"{'':20} {'log p(y)/n':>11} {'RMSE of tests':>14} {'their log density':>18} {'inside 95 %':>12}")
for name, model in models.items():
    model.eval()
    with settings.rangeformer(), torch.no_grad():
        predicted = model.likelihood(model(test_x))
        predictions[name] = predicted.mean
        density = torch.distributions.Normal(predicted.mean, predicted.stddev).log_prob(test_y).mean()
        error = test_y - predicted.mean
        inside = (error.abs() < 1.96 * predicted.stddev).float().mean()
    rmse = error.square().mean().sqrt()
    print(f"{name:20} {values[name][-1]:>11.3f} {rmse:>14.3f} {density:>18.3f} {inside:>12.1%}")
print(f"(the noise alone: RMSE {NOISE})")

# %% [markdown]
# The likelihood of a deep kernel is optimistic: a network that is fitted to it can overfit as any other (Ober et al.
# 2021), so test rows decide. Here there are a thousand weights for 1500 points.
#
# ## What the network has found

# %% tags=["thumbnail"]
fig, (left, right) = plt.subplots(1, 2, width_ratios=(1, 1.15))
steps = range(1, STEPS + 1)
left.plot(steps, values["deep, Cholesky"], color=style.ORANGE, lw=3.5, alpha=0.6, label="Cholesky")
left.plot(steps, values["deep, with the flag"], color=style.BLUE, lw=1.3, label="with the flag")
left.axhline(result.value, color="#777777", ls="--", lw=1, label="plain RBF, converged")
left.set(xlabel="Adam step", title="log p(y) / n")
left.legend()
model = models["deep, with the flag"]
with torch.no_grad():
    features = model.network(test_x) / model.covar_module.base_kernel.lengthscale
colours = right.scatter(features[:, 0], features[:, 1], c=square[N:], s=6)
fig.colorbar(colours, ax=right, label="squared distance from the origin")
right.set(xlabel="first feature, in length-scales", ylabel="second", title="Test inputs as the kernel sees them")
plt.show()
