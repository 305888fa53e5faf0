"""Train the log-determinant tail on a cached set of systems, and calibrate the width of its stated interval.

    python -m pretrain.log_determinant.train FOLDER --out RUN [--steps 20000] [--ship]

Systems of one kernel matrix stay on one side of the split between training and validation, and the latter is for
reporting alone; the width comes from heads with a group of kernels left out of training (see ``calibration``), six
further trainings. Loss: pinball losses of the three quantiles in nats per point, weighted by 1 / (0.02 + z / 10), so
that the hard end counts without drowning the rest. Everything resumes from state.safetensors files under RUN.
Longer training overfits the widths first, before calibration: 20,000 steps cover 88 % of held-out systems, 40,000 86 %,
and the loss does not fall further. About 20 minutes on one core.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from jaxtyping import Float
from torch import Tensor, nn

from gp_rangeformer.checkpoint import save_checkpoint
from gp_rangeformer.logdet.features import FEATURES, LOG_SIZE
from gp_rangeformer.logdet.learned import HEAD
from gp_rangeformer.logdet.network import QUANTILES, LogDetTail, LogDetTailConfig
from pretrain.log_determinant import systems
from pretrain.log_determinant.calibration import GROUPS, calibrate, groups
from pretrain.log_determinant.pack import load
from pretrain.run_state import RunError, load_state, save_state
from pretrain.tensor_file import digest

VALIDATION_SHARE = 10  # every tenth kernel matrix
Systems = dict[str, Tensor]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that determines the result, given the cached systems."""

    steps: int = 20_000
    batch: int = 512
    lr: float = 2e-3
    weight_decay: float = 1e-3
    seed: int = 0


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=TrainConfig.steps)
@click.option("--seed", default=0)
@click.option("--lr", default=TrainConfig.lr, help="learning rate after the warm-up")
@click.option("--ship", is_flag=True, help="let the result take the place of the head in the package")
def main(folder: Path, out: Path, steps: int, seed: int, lr: float, ship: bool) -> None:
    """Train on the systems cached in FOLDER."""
    out.mkdir(parents=True, exist_ok=True)
    data, held = split(load(folder))
    check_counts(data)
    config = TrainConfig(steps=steps, seed=seed, lr=lr)
    model = build(data, seed)
    print(f"{len(data['tail'])} systems, {len(held['tail'])} held out", flush=True)
    try:
        fit(model, data, held, config, out)
        answers = answers_from_outside(data, config, out)
    except (RunError, FloatingPointError) as error:
        raise click.ClickException(str(error)) from error
    calibrate(model, answers, data, groups(data))
    print(f"widened by {model.widening.tolist()}, floor {float(model.floor):.2g}: {measures(model, held)}", flush=True)
    if ship:
        save_head(HEAD, model, data, held, config)


def check_counts(data: Systems) -> None:
    """:raises ValueError: the cached systems have fewer or more features than evidence gathered today."""
    for kind, names in FEATURES.items():
        if (count := data[kind].shape[-1]) != len(names):
            raise ValueError(f"the cached systems have {count} {kind}, this version {len(names)}: cache them again")


def save_head(path: Path, head: LogDetTail, data: Systems, held: Systems, config: TrainConfig) -> None:
    """Write ``head`` with what it was trained on and its held-out errors."""
    sizes = data["scalars"][:, LOG_SIZE].exp().round().int()
    trained = {
        **dataclasses.asdict(config),
        "systems": len(data["tail"]),
        "kernels": len(data["kernel"].unique()),
        "sizes": [int(sizes.min()), int(sizes.max())],
        "ranks": list(systems.RANKS),
        "noises": list(systems.NOISES),
        "kinds": list(systems.KINDS),
        "groups_left_out_in_turn": GROUPS,
        **FEATURES,
    }
    found = measures(head, held)
    save_checkpoint(
        path,
        head,
        training=trained,
        steps=config.steps,
        seed=config.seed,
        metrics={name: found[name] for name in ("median", "p95", "coverage")},
    )


def split(data: Systems) -> tuple[Systems, Systems]:
    """(training, validation): no kernel matrix contributes to both."""
    held = data["kernel"] % VALIDATION_SHARE == 0
    return select(data, ~held), select(data, held)


