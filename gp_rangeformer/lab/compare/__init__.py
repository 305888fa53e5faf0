"""Train the same GP with several solvers and measure where they differ: the engine of ``gp-rangeformer compare``."""

from gp_rangeformer.lab.compare.result import Audit, Comparison, SolverResult, State, Step, write_json, write_text
from gp_rangeformer.lab.compare.run import Options, compare
from gp_rangeformer.lab.compare.solvers import BASES, DEFAULT_SOLVERS, SolverError, SolverSpec, parse_solvers

__all__ = [
    "BASES",
    "DEFAULT_SOLVERS",
    "Audit",
    "Comparison",
    "Options",
    "SolverError",
    "SolverResult",
    "SolverSpec",
    "State",
    "Step",
    "compare",
    "parse_solvers",
    "write_json",
    "write_text",
]
