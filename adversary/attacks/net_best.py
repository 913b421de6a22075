"""net-best: our strongest black-box attack, within the query budget of the others.

The network's answer (:mod:`adversary.blackbox.surrogate`), and the white-box attack with a student in F1's place: what
:mod:`adversary.attacks.best` does, whitened by how wrong the student was on pairs that the attacker held out.

* ``faithful``: the network's answer; where those pairs showed that the student brings it nearer, the mean of posterior
  samples around it, at the weight that they showed (``trust`` in the network's file).
* ``sharp``: the student's features are fitted from that answer at their full weight, then plug-and-play rounds. Where
  ``faithful`` does without the student, that is farther in pixels, and tells what the network's blur leaves out.
  Without a student (one that explained nothing is dropped), noise of a moderate level and one step of the denoiser
  back.
* ``one-pass``: the network's answer alone, in milliseconds, for live streams.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from adversary.blackbox.networks import AttackNetwork
from adversary.blackbox.surrogate import LatentNetwork
from adversary.attacks.base import ATTACKS, Problem, Reconstruction
from adversary.attacks.best import Best
from adversary.attacks.blackbox import NetAttack
from splitsight.devices import standard_normal

__all__ = ["NetBest"]

_KEYS = (
    "stages",
    "combine",
    "feature_noise",
    "feature_trust",
    "fit_evaluations",
    "fit_samples",
    "fit_scale",
    "levels",
    "round_evaluations",
    "round_spread",
    "samples",
    "answer",
)
"""What of the white-box attack's settings can be asked of the student too."""

_STUDENT = ("nearer", "always", "never")
"""When to fit the student: where it was found to bring answers nearer, at that weight; at ``feature_trust``; not."""


def _setting(name: str, **changes: Any) -> dict[str, Any]:
    own = {"student": "nearer", "denoise": 0.0, **{key: Best.settings[name][key] for key in _KEYS}}
    return {**own, **changes}


@ATTACKS.register("net-best")
class NetBest(NetAttack):
    """Black-box, our strongest: a network to the latent, then the white-box attack on a student of F1."""

    name = method = "net-best"
    summary = "black-box, our strongest: a network to the prior's latent, then white-box fits of a student of F1"
    text = False
    settings: ClassVar = {
        "faithful": _setting("faithful", stages=("fit",), combine="last"),
        # a residual would fit what the student is wrong about
        "sharp": _setting(
            "sharp", stages=("fit", "rounds"), student="always", fit_evaluations=30, samples=1, denoise=0.3
        ),
    }
    variants: ClassVar = {"one-pass": ("faithful", {"student": "never"})}
    choices: ClassVar = {**Best.choices, "stages": ("fit", "rounds"), "student": _STUDENT}
    limits: ClassVar = {"fit_samples": (1, math.inf), "samples": (1, math.inf), "denoise": (0, 1)}

    def solve(
        self,
        problem: Problem,
        *,
        student: str = "nearer",
        feature_trust: float = 1.0,
        denoise: float = 0.0,
        **settings: Any,
    ) -> Reconstruction:
        """Reconstruct a problem's frames, without a look at ``problem.head``.

        Args:
            problem: what is known.
            student: fit through the student ``nearer``: where held-out pairs showed that it brings answers nearer, at
                the weight they showed; ``always``, at ``feature_trust``; or ``never``.
            feature_trust: weight of the student's feature loss; 1 takes its measured errors at their word.
            denoise: without a student, noise level from which the denoiser takes one step back; 0 leaves it out.
            **settings: of :class:`~adversary.attacks.best.Best`, for the fit through the student.
        """
        first = super().solve(problem)
        assert problem.network is not None
        network = problem.network()
        trusts = {"nearer": network.made.trust, "always": feature_trust, "never": 0.0}
        trust = 0.0 if network.student is None else trusts[student]
        first.about |= {"student": f"trust {trust:g}" if trust else "not used"}
        if trust:
            return self._by_student(problem, network, first, {**settings, "feature_trust": trust})
        if denoise:
            begin, before = problem.clock.now(), problem.prior.evaluations
            first.images = self._denoised(problem, network, denoise)
            problem.clock.show(lambda: first.images)
            first.seconds += (problem.clock.now() - begin) / problem.frames
            first.model_evaluations += (problem.prior.evaluations - before) / problem.frames
        return first

    @torch.no_grad()
    def _denoised(self, problem: Problem, network: AttackNetwork, level: float) -> Tensor:
        prior = problem.prior
        eps = standard_normal(prior.latent_shape, problem.seeds, problem.device)
        noised = prior.noised(network(problem.features), eps, level)
        return prior.decode(prior.denoise(noised, level, problem.text)).clamp(0, 1)

    @staticmethod
    def _by_student(
        problem: Problem, network: AttackNetwork, first: Reconstruction, settings: dict[str, Any]
    ) -> Reconstruction:
        core = network.core
        assert isinstance(core, LatentNetwork)
        surrogate = replace(problem, head=network.student, inversion=lambda: core, network=None)
        stages: Sequence[str] = settings.pop("stages")
        answer = Best().solve(surrogate, stages=stages, **settings)
        answer.about = {**first.about, "stages": answer.about["stages"]}
        answer.seconds += first.seconds
        # what other networks report too: the training's, not the fit's
        answer.curve = first.curve
        return answer
