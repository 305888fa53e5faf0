"""A linear system of the symmetric part of K: what every path answers about, whatever the kernel evaluated."""

from __future__ import annotations

from torch import Tensor

from gp_rangeformer.kernels.fused import FusedKernel
from gp_rangeformer.plugin.eligibility import EligibleSystem
from gp_rangeformer.plugin.reports import Call
from gp_rangeformer.system.kernel_matrix import KernelMatrix
from gp_rangeformer.system.linear_system import LinearSystem
from gp_rangeformer.system.symmetry import symmetric_part

# Up to this a difference of K_ij and K_ji, over the largest entry, is an error of the kernel's own evaluation.
EVALUATION_ERROR = 1e-5
NOT_SYMMETRIC = "the kernel matrix is not symmetric: its symmetric part answers"


def symmetric_system(
    call: Call,
    system: EligibleSystem,
    kernel: Tensor | KernelMatrix,
    noise: Tensor,
    fused: FusedKernel | None,
) -> LinearSystem:
    """A of the symmetric part of K. A fused kernel's matrix is symmetric to the last bit."""
    if not isinstance(kernel, Tensor) or system.fused is not None:
        linear_system = detached_system(kernel, noise)
        if fused is not None:
            belongs_to(linear_system, fused)
        return linear_system
    given = kernel.detach()
    mean, difference = symmetric_part(given)
    linear_system = detached_system(mean, noise)
    if mean is not given:
        call.note(NOT_SYMMETRIC)
    if difference > 0:
        linear_system.asymmetry, linear_system.skewed = min(difference, EVALUATION_ERROR), mean is given
    linear_system.trusted = False
    return linear_system


def belongs_to(system: LinearSystem, fused: FusedKernel) -> None:
    """Says whose matrix K is: its points, and whether it is positive semi-definite, which a device is asked with
    everything else."""
    system.points = fused
    if system.device.type == "cpu":
        system.trusted = fused.positive
    else:
        system.positive = fused.ask_positive(system.ask)


def detached_system(kernel: Tensor | KernelMatrix, noise: Tensor) -> LinearSystem:
    return LinearSystem(kernel.detach() if isinstance(kernel, Tensor) else kernel, noise.detach())
