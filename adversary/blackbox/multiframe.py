"""Several frames at once (equation 13): a 1 × 1 convolution over the K stacked features, then one F_u for each frame.

``[z'_1 … z'_K] = W ∗ [z_1 … z_K]`` with W over the K·C channels of each position (of tokens: of each token; of a
vector: its numbers), and ``x̂_k = D(F_u(z'_k))`` with one and the same F_u. :class:`FrameMixer` begins at the identity,
so that training starts where single frames are.

:class:`FrameControl` is the comparison with as many parameters and no look at other frames: each frame's features go
through two 1 × 1 convolutions, ``z'_k = z_k + W₂ relu(W₁ z_k)``, whose hidden channels (K² C / 2) make up for it.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

__all__ = ["FrameControl", "FrameMixer"]


def _channels(shape: tuple[int, ...]) -> int:
    return shape[0] if len(shape) == 3 else shape[-1]


def _last(z: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Channels last: ``(…, C, H, W)`` → ``(…, H, W, C)``; tokens and vectors as they are."""
    return z.movedim(-3, -1) if len(shape) == 3 else z


def _first(z: Tensor, shape: tuple[int, ...]) -> Tensor:
    return z.movedim(-1, -3) if len(shape) == 3 else z


class FrameMixer(nn.Module):
    """The convolution of equation 13.

    Args:
        shapes: of the features of one frame, without batch dimension.
        frames: K.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], frames: int) -> None:
        super().__init__()
        self.shapes, self.frames = [tuple(s) for s in shapes], frames
        self.layers = nn.ModuleList(nn.Linear(frames * _channels(s), frames * _channels(s)) for s in self.shapes)
        for layer in self.layers:
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features of whole windows, each ``(B · K, …)`` with a window's frames side by side → the same shapes."""
        out = []
        for z, layer, shape in zip(features, self.layers, self.shapes, strict=True):
            frames = _last(z.unflatten(0, (-1, self.frames)), shape).movedim(1, -2)
            mixed = layer(frames.flatten(-2)).unflatten(-1, (self.frames, -1)).movedim(-2, 1)
            out.append(_first(mixed, shape).flatten(0, 1))
        return out


class FrameControl(nn.Module):
    """As many parameters, each frame by itself.

    Args:
        shapes: of the features of one frame, without batch dimension.
        frames: K of the mixer that it is compared with.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], frames: int) -> None:
        super().__init__()
        self.shapes, self.frames = [tuple(s) for s in shapes], frames
        self.layers = nn.ModuleList()
        for shape in self.shapes:
            c = _channels(shape)
            # c·h + h + h·c + c = (K c)² + K c, the mixer's weights and biases
            hidden = max(1, round(((frames * c) ** 2 + (frames - 1) * c) / (2 * c + 1)))
            self.layers.append(nn.Sequential(nn.Linear(c, hidden), nn.ReLU(), nn.Linear(hidden, c)))
            nn.init.zeros_(self.layers[-1][2].weight)
            nn.init.zeros_(self.layers[-1][2].bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Features, each ``(B · K, …)`` → the same shapes."""
        return [
            _first(last + layer(last), shape)
            for z, layer, shape in zip(features, self.layers, self.shapes, strict=True)
            for last in [_last(z, shape)]
        ]
