"""What the shipped networks were trained on, over which ranges, and how far off they are, as their cards say."""

from __future__ import annotations

from torch import nn

from gp_rangeformer.checkpoint import ModelCard, read_card
from gp_rangeformer.logdet.learned import head_card, load_head
from gp_rangeformer.rangeformer.pretrained import WEIGHTS, load_pretrained, pretrained_names


def describe_pretrained() -> dict[str, dict[str, str]]:
    """For every shipped network its facts, one line each.

    :raises CheckpointError: a damaged file.
    """
    found = {name: _rangeformer(name) for name in pretrained_names()}
    return {**found, "log determinant": _head()}


def _rangeformer(name: str) -> dict[str, str]:
    card = read_card(WEIGHTS / name)
    lines = {"model": _model(card, load_pretrained(name))}
    curriculum = card.training.get("curriculum")
    if curriculum:
        lower, upper = min(stage["lower"] for stage in curriculum), max(stage["upper"] for stage in curriculum)
        lines["trained on"] = f"{card.training.get('families')} matrices, n from {lower} to {upper}"
    if (loss := card.metrics.get("loss")) is not None:
        terms, window = " + ".join(card.training.get("tasks", ())), card.training.get("log_every")
        lines["training loss"] = f"{loss:.3g} ({terms}; mean over the loops of the last {window} steps)"
    return lines


def _head() -> dict[str, str]:
    card = head_card()
    trained, found = card.training, card.metrics
    sizes, ranks, noises = (
        f"{low:g} to {high:g}" for low, high in (trained["sizes"], trained["ranks"], trained["noises"])
    )
    return {
        "model": _model(card, load_head()),
        "trained on": (
            f"{trained['systems']} systems of {trained['kernels']} kernels "
            f"({', '.join(trained['kinds'])}, sums, products)"
        ),
        "ranges": f"n {sizes}, rank {ranks}, noise / variance {noises}",
        "held out": (
            f"error {found['median']:.4f} nats per point (median), {found['p95']:.4f} (95 %); "
            f"its 90 % interval covers {found['coverage']:.0%}"
        ),
    }


def _model(card: ModelCard, model: nn.Module) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    return f"{card.model}, {count} parameters, {card.steps} steps, seed {card.seed}"