def select(data: Systems, chosen: Tensor) -> Systems:
    """Some of the systems, by a mask or by their numbers."""
    return {name: value[chosen] for name, value in data.items()}


def build(data: Systems, seed: int) -> LogDetTail:
    """A fresh network for the features of a cached set."""
    torch.manual_seed(seed)
    model = LogDetTail(LogDetTailConfig(data["scalars"].shape[-1], data["tokens"].shape[-1]))
    model.standardise(data["scalars"], data["tokens"].float())
    return model


def fit(model: nn.Module, data: Systems, held: Systems, config: TrainConfig, out: Path, log_every: int = 500) -> None:
    """Train ``model`` in place; resumes from ``out``.

    :raises RunError: what ``out`` holds is damaged, or of another configuration or other data.
    :raises FloatingPointError: a weight is not finite.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    state = out / "state.safetensors"
    described = {**dataclasses.asdict(config), "data": digest(data)}
    start = load_state(state, model, optimiser, described)
    weight, count = weights(data), len(data["tail"])
    started = time.perf_counter()
    for step in range(start, config.steps):
        warm = min(1.0, (step + 1) / 500)
        rate = config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        for group in optimiser.param_groups:
            group["lr"] = rate
        # A function of the step alone, so that a resumed run sees the batches of an uninterrupted one.
        chosen = torch.randint(0, count, (config.batch,), generator=torch.Generator().manual_seed(config.seed + step))
        loss = (pinball(quantiles(model, data, chosen), data["tail"][chosen]) * weight[chosen]).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % log_every == 0 or step + 1 == config.steps:
            save_state(state, model, optimiser, step + 1, described)
            found = ", ".join(f"{name} {value:.5f}" for name, value in measures(model, held).items())
            print(f"step {step + 1}: {found}, {time.perf_counter() - started:.0f} s", flush=True)


def quantiles(model: nn.Module, data: Systems, index: Tensor | slice = slice(None)) -> Tensor:
    """The model's three quantiles of z for some systems."""
    return model(data["scalars"][index], data["tokens"][index].float(), data["estimate"][index], data["upper"][index])


def pinball(predicted: Tensor, exact: Tensor) -> Tensor:
    """Mean over the quantiles of the pinball loss, per system."""
    error = exact.unsqueeze(-1) - predicted
    levels = error.new_tensor(QUANTILES)
    return torch.maximum(levels * error, (levels - 1) * error).mean(-1)


def weights(data: Systems) -> Tensor:
    return 1 / (0.02 + 0.1 * data["tail"])


@torch.no_grad()
def measures(model: nn.Module, data: Systems) -> dict[str, float]:
    """Absolute error of the median in nats per point (median, 95 %) and coverage of the stated interval."""
    low, middle, high = quantiles(model, data).unbind(-1)
    error = (middle - data["tail"]).abs()
    covered = (low <= data["tail"]) & (data["tail"] <= high)
    return {
        "median": float(error.median()),
        "p95": float(error.quantile(0.95)),
        "coverage": float(covered.float().mean()),
        "loss": float((pinball(torch.stack([low, middle, high], -1), data["tail"]) * weights(data)).mean()),
    }


def answers_from_outside(data: Systems, config: TrainConfig, out: Path) -> Float[Tensor, "s 3"]:
    """Quantiles of every system by a head that was trained on the other groups of kernels."""
    answers = torch.empty(len(data["tail"]), len(QUANTILES))
    for head, away in heads_from_outside(data, config, out):
        with torch.no_grad():
            answers[away] = quantiles(head, data, away)
    return answers


def heads_from_outside(data: Systems, config: TrainConfig, out: Path) -> Iterator[tuple[LogDetTail, Tensor]]:
    """(head, which systems it answers) per group of kernels, trained on the others. ``GROUPS`` trainings."""
    group = groups(data)
    for number in range(GROUPS):
        away = group == number
        own, others = select(data, away), select(data, ~away)
        run = out / f"without-{number}"
        run.mkdir(exist_ok=True)
        head = build(others, config.seed)
        print(f"group {number} left out: {len(own['tail'])} systems", flush=True)
        fit(head, others, own, config, run, log_every=5000)
        yield head, away


if __name__ == "__main__":
    main()
