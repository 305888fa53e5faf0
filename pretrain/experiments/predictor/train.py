"""Train a mixing transformer on recorded runs: the logarithm of the residual that its coefficients leave."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pretrain.experiments.model_file import read_model, write_model
from pretrain.experiments.predictor.model import STEPS, MixingTransformer

_BATCH = 256
_RATE = 2e-3
# Every tenth run is for validation: whole runs, since the steps of one resemble each other.
_VALIDATION = 10


def residual(
    forms: Float[Tensor, "b k k"], solutions: Float[Tensor, "b h"], corrections: Float[Tensor, "b h"]
) -> Float[Tensor, " b"]:
    """The root mean square over columns of |B - A X0| / |B|; ``solutions`` sum to one."""
    coefficients = torch.cat([solutions, corrections], dim=-1)
    square = (coefficients.unsqueeze(-2) @ forms @ coefficients.unsqueeze(-1))[..., 0, 0]
    return square.clamp_min(1e-14).sqrt()


def best_residual(forms: Float[Tensor, "b k k"], corrected: bool) -> Float[Tensor, " b"]:
    """The least residual that any coefficients leave: the limit of every model of this kind."""
    h = STEPS
    size = 2 * h if corrected else h
    forms = forms[:, :size, :size].double()
    # Eliminate the first coefficient, which is one minus the others of the solutions.
    reduce = torch.eye(size, dtype=torch.float64)[1:]
    reduce[: h - 1, 0] = -1
    quadratic = reduce @ forms @ reduce.mT
    linear = reduce @ forms[:, :, :1]
    scale = quadratic.diagonal(dim1=-2, dim2=-1).clamp_min(1e-30).rsqrt()
    scaled = quadratic * scale[:, :, None] * scale[:, None, :] + 1e-9 * torch.eye(size - 1, dtype=torch.float64)
    solved = torch.linalg.solve(scaled, linear * scale[:, :, None]) * scale[:, :, None]
    return (forms[:, 0, 0] - (linear * solved).sum((1, 2))).clamp_min(1e-14).sqrt().float()


def train(
    runs: Sequence[dict[str, Tensor]], file: Path, *, corrected: bool, steps: int, seed: int = 0
) -> tuple[MixingTransformer, dict[str, Any]]:
    """The model and its record; from ``file`` if it is there with these arguments, else trained and written to it.

    AdamW, cosine schedule, the last weights. The record has geometric means of the residual over validation steps.
    """
    arguments = {"corrected": corrected, "steps": steps, "seed": seed, "runs": len(runs)}
    torch.manual_seed(seed)
    model = MixingTransformer(corrected=corrected)
    known = read_model(file, model, {"arguments": arguments})
    if known is not None:
        return model.eval(), known
    kept = [run for index, run in enumerate(runs) if index % _VALIDATION]
    held = [run for index, run in enumerate(runs) if not index % _VALIDATION]
    tokens, forms = (torch.cat([run[name] for run in kept]) for name in ("tokens", "forms"))
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    generator = random.Random(seed)
    for _ in range(steps):
        batch = torch.tensor(generator.choices(range(len(tokens)), k=_BATCH))
        loss = residual(forms[batch], *model(tokens[batch])).log().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
    model.eval()
    record = {
        "arguments": arguments,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training steps recorded": len(tokens),
        "residual on training runs": _geometric(model, kept),
        "residual on validation runs": _geometric(model, held),
    }
    write_model(file, model, record)
    return model, record


@torch.no_grad()
def _geometric(model: MixingTransformer, runs: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """Geometric means over steps: of linear extrapolation, of the model untrained, trained, and of the least."""
    tokens, forms = (torch.cat([run[name] for run in runs]) for name in ("tokens", "forms"))
    start = model.start.expand(len(tokens), 2, STEPS)
    found = {
        "extrapolate": residual(forms, start[:, 0], torch.zeros_like(start[:, 0])),
        "untrained": residual(forms, start[:, 0], start[:, 1]),
        "trained": residual(forms, *model(tokens)),
        "hindsight": best_residual(forms, model.corrected),
    }
    return {name: float(each.log().mean().exp()) for name, each in found.items()}
