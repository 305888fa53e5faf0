# %% [markdown]
# # Inside RangeFormer
#
# On matrices of kinds that training never saw, both networks come closer to the log determinant than what can be
# proved; solves gain nothing from learning.
#
# There are two networks. `RangeFormer` (Part 1) looks at a matrix through products alone; it is there for research, and
# the certified solver does not load it. The head of the log determinant (Part 2) works in every training step with the
# flag on.

# %%
import sys

import gpytorch
import matplotlib.pyplot as plt
import numpy as np
import torch

import gp_rangeformer
from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.plots import style
from gp_rangeformer.logdet import learned
from gp_rangeformer.logdet.evidence import given_points, sample_points, tail_evidence
from gp_rangeformer.logdet.features import LEVELS, TOKENS
from gp_rangeformer.preconditioner.landmarks import rp_cholesky_landmarks
from gp_rangeformer.preconditioner.nystrom import nystrom_preconditioner
from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from gp_rangeformer.system.linear_system import LinearSystem

sys.path.append("..")  # pretrain/ is in the repository, not in the package
from pretrain.baselines.classical import conjugate_gradients
from pretrain.matrices import Diagonal, Toeplitz

style.use_in_notebooks()

# %% tags=["parameters"] small={"DRAWS": 3, "LOOPS": 4, "SYSTEMS": 2, "N": 300}
DRAWS, LOOPS, WIDTH = 30, 16, 4  # matrices of every family and size; loops, and the columns each of them adds
SYSTEMS, N = 24, 1000  # kernel matrices of the head, and their points

# %% [markdown]
# ## Part 1: a transformer whose tokens are the rows of a matrix
#
# One token for every row, from one product of the matrix with random columns. Then one block, with the same weights in
# every loop: let the rows attend to each other, propose a few columns, make them orthonormal to all before, multiply
# the matrix with them. Every product that was ever paid is kept, and every answer is the best in the range of all of
# them. No weight has the size n, and no entry of the matrix is ever read but those of its diagonal.

# %%
network = gp_rangeformer.load_pretrained("base").double().requires_grad_(False)
print(f"{sum(p.numel() for p in network.parameters()):,} parameters:", network.config)


def loops_of(network, matrices, rhs=None, seed=0, **options):
    """The answers after every loop."""
    generator = torch.Generator().manual_seed(seed)
    return network(DenseOperator(matrices), rhs, loops=LOOPS, width=WIDTH, generator=generator, **options)


# %% [markdown]
# ### Tokens
#
# A diagonal matrix is the easiest to look at: its rows have nothing to do with each other, and all there is to know of
# a row is one number. Nobody tells the tokens so; the first two principal components of them:

# %%
diagonal = Diagonal().sample(1, 100, torch.Generator().manual_seed(4))
seen = []
hook = network.block.register_forward_hook(lambda block, given, tokens: seen.append(tokens[0]))
loops_of(network, diagonal)
hook.remove()

