"""Certified fast solves and log determinants for GPyTorch, behind one flag."""

from pathlib import Path

if not Path(__file__).is_file():
    raise ImportError("gp_rangeformer reads files beside its code: install it unpacked, not as a zip")

from gp_rangeformer import plugin, settings
from gp_rangeformer.allocation.free_memory import InsufficientMemoryError
from gp_rangeformer.checkpoint import CheckpointError
from gp_rangeformer.kernels.matrices.sharded import ProcessGroupError
from gp_rangeformer.plugin import IncompatibleHostError, clear_memory, memory_bytes
from gp_rangeformer.rangeformer.direct import Direct
from gp_rangeformer.rangeformer.pretrained import load_pretrained
from gp_rangeformer.report import (
    FallbackWarning,
    OutsideToleranceWarning,
    ReportCollection,
    SolveReport,
    collect_reports,
    last_report,
)
from gp_rangeformer.solvers.certified import Certified
from gp_rangeformer.solvers.exact import Exact
from gp_rangeformer.version import own_version

# isort: split
from gp_rangeformer import fit, predict

plugin.install()

__version__ = own_version()

__all__ = [
    "Certified",
    "CheckpointError",
    "Direct",
    "Exact",
    "FallbackWarning",
    "IncompatibleHostError",
    "InsufficientMemoryError",
    "OutsideToleranceWarning",
    "ProcessGroupError",
    "ReportCollection",
    "SolveReport",
    "clear_memory",
    "collect_reports",
    "fit",
    "last_report",
    "load_pretrained",
    "memory_bytes",
    "predict",
    "settings",
]
