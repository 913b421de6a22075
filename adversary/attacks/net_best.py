"""net-best: our strongest black-box attack, within the query budget of the others.

The network's answer (:mod:`adversary.blackbox.surrogate`), and the white-box attack on a surrogate of F1: what
:mod:`adversary.attacks.best` does, whitened by the surrogate's errors on pairs that the attacker held out.

* ``faithful``: the network's answer; where those pairs showed that a fit through the surrogate brings it nearer, the
  mean of posterior samples around it, at the likelihood weight that they showed (in the network's file).
* ``sharp``: the surrogate's features are fitted from that answer at their full weight, then plug-and-play rounds. Where
  ``faithful`` does without the surrogate, that is farther in pixels, and tells what the network's blur leaves out.
  Without a surrogate (one that explained nothing is dropped), noise of a moderate level and one step of the denoiser
  back.
* ``one-pass``: the network's answer alone, in milliseconds, for live streams.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from adversary.attacks.base import ATTACKS, Callback, Problem, Reconstruction, option
from adversary.attacks.best import Best, BestSettings
from adversary.attacks.blackbox import NetAttack
from adversary.blackbox._batches import held_out
from adversary.blackbox._train_best import (
    BestTraining,
    Pictures,
    choose,
    invert_loss,
    surrogate_error,
    surrogate_loss,
)
from adversary.blackbox.losses import check_perceptual
from adversary.blackbox.networks import AttackNetwork, Made
from adversary.blackbox.queries import Pairs
from adversary.blackbox.surrogate import LatentNetwork
from adversary.blackbox.training import Fit, Stage
from adversary.priors.prior import Prior
from splitsight.devices import standard_normal

__all__ = ["NetBest"]

_FIELDS = set(BestSettings.model_fields)


@ATTACKS.register("net-best")
class NetBest(NetAttack):
    """Black-box, our strongest: a network to the prior's latent, then white-box fits of a surrogate of F1.

    The surrogate is fitted ``nearer``: where held-out pairs showed that it brings answers nearer, at the weight they
    showed; ``always``, at ``likelihood_weight``; or ``never``.
    """

    class Settings(BestSettings):
        """Those of :class:`~adversary.attacks.best.Best`, and when to fit."""

        stages: tuple[Literal["fit", "rounds"], ...] = option(("fit",), "of the fit through the surrogate, in order")
        combine: Literal["mean", "last"] = option("last", "the mean of what the stages answered, or the last one")
        surrogate: Literal["nearer", "always", "never"] = option("nearer", "when to fit the surrogate")
        denoise: float = option(
            0.0, "without a surrogate, noise level from which the denoiser takes one step back", ge=0, le=1
        )

    name = "net-best"
    aim = "latent, tried with a surrogate of F1"
    parts = ("surrogate", "invert")
    surrogate = unasked = True
    Training = BestTraining
    trainings: ClassVar = {"tuned": {}}
    presets: ClassVar = {
        "faithful": {},
        # a residual would fit what the surrogate is wrong about
        "sharp": {
            **Best.presets["sharp"],
            "stages": ("fit", "rounds"),
            "surrogate": "always",
            "fit_evaluations": 30,
            "samples": 1,
            "denoise": 0.3,
        },
    }
    variants: ClassVar = {"one-pass": ("faithful", {"surrogate": "never"})}
    needs = frozenset({"network", "prior"})

    @classmethod
    def training(cls, setting: str | None = None, changes: Mapping[str, Any] | None = None) -> tuple[str, Any]:
        """See :class:`NetAttack`; a perceptual distance without weights is refused."""
        chosen, values = super().training(setting, changes)
        check_perceptual(values.perceptual)
        return chosen, values

    @classmethod
    def core(cls, made: Made, values: Any, prior: Prior) -> nn.Module:
        """To the prior's latent."""
        return LatentNetwork(made.features, prior.latent_shape, values.width, surrogate=made.surrogate)

    @classmethod
    def put_aside(cls, pairs: Pairs, values: Any, frames: int) -> tuple[Pairs, Pairs]:
        """A tenth: errors are measured on it, whether training stops early or not."""
        return held_out(pairs)

    @classmethod
    def stages(cls, fit: Fit) -> Generator[Stage]:
        """The surrogate, then the network."""
        network, values = fit.network, fit.network.values
        truths, held = fit.truths(), fit.held
        assert network.surrogate is not None
        yield Stage(
            network.surrogate,
            surrogate_loss,
            values.surrogate_lr,
            fit.generator(),
            "surrogate",
            values.surrogate_share,
            lambda: surrogate_error(network, fit.shown),
            answers=False,
        )
        own = fit.learnt.images if fit.unasked is None else np.concatenate([fit.learnt.images, fit.unasked])
        generator = fit.generator()
        pictures = Pictures(
            network, own, held, share=values.pictures, crop=values.crop, generator=generator, fresh=values.fresh
        )
        fit.figures["surrogate_r2"] = round(pictures.r2, 4)
        loss = invert_loss(values, truths, pictures)
        yield Stage(network.core, loss, values.lr, generator, "invert", 1 - values.surrogate_share)

    @classmethod
    def finish(cls, fit: Fit) -> None:
        """Measure both errors, and find out what a fit through the surrogate is good for."""
        if "surrogate_r2" in fit.figures:
            fit.figures |= choose(fit.network, fit.held, fit.figures["surrogate_r2"])

    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a problem's frames, without a look at ``problem.pipeline``."""
        callback, s = callback or Callback(), self.settings
        first = super().reconstruct(problem, state, callback)
        assert problem.network is not None
        network = problem.network()
        weights = {"nearer": network.made.likelihood_weight, "always": s.likelihood_weight, "never": 0.0}
        weight = 0.0 if network.surrogate is None else weights[s.surrogate]
        first.about |= {"surrogate": f"likelihood weight {weight:g}" if weight else "not used"}
        if weight:
            fit = s.model_copy(update={"likelihood_weight": weight})
            return self._by_surrogate(problem, network, first, fit, callback)
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
    def _by_surrogate(
        problem: Problem, network: AttackNetwork, first: Reconstruction, settings: BestSettings, callback: Callback
    ) -> Reconstruction:
        core = network.core
        assert isinstance(core, LatentNetwork)
        surrogate = replace(problem, pipeline=network.surrogate, initial=lambda: core, network=None)
        values = {key: value for key, value in settings if key in _FIELDS}
        answer = Best(BestSettings.model_construct(**values)).reconstruct(surrogate, callback=callback)
        answer.about = {**first.about, "stages": answer.about["stages"]}
        answer.seconds += first.seconds
        # what other networks report too: the training's, not the fit's
        answer.curve = first.curve
        return answer
