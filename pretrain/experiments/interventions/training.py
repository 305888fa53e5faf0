"""Training of one model on fresh matrices; the checkpoint is safetensors, and is used again if nothing has changed."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pretrain.experiments.interventions.ladder import Model, Training
from pretrain.experiments.interventions.problems import draw, loss
from pretrain.experiments.model_file import read_model, write_model


def train(run: Training, path: Path) -> tuple[Model, dict[str, Any]]:
    """Train and write the checkpoint, or read it if ``path`` has this configuration.

    :returns: the model, and the record: configuration, milliseconds per step, mean loss of the last tenth of the steps.
    """
    model = run.rung.build(run.tasks, run.seed)
    asked = {"training": asdict(run)}
    known = read_model(path, model, asked)
    if known is not None:
        return model, known
    generator = torch.Generator().manual_seed(run.seed)
    optimiser = torch.optim.Adam(model.parameters(), lr=run.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate(step, run))
    losses = []
    start = time.perf_counter()
    for _ in range(run.steps):
        size = run.rung.sizes[int(torch.randint(len(run.rung.sizes), (), generator=generator))]
        problems = draw(run.rung.data, run.tasks, run.batch, size, generator)
        answers = model(problems.matrices, problems.rhs, generator=generator)
        total = torch.stack([loss(answer, problems) for answer in answers]).mean()
        optimiser.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), run.clip, error_if_nonfinite=True)
        optimiser.step()
        schedule.step()
        losses.append(float(total.detach()))
    seconds = time.perf_counter() - start
    last = losses[-max(1, run.steps // 10) :]
    record = {
        **asked,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "milliseconds_per_step": 1e3 * seconds / run.steps,
        "final_loss": sum(last) / len(last),
    }
    write_model(path, model, record)
    return model, record


def _rate(step: int, run: Training) -> float:
    warm = min(1.0, (step + 1) / run.warm_up)
    return warm * 0.5 * (1 + math.cos(math.pi * step / run.steps))
