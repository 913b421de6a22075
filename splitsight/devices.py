"""Where tensors are computed, and draws that are the same wherever that is."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch
from torch import Tensor

from splitsight.errors import UserError

__all__ = ["device_name", "pick_device", "standard_normal"]


def pick_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU.

    Raises:
        UserError: CUDA was asked for by name and there is none, or there is no device of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UserError("no CUDA device is visible: use --device cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"unknown device '{name}': use auto, cpu or cuda") from error


def device_name(device: torch.device) -> str:
    """For people: the GPU's own name, or the kind of processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU ({platform.machine()})" if device.type == "cpu" else str(device)


def standard_normal(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """One standard normal draw a seed, ``(len(seeds), *shape)``.

    They are drawn on the CPU: generators of other devices give other numbers for the same seed.
    """
    draws = [torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(draws).to(device)
