"""Floating-point modes of the process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["subnormals_flushed"]


@contextmanager
def subnormals_flushed() -> Iterator[None]:
    """Treat subnormal floats as zero in here; also usable as a decorator.

    x86 handles them in microcode, and small gradients and Adam's moments reach them: a backward pass of the
    autoencoder took four times as long. The mode belongs to the whole thread, so it is put back at the end.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
