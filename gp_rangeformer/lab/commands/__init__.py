"""The commands of ``gp-rangeformer``, one a file. What one needs is imported inside it: ``--help`` answers at once."""
