"""DB, decoder-based: the latent of the prior's decoder is the variable."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from adversary.attacks.base import ATTACKS, Attack, Problem, Reconstruction
from adversary.attacks.descent import LIMITS, SCHEDULES, descend
from adversary.whitebox.variables import Latent
from splitsight.devices import standard_normal

__all__ = ["DB"]

STARTS = ("noise", "grey", "prior")
_RESTART = 1_000_003


@torch.no_grad()
def _start(problem: Problem, kind: str, restart: int) -> Tensor:
    prior = problem.prior
    noise = standard_normal(prior.latent_shape, [seed + restart * _RESTART for seed in problem.seeds], problem.device)
    if kind == "noise":
        return noise
    if kind == "prior":
        return prior.denoise(noise, 1.0)
    if kind != "grey":
        raise ValueError(kind)
    size = prior.image_size
    grey = prior.encode(torch.full((1, 3, size, size), 0.5, device=problem.device)).expand_as(noise)
    return grey if restart == 0 else grey + 0.1 * noise


@ATTACKS.register("db")
class DB(Attack):
    """White-box, decoder-based: ``argmin_u ‖F1(Dec(u)) − z_mid‖² + λ_s TV(Dec(u))`` over the latent.

    It starts from standard normal latents, as Algorithm 1 does with its noise (the paper gives no start).
    Tuning may choose ``grey``, the latent of a grey image, or ``prior``, the denoiser's answer to pure noise,
    which is about the mean of all images.
    """

    name = "db"
    summary = "white-box, decoder-based: the latent of the prior's decoder, each image alone"
    settings: ClassVar = {
        "tuned": {
            "iterations": 300,
            "lr": 0.2,
            "schedule": "cosine",
            "relative": True,
            "tv": 0.3,
            "start": "noise",
            "restarts": 1,
            "audition": 0,
        },
        "paper": {
            "iterations": 1500,
            "lr": 0.1,
            "schedule": "constant",
            "relative": False,
            "tv": 1.0,
            "start": "noise",
            "restarts": 1,
            "audition": 0,
        },
    }
    choices: ClassVar = {"schedule": tuple(SCHEDULES), "start": STARTS}
    limits: ClassVar = LIMITS
    space: ClassVar = {
        "iterations": (150, 300),
        "lr": (0.02, 0.05, 0.1, 0.2),
        "schedule": tuple(SCHEDULES),
        "tv": (0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
        "start": STARTS,
        "restarts": (1, 2),
    }

    def solve(self, problem: Problem, *, start: str = "noise", **settings: Any) -> Reconstruction:
        """Reconstruct a problem's frames; the other settings are those of :func:`descend`."""
        return descend(problem, lambda i: Latent(problem.prior, _start(problem, start, i)), **settings)
