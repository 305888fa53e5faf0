# %% [markdown]
# # Many points
#
# 10,000 points are fitted until hardly a thousandth of a nat per point is left to gain, with a certificate, within two
# minutes on two cores; memory is one kernel matrix, or next to none of it.
#
# GPyTorch's Cholesky takes longer for a few steps of a training alone ([measurements](guide/measurements.md)). 36,000
# points take ten minutes, more than a notebook should: what was stored of that fit stands at the end.

# %%
import json
import time
from pathlib import Path

import gpytorch
import matplotlib.pyplot as plt
import numpy as np
import torch

import gp_rangeformer
from gp_rangeformer import settings
from gp_rangeformer.lab import datasets, models
from gp_rangeformer.lab.compare.instruments import PeakMemory
from gp_rangeformer.lab.plots import style

style.use_in_notebooks()

# %% tags=["parameters"] small={"N": 1000, "N_TEST": 200}
N, N_TEST = 10_000, 1000

# %%
data = datasets.load("robot_arm", n=N, n_test=N_TEST).to(torch.float32)
print(data.source)
MIB = 2**20
print(f"one kernel matrix of {N:,} points in float32: {4 * N**2 / MIB:.0f} MiB")

# %% [markdown]
# ## Memory
#
# One step, likelihood and gradient, at three sizes: with the matrix held ("dense"), and with it made again in every
# product ("tiles"). Left alone, the plug-in holds what fits and says in the report where it does not.


# %%
def one_step(n, storage):
    """Seconds, peak MiB above what was held before, and the likelihood of one step."""
    part = datasets.load("robot_arm", n=n).to(torch.float32)
    model, likelihood = models.build_model(part, "matern32")
    mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    gp_rangeformer.clear_memory()
    memory = PeakMemory(torch.device("cpu"))
    memory.start()
    started = time.perf_counter()
    with settings.rangeformer(), settings.kernel_storage(storage):
        loss = -mll(model(part.train_x), part.train_y)
        loss.backward()
    return time.perf_counter() - started, memory.peak(), -loss.item()


one_step(N // 8, "dense")  # what a first call on a machine does once: kernel code is compiled, buffers are made
SIZES = (N // 4, N // 2, N)
steps = {storage: [one_step(n, storage) for n in SIZES] for storage in ("tiles", "dense")}
for storage, found in steps.items():
    for n, (seconds, peak, value) in zip(SIZES, found, strict=True):
        told = "-" if peak is None else f"{peak:.0f} MiB"
        print(f"{storage:6} n = {n:6,}: {told:>9}, {seconds:5.2f} s, log p(y)/n {value:.4f}")
for dense, tiles in zip(steps["dense"], steps["tiles"], strict=True):
    assert abs(dense[2] - tiles[2]) < settings.solver.value().tolerance

# %%
fig, axes = plt.subplots(figsize=(8.2, 3.4))
places = np.arange(len(SIZES))
one_k = [4 * n**2 / MIB for n in SIZES]
for offset, (values, colour, name) in enumerate(
    (
        (one_k, style.BLACK, "one kernel matrix"),
        ([peak or 0 for _, peak, _ in steps["dense"]], style.BLUE, "dense: the peak of a step"),
        ([peak or 0 for _, peak, _ in steps["tiles"]], style.SKY, "tiles: the peak of a step"),
    )
):
    bars = axes.bar(places + 0.27 * (offset - 1), values, 0.25, color=colour, label=name)
    axes.bar_label(bars, fmt="%.0f", fontsize=8)
axes.set_xticks(places, [f"n = {n:,}" for n in SIZES])
axes.set(ylabel="MiB")
axes.grid(visible=False, axis="x")
axes.legend()
plt.show()

# %% [markdown]
# ## A fit
#
# Subsets first, then all points; every evaluation comes with an interval. It ends where nothing is left to gain, or
# where what seems left is no more than the probes explain.

# %%
model, likelihood = models.build_model(data, "matern32")
mll = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
gp_rangeformer.clear_memory()
with settings.rangeformer():
    result = gp_rangeformer.fit.fit_mll(mll)
print(result.summary())
print(result.table())

# %%
history = [record for record in result.history if record.points == N and np.isfinite(record.value)]
subsets = [record for record in result.history if record.points < N]
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6))
seconds = [record.seconds for record in history]
values = [record.value for record in history]
left.errorbar(
    seconds,
    values,
    [record.error for record in history],
    fmt="o-",
    ms=4,
    capsize=2,
    color=style.BLUE,
    label="all points",
)
for points in sorted({record.points for record in subsets}):
    some = [record for record in subsets if record.points == points and np.isfinite(record.value)]
    left.plot([r.seconds for r in some], [r.value for r in some], ".-", color="#8A8A8A", lw=0.8)
    left.annotate(
        f"{points:,}", (some[-1].seconds, some[-1].value), xytext=(3, -9), textcoords="offset points", fontsize=8
    )
