"""Which machine's monotonic clock a time stamp came from.

Monotonic clocks start at boot, so that two of them can only be compared on one machine within one boot. Linux gives
each boot an id, which containers share with their host, as they share its clock.
"""

import platform
import uuid
from functools import cache
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIME_NAMESPACE = Path("/proc/self/timens_offsets")


@cache
def boot_id() -> str:
    """Return the id of this machine's monotonic clock.

    On Linux it is the kernel's boot id; a process in a time namespace of its own adds that clock's offset. Elsewhere it
    is the machine's name and network address.
    """
    try:
        boot = _BOOT_ID.read_text().strip()
    except OSError:
        return f"{platform.node()}-{uuid.getnode():012x}"
    offset = _monotonic_offset()
    return boot if offset == ("0", "0") else f"{boot}+{offset[0]}.{offset[1].zfill(9)}"


def _monotonic_offset() -> tuple[str, str]:
    """Return (seconds, nanoseconds) by which this process's time namespace shifts the monotonic clock."""
    try:
        rows = [line.split() for line in _TIME_NAMESPACE.read_text().splitlines()]
    except OSError:
        return ("0", "0")  # a kernel without time namespaces
    return next(((row[1], row[2]) for row in rows if row[:1] == ["monotonic"] and len(row) == 3), ("0", "0"))
