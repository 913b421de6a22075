"""What crosses a split point, described; known to whoever reads it, whether or not they know the network.

The only place that asks how many dimensions a tensor has. A feature is one of three layouts:

* ``map``: channels over a grid of positions, ``(C, H, W)``, or ``(H, W, C)`` where only the first two sides agree, as
  in networks that keep channels last (Swin);
* ``tokens``: ``(N, D)``, N positions of D channels. Where N is a square, or one more than a square, the tokens are that
  square in row order, behind a class token in the second case (ViT);
* ``vector``: anything else, D numbers without a position.

Whoever needs a grid, the channels, or one scale a channel asks here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LAYOUTS", "FeatureSpec", "shapes_of", "show_shapes", "stride_of"]

LAYOUTS = ("map", "tokens", "vector")
_LEAST_COVERED = 4
"""Numbers that a scale of its own must cover, so that scales take less room than they save."""

_DIMENSIONS = {"map": 3, "tokens": 2}


@dataclass(frozen=True)
class FeatureSpec:
    """One tensor that crosses a split point.

    Attributes:
        name: stable within a split point.
        shape: without batch dimension.
        layout: one of :data:`LAYOUTS`; inferred from the number of dimensions where not given.

    Raises:
        ValueError: a layout that such a shape cannot have.
    """

    name: str
    shape: tuple[int, ...]
    layout: str = ""

    def __post_init__(self) -> None:
        shape = tuple(int(n) for n in self.shape)
        inferred = next((layout for layout, n in _DIMENSIONS.items() if n == len(shape)), "vector")
        layout = self.layout or inferred
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout '{layout}': it is one of {', '.join(LAYOUTS)}")
        object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "layout", layout)
        if len(shape) != _DIMENSIONS.get(layout, len(shape)):
            raise ValueError(f"the layout {layout} has {_DIMENSIONS[layout]} dimensions, not {self.show}")

    @property
    def show(self) -> str:
        """The shape for people: ``64×16×16``."""
        return "×".join(map(str, self.shape)) or "one number"

    @property
    def numel(self) -> int:
        """Numbers a frame."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes a frame in float32."""
        return 4 * self.numel

    # ---------------------------------------------------------------- channels

    @property
    def channel_axis(self) -> int | None:
        """Which dimension of the shape holds the channels; ``None`` for a vector of more than one dimension."""
        if self.layout == "map":
            first = self.shape[1] == self.shape[2] or self.shape[0] != self.shape[1]
            return 0 if first else 2
        if self.layout == "tokens":
            return 1
        return 0 if len(self.shape) == 1 else None

    @property
    def channels(self) -> int:
        """Numbers at one position; of a vector, all."""
        return self.numel if self.channel_axis is None else self.shape[self.channel_axis]

    @property
    def positions(self) -> int:
        """Places that the channels are repeated over; 1 for a vector."""
        return self.numel // self.channels

    @property
    def scale_axis(self) -> int | None:
        """The dimension along which values are scaled apart (8 bits); ``None`` for one scale in all."""
        return None if self.layout == "vector" or self.positions < _LEAST_COVERED else self.channel_axis

    def rows(self, z: Tensor) -> Tensor:
        """``(B, *shape)`` → ``(B · positions, channels)``, one row a position."""
        return self.channels_last(z).reshape(-1, self.channels)

    def channels_last(self, z: Tensor) -> Tensor:
        """``(…, *shape)`` → ``(…, positions' dimensions, channels)``."""
        if self.channel_axis is None:
            return z.flatten(-len(self.shape)) if self.shape else z[..., None]
        return z.movedim(self.channel_axis - len(self.shape), -1)

    def from_channels_last(self, z: Tensor) -> Tensor:
        """The inverse of :meth:`channels_last`."""
        if self.channel_axis is None:
            return z.unflatten(-1, self.shape) if self.shape else z[..., 0]
        return z.movedim(-1, self.channel_axis - len(self.shape))

    def per_channel(self, values: Tensor) -> Tensor:
        """One value a channel ``(C,)`` → what broadcasts against ``(B, *shape)``."""
        if self.channel_axis is None:
            return values.view(self.shape)
        return values.view(*(n if i == self.channel_axis else 1 for i, n in enumerate(self.shape)))

    # ---------------------------------------------------------------- positions

    @property
    def class_token(self) -> bool:
        """Whether the first token stands beside a square of others."""
        return self.layout == "tokens" and self.grid is not None and self.shape[0] != prod(self.grid)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns of positions; ``None`` where there is no grid."""
        if self.layout == "map":
            height, width = (n for i, n in enumerate(self.shape) if i != self.channel_axis)
            return height, width
        if self.layout == "tokens":
            side = math.isqrt(self.shape[0])
            return (side, side) if side > 1 and self.shape[0] - side**2 in (0, 1) else None
        return None

    def as_map(self, z: Tensor) -> Tensor:
        """``(B, *shape)`` → ``(B, C, H, W)``; without a class token; without a grid, one position ``(B, C, 1, 1)``.

        Tokens that are no square become one column of N positions.
        """
        if self.layout == "map":
            return z.movedim(1 + (self.channel_axis or 0), 1)
        if self.layout == "tokens":
            tokens = z[:, 1:] if self.class_token else z
            return tokens.movedim(1, 2).unflatten(2, self.grid or (self.shape[0], 1))
        return z.flatten(1)[:, :, None, None]


def shapes_of(specs: Sequence[FeatureSpec]) -> list[tuple[int, ...]]:
    """Shapes without batch dimension."""
    return [spec.shape for spec in specs]


def stride_of(specs: Sequence[FeatureSpec], size: int) -> int | None:
    """Pixels between two positions of the coarsest grid among these features.

    Args:
        specs: what crosses.
        size: pixels a side of the image.

    Returns:
        ``None`` where they have no grid, or not one that divides the image into squares.
    """
    grids = [spec.grid for spec in specs]
    sides = [grid[0] for grid in grids if grid is not None and grid[0] == grid[1] and size % grid[0] == 0]
    return size // min(sides) if sides else None


def show_shapes(shapes: Sequence[Sequence[int]]) -> str:
    """Shapes for people: ``64×16×16 and 12``."""
    return " and ".join("×".join(map(str, shape)) or "one number" for shape in shapes)
