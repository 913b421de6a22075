"""net-best: our strongest black-box attack, within the query budget of the others.

The network's answer (:mod:`adversary.blackbox.surrogate`), and the white-box attack with a student in F1's place: what
:mod:`adversary.attacks.best` does, whitened by how wrong the student was on pairs that the attacker held out.

* ``faithful``: the network's answer; where those pairs showed that the student brings it nearer, the mean of posterior
  samples around it, at the likelihood weight that they showed (``trust`` in the network's file).
* ``sharp``: the student's features are fitted from that answer at their full weight, then plug-and-play rounds. Where
  ``faithful`` does without the student, that is farther in pixels, and tells what the network's blur leaves out.
  Without a student (one that explained nothing is dropped), noise of a moderate level and one step of the denoiser
  back.
* ``one-pass``: the network's answer alone, in milliseconds, for live streams.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from adversary.attacks.base import ATTACKS, Callback, Problem, Reconstruction, option
from adversary.attacks.best import Best, BestSettings
from adversary.attacks.blackbox import NetAttack
from adversary.blackbox.networks import AttackNetwork
from adversary.blackbox.surrogate import LatentNetwork
from splitsight.devices import standard_normal

__all__ = ["NetBest"]

_FIELDS = set(BestSettings.model_fields)


@ATTACKS.register("net-best")
class NetBest(NetAttack):
    """Black-box, our strongest: a network to the prior's latent, then white-box fits of a student of F1.

    The student is fitted ``nearer``: where held-out pairs showed that it brings answers nearer, at the weight they
    showed; ``always``, at ``likelihood_weight``; or ``never``.
    """

    class Settings(BestSettings):
        """Those of :class:`~adversary.attacks.best.Best`, and when to fit."""

        stages: tuple[Literal["fit", "rounds"], ...] = option(("fit",), "of the fit through the student, in order")
        combine: Literal["mean", "last"] = option("last", "the mean of what the stages answered, or the last one")
        student: Literal["nearer", "always", "never"] = option("nearer", "when to fit the student")
        denoise: float = option(
            0.0, "without a student, noise level from which the denoiser takes one step back", ge=0, le=1
        )

    name = method = "net-best"
    presets: ClassVar = {
        "faithful": {},
        # a residual would fit what the student is wrong about
        "sharp": {
            **Best.presets["sharp"],
            "stages": ("fit", "rounds"),
            "student": "always",
            "fit_evaluations": 30,
            "samples": 1,
            "denoise": 0.3,
        },
    }
    variants: ClassVar = {"one-pass": ("faithful", {"student": "never"})}
    needs = frozenset({"network", "prior"})

    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a problem's frames, without a look at ``problem.pipeline``."""
        callback, s = callback or Callback(), self.settings
        first = super().reconstruct(problem, state, callback)
        assert problem.network is not None
        network = problem.network()
        weights = {"nearer": network.made.trust, "always": s.likelihood_weight, "never": 0.0}
        weight = 0.0 if network.student is None else weights[s.student]
        first.about |= {"student": f"likelihood weight {weight:g}" if weight else "not used"}
        if weight:
            fit = s.model_copy(update={"likelihood_weight": weight})
            return self._by_student(problem, network, first, fit, callback)
        if s.denoise:
            begin, before = callback.now(), problem.generator.evaluations
            first.images = self._denoised(problem, network, s.denoise)
            callback.show(lambda: first.images)
            first.seconds += (callback.now() - begin) / problem.frames
            first.model_evaluations += (problem.generator.evaluations - before) / problem.frames
        return first

    @torch.no_grad()
    def _denoised(self, problem: Problem, network: AttackNetwork, level: float) -> Tensor:
        prior = problem.generator
        eps = standard_normal(prior.latent_shape, problem.seeds, problem.device)
        noised = prior.noised(network(problem.features), eps, level)
        return prior.decode(prior.denoise(noised, level, problem.text)).clamp(0, 1)

    @staticmethod
    def _by_student(
        problem: Problem, network: AttackNetwork, first: Reconstruction, settings: BestSettings, callback: Callback
    ) -> Reconstruction:
        core = network.core
        assert isinstance(core, LatentNetwork)
        surrogate = replace(problem, pipeline=network.student, initial=lambda: core, network=None)
        values = {key: value for key, value in settings if key in _FIELDS}
        answer = Best(BestSettings.model_construct(**values)).reconstruct(surrogate, callback=callback)
        answer.about = {**first.about, "stages": answer.about["stages"]}
        answer.seconds += first.seconds
        # what other networks report too: the training's, not the fit's
        answer.curve = first.curve
        return answer
