"""What rounding may change: one formula each, for numbers and for arrays of them (a batch of systems).

``asymmetry``: what K_ij and K_ji differed by, relative to max_i A_ii; 0 where K is symmetric to the last bit.
``condition``: max_i A_ii / min_i D_ii.
"""

from __future__ import annotations

import math
from typing import TypeVar

import numpy as np
import torch

Numbers = TypeVar("Numbers", float, np.ndarray)

_ROUNDING = 6  # of a product, over eps |x| times the largest norm of a row: see LinearSystem.rounding_scale
_SPREAD = 10  # of the square of one random number over its mean, beyond one: exceeded by 1 in 1000
ALL_ROUNDED_ALIKE = (1 + _SPREAD) ** 0.5
_IN_STRETCHES = 8.0
# What entries of K are off by, over eps max_i A_ii, root mean square: 0.29 or less if each were the rounded exact one;
# exponentials and distances round as well (measured 0.38 to 0.41: this package's kernels and GPyTorch's).
_OF_AN_ENTRY = 0.4


def product_rounding(dtype: torch.dtype, norm: Numbers) -> Numbers:
    """The norm of the rounding error of A x over that of x, where rows differ. ``norm``: the largest of a row."""
    return _ROUNDING * torch.finfo(dtype).eps * norm


def rounded_alike(squares: np.ndarray) -> float:
    """What equal rows multiply :func:`product_rounding` by, from 1, where all differ, to ``ALL_ROUNDED_ALIKE``.

    The square of the error's norm is sum_g size_g e_g^2 over groups of equal rows, whose errors e_g are random numbers
    of one variance: its standard deviation over its mean is sqrt(2 sum_g size_g^2) / n. That of n different rows is in
    the constant of the product. ``squares``: the squared norms of rows, equal to float32 where rows are.
    """
    sizes = np.unique(squares.astype(np.float32), return_counts=True)[1]
    n = len(squares)
    return (1 + _SPREAD * (float(np.square(sizes, dtype=np.float64).sum()) ** 0.5 - n**0.5) / n) ** 0.5


def entry_error(dtype: torch.dtype, asymmetry: float) -> float:
    """What the entries of K are known to, relative to max_i A_ii: their rounding, or worse."""
    return max(torch.finfo(dtype).eps, asymmetry)


def in_stretches(modelled: np.ndarray, partial: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The norm of the rounding error of A x in float64, ``modelled`` for random signs of x: where these come in
    stretches roundings follow the largest ``partial`` sum of x, not its ``length`` |x| (measured: up to 7 times)."""
    return modelled * np.maximum(1.0, _IN_STRETCHES * np.divide(partial, length, where=length > 0, out=0 * length))


def factor_rounding(n: int, dtype: torch.dtype, condition: Numbers) -> Numbers:
    """What a Cholesky factorisation in ``dtype`` may move log|A| / n by, in nats.

    L L' = A + E with |E_ii| <= n u A_ii in the worst case, and sqrt(n) u A_ii where roundings are independent (Higham &
    Mary 2019); the sign is the same for every i where all points are alike. The diagonal of A^-1 is at most
    1 / smallest noise. Twice that is counted: eps = 2 u.
    """
    return n**0.5 * torch.finfo(dtype).eps * condition


def logdet_margin(n: int, dtype: torch.dtype, asymmetry: float, condition: Numbers) -> Numbers:
    """What any interval of log|A| has to allow for, in nats: the rounding of the entries of K.

    d log|A| = tr(A^-1 E) for errors E of at most u = eps / 2 of every entry and with signs of their own has a
    standard deviation below u max_i A_ii |A^-1|_F, and |A^-1|_F <= sqrt(n) / smallest noise. Counted is
    n eps max_i A_ii / smallest noise: errors of the diagonal may have one sign, for K_ii is often one number.
    """
    return with_second_order(n * entry_error(dtype, asymmetry) * condition)


def with_second_order(first: Numbers) -> Numbers:
    """And of the second order of log|A|, which has one sign however random errors are: entries of variance s^2 move it
    by s^2 ((tr A^-1)^2 + |A^-1|_F^2) / 4 on average, where ``first`` is n eps max_i A_ii / smallest noise. It outgrows
    the first order from some 12 nats on."""
    return first * (1 + 0.5 * _OF_AN_ENTRY**2 * first)


def first_order(margin: float) -> float:
    """The part that signs decide of a margin :func:`with_second_order`."""
    bend = _OF_AN_ENTRY**2
    return (math.sqrt(1 + 2 * bend * margin) - 1) / bend if math.isfinite(margin) else margin


def quadratic_margin(
    n: int, dtype: torch.dtype, asymmetry: float, largest: Numbers, condition: Numbers, square: np.ndarray
) -> np.ndarray:
    """What an interval of b' A^-1 b with a solution x has to allow for beside its residual. ``square``: |x|^2;
    ``largest``: max_i A_ii.

    Entries of K were rounded, by at most u = eps / 2 of each and with signs of their own: x'Ex has a standard
    deviation below u max_i K_ii |x|^2 for |K_ij| <= max_i K_ii, of which four are counted. Those of a K that is not
    symmetric may all have one sign: |x'Ex| <= max |E_ij| |x|_1^2, and |x|_1^2 <= n |x|^2. The second order,
    x'E A^-1 Ex, is s^2 tr(A^-1) |x|^2 on average (without noise nobody knows the trace, and it is left out). And x'Ax
    was summed in float64: n^2 eps64 max_i K_ii |x|^2 at most.
    """
    eps = torch.finfo(dtype).eps
    entries = 2 * eps
    if asymmetry:
        entries = max(entries, 0.5 * entry_error(dtype, asymmetry) * n)
    second = _OF_AN_ENTRY**2 * eps * n * eps * np.where(np.isfinite(condition), condition, 0.0)
    return (entries + second + n**2 * np.finfo(np.float64).eps) * largest * square
