"""What is asked of a trained model beyond means and variances: functions from its posterior, and what it says of its
own targets."""

from gp_rangeformer.predict.botorch import botorch_path_model
from gp_rangeformer.predict.leave_one_out import Coverage, LeaveOneOut, leave_one_out
from gp_rangeformer.predict.paths import SamplePaths, sample_paths

__all__ = ["Coverage", "LeaveOneOut", "SamplePaths", "botorch_path_model", "leave_one_out", "sample_paths"]
