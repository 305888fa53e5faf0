# %% [markdown]
# # Bayesian optimisation
#
# A BoTorch loop asks for the same points with the flag as without, and each iteration is faster from a few hundred
# points on.
#
# Most of an iteration at these sizes is the fit. It goes through the plug-in in two ways: BoTorch's own L-BFGS with the
# flag on (the same optimiser, the same end), or `fit_mll` in its place, which needs fewer evaluations and ends as high,
# to its tolerance.

# %%
import contextlib
import time

import matplotlib.pyplot as plt
import torch
from botorch.acquisition import qLogNoisyExpectedImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import SingleTaskGP
from botorch.models.transforms import Normalize, Standardize
from botorch.optim import optimize_acqf
from botorch.sampling.normal import SobolQMCNormalSampler
from botorch.test_functions import Hartmann
from gpytorch.mlls import ExactMarginalLogLikelihood

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab.plots import style

style.use_in_notebooks()
torch.set_default_dtype(torch.float64)

# %% tags=["parameters"] small={"START": 100, "ITERATIONS": 1, "SIZES": [20], "RESTARTS": 1, "STEPS": 20}
START, ITERATIONS = 400, 10
SIZES = [50, 100, 200, 500, 1000]  # of single iterations that are timed
RESTARTS, STEPS = 4, 100  # of the acquisition's optimiser

# %% [markdown]
# ## One iteration
#
# Hartmann's function of six variables with noise. Fit a `SingleTaskGP`, maximise the noisy expected improvement.

# %%
NOISE = 0.1
objective = Hartmann(negate=True)


def observed(x):
    return (objective(x) + NOISE * torch.randn(len(x))).unsqueeze(-1)


def suggested(x, y, seed):
    """The next point, the likelihood of the fit per point, and the seconds of fit and acquisition."""
    started = time.perf_counter()
    model = SingleTaskGP(x, y, input_transform=Normalize(6), outcome_transform=Standardize(1))
    mll = ExactMarginalLogLikelihood(model.likelihood, model)
    torch.manual_seed(seed)
    fit_gpytorch_mll(mll)
    fitted = time.perf_counter()
    sampler = SobolQMCNormalSampler(torch.Size([64]), seed=seed)
    acquisition = qLogNoisyExpectedImprovement(model, x, sampler=sampler, prune_baseline=True)
    torch.manual_seed(seed)
    point, _ = optimize_acqf(
        acquisition, objective.bounds, 1, num_restarts=RESTARTS, raw_samples=128, options={"maxiter": STEPS}
    )
    done = time.perf_counter()
    mll.train()
    with torch.no_grad():
        likelihood = mll(model(*model.train_inputs), model.train_targets).item()
    return point, likelihood, (fitted - started, done - fitted)


WAYS = {
    "GPyTorch": contextlib.nullcontext,
    "with the flag": settings.rangeformer,
    "with fit_mll": gp_rangeformer.fit.botorch_fits,  # the flag is on in it as well
}
COLOURS = dict(zip(WAYS, (style.ORANGE, style.BLUE, style.GREEN), strict=True))
with settings.rangeformer():  # what is imported or compiled once should not count
    few = torch.rand(100, 6)
    suggested(few, observed(few), seed=0)

# %% [markdown]
# ## The loop
#
# All three see the same points at every iteration, those that plain GPyTorch asks for. BoTorch's optimisers amplify
# rounding: a likelihood can be so flat that its maximiser moves by 0.001 when numbers change in their last digit, and
# then the acquisition's highest peak may be another one. So there is a yardstick, "rounding alone": plain GPyTorch once
# more, with targets that are larger by a part in 10^15. `fit_mll` ends as high, but not at the same parameters: within
# its tolerance, 0.0001 nats per point, candidates differ visibly.

# %%
torch.manual_seed(0)
x = torch.rand(START, 6)
y = observed(x)
highest, distances, lower, seconds = [], {}, {}, {}
for iteration in range(ITERATIONS):
    found = {}
    for name, way in WAYS.items():
        with way():
            found[name] = suggested(x, y, seed=iteration)
    found["rounding alone"] = suggested(x, y * (1 + 1e-15), seed=iteration)
    point, likelihood, _ = found["GPyTorch"]
    for name, (other, its, taken) in found.items():
        distances.setdefault(name, []).append((other - point).abs().max().item())
        lower.setdefault(name, []).append(likelihood - its)
        seconds.setdefault(name, []).append(taken)
    x, y = torch.cat([x, point]), torch.cat([y, observed(point)])
    highest.append(objective(x).max().item())
for name in found:
    far = torch.tensor(distances[name])
    print(
        f"{name:14} candidate off by {far.median():.0e}, at most {far.max():.0e}; "
        f"fit lower by at most {max(lower[name]):.0e} nats per point"
    )
print(f"best of the first {START}: {objective(x[:START]).max():.2f}, after {ITERATIONS} iterations {highest[-1]:.2f};")
print(f"the optimum is {objective.optimal_value:.2f}")

# The same optimiser on the same function: the same end, but for what rounding does.
assert max(lower["with the flag"]) < 1e-6
assert torch.tensor(distances["with the flag"]).median() < 1e-4
# Another optimiser: as good an end, to its tolerance.
assert max(lower["with fit_mll"]) < 1e-3

# %% tags=["thumbnail"]
fig, (left, right) = plt.subplots(1, 2)
for position, name in enumerate(WAYS):
    fit, acquire = (torch.tensor(seconds[name]).median(0).values).tolist()
    left.bar(position, fit, color=COLOURS[name], width=0.6)
    left.bar(position, acquire, bottom=fit, color=COLOURS[name], width=0.6, alpha=0.4)
    left.annotate(f"{fit + acquire:.2f}", (position, fit + acquire), ha="center", va="bottom", fontsize=9)
left.set(xticks=range(len(WAYS)), xticklabels=WAYS, ylabel="seconds", title="An iteration: fit, and acquisition (pale)")
left.grid(visible=False, axis="x")
steps = range(1, ITERATIONS + 1)
FLOOR = 1e-16
for name, marker, colour in (
    ("with fit_mll", "^", COLOURS["with fit_mll"]),
    ("rounding alone", "x", "#555555"),
    ("with the flag", "o", COLOURS["with the flag"]),
):
    right.semilogy(steps, [max(d, FLOOR) for d in distances[name]], marker, color=colour, label=name)
right.set(xlabel="iteration", title="How far the candidate is from GPyTorch's", ylim=(FLOOR / 3, 10))
right.legend(loc="center left", bbox_to_anchor=(0, 0.63))
plt.show()

# %% [markdown]
# ## Where it pays
#
# Single iterations by number of points. A likelihood of fewer than a hundred points is left to GPyTorch: nothing is
# gained there, and asking costs a few percent of a fit. So are predictions from some hundred points, where the
# acquisition's time is BoTorch's own.

# %%
for n in SIZES:
    torch.manual_seed(n)
    points = torch.rand(n, 6)
    values = observed(points)
    print(f"n = {n}")
    for name, way in WAYS.items():
        with way(), gp_rangeformer.collect_reports() as reports:
            _, _, (fit, acquire) = suggested(points, values, seed=0)
        assert reports.fallbacks == 0
        by = ", ".join(sorted({report.solver for report in reports if report.operation == "inv_quad_logdet"}))
        answered = f"; {len(reports)} calls, likelihoods answered by {by}" if len(reports) else ""
        print(f"  {name:14} fit {fit:.2f} s, acquisition {acquire:.2f} s{answered}")
