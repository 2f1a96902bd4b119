"""The clock by which leadership ends."""

from __future__ import annotations

import time


def boot_time() -> float:
    """Seconds since the machine started, the same for all of its processes. Unlike the monotonic clock it goes on while
    the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
