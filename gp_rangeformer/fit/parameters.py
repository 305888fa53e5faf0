"""The numbers that a fit may change, on scales on which a step of one is a large step: logarithms of what is positive.

A parameter with a lower bound l is seen as log(v - l) of its constrained value v, one between two bounds as a logit,
any other as it is; so bounds hold whatever an optimiser proposes, with or without a transform of GPyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import gpytorch
import torch
from gpytorch.constraints import Interval
from jaxtyping import Bool, Float64
from torch import Tensor

# Nearer to a bound than this is on it: a distance, of a bound that is not zero; and a share of it, and of an interval,
# whose upper end float32 resolves to 1e-7, as it does its lower end by that share of the bound itself.
_ON_THE_BOUND, _OF_AN_INTERVAL = 1e-10, 1e-6
# Distances that float32 holds, for targets in whatever units: from zero, and from any bound. Nothing moves beyond.
_SMALLEST, _LARGEST = 1e-30, 1e30
# A start is at least so far from a bound, as a share of the bound itself: nearer to it the logarithm of the distance
# has next to no gradient, and a fit that begins there (where an earlier one has ended) would never leave.
_OFF_A_BOUND = 0.01
_NEAR_A_BOUND = 2 * _OFF_A_BOUND  # as a share of it: an end that is said to be on it


@dataclass(frozen=True)
class _Entry:
    """A parameter with its bounds, if it has some."""

    name: str
    raw: torch.nn.Parameter
    constraint: Interval | None
    lower: float
    upper: float

    def value(self, raw: Tensor) -> Tensor:
        """Of the parameter as its owner stores it, between its bounds."""
        constraint = self.constraint
        return raw if constraint is None or not constraint.enforced else constraint.transform(raw)

    def stored(self, value: Tensor) -> Tensor:
        constraint = self.constraint
        return value if constraint is None or not constraint.enforced else constraint.inverse_transform(value)

    @property
    def _smallest_share(self) -> float:
        """Of an interval. Of one over several decades a share that is the same at both ends would cut off most."""
        distance = max(_nearest(self.lower), _OF_AN_INTERVAL * abs(self.lower))
        return min(_OF_AN_INTERVAL, distance / (self.upper - self.lower))

    def free(self, value: Tensor) -> Tensor:
        """Of a value to start from: off its bounds."""
        below, above = math.isfinite(self.lower), math.isfinite(self.upper)
        low, high = (max(_nearest(bound), _OFF_A_BOUND * abs(bound)) for bound in (self.lower, self.upper))
        if below and above:
            width = self.upper - self.lower
            smallest = max(self._smallest_share, min(low / width, _OFF_A_BOUND))
            largest = 1 - max(_OF_AN_INTERVAL, min(high / width, _OFF_A_BOUND))
            return ((value - self.lower) / width).clamp(smallest, largest).logit()
        if below:
            return (value - self.lower).clamp_min(low).log()
        if above:
            return -(self.upper - value).clamp_min(high).log()
        return value

    def bounded(self, free: Tensor) -> Tensor:
        below, above = math.isfinite(self.lower), math.isfinite(self.upper)
        if below and above:
            share = free.sigmoid().clamp(self._smallest_share, 1 - _OF_AN_INTERVAL)
            return self.lower + (self.upper - self.lower) * share
        if below:
            return self.lower + free.exp().clamp(_nearest(self.lower), _LARGEST)
        return self.upper - (-free).exp().clamp(_nearest(self.upper), _LARGEST) if above else free


class FreeParameters:
    """All parameters of a module that ask for a gradient, each once, as one float64 vector phi.

    :raises ValueError: if there are none, or if a constraint has several bounds.
    """

    def __init__(self, module: gpytorch.Module) -> None:
        found: dict[int, _Entry] = {}
        for name, raw, constraint in module.named_parameters_and_constraints():
            if not raw.requires_grad:
                continue
            entry = _Entry(name, raw, constraint, *_bounds(constraint))
            former = found.setdefault(id(raw), entry)
            if former.constraint is None and constraint is not None:
                found[id(raw)] = entry
        self._entries = list(found.values())
        if not self._entries:
            raise ValueError("the model has no parameter to fit: every requires_grad is False")
        self.size = sum(entry.raw.numel() for entry in self._entries)

    @property
    def tensors(self) -> list[torch.nn.Parameter]:
        return [entry.raw for entry in self._entries]

    @property
    def names(self) -> list[str]:
        """One for every number of phi."""
        names = []
        for entry in self._entries:
            count = entry.raw.numel()
            names += [entry.name] if count == 1 else [f"{entry.name}[{index}]" for index in range(count)]
        return names

    @property
    def unbounded(self) -> Bool[Tensor, " p"]:
        """The numbers that phi holds as they are stored."""
        parts = [
            torch.full((entry.raw.numel(),), entry.constraint is None and math.isinf(entry.lower), device="cpu")
            for entry in self._entries
        ]
        return torch.cat(parts)

    def read(self) -> Float64[Tensor, " p"]:
        """phi of the parameters as they are, to start from; those on a bound, beyond it, or within a hundredth of its
        size, just inside."""
        with torch.no_grad():
            parts = [entry.free(entry.value(entry.raw.detach().double())) for entry in self._entries]
        return torch.cat([part.reshape(-1).cpu() for part in parts])

    def write(self, phi: Float64[Tensor, " p"]) -> None:
        """Set the parameters, in their own dtypes and on their own devices; those that are there already stay
        untouched, and graphs from them alive."""
        with torch.no_grad():
            for entry, part in zip(self._entries, self._split(phi), strict=True):
                wide = entry.stored(entry.bounded(part)).reshape(entry.raw.shape)
                stored = wide.to(entry.raw)
                if not torch.equal(stored, entry.raw):
                    entry.raw.copy_(stored)

    def slopes(self, phi: Float64[Tensor, " p"]) -> tuple[Float64[Tensor, " p"], Float64[Tensor, " p"]]:
        """First and second derivative of every stored number with respect to its own phi."""
        first, second = [], []
        with torch.enable_grad():
            for entry, part in zip(self._entries, self._split(phi), strict=True):
                free = part.clone().requires_grad_()
                (slope,) = torch.autograd.grad(entry.stored(entry.bounded(free)).sum(), free, create_graph=True)
                bend = torch.zeros_like(part)
                if slope.requires_grad:
                    (bend,) = torch.autograd.grad(slope.sum(), free)
                first.append(slope.detach())
                second.append(bend)
        return torch.cat(first), torch.cat(second)

    def on_bounds(self, phi: Float64[Tensor, " p"]) -> list[str]:
        """Names of the numbers that are near a bound, relative to it, with that; zero is none."""
        names = self.names
        return [f"{names[place]} at {bound:.3g}" for place, _, bound in self._bounds_met(phi)]

    def at_ends(self, phi: Float64[Tensor, " p"]) -> list[str]:
        """Names of the numbers that are as near zero, or as far from their bound, as a fit tries, with their values."""
        names, found = self.names, []
        values = torch.cat([entry.bounded(part) for entry, part in zip(self._entries, self._split(phi), strict=True)])
        bounded = [entry for entry in self._entries for _ in range(entry.raw.numel())]
        for name, entry, value in zip(names, bounded, values.tolist(), strict=True):
            bounds = [bound for bound in (entry.lower, entry.upper) if math.isfinite(bound)]
            far = bool(bounds) and min(abs(value - bound) for bound in bounds) > 0.5 * _LARGEST
            if far or (0 in bounds and abs(value) < 2 * _SMALLEST):
                found.append(f"{name} at {value:.3g}")
        return found

    def held_by_bounds(self, phi: Float64[Tensor, " p"], gradient: Float64[Tensor, " p"]) -> Bool[Tensor, " p"]:
        """Those of them off which ``gradient`` leads, back between the bounds."""
        found = torch.zeros(self.size, dtype=torch.bool, device="cpu")
        for place, side, _ in self._bounds_met(phi):
            found[place] = bool(side * gradient[place] > 0)
        return found

    def _bounds_met(self, phi: Float64[Tensor, " p"]) -> Iterator[tuple[int, int, float]]:
        """Place, 1 for a lower bound and -1 for an upper one, and the bound."""
        place = 0
        for entry, part in zip(self._entries, self._split(phi), strict=True):
            for value in entry.bounded(part).tolist():
                for side, bound in ((1, entry.lower), (-1, entry.upper)):
                    if bound != 0 and math.isfinite(bound) and abs(value - bound) <= _NEAR_A_BOUND * abs(bound):
                        yield place, side, bound
                place += 1

    def raw_state(self) -> list[Tensor]:
        """The stored numbers, bit for bit."""
        return [entry.raw.detach().clone() for entry in self._entries]

    def restore(self, state: list[Tensor]) -> None:
        with torch.no_grad():
            for entry, stored in zip(self._entries, state, strict=True):
                if not torch.equal(stored, entry.raw):  # an inference tensor cannot be written to, and has not been
                    entry.raw.copy_(stored)

    def _split(self, phi: Tensor) -> list[Tensor]:
        return list(phi.split([entry.raw.numel() for entry in self._entries]))


def _nearest(bound: float) -> float:
    """How near to it a number goes: a share of a bound that is smaller still, and next to nothing of zero."""
    return max(min(_ON_THE_BOUND, _OF_AN_INTERVAL * abs(bound)), _SMALLEST)


def _bounds(constraint: Interval | None) -> tuple[float, float]:
    """One pair for all numbers of a parameter: bounds that differ are left to the constraint's own transform."""
    if constraint is None:
        return -math.inf, math.inf
    lower, upper = constraint.lower_bound, constraint.upper_bound
    if lower.numel() != 1 or upper.numel() != 1:
        raise ValueError("a constraint with several bounds is not supported: give every number a parameter of its own")
    return float(lower), float(upper)
