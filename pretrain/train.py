"""Pretrain RangeFormer on fresh structured matrices.

    python -m pretrain.train --config smoke --out runs/smoke            # a minute
    python -m pretrain.train --config base --out runs/base              # the shipped weights; repeat to resume
    PYTHONPATH=. fabric run --accelerator cpu --devices 2 --strategy ddp pretrain/train.py --config base --out runs/base

Writes OUT/log.jsonl (a line every ``log_every`` steps), OUT/state.safetensors (to resume), OUT/model.safetensors with
its .json, and OUT/curves.png. Every step draws new matrices from a generator seeded by (seed, step, process), so a
resumed run repeats an uninterrupted one. Identity, diagonal, Toeplitz, Matrix Market and UCI matrices are never drawn.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric, seed_everything
from torch import Tensor

from gp_rangeformer.atomic import WriteError, write_bytes
from gp_rangeformer.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from gp_rangeformer.rangeformer.operator import DenseOperator
from gp_rangeformer.rangeformer.rangeformer import RangeFormer
from pretrain import configs
from pretrain.configs import Stage, TrainConfig
from pretrain.curves import plot_curves
from pretrain.matrices import STRUCTURED, Mixture, Wishart
from pretrain.objective import TASKS, Answers, losses
from pretrain.run_state import RunError, load_state, save_state

_CALMER = "train with a smaller --learning-rate and another --out, for a run resumes with its own alone"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="smoke", choices=configs.names())
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; an interrupted one resumes")
    parser.add_argument("--seed", type=int, help="instead of the configuration's")
    parser.add_argument("--steps", type=int, help="instead of the configuration's")
    parser.add_argument("--learning-rate", type=float, help="instead of the configuration's")
    parser.add_argument("--until", type=int, help="stop after this many steps; the same command without it resumes")
    parser.add_argument("--families", choices=("structured", "wishart"), help="instead of the configuration's")
    parser.add_argument("--devices", type=int, help="processes; leave it to `fabric run` there")
    arguments = parser.parse_args()
    changes = {name: getattr(arguments, name) for name in ("seed", "steps", "families", "learning_rate")}
    config = dataclasses.replace(
        configs.load(arguments.config), **{name: value for name, value in changes.items() if value is not None}
    )
    if arguments.devices is None:  # one process, or those that `fabric run` has started
        fabric = Fabric()
    else:
        fabric = Fabric(devices=arguments.devices, strategy="ddp")
        fabric.launch()
    try:
        train(config, arguments.out, fabric, arguments.until)
    except (RunError, FloatingPointError, WriteError) as error:
        raise SystemExit(str(error)) from error


def train(config: TrainConfig, out: Path, fabric: Fabric, until: int | None = None) -> list[dict[str, Any]]:
    """Train to ``config.steps`` (or stop after ``until``), resuming what OUT holds. Returns the logged lines.

    :raises RunError: no step is asked for, or what OUT holds cannot be resumed.
    :raises FloatingPointError: the loss or a weight is not finite.
    """
    end = config.steps if until is None else min(config.steps, until)
    if end < 1:
        raise RunError(f"--steps and --until must be at least 1, got {config.steps} and {until}")
    out.mkdir(parents=True, exist_ok=True)
    facts = json.loads(json.dumps(dataclasses.asdict(config)))
    seed_everything(config.seed, verbose=False)
    bare = RangeFormer(config.model)
    adam = torch.optim.AdamW(bare.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    state = out / "state.safetensors"
    start = load_state(state, bare, adam, facts)
    model, optimiser = fabric.setup(bare, adam)
    mixture = mixture_of(config)
    log = _resume_log(out / "log.jsonl", start) if fabric.is_global_zero else []

    clock, window = time.perf_counter(), LogWindow(mixture)
    for step in range(start, end):
        batch = draw_batch(config, mixture, step, fabric.global_rank)
        answers = batch.answers
        operator = DenseOperator(fabric.to_device(answers.matrices))
        codes = bare.embedding.codes(operator, torch.Generator().manual_seed(batch.codes_seed))
        floor = None if batch.floor is None else fabric.to_device(batch.floor.float())
        rhs = fabric.to_device(batch.rhs.float())
        outputs = model(operator, rhs, loops=batch.loops, width=batch.width, floor=floor, codes=codes)
        terms = losses(outputs, answers)
        loss = torch.stack([terms[task].mean() for task in TASKS]).sum()
        if not bool(loss.isfinite()):
            raise FloatingPointError(f"the loss is {loss.item()} at step {step}: {_CALMER}")
        for group in optimiser.param_groups:
            group["lr"] = learning_rate_at(config, step)
        optimiser.zero_grad()
        fabric.backward(loss)
        fabric.clip_gradients(model, optimiser, max_norm=config.clip)
        optimiser.step()
        window.add(loss, terms, batch)

        done = step + 1
        if done % config.log_every == 0 or done == end:
            seconds, clock = time.perf_counter() - clock, time.perf_counter()
            line = window.line(done, seconds, answers.matrices.shape[-1], optimiser.param_groups[0]["lr"])
            if fabric.is_global_zero:
                log.append(line)
                with (out / "log.jsonl").open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print(_spoken(line), flush=True)
        if fabric.is_global_zero and (done % config.checkpoint_every == 0 or done == end):
            save_state(state, bare, adam, done, facts)
            _save_model(out / "model", bare, config, done, log)
    if fabric.is_global_zero and start >= end:
        print(f"{out} holds {start} steps: none is left to take", flush=True)
        if not _is_saved(out / "model", start):
            _save_model(out / "model", bare, config, start, log)
    if fabric.is_global_zero and log:
        plot_curves(log, out / "curves.png", title=f"{config.name}, seed {config.seed}")
    fabric.barrier()
    return log


def _save_model(path: Path, model: RangeFormer, config: TrainConfig, steps: int, log: list[dict[str, Any]]) -> None:
    metrics = {"loss": log[-1]["loss"], "error per family": log[-1]["families"]} if log else {}
    facts = {**dataclasses.asdict(config), "tasks": TASKS}
    save_checkpoint(path, model, training=facts, steps=steps, seed=config.seed, metrics=metrics)


def _is_saved(path: Path, steps: int) -> bool:
    """Not where a run was killed after its last state, and before the model that belongs to it was complete."""
    try:
        return load_checkpoint(path, RangeFormer)[1].steps == steps
    except CheckpointError:
        return False


def mixture_of(config: TrainConfig) -> Mixture:
    """The families of a configuration; :raises ValueError: it leaves out a family that does not exist."""
    if unknown := set(config.without) - {family.name for family in STRUCTURED}:
        raise ValueError(f"no structured family named {', '.join(sorted(unknown))}")
    if config.families == "wishart":
        return Mixture((Wishart(),))
    return Mixture(tuple(family for family in STRUCTURED if family.name not in config.without))


@dataclasses.dataclass
class Batch:
    """What one step trains on."""

    answers: Answers
    rhs: Tensor
    families: Tensor  # index into the mixture's families, per matrix
    loops: int
    width: int
    floor: Tensor | None
    codes_seed: int


def draw_batch(config: TrainConfig, mixture: Mixture, step: int, process: int = 0) -> Batch:
    """Matrices and truths of one step: a function of (seed, step, process); n and loops of (seed, step) alone."""
    shared = torch.Generator().manual_seed(_mix(config.seed, step, -1))
    own = torch.Generator().manual_seed(_mix(config.seed, step, process))
    stage = stage_at(config, step)
    n = int(torch.randint(stage.lower, stage.upper + 1, (), generator=shared))
    loops = int(torch.randint(config.loops[0], config.loops[1] + 1, (), generator=shared))
    width = int(torch.randint(config.widths[0], config.widths[1] + 1, (), generator=shared))
    told = float(torch.rand((), generator=shared)) < config.known_floor
    matrices, families = mixture.sample(stage.batch, n, own)
    rhs = torch.randn(stage.batch, n, config.right_hand_sides, generator=own, dtype=torch.float64)
    answers = Answers.of(matrices)
    # A lower bound, seldom a tight one: between 1/30 of the smallest eigenvalue and that eigenvalue.
    floor = answers.smallest * 30 ** -torch.rand(stage.batch, generator=own, dtype=torch.float64)
    return Batch(answers, rhs, families, loops, width, floor if told else None, _mix(config.seed, step, process) + 1)


def stage_at(config: TrainConfig, step: int) -> Stage:
    """The stage of the curriculum that ``step`` belongs to."""
    share = step / config.steps
    return next((stage for stage in config.curriculum if share < stage.until), config.curriculum[-1])


def _mix(seed: int, step: int, process: int) -> int:
    """Distinct seeds for distinct triples within any run (below 10^9 steps and 10^4 processes)."""
    return (seed * 1_000_000_000 + step) * 10_007 + process + 1


def learning_rate_at(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    share = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


class LogWindow:
    """Means since the last logged line: loss, its terms at the last loop, and per family."""

    def __init__(self, mixture: Mixture) -> None:
        self.names = [family.name for family in mixture.families]
        self._clear()

    def _clear(self) -> None:
        self.steps = 0
        self.loss = 0.0
        self.terms: dict[str, float] = {task: 0.0 for task in TASKS}
        self.families: dict[str, list[float]] = {name: [] for name in self.names}

    def add(self, loss: Tensor, terms: dict[str, Tensor], batch: Batch) -> None:
        self.steps += 1
        self.loss += float(loss.detach())
        last = {task: value[-1].detach() for task, value in terms.items()}
        for task, value in last.items():
            self.terms[task] += float(value.mean())
        summed = torch.stack(list(last.values())).sum(0)
        for family, value in zip(batch.families.tolist(), summed.tolist(), strict=True):
            self.families[self.names[family]].append(value)

    def line(self, step: int, seconds: float, n: int, learning_rate: float) -> dict[str, Any]:
        """One line of the log, which starts the next window."""
        line = {
            "step": step,
            "loss": self.loss / self.steps,
            "tasks": {task: value / self.steps for task, value in self.terms.items()},
            "families": {name: sum(v) / len(v) for name, v in self.families.items() if v},
            "ms_per_step": 1000 * seconds / self.steps,
            "learning_rate": learning_rate,
            "n": n,
        }
        self._clear()
        return line


def _spoken(line: dict[str, Any]) -> str:
    tasks = "  ".join(f"{task} {value:.3f}" for task, value in line["tasks"].items())
    return f"step {line['step']:6d}  loss {line['loss']:.4f}  {tasks}  {line['ms_per_step']:.0f} ms"


def _resume_log(path: Path, start: int) -> list[dict[str, Any]]:
    """The lines up to ``start``; later ones belong to steps that are taken again. So does half a line at the end.

    :raises RunError: a line before the last cannot be read.
    """
    if not path.exists():
        return []
    lines, texts = [], path.read_text(errors="replace").splitlines()
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
            if line["step"] <= start:
                lines.append(line)
        except (ValueError, TypeError, KeyError) as error:
            if number < len(texts):
                raise RunError(f"{path}: line {number} cannot be read ({error}): delete it and resume") from error
            print(f"{path}: the last line is incomplete and is left out", flush=True)
    write_bytes(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
    return lines


if __name__ == "__main__":
    main()
