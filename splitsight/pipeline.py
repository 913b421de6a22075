"""The edge pipeline: what happens to an image before anything of it leaves the edge.

    resize → preprocess → F1 → defence → codec

One object is run by the edge, served by an oracle, differentiated by a white-box attacker and built once by a scenario,
so that all of them mean the same. It plays the part that a measurement operator plays in inverse problems (deepinv's
``Physics``: ``sensor(noise(A(x)))``): :meth:`EdgePipeline.forward` is what the tap sees, :meth:`EdgePipeline.expected`
the same without chance and differentiable, with the straight-through gradient (Bengio et al., arXiv 1308.3432) where
the codec rounds.
"""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from splitsight.defenses import Chain, Place, Protection, Scale, parse_defense, weights_digest
from splitsight.draws import Draws
from splitsight.features import FeatureSpec
from splitsight.targets import Cut, Target
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec, decode, encode
from splitsight.wire.v1 import tensor_pb2

__all__ = ["EdgePipeline", "Expected", "resized"]

_NO_LIMIT = 1 << 40


def resized(images: Tensor, size: int) -> Tensor:
    """Images ``(B, 3, H, W)`` → ``(B, 3, size, size)``: bilinear, averaging; untouched where it fits."""
    if images.shape[-2:] == (size, size):
        return images
    return interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