entries = diagonal[0].diagonal()
fig, panels = plt.subplots(1, 4, figsize=(11, 2.9))
for axes, loop in zip(panels, sorted({1, 2, LOOPS // 2, LOOPS})[:4], strict=False):
    centred = seen[loop - 1] - seen[loop - 1].mean(0)
    components = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].mT
    dots = axes.scatter(*components.mT, c=entries, norm=plt.matplotlib.colors.LogNorm(), cmap="cividis", s=18)
    axes.set(title=f"loop {loop}", xlabel="first component")
panels[0].set_ylabel("second component")
fig.colorbar(dots, ax=panels, label="entry of the row")
plt.show()

# %% [markdown]
# Two things hold by construction. In another order of the rows (with their random codes) the tokens come in that order,
# and a matrix a thousand times larger has answers a thousand times larger.

# %%
matrix = Toeplitz().sample(1, 100, torch.Generator().manual_seed(1))
codes = network.embedding.codes(DenseOperator(matrix), torch.Generator().manual_seed(0))
order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
plain = loops_of(network, matrix, codes=codes)[-1]
permuted = loops_of(network, matrix[:, order][:, :, order], codes=codes[:, order])[-1]
larger = loops_of(network, 1000 * matrix, codes=codes)[-1]
moved = (permuted.basis - plain.basis[:, order])[..., 0].norm()
print(f"first column of the range, permuted: differs by {moved:.0e}")
print("largest eigenvalue, times 1000: differs by", f"{(larger.lambda_max / plain.lambda_max - 1000).abs().max():.0e}")
assert torch.allclose(permuted.basis[..., 0], plain.basis[:, order, 0], rtol=1e-6, atol=1e-9)
assert torch.allclose(permuted.logdet, plain.logdet, rtol=1e-6)
assert torch.allclose(larger.lambda_max, 1000 * plain.lambda_max, rtol=1e-6)

# %% [markdown]
# ### Loops, on matrices that training never saw
#
# Training saw Kronecker products, tensor trains, kernel matrices and others; never Toeplitz or diagonal matrices, which
# are kept for this. Beside it the same loop before training: a block Krylov method with Jacobi's preconditioner, whose
# log determinant is a Lanczos quadrature of the first columns; and the bound that the range proves,
# log|A| <= sum log(Ritz values) + (n - k) log(mean of what is left).

# %%
torch.manual_seed(0)
untrained = RangeFormer(network.config).double().eval().requires_grad_(False)


def errors(answers, logdet, largest, exact, matrices):
    """Per loop and matrix: of log|A| in nats per point, of lambda_max, and of solves in the norm of A (relative)."""
    n = matrices.shape[-1]
    energy = (exact * (matrices @ exact)).sum(-2).mean(-1)
    rows = []
    for answer in answers:
        off = answer.solution - exact
        solve = ((off * (matrices @ off)).sum(-2).mean(-1) / energy).sqrt()
        bound = (answer.logdet_upper - logdet) / n
        rows.append([(answer.logdet - logdet).abs() / n, bound, (answer.lambda_max / largest - 1).abs(), solve])
    return np.array([[error.numpy() for error in row] for row in rows])


trained_errors, plain_errors, cg_errors = [], [], []
for family in (Toeplitz(), Diagonal()):
    for n in (100, 200, 400):
        generator = torch.Generator().manual_seed(n)
        matrices = family.sample(DRAWS, n, generator)
        rhs = torch.randn(DRAWS, n, 1, generator=generator, dtype=torch.float64)
        facts = torch.logdet(matrices), torch.linalg.eigvalsh(matrices)[:, -1], torch.linalg.solve(matrices, rhs)
        trained_errors.append(errors(loops_of(network, matrices, rhs), *facts, matrices))
        plain_errors.append(errors(loops_of(untrained, matrices, rhs), *facts, matrices))
        off = torch.stack([conjugate_gradients(matrices, rhs[..., 0], k + 1) for k in range(LOOPS)]) - facts[2][..., 0]
        energy = (facts[2] * (matrices @ facts[2])).sum((-2, -1))
        cg_errors.append(((off * (matrices @ off.unsqueeze(-1)).squeeze(-1)).sum(-1) / energy).sqrt().numpy())
trained_errors, plain_errors = np.concatenate(trained_errors, axis=-1), np.concatenate(plain_errors, axis=-1)
cg_errors = np.concatenate(cg_errors, axis=-1)
# What is proved holds, and no loop makes a solve worse. (To rounding: 1e-9.)
assert (trained_errors[:, 1] >= -1e-9).all()
assert (np.diff(trained_errors[:, 3], axis=0) <= 1e-9).all()

# %%
fig, panels = plt.subplots(1, 3, figsize=(11, 3.4))
loops = range(1, LOOPS + 1)
named = (
    (panels[0], trained_errors[:, 0], plain_errors[:, 0], "log|A|, nats per point"),
    (panels[1], trained_errors[:, 2], plain_errors[:, 2], "largest eigenvalue, relative"),
    (panels[2], trained_errors[:, 3], plain_errors[:, 3], "solve, norm of A, relative"),
)
for axes, trained, without, title in named:
    for values, colour, dashes, name in (
        (trained, style.BLUE, "-", "trained"),
        (without, style.ORANGE, "--", "untrained"),
    ):
        low, middle, high = np.quantile(values.clip(1e-12), (0.25, 0.5, 0.75), axis=-1)
        axes.semilogy(loops, middle, dashes, color=colour, label=name)
        axes.fill_between(loops, low, high, color=colour, alpha=0.15, lw=0)
    axes.set(title=title, xlabel="loop")
    axes.xaxis.get_major_locator().set_params(integer=True)
panels[0].semilogy(loops, np.median(trained_errors[:, 1], axis=-1), ":", color=style.VERMILION, label="bound")
panels[2].semilogy(loops, np.median(cg_errors, axis=-1), ":", color="black", label="conjugate gradients")
panels[0].set_ylabel("error: median and quartiles")
named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
fig.legend(named.values(), named.keys(), loc="outside lower center", ncols=4)
plt.show()

# %%
last = min(8, LOOPS) - 1
closer = (trained_errors[last, 0] < plain_errors[last, 0]).mean()
print(f"after {last + 1} loops, medians over {trained_errors.shape[-1]} held-out matrices, trained / untrained:")
for name, one in (("log|A|", 0), ("lambda_max", 2), ("solve", 3)):
    print(f"  {name:10} {np.median(trained_errors[last, one]):.1e} / {np.median(plain_errors[last, one]):.1e}")
print(f"the trained log determinant is closer on {closer:.0%} of them")

# %% [markdown]
# So the loop is good linear algebra, with or without learning; what learning adds is a guess at what the range cannot
# see, right more often than not, and unsafe. This is what the certified solver has instead:
#
# ## Part 2: the head of the log determinant
#
# With a preconditioner P <= A, log|A| = log|P| + n z, and z >= 0 is what has to be guessed. A training step has solved
# A X = Z for random signs Z anyway, and knows the diagonal of A - P. The head reads, without one more product:
#
# * **moments** of the probes: z'A^-1 z against z'P^-1 z. A quadrature rule makes a first estimate of them;
# * **learning curves**: how much variance k given points leave of others, for k up to a few hundred. A log determinant
#   is the sum of the logarithms of such variances over k = 0 ... n - 1, and the beginning of a curve shows where it
#   goes.
#
# It was trained on kernels of random kinds at random inputs; here are the two simulators of the package, which it has
# never seen, with Matérn kernels over a wide range of length-scales and noises.

# %%
generator = torch.Generator().manual_seed(0)
solver = gp_rangeformer.Certified()


def drawn_system(x):
    """K + D of a Matern kernel on the points ``x``, and the preconditioner of 128 landmarks."""
    lengthscale = 10 ** (-0.2 + 1.4 * torch.rand((), generator=generator, dtype=torch.float64))
    noise = 10 ** (-3.5 + 3.5 * torch.rand((), generator=generator, dtype=torch.float64))
    kernel = gpytorch.kernels.MaternKernel(nu=1.5).double()
    kernel.lengthscale = lengthscale
    with torch.no_grad():
        system = LinearSystem(kernel(x).to_dense(), noise.expand(len(x)))
    preconditioner = nystrom_preconditioner(system, rp_cholesky_landmarks(system, 128, generator))
    return system, preconditioner


def what_a_step_knows(system):
    """Probes Z, A^-1 Z, z'A^-1 z, and log|A|: here by Cholesky."""
    probes = solver.probe_vectors(system)
    factor = torch.linalg.cholesky(system.to_dense())
    solutions = torch.cholesky_solve(probes, factor)
    return probes, solutions, (probes * solutions).sum(0), 2 * float(factor.diagonal().log().sum())


found = []
for number in range(SYSTEMS):
    x = datasets.load(("robot_arm", "borehole")[number % 2], n=N).train_x
    system, preconditioner = drawn_system(x)
    *known, logdet = what_a_step_knows(system)
    said = learned.tail(system, preconditioner, *known)
    evidence = tail_evidence(system, preconditioner, *known, sample_points(N, torch.Generator().manual_seed(3)))
    truth = (logdet - preconditioner.logdet()) / N
    assert -1e-9 <= truth <= evidence.upper + 1e-9  # what is certain
    found.append((truth, said, evidence))
found.sort(key=lambda one: one[0])

# %% [markdown]
# ### What it sees
#
# The tokens of one system: 16 groups of points, sorted by the variance that remains. Left: learning curves over k / n.
# Those of A less the range (one a token, and their mean) fall, and over all k their mean is z or more; those of A less
# those of P rise, and their mean is z itself. The head sees where they begin. Right: every number of every token.

# %%
truth, said, evidence = found[len(found) // 2]
seen = np.array(LEVELS) / LEVELS[-1] * given_points(N) / N
remaining, difference = (
    evidence.tokens[:, [TOKENS.index(f"{curve}_{level}") for level in LEVELS]] for curve in ("schur", "difference")
)
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.4), width_ratios=(1, 1.3))
for token in remaining:
    left.plot(seen, token, color=style.SKY, lw=0.6)
left.plot(seen, remaining.mean(0), color=style.BLUE, lw=2, label="A less the range: falls")
left.plot(seen, difference.mean(0), color=style.VERMILION, lw=2, label="A less P: rises")
left.axhline(truth, color="black", ls="--", lw=1, label="z: the mean of the rising one over all k")
left.set(xlabel="k / n", ylabel="log variance, nats", xlim=(0, 1))
left.legend()
image = right.imshow(evidence.tokens, aspect="auto", cmap="cividis")
right.set_xticks(range(len(TOKENS)), TOKENS, rotation=90, fontsize=7)
right.set(ylabel="token")
right.grid(visible=False)
fig.colorbar(image, ax=right)
plt.show()

# %% [markdown]
# ### What it says
#
# Its value and its 90 % interval, less the truth; the quadrature rule that it starts from; and the certain bound.

# %% tags=["thumbnail"]
truths = np.array([one[0] for one in found])
values = np.array([one[1].value for one in found])
intervals = np.array([[one[1].interval.lower, one[1].interval.upper] for one in found])
rules = np.array([one[2].estimate for one in found])
uppers = np.array([one[2].upper for one in found])
inside = (intervals[:, 0] <= truths) & (truths <= intervals[:, 1])

places = np.arange(len(found))
fig, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), width_ratios=(1.6, 1))
bars = np.abs(intervals - values[:, None]).T
left.errorbar(
    places, values - truths, bars, fmt="o", ms=4, capsize=2, color=style.BLUE, label="the head, and its 90 % interval"
)
left.axhline(0, color="black", ls="--", lw=1, label="the truth")
left.set(xlabel="system, by the truth", ylabel="z less the truth, nats per point")
left.legend()
for number, colour, marker, name in (
    (uppers, style.VERMILION, "^", "certain bound"),
    (rules, style.ORANGE, "s", "quadrature rule"),
    (values, style.BLUE, "o", "the head"),
):
    right.loglog(truths, np.abs(number - truths).clip(1e-6), marker, ms=4, color=colour, label=name)
