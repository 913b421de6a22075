"""Where weights live, how they are stored (safetensors of float16, or 8 bits), and what identifies them (digests).

Embedded weights ship inside this package under ``splitsight/assets``; what a user trains or caches goes
to ``$SPLITSIGHT_HOME`` (default: the platform's user-cache folder).
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from splitsight.errors import UserError
from splitsight.files import writing
from splitsight.int8 import dequantize, quantize

__all__ = ["asset", "digest", "home", "kernels", "load_weights", "save_weights"]

_ASSETS = Path(__file__).with_name("assets")
_SCALES = ":scales"
"""What follows a tensor's name for the scales of its rows, where it is stored in 8 bits."""
_TRIANGLES = {":lower": torch.tril_indices, ":upper": torch.triu_indices}
"""What follows the name of triangular matrices, of which one side is stored, and its places row by row."""


def asset(*parts: str) -> Path:
    """Path of an embedded artifact, e.g. ``asset("targets", "resnet18")``; it may not exist."""
    return _ASSETS.joinpath(*parts)


def home() -> Path:
    """Folder for caches and trained models; created on first use."""
    if "SPLITSIGHT_HOME" in os.environ:
        path = Path(os.environ["SPLITSIGHT_HOME"])
    else:
        path = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "splitsight"
    path.mkdir(parents=True, exist_ok=True)
    return path


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 (hex, 64 characters) over names, shapes and float32 values of a state dict.

    Floating tensors are compared as float32, so the same weights have the same digest whether they were
    stored as float16 and upcast, or held in memory. Key order does not matter.
    """
    h = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach().cpu()
        if value.is_floating_point():
            value = value.float()
        h.update(f"{name}|{value.dtype}|{tuple(value.shape)}|".encode())
        h.update(value.contiguous().numpy().tobytes())
    return h.hexdigest()


def save_weights(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, Any] | None = None, eight_bit: Collection[str] = ()
) -> None:
    """Write a state dict as float16 safetensors; integer tensors keep their type.

    The file appears under its name only once it is complete. Of triangular matrices (the last two dimensions) the side
    of zeros is left out.

    Args:
        path: of the file.
        state: what to write.
        metadata: JSON values that travel with it.
        eight_bit: names of tensors ``(N, …)`` to be stored in half that space (:mod:`splitsight.int8`): no value is off
            by more than 1/254 of its row's largest.
    """
    stored = {}
    for name, value in state.items():
        value = value.detach().cpu()
        if name in eight_bit:
            q, scales = quantize(value.float().contiguous().numpy())
            stored[name], stored[name + _SCALES] = torch.from_numpy(q), torch.from_numpy(scales)
        else:
            # cloned, because safetensors refuses tensors that share memory (tied weights, counters)
            half = value.half() if value.is_floating_point() else value
            side = _zero_side(half)
            if side is not None:
                rows, columns = _TRIANGLES[side](*half.shape[-2:])
                name, half = name + side, half[..., rows, columns]
            stored[name] = half.clone(memory_format=torch.contiguous_format)
    with writing(path) as partial:
        save_file(stored, str(partial), metadata={k: json.dumps(v) for k, v in (metadata or {}).items()})


def _zero_side(value: Tensor) -> str | None:
    """The suffix of a triangular matrix, or of many in one tensor; ``None`` for all others."""
    if value.ndim < 2 or value.shape[-1] != value.shape[-2] or len(value) == 0 or value.shape[-1] < 2:
        return None
    for side, part in ((":lower", torch.tril), (":upper", torch.triu)):
        if torch.equal(part(value), value):
            return side
    return None


def _whole(packed: Tensor, side: str) -> Tensor:
    """Matrices out of their triangles ``(…, n (n + 1) / 2)``; ValueError for another length."""
    n = (math.isqrt(8 * packed.shape[-1] + 1) - 1) // 2
    if n * (n + 1) // 2 != packed.shape[-1]:
        raise ValueError(f"{packed.shape[-1]} numbers are no triangle")
    rows, columns = _TRIANGLES[side](n, n)
    whole = packed.new_zeros(*packed.shape[:-1], n, n)
    whole[..., rows, columns] = packed
    return whole


def kernels(module: nn.Module) -> list[str]:
    """Names of a module's parameters with more than one dimension: what :func:`save_weights` may keep in 8 bits."""
    return [name for name, value in module.named_parameters() if value.ndim > 1]


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read a safetensors file; floating tensors come back as float32.

    Raises:
        UserError: the file is missing or not safetensors.
    """
    if not path.is_file():
        raise UserError(f"no weights at {path}: check the path, or make them with `splitsight train`")
    try:
        state = load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): restore or retrain it") from error
    scales = {k.removesuffix(_SCALES): state.pop(k) for k in list(state) if k.endswith(_SCALES)}
    try:
        for name, scale in scales.items():
            state[name] = torch.from_numpy(dequantize(state[name].numpy(), scale.numpy()))
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} has scales without weights that they fit ({error}): restore or retrain it") from error
    try:
        for name in [k for k in state if k.endswith(tuple(_TRIANGLES))]:
            base, side = name.rsplit(":", 1)
            state[base] = _whole(state.pop(name), f":{side}")
    except ValueError as error:
        raise UserError(f"{path} has a matrix that is incomplete ({error}): restore or retrain it") from error
    return {k: (v.to(torch.float32) if v.is_floating_point() else v) for k, v in state.items()}
