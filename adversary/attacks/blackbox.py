"""Black-box attacks: networks that were trained on an oracle's answers alone, one pass an image.

They get no F1. Nothing here, nor in what it imports, can build one, and ``problem.pipeline`` is not read. Their
networks are made by ``splitsight train inversion --oracle`` and found again in the cache by target, cut, defence and
digests.

A black-box method is one class: the network, how it answers, its training's values, parts and losses, and what it can
take. Registered as an attack (here, or by another package under the entry-point group ``splitsight.attacks``) it is
trained, listed, run by scenarios and found by ``--method``::

    @ATTACKS.register("net-linear")
    class NetLinear(NetAttack):
        \"\"\"Black-box: one linear layer from features to the prior's latent.\"\"\"

        name = "net-linear"

        class Training(PairLoss):
            width: int = option(16, "channels in between", ge=1)

        @classmethod
        def core(cls, made, values, prior):
            return Linear(made.features, prior.latent_shape, values.width)

        @classmethod
        def stages(cls, fit):
            values = fit.network.values
            yield Stage(fit.network, pair_loss(values, fit.truths()), values.lr, fit.generator())
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from adversary.attacks.base import ATTACKS, Attack, Callback, Problem, Reconstruction, Settings, option, validated
from adversary.blackbox._batches import held_out
from adversary.blackbox.networks import AttackNetwork, Made, load_network, prior_key
from adversary.blackbox.queries import Pairs
from adversary.blackbox.training import LOOKED_AT, Fit, Stage, Training
from adversary.priors.prior import Prior, Text
from splitsight.errors import unknown_name
from splitsight.wire.sessions import SessionDescription

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["NetAttack", "Windows", "method_of", "methods"]


class NetAttack(Attack):
    """A black-box method, and the attack with its network.

    A method declares ``Training`` and ``trainings``, and defines :meth:`core` and :meth:`stages`; the rest has
    defaults. An attack with the network of another method derives from that one and keeps its ``method``.

    Attributes:
        method: whose network is used; the attack's own name by default.
        Training: model of the training's values.
        trainings: named settings of it, as changes of its defaults; the first one is the default.
        parts: names of what is trained one after the other; one empty name for a single part.
        aim: what the features become, for people.
        prior_part: what of the prior fixes the network's answers.
        windows: whether it can be trained for windows of frames.
        surrogate: whether a surrogate of F1 is trained with it.
        unasked: whether it also learns from pictures that the oracle was not asked about.
    """

    method: ClassVar[str]
    Training: ClassVar[type[Training]]
    trainings: ClassVar[Mapping[str, Mapping[str, Any]]] = {"tuned": {}}
    parts: ClassVar[tuple[str, ...]] = ("",)
    aim: ClassVar[str] = "latent"
    prior_part: ClassVar[Literal["none", "autoencoder", "all"]] = "autoencoder"
    windows: ClassVar[bool] = False
    surrogate: ClassVar[bool] = False
    unasked: ClassVar[bool] = False

    presets: ClassVar = {"trained": {}}
    needs = frozenset({"network"})

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        if "name" in vars(cls) and not hasattr(cls, "method"):
            cls.method = cls.name

    # ---------------------------------------------------------------- the method

    @classmethod
    def core(cls, made: Made, values: Any, prior: Prior) -> nn.Module:
        """The network: features, each ``(B, …)`` → what it is aimed at.

        Args:
            made: what for; its ``features`` are the tensors that come in.
            values: of the training, an instance of ``Training``.
            prior: in use.

        Returns:
            A module with an attribute ``standard``, the :class:`~adversary.blackbox.layouts.Standardised` in front.
        """
        raise NotImplementedError(f"{cls.__name__} has no core")

    @classmethod
    def stages(cls, fit: Fit) -> Generator[Stage]:
        """What is trained, one part after the other; each is asked for once the one before is done."""
        raise NotImplementedError(f"{cls.__name__} has no stages")

    @classmethod
    def answer(cls, network: AttackNetwork, features: Sequence[Tensor], text: Text | None) -> Tensor:
        """Features → what the network is aimed at."""
        return network.core(features)

    @classmethod
    def images(cls, network: AttackNetwork, value: Tensor, text: Text | None) -> Tensor:
        """What :meth:`answer` gave → images ``(B, 3, H, W)``; of latents by default."""
        return network.prior.decode(value)

    @classmethod
    def evaluations(cls, network: AttackNetwork) -> int:
        """Passes of one latent through a denoiser of the network's own so far, which the problem does not see."""
        return 0

    @classmethod
    def put_aside(cls, pairs: Pairs, values: Any, frames: int) -> tuple[Pairs, Pairs]:
        """Pairs to learn from, and pairs put aside (the same again where none are)."""
        return held_out(pairs, LOOKED_AT, frames) if values.early_stopping else (pairs, pairs)

    @classmethod
    def finish(cls, fit: Fit) -> None:
        """Whatever is measured or decided after the last part, on the CPU; figures go into ``fit.figures``."""

    @classmethod
    def trained(cls, values: Mapping[str, Any]) -> Any:
        """Values of a training, an instance of ``Training``; what is missing is at its default.

        Raises:
            UserError: one of them cannot be that.
        """
        return validated(cls.Training, values, f"{cls.method}'s training value")

    @classmethod
    def training(cls, setting: str | None = None, changes: Mapping[str, Any] | None = None) -> tuple[str, Any]:
        """A named setting of the training, with changes laid over it: its name and its values.

        Raises:
            UserError: no such setting or value, or one that cannot be.
        """
        chosen = setting or next(iter(cls.trainings))
        if chosen not in cls.trainings:
            raise unknown_name(f"training of {cls.method}", chosen, list(cls.trainings))
        for key in changes or {}:
            if key not in cls.Training.model_fields:
                raise unknown_name(f"value of {cls.method}'s training", key, list(cls.Training.model_fields))
        return chosen, cls.trained({**cls.trainings[chosen], **(changes or {})})

    # ---------------------------------------------------------------- the attack

    def load(
        self,
        prior: Prior,
        about: SessionDescription,
        *,
        frames: int = 1,
        text: bool = False,
        path: Path | None = None,
    ) -> AttackNetwork:
        """The network for what is attacked.

        Args:
            prior: in use.
            about: what is attacked; an empty ``head_digest`` takes a network for any weights.
            frames: K, for methods that solve windows.
            text: whether there is a prompt.
            path: file of the network; the package's or the cache's by default.

        Raises:
            UserError: there is none for that.
        """
        wanted = Made(
            method=self.method,
            target=about.target,
            split=about.split,
            head_digest=about.head_digest,
            features=about.features,
            image=prior.image_size,
            prior=prior.name,
            prior_digest=prior_key(prior, self.method),
            defense=about.defense,
            defense_digest=about.defense_digest,
            frames=frames if self.windowed else 1,
            mixed=getattr(self.settings, "mixed", True),
            text=text,
        )
        return load_network(wanted, prior, path)

    @torch.no_grad()
    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """One pass; an attacker without F1 has no loss of its answer, and the curve is that of the training."""
        self.check(problem)
        assert problem.network is not None
        callback, network = callback or Callback(), problem.network()
        network.check_features(problem.features)
        begin, before = callback.now(), self.evaluations(network)
        images = network.images(network(problem.features, problem.text), problem.text).clamp(0, 1)
        callback.show(lambda: images)
        seconds = (callback.now() - begin) / problem.frames
        about = {"queries": str(network.made.queries), "training": network.made.setting}
        evaluations = problem.evaluations + (self.evaluations(network) - before) / problem.frames
        curve = list(network.made.curve)
        return Reconstruction(images, math.nan, 0, evaluations, seconds, curve=curve, about=about)


class Windows(NetAttack):
    """Several frames at once (equation 13); ``control`` is a network of the same size that looks at each alone."""

    class Settings(Settings):
        """What the network is."""

        mixed: bool = option(True, "frames see each other, or each is looked at alone")

    windowed = True
    presets: ClassVar = {"mixed": {}, "control": {"mixed": False}}


def methods() -> dict[str, type[NetAttack]]:
    """The black-box methods by name."""
    return {name: cls for name, cls in ATTACKS if issubclass(cls, NetAttack) and cls.method == name}


def method_of(name: str) -> type[NetAttack]:
    """A black-box method by name.

    Raises:
        UserError: no such method; the message lists those that exist.
    """
    found = methods()
    if name not in found:
        raise unknown_name("black-box method", name, list(found))
    return found[name]
