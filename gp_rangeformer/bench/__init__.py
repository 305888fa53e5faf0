"""Benchmarks of the plug-in against itself: interleaved replays of one training trajectory."""

from gp_rangeformer.bench.learning import PARTS, Cell, grids, learning_table, measure_cell
from gp_rangeformer.bench.replay import Outcome, record_trajectory, replay

__all__ = ["PARTS", "Cell", "Outcome", "grids", "learning_table", "measure_cell", "record_trajectory", "replay"]