left.set(xlabel="seconds", ylabel="log p(y) / n")
left.legend(loc="lower right")
names = models.hyperparameters(model, data.feature_names)
relevance = {name[12:-1]: 1 / value for name, value in names.items() if name.startswith("lengthscale")}
ordered = sorted(relevance, key=lambda name: relevance[name])
right.barh(ordered, [relevance[name] for name in ordered], color=style.BLUE)
right.set(xlabel="relevance: 1 / length-scale")
right.grid(visible=False, axis="y")
plt.show()
assert result.decrement < 1e-3
assert "theta1" in ordered[:2]

# %% [markdown]
# The distance of the arm's end does not depend on its first angle, which turns all of it: the fit has found out.
#
# ## The certificate
#
# What is certain, and what is likely. The upper end of what is certain is far away, as it is wherever the noise is
# small: no bound of the log determinant that is known to hold comes near from that side ([what a report
# promises](guide/certificates.md)). The likely interval is the useful one.

# %%
report = result.report
print(report.summary())
print(f"certainly in [{result.certain.lower:.3f}, {result.certain.upper:.3f}], likely within +- {result.error:.4f}")
assert result.certain.lower <= result.value <= result.certain.upper

# %% [markdown]
# ## Prediction
#
# Means and variances of points that were not trained on. No matrix of test points and no matrix of test by training
# points is held. Right: the intervals are a little wider than they say.

# %% tags=["thumbnail"]
model.eval()
likelihood.eval()
started = time.perf_counter()
with settings.rangeformer(), torch.no_grad():
    predicted = likelihood(model(data.test_x))
    mean, deviation = predicted.mean, predicted.stddev
print(f"{N_TEST:,} means and variances in {time.perf_counter() - started:.1f} s")
print(gp_rangeformer.last_report().summary())

# The test targets of a simulator carry noise as the training targets do.
scores = ((data.test_y - mean) / deviation).numpy()
levels = np.linspace(0.05, 0.95, 19)
normal = torch.distributions.Normal(0.0, 1.0)
shares = [np.mean(np.abs(scores) <= float(normal.icdf(torch.tensor((1 + level) / 2)))) for level in levels]

fig, (left, right) = plt.subplots(1, 2, figsize=(8.2, 3.8), width_ratios=(1.4, 1))
unit = data.target_scale
left.errorbar(
    data.target_mean + unit * mean,
    data.target_mean + unit * data.test_y,
    2 * unit * deviation,
    fmt=".",
    ms=2,
    lw=0.3,
    color=style.BLUE,
    alpha=0.5,
)
left.axline((data.target_mean, data.target_mean), slope=1, color="black", lw=1, ls="--")
left.set(xlabel="predicted distance", ylabel="simulated distance")
right.plot(levels, shares, "o", ms=4, color=style.BLUE)
right.axline((0, 0), slope=1, color="black", lw=1, ls="--")
right.set(xlabel="stated probability of an interval", ylabel="share of test points inside")
plt.show()

# %%
rmse = float((mean - data.test_y).square().mean().sqrt())
nll = float(-torch.distributions.Normal(mean, deviation).log_prob(data.test_y).mean())
print(f"test error {rmse:.4f} of a standard deviation, negative log density {nll:.4f}")
assert rmse < 1  # better than the mean of the targets

# %% [markdown]
# ## 36,000 points
#
# The same fit of all rows of kin40k, on the same kind of machine, as `gp-rangeformer fit` stored it
# ([the command](guide/large-n.md)). The data set is not in the package; the result file is in the repository.

# %%
stored = json.loads(Path("guide/results/fit-kin40k-36000.json").read_text("utf-8"))
all_points = [record for record in stored["history"] if record["points"] == stored["n"]]
print(f"{stored['dataset']}, n = {stored['n']:,}: {stored['reason']} in {stored['seconds']:.0f} s")
print(f"{len(all_points)} evaluations on all points, {stored['decrement']:.0e} nats per point left to gain")
print(f"log p(y)/n {stored['value']:.4f} +- {stored['value_error']:.4f}")
print(f"peak {stored['peak_memory']:.0f} MiB, one kernel matrix being {4 * stored['n'] ** 2 / MIB:.0f}")
print(f"{stored['n_test']:,} test points predicted in {stored['prediction_seconds']:.0f} s")
print(f"test error {stored['rmse']:.4f}, negative log density {stored['nll']:.4f}")
for note in stored["notes"]:
    print("note:", note)

fig, axes = plt.subplots(figsize=(8.2, 3.2))
finite = [record for record in all_points if record["value"] is not None]
axes.errorbar(
    [r["seconds"] for r in finite], [r["value"] for r in finite], [r["error"] for r in finite],
    fmt="o-", ms=4, capsize=2, color=style.BLUE,
)  # fmt: skip
axes.set(xlabel="seconds", ylabel="log p(y) / n", title=f"{stored['dataset']}, n = {stored['n']:,}")
plt.show()

# %% [markdown]
# What is not gained. A step grows like n^2: where a notebook may take two minutes, two cores end at some 10,000 points.
# And very smooth functions with little noise (`borehole`, `wing_weight`) leave what float32 can certify: there the
# exact path answers with a warning, and float64 doubles the memory.
