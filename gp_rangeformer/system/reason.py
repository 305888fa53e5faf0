"""Why a call was answered the way it was: one enumeration for solvers, plug-in and report."""

from __future__ import annotations

import enum


class Reason(enum.Enum):
    """Outcome of a call. The value is a sentence that names the cause and, where there is one, the remedy."""

    NOT_ASKED = (
        "nothing was asked of the plug-in: it answers what is computed inside `with settings.rangeformer():`, or "
        "after settings.rangeformer.set_global(True)"
    )

    CONVERGED = "every column met its tolerance"
    EXACT_SMALL = "n is below settings.min_size, where one Cholesky factorisation is faster"
    EXACT_ASKED = "settings.solver(Exact()) asks for a Cholesky factorisation"
    EXACT_LINE_SEARCH = (
        "a line search (L-BFGS, scipy.optimize) compares values with their own gradients, which a stochastic log "
        "determinant has in expectation only; the exact path answers (settings.exact_line_search(False) changes it)"
    )
    EXACT_MANY_COLUMNS = "so many right-hand sides cost less through one Cholesky factorisation"
    EXACT_APPENDED = "the factorisation of the model before was there, and its new rows were appended to it"
    EXACT_GRADIENT = (
        "probes leave the gradient more uncertain than gradient_tolerance allows; one Cholesky factorisation "
        "costs less than the probes that would do"
    )
    EXACT_ROOT = "a fantasy or a batch needs the triangular root of A^-1"
    EXACT_LOW_RANK = "a low-rank inverse root misses the predictive variance by more than tolerance"

    DIRECT = (
        "settings.solver(Direct()) lets the network's own answer through, and it is outside tolerance or its "
        "certain interval; settings.solver(Certified()) corrects it"
    )

    MAX_PASSES = "max_passes reached before the tolerance; raise rank in settings.solver or the likelihood's noise"
    STAGNATION = "the residual stopped falling, usually float32 rounding at a small noise; float64 helps"
    ROUNDING = "rounding alone, or nearly so, exceeds the tolerance at this noise; float64 or a larger noise helps"
    ESTIMATES = "estimated variances are off by more than their standard errors allow, or could not be made"
    NOT_FINITE = "a right-hand side or a product with the kernel matrix is NaN or infinite; look for overflow"
    NOT_PSD = "the kernel matrix has a negative direction; check the kernel or raise the noise"
    PAUSED = "recent steps of this model did not certify; the exact path answers a few before the next attempt"
    ZERO_NOISE = "the noise is not positive, so no certificate exists; raise the likelihood's noise constraint"

    OTHER_OPERATOR = "the covariance is not exactly kernel + diagonal"
    STRUCTURED_KERNEL = (
        "the kernel matrix has structure (Kronecker, Toeplitz, interpolation, ...) that GPyTorch exploits"
    )
    TOO_SMALL = (
        "n is below settings.exact_size, or below twice that for a kernel without a fused form: the overhead of a "
        "plug-in would show"
    )
    HOST_CHOLESKY = (
        "a prediction in float64 of few points, for which GPyTorch's own factorisation is as exact and faster"
    )
    UNSUPPORTED_DTYPE = "only float32 and float64 are supported"
    MIXED_DTYPE = "kernel, noise and targets differ in dtype; call .float() or .double() on model, likelihood and data"
    SHAPE = "shapes do not match or are empty; GPyTorch's own message follows"
    NAN_POLICY = "gpytorch's observation_nan_policy is not 'ignore'"
    CHECKPOINTED_KERNEL = "gpytorch.beta_features.checkpoint_kernel is on"
    TRANSFORM = "torch.func or a forward-mode derivative runs around the call; GPyTorch's own code can be transformed"
    TRACING = "torch.jit traces the call, or trace_mode (gpytorch's or linear_operator's) is on"
    ROOT_GRADIENT = "a gradient through the inverse root was asked for"
    CUSTOM_ROOT = "root_inv_decomposition was called with its own method or vectors"
