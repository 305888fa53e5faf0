"""A trained LogDetTail for one system at a time, in NumPy.

A network this small takes 0.1 ms so. As tensor operations on the host it took 1 ms on an idle machine and up to 30 ms
where a dozen threads had to be woken for it, or had to share their cores.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Float64
from numpy.typing import NDArray
from torch import Tensor, nn

from gp_rangeformer.logdet.features import LOG_SIZE
from gp_rangeformer.logdet.network import CLIP, LEAST_WAY, LogDetTail


class TailReader:
    """The quantiles of :meth:`LogDetTail.forward`, to the rounding of float32.

    :param head: its parameters are copied.
    """

    def __init__(self, head: LogDetTail) -> None:
        self._buffers = {name: _array(tensor) for name, tensor in head.named_buffers()}
        self._token, self._context = _layer(head.token), _layer(head.context)
        self._read = [_layer(part) for part in head.read if isinstance(part, nn.Linear)]

    def __call__(
        self, scalars: Float[np.ndarray, " f"], tokens: Float[np.ndarray, "g c"], estimate: float, upper: float
    ) -> Float64[np.ndarray, " 3"]:
        """Quantiles of z in nats per point, ascending, within 0..upper. O(g dim^2)."""
        buffers = self._buffers
        given = ((scalars - buffers["scalar_mean"]) / buffers["scalar_scale"]).clip(-CLIP, CLIP)
        rows = ((tokens - buffers["token_mean"]) / buffers["token_scale"]).clip(-CLIP, CLIP)
        state = _gelu(_apply(self._token, rows) + _apply(self._context, given))
        answer = np.concatenate([given, state.mean(0), np.sqrt(np.square(state).mean(0) + 1e-6)])
        for layer in self._read[:-1]:
            answer = _gelu(_apply(layer, answer))
        middle, below, above = _apply(self._read[-1], answer)
        way = upper - estimate + LEAST_WAY * estimate
        row = np.searchsorted(buffers["size_ends"], scalars[LOG_SIZE])
        widening = buffers["widening"][row, np.searchsorted(buffers["value_ends"], estimate + way * middle)]
        below, above = np.logaddexp(0, [below, above]) * widening
        share = np.array([middle - below, middle, middle + above])
        inside = (estimate + way * share).clip(0, upper)
        return (inside + buffers["floor"] * np.array([-1, 0, 1])).clip(0, upper)

    def farthest_outside(self, scalars: Float[np.ndarray, " f"]) -> tuple[int, float]:
        """(index of the feature that is farthest outside the range seen in training, how far in standard deviations);
        the distance is 0 if all are inside."""
        buffers = self._buffers
        excess = np.maximum(buffers["scalar_low"] - scalars, scalars - buffers["scalar_high"]) / buffers["scalar_scale"]
        feature = int(excess.argmax())
        return feature, max(float(excess[feature]), 0.0)

    @property
    def largest_log_size(self) -> float:
        """The logarithm of the largest n seen in training."""
        return float(self._buffers["scalar_high"][LOG_SIZE])


_Layer = tuple[NDArray[np.float64], NDArray[np.float64]]


def _layer(linear: nn.Linear) -> _Layer:
    return _array(linear.weight).T, _array(linear.bias)


def _apply(layer: _Layer, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    weight, bias = layer
    return rows @ weight + bias


def _gelu(x: NDArray[np.float64]) -> NDArray[np.float64]:
    from scipy.special import erf  # when first needed: a third of the package's own time of import

    return 0.5 * x * (1 + erf(x / 2**0.5))


def _array(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy().copy()
