"""The figure of a training run: loss per task over the steps, and error per family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def plot_curves(log: list[dict[str, Any]], path: Path, title: str = "") -> None:
    """Write a PNG with two panels from the lines of a run's log."""
    steps = [line["step"] for line in log]
    figure, (tasks, families) = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    tasks.plot(steps, [line["loss"] for line in log], color="black", label="loss, mean over loops")
    for task in log[0]["tasks"]:
        tasks.plot(steps, [line["tasks"][task] for line in log], label=f"{task}, last loop")
    colours = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for index, name in enumerate(sorted({name for line in log for name in line["families"]})):
        points = [(line["step"], line["families"][name]) for line in log if name in line["families"]]
        families.plot(*zip(*points, strict=True), label=name, color=colours[index % len(colours)])
    for axes, what in ((tasks, "loss"), (families, "loss at the last loop, all tasks")):
        axes.set(xlabel="step", ylabel=what)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, ncols=2)
    figure.suptitle(title)
    figure.savefig(path, dpi=130)
    plt.close(figure)
