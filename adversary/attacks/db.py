"""DB, decoder-based: the latent of the prior's decoder is the variable."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from adversary.attacks.base import ATTACKS, Attack, Callback, Problem, Reconstruction, option
from adversary.attacks.descent import PAPER, Descent, descend, draw
from adversary.whitebox.variables import Latent

__all__ = ["DB"]


@torch.no_grad()
def _start(problem: Problem, kind: str, restart: int) -> Tensor:
    prior = problem.generator
    noise = draw(problem, prior.latent_shape, restart)
    if kind == "noise":
        return noise
    if kind == "prior":
        return prior.denoise(noise, 1.0)
    size = prior.image_size
    grey = prior.encode(torch.full((1, 3, size, size), 0.5, device=problem.device)).expand_as(noise)
    return grey if restart == 0 else grey + 0.1 * noise


@ATTACKS.register("db")
class DB(Attack):
    """White-box, decoder-based: the latent of the prior's decoder, each image alone.

    ``argmin_u ‖F1(Dec(u)) − z_mid‖² + λ_s TV(Dec(u))``. It starts from standard normal latents, as Algorithm 1 does
    with its noise (the paper gives no start). Tuning may choose ``grey``, the latent of a grey image, or ``prior``, the
    denoiser's answer to pure noise, which is about the mean of all images.
    """

    class Settings(Descent):
        """Adam's, and the start."""

        lr: float = option(0.2, "learning rate of Adam", ge=0, tune=(0.02, 0.05, 0.1, 0.2))
        start: Literal["noise", "grey", "prior"] = option(
            "noise", "what the search starts from", tune=("noise", "grey", "prior")
        )

    name = "db"
    presets: ClassVar = {"tuned": {}, "paper": PAPER}
    needs = frozenset({"pipeline", "prior"})

    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a problem's frames; nothing is carried on."""
        self.check(problem)
        prior, s = problem.generator, self.settings
        return descend(problem, lambda i: Latent(prior, _start(problem, s.start, i)), s, callback)
