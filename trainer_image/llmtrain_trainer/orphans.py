"""Processes that are not to outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
from typing import Final

_PDEATHSIG: Final = 1


def die_with(parent: int) -> None:
    """Have the kernel end this process when `parent` ends."""
    ctypes.CDLL(None).prctl(_PDEATHSIG, int(signal.SIGKILL))
    if os.getppid() != parent:  # it was gone before it could be asked for
        os._exit(1)
