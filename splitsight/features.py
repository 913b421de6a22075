"""What crosses a split point, described; known to whoever reads it, whether or not they know the network."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

__all__ = ["FeatureSpec"]


@dataclass(frozen=True)
class FeatureSpec:
    """One tensor that crosses a split point.

    Attributes:
        name: stable within a split point.
        shape: without batch dimension.
    """

    name: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Numbers a frame."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes a frame in float32."""
        return 4 * self.numel