class EdgePipeline(nn.Module):
    """What an edge does to images.

    Args:
        target: the split network.
        split: a cut of it, by name.
        defense: what is done to the features, as ``--defense`` takes it, or parsed.
        codec: how they are encoded.

    Attributes:
        cut: the target's halves; a trained defence brings its own.
        protection: the defence at work, with all that an attacker who knows it may use.
        server: what the server does before F2, features in and features out; ``None`` where it does nothing. Whoever
            sits on the server can do the same.
        tail: F2 with what the server does before it, for the features as they come out of here.
        specs: what crosses, in order, behind the defence.

    Raises:
        UserError: no such split point or defence, or one that cannot be applied there.
    """

    def __init__(
        self, target: Target, split: str, defense: str | Chain = "identity", codec: CodecSpec | None = None
    ) -> None:
        super().__init__()
        self.target, self.split = target, split
        self.defense = parse_defense(defense) if isinstance(defense, str) else defense
        self.codec = codec or CodecSpec()
        self.cut: Cut = target.cut(split)
        self.defense.check(Place(target.name, split, self.cut.head_digest, self.cut.tail_digest, str(self.defense)))
        self.head, self._tail = self.defense.adapted(self.cut.head, self.cut.tail)
        self.specs: tuple[FeatureSpec, ...] = self.defense.output_specs(self.cut.specs)
        protection, self.server = self.defense.build(self.cut.specs)
        self.protection: Protection = protection
        self.tail = self._tail if self.server is None else _Served(self.server, self._tail)
        self._defense_digest = weights_digest(self.protection, self.server)
        self.eval()

    @property
    def input_size(self) -> int:
        """Side of the images that F1 takes; others are resized to it."""
        return self.target.input_size

    def protected(self, images: Tensor, draws: Draws | None = None) -> tuple[Tensor, ...]:
        """Images ``(B, 3, H, W)`` in [0, 1] → features behind the defence, not encoded yet.

        Args:
            images: of any size.
            draws: of the defence; the system's entropy by default.
        """
        features = self.head(resized(images, self.input_size))
        return self.protection(features, draws or Draws()) if self.defense else features

    def encode(self, images: Tensor, draws: Draws | None = None) -> list[list[tensor_pb2.Tensor]]:
        """What leaves for each image: one message a tensor; arguments as for :meth:`protected`.

        Raises:
            WireError: features that are not finite, or too large for the codec.
        """
        return self.encoded(self.protected(images, draws))

    def encoded(self, features: tuple[Tensor, ...]) -> list[list[tensor_pb2.Tensor]]:
        """The same from features behind the defence, each ``(B, …)``."""
        arrays = [z.detach().cpu().contiguous().numpy() for z in features]
        return [
            [encode(z[i], self.codec, spec) for z, spec in zip(arrays, self.specs, strict=True)]
            for i in range(len(arrays[0]))
        ]

    def forward(self, images: Tensor, draws: Draws | None = None) -> tuple[Tensor, ...]:
        """What the tap sees, decoded; arguments as for :meth:`protected`. Not differentiable where the codec rounds."""
        return self._coded(self.protected(images, draws))

    def expected(self, images: Tensor) -> tuple[Tensor, ...]:
        """The same without chance, differentiable: what an attacker who knows the pipeline fits."""
        features = self.head(resized(images, self.input_size))
        return self._coded(self.protection.expected(features) if self.defense else features)

    def expected_on(self, images: Tensor, support: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """:meth:`expected`, given which entries were sent, as :meth:`Protection.support` found them in the tap."""
        features = self.head(resized(images, self.input_size))
        return self._coded(self.protection.expected_on(features, support) if self.defense else features)

    def opened(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Tapped features as whoever sits on the server, and so holds the defence's key, reads them."""
        return self.protection.opened(features)

    def deviations(self, features: tuple[Tensor, ...]) -> list[Scale]:
        """Standard deviation of the noise that the defence adds to each tensor, in its unit; 0 for none."""
        return self.protection.deviations(features)

    def _coded(self, features: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if self.codec.dtype == "float32":
            return features
        return tuple(z + (self._rounded(z, s) - z).detach() for z, s in zip(features, self.specs, strict=True))

    @torch.no_grad()
    def _rounded(self, z: Tensor, spec: FeatureSpec) -> Tensor:
        codec = CodecSpec(self.codec.dtype)  # packing loses nothing
        rows = [decode(encode(row, codec, spec), spec, max_bytes=_NO_LIMIT) for row in z.detach().cpu().float().numpy()]
        return torch.from_numpy(np.stack(rows)).to(z)

    def accounting(self) -> dict[str, object]:
        """What the defence costs a frame and what is proven of it, for summaries.

        ``flops`` (floating-point operations), ``bytes_ratio`` (bytes that leave, as a part of those without it),
        ``guarantees`` (one sentence a defence that proves anything), and ``epsilon`` and ``delta`` of a frame (``None``
        where nothing is proven).
        """
        mechanism = self.defense.mechanism
        return {
            **asdict(self.defense.cost(self.cut.specs)),
            "guarantees": self.defense.guarantees(),
            "epsilon": None if mechanism is None else mechanism.epsilon(),
            "delta": None if mechanism is None else mechanism.stated_delta,
        }

    def description(self) -> SessionDescription:
        """What a session, an oracle, rows and summaries say about it."""
        return SessionDescription(
            target=self.target.name,
            split=self.split,
            features=self.specs,
            defense=str(self.defense),
            head_digest=self.cut.head_digest if self.head is self.cut.head else weights_digest(self.head),
            tail_digest=self.cut.tail_digest if self._tail is self.cut.tail else weights_digest(self._tail),
            defense_digest=self._defense_digest,
            task=self.target.task.name,
            input_size=self.input_size,
        )


class _Served(nn.Module):
    """F2 behind the server's part of a defence."""

    def __init__(self, before: nn.Module, tail: nn.Module) -> None:
        super().__init__()
        self.before, self.tail = before, tail

    def forward(self, features: tuple[Tensor, ...]) -> object:
        return self.tail(self.before(features))


class Expected(nn.Module):
    """:meth:`EdgePipeline.expected` as a module: what attackers call F1.

    Args:
        pipeline: known to the attacker.
        support: of K tapped frames, as :meth:`splitsight.defenses.Protection.support` finds it, where it shows
            anything: what K images, or copies of them side by side, are then compared on.
    """

    def __init__(self, pipeline: EdgePipeline, support: tuple[Tensor, ...] | None = None) -> None:
        super().__init__()
        self.pipeline, self.support = pipeline, support

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images ``(B, 3, H, W)`` in [0, 1], of any size → features, each ``(B, …)``."""
        if self.support is None or len(images) % len(self.support[0]):
            return self.pipeline.expected(images)
        copies = len(images) // len(self.support[0])
        return self.pipeline.expected_on(images, tuple(torch.cat([mask] * copies) for mask in self.support))
