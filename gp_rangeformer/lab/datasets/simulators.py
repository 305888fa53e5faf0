"""Simulators of the engineering literature: test functions that give any number of points."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gp_rangeformer.lab.datasets.dataset import Dataset, standardise

TRAIN_ROWS = 2000
_NOISE = 0.05


def robot_arm(x: Tensor) -> Tensor:
    """Distance of a planar four-segment arm's end from its shoulder.

    f = sqrt(u^2 + v^2), u = sum_i L_i cos(theta_1 + ... + theta_i), v = sum_i L_i sin(theta_1 + ... + theta_i).

    Args:
        x: n x 8: theta_1..4 in [0, 2 pi] rad, L_1..4 in [0, 1].

    Returns:
        n distances, in the unit of the lengths.

    Source: An & Owen (2001), "Quasi-regression"; Surjanovic & Bingham, Virtual Library of Simulation Experiments.
    """
    angles, lengths = x[:, :4].cumsum(dim=1), x[:, 4:]
    return torch.hypot((lengths * angles.cos()).sum(dim=1), (lengths * angles.sin()).sum(dim=1))


def borehole(x: Tensor) -> Tensor:
    """Water flow through a borehole between two aquifers, in m^3/yr.

    f = 2 pi Tu (Hu - Hl) / (ln(r/rw) (1 + 2 L Tu / (ln(r/rw) rw^2 Kw) + Tu / Tl)).

    Args:
        x: n x 8: rw in [0.05, 0.15] m, r in [100, 50000] m, Tu in [63070, 115600] m^2/yr, Hu in [990, 1110] m,
            Tl in [63.1, 116] m^2/yr, Hl in [700, 820] m, L in [1120, 1680] m, Kw in [9855, 12045] m/yr.

    Returns:
        n flow rates.

    Source: Harper & Gupta (1983); Morris, Mitchell & Ylvisaker (1993); Surjanovic & Bingham, Virtual Library of
    Simulation Experiments. All inputs uniform, as for surrogate models there.
    """
    rw, r, tu, hu, tl, hl, length, kw = x.unbind(dim=1)
    log_ratio = (r / rw).log()
    return 2 * math.pi * tu * (hu - hl) / (log_ratio * (1 + 2 * length * tu / (log_ratio * rw**2 * kw) + tu / tl))


def wing_weight(x: Tensor) -> Tensor:
    """Weight of a light aircraft's wing, in lb.

    f = 0.036 Sw^0.758 Wfw^0.0035 (A / cos^2 Lambda)^0.6 q^0.006 lambda^0.04 (100 tc / cos Lambda)^-0.3 (Nz Wdg)^0.49
    + Sw Wp, Lambda in degrees.

    Args:
        x: n x 10: Sw in [150, 200] ft^2, Wfw in [220, 300] lb, A in [6, 10], Lambda in [-10, 10] degrees, q in [16, 45]
            lb/ft^2, lambda in [0.5, 1], tc in [0.08, 0.18], Nz in [2.5, 6], Wdg in [1700, 2500] lb, Wp in
            [0.025, 0.08] lb/ft^2.

    Returns:
        n weights.

    Source: Forrester, Sobester & Keane (2008), "Engineering Design via Surrogate Modelling"; Surjanovic & Bingham,
    Virtual Library of Simulation Experiments.
    """
    sw, wfw, aspect, sweep, q, taper, tc, nz, wdg, wp = x.unbind(dim=1)
    cosine = torch.deg2rad(sweep).cos()
    structure = sw**0.758 * wfw**0.0035 * (aspect / cosine**2) ** 0.6 * q**0.006 * taper**0.04
    return 0.036 * structure * (100 * tc / cosine) ** -0.3 * (nz * wdg) ** 0.49 + sw * wp


class Simulator(NamedTuple):
    function: Callable[[Tensor], Tensor]
    target: str
    inputs: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


SIMULATORS = {
    "robot_arm": Simulator(
        robot_arm,
        "distance",
        ("theta1", "theta2", "theta3", "theta4", "L1", "L2", "L3", "L4"),
        (0.0,) * 8,
        (2 * math.pi,) * 4 + (1.0,) * 4,
    ),
    "borehole": Simulator(
        borehole,
        "flow_m3_per_year",
        ("rw", "r", "Tu", "Hu", "Tl", "Hl", "L", "Kw"),
        (0.05, 100, 63_070, 990, 63.1, 700, 1120, 9855),
        (0.15, 50_000, 115_600, 1110, 116, 820, 1680, 12_045),
    ),
    "wing_weight": Simulator(
        wing_weight,
        "weight_lb",
        ("Sw", "Wfw", "A", "Lambda", "q", "lambda", "tc", "Nz", "Wdg", "Wp"),
        (150, 220, 6, -10, 16, 0.5, 0.08, 2.5, 1700, 0.025),
        (200, 300, 10, 10, 45, 1, 0.18, 6, 2500, 0.08),
    ),
}


def simulate(name: str, n: int, n_test: int, generator: torch.Generator) -> Dataset:
    function, target, inputs, *limits = SIMULATORS[name]
    low, high = torch.tensor(limits, dtype=torch.float64)

    def draw(rows: int) -> tuple[Tensor, Tensor, Tensor]:
        x = low + (high - low) * torch.rand(rows, len(low), generator=generator, dtype=torch.float64)
        return x, function(x), torch.randn(rows, generator=generator, dtype=torch.float64)

    # The test half first, so that its inputs do not depend on n.
    test_x, test_y, test_noise = draw(n_test)
    train_x, train_y, train_noise = draw(n)
    noise = _NOISE * train_y.std(correction=0)
    train, test = (train_x, train_y + noise * train_noise), (test_x, test_y + noise * test_noise)
    source = f"simulator {name} (Surjanovic & Bingham, Virtual Library of Simulation Experiments), noise sd {noise:.3g}"
    return standardise(name, train, test, inputs, target, source)
