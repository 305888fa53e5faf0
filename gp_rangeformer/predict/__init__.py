"""What is asked of a trained model beyond means and variances: whole functions from its posterior."""

from gp_rangeformer.predict.botorch import botorch_path_model
from gp_rangeformer.predict.paths import SamplePaths, sample_paths

__all__ = ["SamplePaths", "botorch_path_model", "sample_paths"]
