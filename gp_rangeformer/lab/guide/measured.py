"""Where a step's time goes, products by precision, small data sets, busy machines: tables and sentences."""

from __future__ import annotations

from gp_rangeformer.lab.bench.products import products_grid
from gp_rangeformer.lab.bench.small_tables import accuracy_grid, seconds_grid
from gp_rangeformer.lab.bench.stages import PRODUCTS, stages_grid
from gp_rangeformer.lab.grid import Grid
from gp_rangeformer.lab.guide import contention
from gp_rangeformer.lab.guide.results import Results
from gp_rangeformer.lab.pretrained import describe_pretrained

# Of a step, in times of K and its gradient.
_GOALS = {2000: 2.0, 4000: 1.8, 8000: 1.5, 16_000: 1.5}
# The flag gains from here on: less than a tenth is lost in how steps differ.
_GAIN = 1.1


def stages_table(results: Results) -> str:
    """One column per size."""
    where = f"kin40k, float32, seed 0; {results.machine('stages')}"
    return stages_grid(results.stages, where).to_markdown(titled=False)


def stages_sentence(results: Results) -> str:
    """Which stages a step consists of where it is small and where it is large, and what is left to the goal."""
    found = []
    for size in (results.stages[0], results.stages[-1]):
        ranked = sorted(size.seconds.items(), key=lambda item: -item[1])[:3]
        shares = ", ".join(f"{name} {100 * seconds / size.step:.0f} %" for name, seconds in ranked)
        found.append(
            f"At n = {size.n:,} a step takes {size.step / size.floor:.1f} times as long as K and its gradient alone; "
            f"its largest parts: {shares}."
        )
    goals = "; ".join(f"{goal:g} at n = {n:,}" for n, goal in _GOALS.items())
    met = [f"{size.n:,}" for size in results.stages if size.step <= _GOALS[size.n] * size.floor]
    free = [(size.step - size.seconds[PRODUCTS]) / size.floor for size in results.stages]
    found.append(
        f"The goal was {goals}; it is met at {'n = ' + ', '.join(met) if met else 'none of these'}. Were products with "
        f"K free, a step would still take {min(free):.1f} to {max(free):.1f} times as long."
    )
    return "\n".join(found)


def products_tables(results: Results) -> str:
    """One table per size."""
    where = f"8 dimensions; {results.machine('products')}"
    return "\n\n".join(products_grid(n, found, where).to_markdown() for n, found in results.products.items())


def small_seconds(results: Results) -> str:
    plan, cells = results.small
    return seconds_grid(cells, plan, results.machine("small")).to_markdown()


def small_differences(results: Results) -> str:
    return accuracy_grid(results.small[1]).to_markdown()


def small_sentence(results: Results) -> str:
    """Up to which n nothing is gained, the worst that is lost there, and what is gained from there on."""
    _, cells = results.small
    steps = {cell.n: cell.timings["step"].ratio for cell in cells if cell.batch == 1}
    gaining = [n for n, ratio in steps.items() if ratio >= _GAIN]
    level = max(n for n in steps if n < gaining[0])
    lost, name, n, batch = max(
        (1 / timing.ratio, name, cell.n, cell.batch)
        for cell in cells
        if cell.n <= level
        for name, timing in cell.timings.items()
    )
    gains = ", ".join(f"{steps[n]:.1f} at n = {n:,}" for n in gaining)
    return (
        f"Steps, predictions and batches of up to n = {level} take with the flag at worst {lost:.2f} times as long as "
        f"without (a {name} at n = {n}{f', {batch} in a batch' if batch > 1 else ''}). Beyond, a step by GPyTorch's "
        f"Cholesky takes so many times as long: {gains} (float64)."
    )


def contention_table(results: Results) -> str:
    """Solvers by conditions."""
    return contention.grid(results.contention, results.machine("contention")).to_markdown(titled=False)


def contention_sentence(results: Results) -> str:
    """What busy processes beside a step cost."""
    found = results.contention

    def seconds(conditions: str) -> str:
        flag, cg, cholesky = (found.seconds[conditions, name][0] for name in ("flag", "cg", "cholesky"))
        return f"{flag:.2g} s (GPyTorch's CG: {cg:.2g}, its Cholesky: {cholesky:.2g})"

    return (
        f"On two cores a step at n = {found.n:,} takes {seconds(contention.QUIET)}, beside one busy process "
        f"{seconds(contention.ONE)}, beside two {seconds(contention.BUSY)}."
    )


def logdet_table(results: Results) -> str:
    """Nats per point by method, the learned one beside Lanczos and the rule without learning."""
    titles = {
        "learned": "learned",
        "quadrature": "the same rule without the network",
        "lanczos10": "Lanczos, 10 probes",
        "lanczos30": "Lanczos, 30 probes",
    }
    found = {(systems, row["method"]): row for systems, rows in results.logdet.items() for row in rows}
    rows = []
    for method, title in titles.items():
        cells = [f"{found[systems, method][what]:.4f}" for systems in results.logdet for what in ("median", "p95")]
        rows.append((title, *cells))
    headers = ("error of log|A| / n", *(f"{what}, {s}" for s in results.logdet for what in ("median", "95 %")))
    covered = [found[systems, "learned"]["coverage"] for systems in results.logdet]
    notes = (
        "nats per point, kernels of UCI sets that were not seen in training; the stated 90 % interval of the learned "
        f"value contains the exact one in {covered[0]:.0%} and {covered[1]:.0%} of them",
    )
    return Grid("", headers, tuple(rows), notes).to_markdown(titled=False)


def networks(results: Results) -> str:
    """What the shipped networks' own cards say."""
    del results
    lines = []
    for name, facts in describe_pretrained().items():
        lines.append(f"* **{name}**: " + "; ".join(f"{what}: {text}" for what, text in facts.items()) + ".")
    return "\n".join(lines)


def report_line(results: Results) -> str:
    """One report, a line for every part that does not fit beside the others."""
    lines, width = [""], 118
    for part in results.report.split("; "):
        start = f"{lines[-1]}; " if lines[-1] else ""
        if len(start + part) > width:
            lines[-1] += ";"
            lines.append(part)
        else:
            lines[-1] = start + part
    return "\n".join(["```text", *lines, "```"])
