"""``gp-rangeformer info``: what is installed here, and what the settings are."""

from __future__ import annotations

from rich.table import Table

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
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, version in machine.versions().items():
        table.add_row(name, version)
    table.add_row("processor", f"{machine.processor_name()}, {machine.available_cores()} cores")
    table.add_row("torch threads", str(torch.get_num_threads()))
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    table.add_row("CUDA device", accelerator)
    table.add_row("compiled kernels", describe())
    table.add_row("data sets", ", ".join(names))
    table.add_row("pretrained", ", ".join(shipped) or "none: reinstall gp-rangeformer")
    console.print(table)
    for name, lines in shipped.items():
        console.print(f"pretrained {name}", style="bold")
        facts = Table(box=None, show_header=False, pad_edge=False)
        for key, value in lines.items():
            facts.add_row(f"  {key}", value)
        console.print(facts)
    console.print("settings", style="bold")
    values = Table(box=None, show_header=False, pad_edge=False)
    for name, value in settings.current().items():
        if isinstance(value, dict):  # the solver with its arguments
            values.add_row(f"  {name}", str(value.pop("name")))
            for argument, present in value.items():
                values.add_row(f"    {argument}", str(present))
        else:
            values.add_row(f"  {name}", str(value))
    console.print(values)
