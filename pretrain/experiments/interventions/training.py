"""Training of one model on fresh matrices; the checkpoint is safetensors, and is used again if nothing has changed."""

from __future__ import annotations

import json
import math
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pretrain.experiments.interventions.ladder import Model, Training
from pretrain.experiments.interventions.problems import draw, loss


def train(run: Training, path: Path) -> tuple[Model, dict[str, Any]]:
    """Train and write the checkpoint, or read it if ``path`` has this configuration.

    :returns: the model, and the record: configuration, milliseconds per step, mean loss of the last tenth of the steps.
    """
    model = run.rung.build(run.tasks, run.seed)
    asked = json.loads(json.dumps(asdict(run)))
    if path.exists():
        with safe_open(path, framework="pt") as file:
            record = json.loads(file.metadata()["record"])
            if record["training"] == asked:
                model.load_state_dict({key: file.get_tensor(key) for key in file.keys()})  # noqa: SIM118
                return model, record
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
        "training": asked,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "milliseconds_per_step": 1e3 * seconds / run.steps,
        "final_loss": sum(last) / len(last),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(model.state_dict(), temporary, metadata={"record": json.dumps(record)})
    os.replace(temporary, path)
    return model, record


def _rate(step: int, run: Training) -> float:
    warm = min(1.0, (step + 1) / run.warm_up)
    return warm * 0.5 * (1 + math.cos(math.pi * step / run.steps))
