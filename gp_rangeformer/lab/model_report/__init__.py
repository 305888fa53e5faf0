"""What a fitted model is worth, on one HTML page that opens without a network: ``gp-rangeformer report``."""

from gp_rangeformer.lab.model_report.page import render
from gp_rangeformer.lab.model_report.writing import write_report

__all__ = ["render", "write_report"]
