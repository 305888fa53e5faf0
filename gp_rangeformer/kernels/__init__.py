"""Kernel matrices and the contraction of their gradient, tile by tile: no n x n temporary beyond K itself."""
