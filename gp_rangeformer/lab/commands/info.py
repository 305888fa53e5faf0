"""``gp-rangeformer info``: what is installed here, and what the settings are."""

from __future__ import annotations

from collections.abc import Iterable

from rich.table import Table
from rich.text import Text

from gp_rangeformer.lab.commands.console import open_console, refusing
from gp_rangeformer.lab.commands.options import DataDir


def info(data_dir: DataDir = None) -> None:
    """Versions, device, threads, data sets, pretrained models, and settings with their defaults."""
    with refusing():
        import torch

        from gp_rangeformer import settings
        from gp_rangeformer.kernels.native.compiler import describe
        from gp_rangeformer.lab import datasets
        from gp_rangeformer.lab.compare import machine
        from gp_rangeformer.lab.pretrained import describe_pretrained

        names = datasets.available(data_dir)
        shipped = describe_pretrained()
    console = open_console()
    rows = [
        *machine.versions().items(),
        ("processor", f"{machine.processor_name()}, {machine.available_cores()} cores"),
        ("torch threads", torch.get_num_threads()),
        ("CUDA device", torch.cuda.get_device_name() if torch.cuda.is_available() else "none"),
        ("compiled kernels", describe()),
        ("data sets", ", ".join(names)),
        ("pretrained", ", ".join(shipped) or "none: reinstall gp-rangeformer"),
    ]
    console.print(_facts(rows))
    for name, lines in shipped.items():
        console.print(f"pretrained {name}", style="bold")
        console.print(_facts((f"  {key}", value) for key, value in lines.items()))
    console.print("settings", style="bold")
    values: list[tuple[str, object]] = []
    for name, value in settings.current().items():
        if isinstance(value, dict):  # the solver with its arguments
            values.append((f"  {name}", value.pop("name")))
            values += [(f"    {argument}", present) for argument, present in value.items()]
        else:
            values.append((f"  {name}", value))
    console.print(_facts(values))


def _facts(rows: Iterable[tuple[str, object]]) -> Table:
    """Names and values; what is wider than the console goes on in the next line."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(str(value)))
    return table
