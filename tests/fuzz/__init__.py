"""Random trajectories of models against exact float64: ``python -m tests.fuzz --help``."""
