"""The two live tiers: a preview for every frame at once, a refined window before its deadline.

Previews come from an inversion network, or from the one pass of a black-box network; without either the stream runs on
without previews. Windows are solved by any attack, warm-started by the state that it returned for the last one; one
that solves images alone solves a window's frames side by side.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from adversary.attacks.base import Attack, Callback, Known, Problem
from adversary.live.windows import Observation, Window
from splitsight.features import FeatureSpec

if TYPE_CHECKING:
    from adversary.blackbox.inversion import InversionNetwork
    from adversary.blackbox.networks import AttackNetwork
    from adversary.priors.prior import Prior, Text

__all__ = ["Engine", "WindowResult"]

Told = Callable[[Sequence[Tensor]], Known]


@dataclass
class WindowResult:
    """A refined window: images ``(K, 3, H, W)`` in [0, 1], and what it took."""

    window: Window
    images: Tensor
    loss: float
    iterations: int
    model_evaluations: int
    seconds: float


class Engine:
    """Previews and windows for one session.

    Args:
        attack: solves windows.
        specs: what crosses the split.
        pipeline: F1 as the attacker knows it, or a surrogate of it; as for :class:`~adversary.attacks.Problem`, like
            all that follow.
        prior: the generative prior.
        initial: the inversion network, for previews and starts.
        network: of a black-box attack; gives the previews where there is no inversion network.
        image_size: side of the images that windows are reconstructed at; the prior's by default.
        text: prompt; the empty one by default.
        seed: of all draws.
        told: what is known of some features behind a defence, in place of ``pipeline``.
        opened: tapped features → as the server, which holds the defence's key, reads them.

    Raises:
        UserError: the attack needs something that is not there; one sentence.
    """

    def __init__(
        self,
        attack: Attack,
        specs: Sequence[FeatureSpec],
        *,
        pipeline: nn.Module | None = None,
        prior: Prior | None = None,
        initial: InversionNetwork | None = None,
        network: AttackNetwork | None = None,
        image_size: int = 0,
        text: Text | None = None,
        seed: int = 0,
        told: Told | None = None,
        opened: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] = tuple,
    ) -> None:
        self.attack, self.specs = attack, tuple(specs)
        self.pipeline, self.prior, self.initial, self.network = pipeline, prior, initial, network
        self.image_size, self.text, self.seed, self.told = image_size, text, seed, told
        self.opened = opened
        attack.check(self)
        self._state: Any = None

    @torch.no_grad()
    def preview(self, frame: Observation) -> Tensor | None:
        """An image ``(3, H, W)`` in [0, 1] at once; ``None`` where no network gives one for a single frame."""
        if self.initial is not None and self.prior is not None:
            return self.prior.decode(self.initial(self.opened(tuple(frame.features)))).clamp(0, 1)[0]
        if self.network is not None and self.network.made.frames == 1:
            return self.network.images(self.network(frame.features, self.text), self.text).clamp(0, 1)[0]
        return None

    def refine(self, window: Window, deadline: float | None = None) -> WindowResult:
        """Reconstruct a window's frames.

        Args:
            window: one that the end of the stream left incomplete is filled up with its last frame for a network that
                takes whole windows only.
            deadline: ``time.monotonic()`` value by which the answer must be there.
        """
        begin = time.monotonic()
        frames = list(window.frames)
        if self.network is not None:
            frames += frames[-1:] * (-len(frames) % self.network.made.frames)
        tapped = tuple(torch.cat(parts) for parts in zip(*(f.features for f in frames), strict=True))
        features = list(self.opened(tapped))
        initial, network = self.initial, self.network
        known = {"features": features, "pipeline": self.pipeline} if self.told is None else vars(self.told(features))
        problem = Problem(
            **known,
            specs=self.specs,
            image_size=self.image_size,
            prior=self.prior,
            initial=None if initial is None else lambda: initial,
            network=None if network is None else lambda: network,
            text=self.text,
            seed=self.seed,
        )
        answer = self.attack.reconstruct(problem, self._state, Callback(deadline))
        self._state = answer.state
        return WindowResult(
            window,
            answer.images[: len(window.frames)],
            answer.loss,
            answer.iterations,
            round(answer.model_evaluations * len(frames)),
            time.monotonic() - begin,
        )

    def forget(self) -> None:
        """Drop what was carried over from earlier windows."""
        self._state = None
