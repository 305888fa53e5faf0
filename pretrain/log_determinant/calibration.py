"""How wide the tail's stated interval must be, from kernels unlike all that a head was trained on.

Held-out systems drawn like those of training say nothing about a user's kernel. So kernels are put into groups by what
the network sees of them, each group is answered by a head trained on the other groups, and the widths are multiplied by
what covers those answers on average over the groups: a factor for every bin of n and of z. It is 1.25 for small n and
z, where every group teaches about the others, and 2.3 at n > 12,000 and z > 2.

Groups weigh the same, however many systems they have. Factors from five groups cover 89 % of the sixth on average, from
systems weighing the same 89 % too, but those are 3.1 rather than 1.8 to 2.3 at z > 2: one head's collapse decides them.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gp_rangeformer.logdet.features import FIRST_OF_KERNEL, LOG_SIZE
from gp_rangeformer.logdet.network import QUANTILES, LogDetTail

GROUPS = 6
_CLIP = 3.0  # standard deviations
_ROUNDS = 50  # of k-means
_FEWEST = 20  # systems that say something about a bin
_TINY = 1e-5  # half width in nats per point, below which float32 evidence decides,
_TINY_UPPER = 0.01  # if z can be no larger: an answer that is pressed against a larger upper end is narrow and wrong
_TINY_LEVEL = 0.99


def groups(data: dict[str, Tensor], count: int = GROUPS, seed: int = 0) -> Int[Tensor, " s"]:
    """The group of every system, by k-means on its kernel's mean features; a kernel's systems stay together."""
    shape = data["scalars"][:, FIRST_OF_KERNEL:]
    shape = ((shape - shape.mean(0)) / (shape.std(0) + 1e-6)).clamp(-_CLIP, _CLIP)
    kernels, member = torch.unique(data["kernel"], return_inverse=True)
    points = torch.zeros(len(kernels), shape.shape[1]).index_add_(0, member, shape)
    points /= torch.bincount(member).unsqueeze(-1)
    start = torch.randperm(len(points), generator=torch.Generator().manual_seed(seed))[:count]
    centres = points[start]
    for _ in range(_ROUNDS):
        nearest = torch.cdist(points, centres).argmin(1)
        # An empty group keeps its centre.
        found = [points[nearest == group] for group in range(count)]
        centres = torch.stack([own.mean(0) if len(own) else old for own, old in zip(found, centres, strict=True)])
    return torch.cdist(points, centres).argmin(1)[member]


@torch.no_grad()
def calibrate(
    model: LogDetTail,
    answers: Float[Tensor, "s 3"],
    data: dict[str, Tensor],
    group: Int[Tensor, " s"] | None = None,
    level: float = QUANTILES[2] - QUANTILES[0],
) -> None:
    """Set ``model.widening`` and ``model.floor``, so that both together would make ``answers`` cover.

    :param answers: quantiles of the systems in ``data``, unwidened, by heads that were not trained on them.
    :param group: of every system, from :func:`groups`; None for all in one.
    :param level: share of the systems of a bin that its factor covers, as a mean over the groups that have at least 20
        there. No factor is smaller than that of a bin of smaller n or z; bins without such a group inherit it.

    Systems with a small upper end and an interval narrower than ``_TINY`` set the floor, others the factors. It covers
    ``_TINY_LEVEL`` of the former: their errors are rounding rather than extrapolation, kernels unlike most have larger
    ones, and nothing is lost by a floor far below any tolerance.
    """
    group = torch.zeros(len(answers), dtype=torch.int64) if group is None else group
    lower, value, upper = answers.double().unbind(-1)
    # Rounding may put z itself outside the certain interval, where no stated interval can follow.
    exact = data["tail"].clamp_min(0).minimum(data["upper"]).double()
    missed = (exact - value).abs()
    width = torch.where(exact < value, value - lower, upper - value)
    tiny = (upper - lower < 2 * _TINY) & (data["upper"] < _TINY_UPPER)
    size_bin, value_bin = model.bins(data["scalars"][:, LOG_SIZE], value.float())
    factors = torch.zeros_like(model.widening)
    for row in range(factors.shape[0]):
        for column in range(factors.shape[1]):
            chosen = ~tiny & (size_bin == row) & (value_bin == column)
            factors[row, column] = _mean_quantile((missed / width.clamp_min(1e-12))[chosen], group[chosen], level)
    factors = factors.cummax(0).values.cummax(1).values
    model.widening.copy_(torch.where(factors > 0, factors, torch.ones_like(factors)))
    beyond = (missed - model.widening[size_bin, value_bin] * width)[tiny]
    model.floor.fill_(beyond.quantile(_TINY_LEVEL).clamp_min(0) if len(beyond) else 0)


def _mean_quantile(ratio: Tensor, group: Tensor, level: float) -> float:
    """What is above a share of the ratios that is ``level`` on average over the groups; 0 without a large group."""
    counts = torch.bincount(group, minlength=GROUPS)
    share = torch.where(counts >= _FEWEST, 1 / counts, 0.0)[group].double()
    if not float(share.sum()):
        return 0.0
    ordered, order = ratio.sort()
    reached = share[order].cumsum(0) / share.sum()
    return float(ordered[(reached < level - 1e-9).sum()])
