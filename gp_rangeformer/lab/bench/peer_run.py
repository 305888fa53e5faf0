"""One run of the benchmark: its plan, the file it can be resumed from, and the sizes in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gp_rangeformer.lab import datasets
from gp_rangeformer.lab.bench.contenders import Problem
from gp_rangeformer.lab.bench.entrants import parse_peers
from gp_rangeformer.lab.bench.kept_memory import keep_memory
from gp_rangeformer.lab.bench.optima import KERNEL, optimum
from gp_rangeformer.lab.bench.peers import Observer, Size, measure_size
from gp_rangeformer.lab.bench.resumed import PlanError, read_parts, whole_numbers
from gp_rangeformer.lab.compare import machine
from gp_rangeformer.lab.compare.audit import Parameters
from gp_rangeformer.lab.compare.result import write_json
from gp_rangeformer.lab.models import check_kernel, default_kernel
from gp_rangeformer.settings import exact_size

FORMAT = 1


@dataclass(frozen=True)
class Plan:
    """What decides the numbers of a run; two runs share a file if their plans are equal.

    :param kernel: None: the data set's default.
    :param solvers: comma-separated, see :func:`~gp_rangeformer.lab.bench.entrants.parse_peers`.
    :param at: where the trajectory begins: "start" (the models' own values) or "optimum" (of a converged fit).
    :param keep_memory: see :mod:`~gp_rangeformer.lab.bench.kept_memory`.
    """

    dataset: str
    kernel: str | None
    solvers: str
    steps: int
    seed: int
    dtype: str
    device: str
    at: str = "start"
    keep_memory: bool = False

    @property
    def place(self) -> str:
        """What a table's title adds: where a trajectory does not begin at the start, and a malloc that keeps memory."""
        at = "" if self.at == "start" else f", at the {self.at}"
        return f"{at}, memory kept" if self.keep_memory else at


def parse_sizes(text: str) -> list[int]:
    """Ascending, each once.

    :raises PlanError: not whole numbers, or so small that the plug-in leaves the systems to GPyTorch.
    """
    sizes = whole_numbers(text, "--sizes")
    if sizes[0] < exact_size.value():
        raise PlanError(f"--sizes {text!r}: the plug-in answers from n = {exact_size.value()} on (settings.exact_size)")
    return sizes


def read_sizes(path: Path, plan: Plan) -> list[Size]:
    """The sizes that ``path`` holds of the same plan; none if there is no such file.

    :raises PlanError: the file is damaged, or holds another plan.
    """
    return read_parts(path, plan, "sizes", Size.from_json)


def run(
    plan: Plan,
    sizes: Sequence[int],
    *,
    patience: float,
    audit_largest: int,
    path: Path | None = None,
    write: Callable[[Path, dict[str, object]], object] = write_json,
    data_dir: Path | None = None,
    observer: Observer = lambda text: None,
    show: Callable[[Size], None] = lambda size: None,
) -> list[Size]:
    """Measure ``sizes``, those that ``path`` has not yet, and write the file after each.

    :param audit_largest: largest n with exact float64 values and gradients.
    :param write: writes the file.
    :param show: called with every size when it is known.
    :raises PlanError, DatasetError, KernelError, SolverError: before anything is measured.
    """
    entrants = parse_peers(plan.solvers, plan.dtype)
    known = [] if path is None else read_sizes(path, plan)
    largest = datasets.load(plan.dataset, n=max(sizes), n_test=1, seed=plan.seed, data_dir=data_dir)
    check_kernel(plan.kernel, largest)
    kernel = plan.kernel or default_kernel(largest)
    start = _start(plan, kernel)
    if plan.keep_memory:
        keep_memory()
    first_calls, described = True, machine.describe(plan.device)
    for n in sizes:
        if not any(size.n == n for size in known):
            dataset = datasets.load(plan.dataset, n=n, n_test=1, seed=plan.seed, data_dir=data_dir)
            measured = measure_size(
                Problem(dataset, kernel, plan.dtype, plan.device),
                entrants,
                known,
                steps=plan.steps,
                seed=plan.seed,
                start=start,
                patience=patience,
                audit=n <= audit_largest,
                # Of a heap that grows alone there is none; and to measure one sets malloc anew.
                peaks=not plan.keep_memory,
                first_calls=first_calls,
                observer=lambda text, n=n: observer(f"n = {n}: {text}"),
            )
            first_calls = False
            known.append(measured)
            if path is not None:
                content = [size.to_json() for size in sorted(known, key=lambda size: size.n)]
                write(path, {"format": FORMAT, "plan": asdict(plan), "machine": described, "sizes": content})
        show(next(size for size in known if size.n == n))
    return sorted((size for size in known if size.n in sizes), key=lambda size: size.n)


def _start(plan: Plan, kernel: str) -> Parameters | None:
    """Where the trajectory begins; None for the model's own values.

    :raises PlanError, DatasetError: nothing is known of this optimum.
    """
    if plan.at == "start":
        return None
    if plan.at != "optimum":
        raise PlanError(f"--at {plan.at!r}: start or optimum")
    if kernel != KERNEL:
        raise PlanError(f"--at optimum: optima are known of the kernel {KERNEL}, not of {kernel}")
    return optimum(plan.dataset)
