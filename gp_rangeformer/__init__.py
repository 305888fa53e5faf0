"""Certified fast solves and log determinants for GPyTorch, behind one flag."""

from gp_rangeformer import quiet_import  # noqa: F401  before whatever else imports GPyTorch

# isort: split
from gp_rangeformer import backend, settings
from gp_rangeformer.backend import IncompatibleHostError, clear_memory, memory_bytes
from gp_rangeformer.free_memory import InsufficientMemoryError
from gp_rangeformer.kernels.sharded import ProcessGroupError
from gp_rangeformer.model.checkpoint import CheckpointError, load_pretrained
from gp_rangeformer.report import (
    FallbackWarning,
    OutsideToleranceWarning,
    ReportCollection,
    SolveReport,
    collect_reports,
    last_report,
)

backend.install()

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "FallbackWarning",
    "IncompatibleHostError",
    "InsufficientMemoryError",
    "OutsideToleranceWarning",
    "ProcessGroupError",
    "ReportCollection",
    "SolveReport",
    "clear_memory",
    "collect_reports",
    "last_report",
    "load_pretrained",
    "memory_bytes",
    "settings",
]
