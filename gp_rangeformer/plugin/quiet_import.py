"""The first import of GPyTorch, with what is printed meanwhile on stderr.

GPyTorch imports pykeops where that is installed, which prints a line if there is no GPU: nothing that the reader of a
command's output asked for.
"""

import contextlib
import sys

with contextlib.redirect_stdout(sys.stderr):
    import gpytorch as gpytorch
