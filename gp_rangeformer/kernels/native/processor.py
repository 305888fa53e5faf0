"""What this machine's processor is and can do, as far as it says so without a compiler."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

# Of /proc/cpuinfo: identity and instruction sets; x86, ARM, RISC-V, POWER, s390. Not what changes by the second.
_FIELDS = {
    *("vendor_id", "cpu family", "model", "flags"),
    *("CPU implementer", "CPU architecture", "CPU variant", "CPU part", "Features"),
    *("isa", "uarch", "cpu", "features"),
}
_CPUINFO = Path("/proc/cpuinfo")


@functools.cache
def processor() -> str | None:
    """Architecture, model and instruction sets: equal descriptions run each other's code. None if the system does not
    tell (only Linux does)."""
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        return None
    # Cores of several kinds each have theirs; the order of flags is the kernel's own.
    facts = {
        f"{name.strip()}: {' '.join(sorted(value.split()))}"
        for name, colon, value in (line.partition(":") for line in lines)
        if colon and name.strip() in _FIELDS
    }
    return "\n".join([platform.machine(), *sorted(facts)]) if facts else None
