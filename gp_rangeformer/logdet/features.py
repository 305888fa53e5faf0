"""The names of what the log determinant's network reads, in the order in which it was trained on them.

:mod:`gp_rangeformer.logdet.evidence` hands its numbers over by name and gets them back in the order of ``SCALARS`` and
``TOKENS``. A head's card keeps the names that it was trained with, and a head that knows others is refused: nothing
else would notice a feature at another's place, for every answer stays inside its certain interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import SupportsFloat

import torch
from jaxtyping import Float64
from torch import Tensor

from gp_rangeformer.checkpoint import CheckpointError, ModelCard

GAP_QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.97)  # over all points
PLACES = (0, 0.25, 0.5, 0.75, 1)  # in the spectrum of Q, from its largest eigenvalue to its smallest
LEVELS = (0, 1, 2, 4, 8, 16, 32)  # of 32: how many of the given points a learning curve has seen

GAPS = tuple(f"log_gap_{share:g}" for share in GAP_QUANTILES)
EIGENVALUES = tuple(f"log_eigenvalue_{place:g}" for place in PLACES)
# "Gap": the diagonal of E. "Moment": of the spectrum of P^-1 A under P^-1, the first z'A^-1 z over z'P^-1 z.
SCALARS = (
    "log_size",
    "log_rank_share",
    "log_noise_deviation",
    "upper",
    "log_mean_gap",
    "damped_gap",
    *GAPS,
    "range_share",
    "range_logdet",
    *EIGENVALUES,
    "moment_loss",
    "moment_drop",
    "gauss",
    "radau",
    "trace_excess",
    "moment_spread",
    "solution_loss",
    "log_estimate",
    "estimate_share",
    "leverage",
    # The same again where the hard end can be told apart: there the moments are nearly zero.
    "log_moment_ratio",
    "log_node",
    "radau_less_gauss",
    "log_room",
    "log_room_above_radau",
    "log_mean_gap_less_radau",
    "log_solution_ratio",
    "relative_moment_spread",
    "damped_gap_less_loss",
    "log_undamped_gap",
)
LOG_SIZE = SCALARS.index("log_size")
FIRST_OF_KERNEL = SCALARS.index("log_noise_deviation")  # before it come n and the rank
FIRST_OF_PROBES = SCALARS.index("moment_loss")  # before it comes what needs no solves

CURVES = ("schur", "difference", "ranged")  # learning curves: of I + E; of A~, less those of P~; of P~
POINTWISE = ("leverage", "inverse_diagonal")
TOKENS = (*(f"{curve}_{level}" for curve in CURVES for level in LEVELS), *POINTWISE)

FEATURES = {"scalars": SCALARS, "tokens": TOKENS}  # part of a card's ``training``


def ordered_scalars(values: Mapping[str, SupportsFloat]) -> Float64[Tensor, " f"]:
    """The numbers of one system in the order of ``SCALARS``, on the CPU.

    :raises KeyError: one is missing, or has no place there.
    """
    if unknown := values.keys() - set(SCALARS):
        raise KeyError(f"no place among the scalars for {', '.join(sorted(unknown))}")
    return torch.tensor([float(values[name]) for name in SCALARS], dtype=torch.float64, device="cpu")


def ordered_tokens(
    curves: Mapping[str, Float64[Tensor, "b levels"]], pointwise: Mapping[str, Float64[Tensor, " b"]]
) -> Float64[Tensor, "b c"]:
    """Learning curves and other features of some points in the order of ``TOKENS``, on their device.

    :raises KeyError: one is missing.
    """
    others = torch.stack([pointwise[name] for name in POINTWISE], dim=-1)
    return torch.cat([*(curves[name] for name in CURVES), others], dim=-1)


def check_features(card: ModelCard, described: Path) -> None:
    """Compare the names in a head's card with those above.

    :param described: the card's file, for the message.
    :raises CheckpointError: they differ in number, order or name; says where.
    """
    for kind, here in FEATURES.items():
        there = tuple(card.training.get(kind, ()))
        if there == here:
            continue
        if len(there) != len(here):
            difference = f"{len(there)} {kind} are named there, {len(here)} here"
        else:
            place = next(index for index, pair in enumerate(zip(there, here, strict=True)) if pair[0] != pair[1])
            difference = f"of the {kind}, number {place} is {there[place]} there and {here[place]} here"
        raise CheckpointError(
            f"{described}: the head was trained on other features than this version gathers ({difference}): restore "
            "the files that came with this version, or train it again with python -m pretrain.log_determinant.train"
        )
