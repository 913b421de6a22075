"""Threads that compute beside a stream step back behind it."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

__all__ = ["step_back"]


def step_back(by: int = 5) -> None:
    """Lower the priority of this thread alone, where the system knows such a thing (Linux)."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), by)