right.set(xlabel="z, nats per point", ylabel="error, nats per point")
right.legend()
plt.show()

# %%
print(f"{inside.sum()} of {len(found)} truths lie in the interval that says 90 %: wider than these kernels need")
for name, number in (("certain bound", uppers), ("quadrature rule", rules), ("the head", values)):
    print(f"{name:16} off by {np.median(np.abs(number - truths)):.4f} nats per point (median)")
assert np.median(np.abs(values - truths)) < np.median(np.abs(rules - truths))

# %% [markdown]
# ### When it does not answer
#
# Where it is unlike its training it says so, and Lanczos answers, as it does at a model's first step and at every 25th
# to check; and where half of its interval is wider than `logdet_tolerance` (0.01 nats per point by default). Nobody is
# asked where the certain interval alone is narrower than a tenth of that.

# %%
few, preconditioner = drawn_system(datasets.load("robot_arm", n=200).train_x)
print("n = 200:", learned.tail(few, preconditioner, *what_a_step_knows(few)[:3]).refusal)
wide = sum(one[1].half_width > solver.logdet_tolerance for one in found)
print(f"of the {len(found)} systems above {wide} would be handed to Lanczos, their intervals being too wide")
assert learned.tail(few, preconditioner, *what_a_step_knows(few)[:3]).refusal is not None

# %% [markdown]
# Neither network decides whether an answer is right: the interval that a report calls certain does not depend on them.
