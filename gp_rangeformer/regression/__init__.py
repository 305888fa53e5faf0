"""How a table becomes a model that is kept: columns to inputs, a kernel by name, a fit, a folder.

Imported by name (``from gp_rangeformer.regression import TableRegression``), not by ``import gp_rangeformer``. Tables
are pandas': ``pip install 'gp-rangeformer[tables]'``.
"""

from gp_rangeformer.regression.choice import Candidate
from gp_rangeformer.regression.columns import Column, Columns
from gp_rangeformer.regression.errors import KernelError, SavedModelError, TableError, TableWarning
from gp_rangeformer.regression.reading import read_table
from gp_rangeformer.regression.scaling import Scaling
from gp_rangeformer.regression.table_regression import TableRegression

__all__ = [
    "Candidate",
    "Column",
    "Columns",
    "KernelError",
    "SavedModelError",
    "Scaling",
    "TableError",
    "TableRegression",
    "TableWarning",
    "read_table",
]
