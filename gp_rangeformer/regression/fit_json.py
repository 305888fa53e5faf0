"""A fit's result as plain values for a JSON file, and made again from them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from gp_rangeformer.fit import FitResult, Record
from gp_rangeformer.system.answers import Interval


def fit_to_json(result: FitResult) -> dict[str, Any]:
    """Everything but the last report, of which its summary stays."""
    report = result.report
    content = {field.name: getattr(result, field.name) for field in fields(result) if field.name != "report"}
    return content | {
        "certain": None if result.certain is None else [result.certain.lower, result.certain.upper],
        "evaluations": {str(points): count for points, count in result.evaluations.items()},
        "history": result.plain_history(),
        "notes": list(result.notes),
        "report": None if report is None else report.summary(),
    }


def fit_from_json(content: Mapping[str, Any]) -> FitResult:
    """Without a report.

    :raises ValueError, KeyError, TypeError: it is none of :func:`fit_to_json`.
    """
    history = [
        Record(**{**one, "value": -math.inf if one["value"] is None else one["value"]}) for one in content["history"]
    ]
    certain = content["certain"]
    return FitResult(
        **{
            **content,
            "certain": None if certain is None else Interval(*certain),
            "evaluations": {int(points): count for points, count in content["evaluations"].items()},
            "history": tuple(history),
            "notes": tuple(content["notes"]),
            "report": None,
        }
    )
