"""Training data: what was known before each solve of a generated GP training, and what any mixture would have left.

B - A X0 is linear in the coefficients, so its mean squared norm over columns is a quadratic form: an exact loss for any
coefficients is 2 h numbers squared, whatever n is. Only that form and the tokens are stored.
"""

from __future__ import annotations

from pathlib import Path as FilePath

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save
from torch import Tensor

from gp_rangeformer.atomic import write_bytes
from gp_rangeformer.system.linear_system import LinearSystem
from pretrain.experiments.predictor.model import STEPS, tokens
from pretrain.experiments.predictor.paths import adam_path, generated, lbfgs_path
from pretrain.experiments.predictor.predictors import Damped, Sketched, linear
from pretrain.experiments.predictor.replay import Predictor, Situation, walk

# Who fills the memory while data are recorded: a learned predictor will meet histories of its own making.
RECORDERS: tuple[Predictor, ...] = (linear, Damped(0.2), Sketched(4, 4, 32))


def record(seed: int, steps: int) -> dict[str, Tensor]:
    """One training run: tokens (t, h, f) and forms (t, 2 h, 2 h), float32, for the steps with h solutions known.

    Adam at a learning rate log-uniform in 0.02..0.2, or in one run of eight L-BFGS; rank from n / 20 to n / 5.
    """
    generator = torch.Generator().manual_seed(seed + 1_000_000)
    draw = torch.rand(2, generator=generator).tolist()
    problem = generated(seed)
    path = lbfgs_path(problem, steps) if seed % 8 == 7 else adam_path(problem, 0.02 * 10 ** draw[0], steps)
    rank = round(problem.size / 20 * 4 ** draw[1])
    known, forms = [], []
    for found in walk(path, {"recorder": RECORDERS[seed % len(RECORDERS)]}, rank=rank):
        situation, step = found["recorder"]
        if step.converged and len(situation.past) >= STEPS:
            known.append(tokens(situation))
            forms.append(residual_form(situation))
    if not known:
        return {"tokens": torch.zeros(0), "forms": torch.zeros(0)}
    return {"tokens": torch.stack(known), "forms": torch.stack(forms).float()}


def residual_form(situation: Situation) -> Float[Tensor, "k k"]:
    """Inner products of B - A X[t-i] and -A Z[t-i], relative to |B|, averaged over columns.

    With sum_i c_i = 1 the residual is sum_i c_i (B - A X[t-i]) - sum_j a_j A Z[t-j].
    """
    unbooked = LinearSystem(situation.system.columns(torch.arange(situation.system.size)), situation.system.noise)
    past = situation.past[:STEPS]
    left = [situation.rhs - unbooked.matmul(item.solution) for item in past]
    left += [-unbooked.matmul(item.correction) for item in past]
    stacked = (torch.stack(left) / torch.linalg.vector_norm(situation.rhs, dim=0)).flatten(1).double()
    return stacked @ stacked.mT / situation.rhs.shape[1]


def record_all(folder: FilePath, count: int, steps: int) -> None:
    """Record what is not in ``folder`` yet, one file a run; an interrupt loses the run in progress alone."""
    for seed in range(count):
        path = folder / f"{seed:04d}-{steps}.safetensors"
        if not path.is_file():
            write_bytes(path, save({name: value.contiguous() for name, value in record(seed, steps).items()}))
            print(f"recorded {path.name}", flush=True)


def load_all(folder: FilePath, count: int, steps: int) -> list[dict[str, Tensor]]:
    """The recorded runs, in the order of their seeds, without those in which nothing converged."""
    runs = [load_file(folder / f"{seed:04d}-{steps}.safetensors") for seed in range(count)]
    return [run for run in runs if run["tokens"].numel()]
