"""How a table becomes a model that is kept: columns to inputs, a kernel by name, a fit, a folder.

Imported by name (``from gp_rangeformer.regression import TableRegression``), not by ``import gp_rangeformer``. Tables
are pandas': ``pip install 'gp-rangeformer[tables]'``.
"""

from gp_rangeformer.regression.table_regression import TableRegression

__all__ = ["TableRegression"]
