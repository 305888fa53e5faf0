"""Which version this is."""

from __future__ import annotations

from importlib import metadata


def own_version() -> str:
    """The installed version; "unknown" where the package runs from its source folder and was never installed."""
    try:
        return metadata.version("gp-rangeformer")
    except metadata.PackageNotFoundError:
        return "unknown"
