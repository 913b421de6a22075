"""JPEGs of frames and of features.

Features are drawn as a mosaic of their channels, each stretched from its own least to its greatest number, those that
vary most first; tokens as the square of positions that they are, a vector as one square of numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
import torch

from splitsight.features import FeatureSpec

__all__ = ["SIDE", "drawn", "jpeg"]

SIDE = 256
"""Pixels a side that pictures are sent at."""
_TILES = 16  # channels that are drawn
_QUALITY = 85


def jpeg(image: np.ndarray, side: int = SIDE, *, smooth: bool = True) -> bytes:
    """``(h, w, 3)`` uint8 RGB → JPEG, its longer side enlarged to ``side`` pixels."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    if factor != 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST)
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, _QUALITY]
    )
    assert done
    return data.tobytes()


def drawn(features: Sequence[np.ndarray], specs: Sequence[FeatureSpec]) -> np.ndarray:
    """What crossed, as one picture ``(h, w, 3)`` uint8 RGB, 256 pixels a side; of several tensors the largest.

    Args:
        features: one array for each of ``specs``, without batch dimension.
        specs: what they are.
    """
    values, spec = max(zip(features, specs, strict=True), key=lambda pair: pair[0].size)
    maps = spec.as_map(torch.from_numpy(np.array(values, np.float32))[None])[0].numpy()
    maps = np.nan_to_num(maps, nan=0.0, posinf=0.0, neginf=0.0)
    if maps.shape[1] * maps.shape[2] == 1:
        numbers = maps.ravel()
        side = math.isqrt(max(0, numbers.size - 1)) + 1
        maps = np.pad(numbers, (0, side * side - numbers.size)).reshape(1, side, side)
    order = np.argsort(-maps.reshape(len(maps), -1).std(1), kind="stable")[:_TILES]
    # which channel stands where must not jump from frame to frame
    chosen = maps[np.sort(order)]
    columns = math.isqrt(max(0, len(chosen) - 1)) + 1
    tile = SIDE // columns
    canvas = np.zeros((SIDE, SIDE), np.uint8)
    for i, channel in enumerate(chosen):
        least, most = float(channel.min()), float(channel.max())
        scaled = (channel - least) / (most - least) if most > least else np.zeros_like(channel)
        block = cv2.resize((255 * scaled).astype(np.uint8), (tile - 2, tile - 2), interpolation=cv2.INTER_NEAREST)
        row, column = divmod(i, columns)
        canvas[row * tile + 1 : (row + 1) * tile - 1, column * tile + 1 : (column + 1) * tile - 1] = block
    return cv2.cvtColor(cv2.applyColorMap(canvas, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
