"""The inversion network's answer, as an attack on still images and recordings: the live preview."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch

from adversary.attacks.base import ATTACKS, Attack, Callback, Problem, Reconstruction

__all__ = ["Preview"]


@ATTACKS.register("preview")
class Preview(Attack):
    """Inversion network, one pass: the live preview."""

    name = "preview"
    presets: ClassVar = {"default": {}}
    needs = frozenset({"initial", "prior"})

    @torch.no_grad()
    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """One pass; nothing is carried on."""
        self.check(problem)
        callback = callback or Callback()
        network = problem.inversion_network()
        begin = callback.now()
        images = problem.generator.decode(network(tuple(problem.features))).clamp(0, 1)
        callback.show(lambda: images)
        return Reconstruction(images, math.nan, 0, 0.0, (callback.now() - begin) / problem.frames)
