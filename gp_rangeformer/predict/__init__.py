"""What is asked of a trained model beyond means and variances: functions from its posterior, the parts of a sum of
kernels, and what it says of its own targets."""

from gp_rangeformer.predict.botorch import botorch_path_model
from gp_rangeformer.predict.components import Component, components
from gp_rangeformer.predict.leave_one_out import Coverage, LeaveOneOut, leave_one_out
from gp_rangeformer.predict.paths import SamplePaths, sample_paths

__all__ = [
    "Component",
    "Coverage",
    "LeaveOneOut",
    "SamplePaths",
    "botorch_path_model",
    "components",
    "leave_one_out",
    "sample_paths",
]
