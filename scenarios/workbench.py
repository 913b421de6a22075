"""The workbench: puts an experiment's models together, once, and states what an attacker gets to know.

``splitsight attack``, ``run``, ``bench`` and ``tune`` hold originals and play the edge; an attack gets a
:class:`~adversary.attacks.Problem` made here, with no more in it than the attack says it needs: no F1 for one that only
queries, no prior for one that works on pixels.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adversary.attacks import Attack, Problem
from adversary.attacks.blackbox import NetAttack
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork, inversion_for
from adversary.blackbox.networks import AttackNetwork
from adversary.priors.prior import EMBEDDED, Prior, Text, load_prior
from splitsight import targets
from splitsight.artifacts import digest
from splitsight.defenses import parse_defense
from splitsight.devices import pick_device
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline, Expected, resized
from splitsight.targets import Target
from splitsight.wire.sessions import SessionDescription
from splitsight.wire.tensors import CodecSpec

__all__ = ["Workbench", "edge_seeds"]

_AT_ONCE = 64


def edge_seeds(seed: int, index: Sequence[int]) -> list[int]:
    """Seeds of the edge's draws for some images of an experiment: they depend on its seed and the image alone."""
    return [(1_000_003 * seed + 7919 * i + 1) % 2**32 for i in index]


def _key(about: SessionDescription) -> str:
    return f"{about.split} {about.head_digest} {about.defense}"


class Workbench:
    """Models of an experiment, loaded when they are first asked for.

    Args:
        target: attacked network.
        weights: its weights; the embedded ones by default.
        prior: name or folder of the generative prior.
        inversion: file of an inversion network, or a folder of them; the package's and the cache's by default.
        device: where to compute: ``auto``, ``cpu``, ``cuda``.

    Raises:
        UserError: when something is asked for that is not there or does not fit.
    """

    def __init__(
        self,
        target: str = "resnet18",
        *,
        weights: Path | None = None,
        prior: str = EMBEDDED,
        inversion: Path | None = None,
        device: str = "cpu",
    ) -> None:
        self.device = pick_device(device)
        self._names = (target, weights, prior)
        self._inversion = inversion
        self._pipelines: dict[tuple[str, str, CodecSpec], EdgePipeline] = {}
        self._initials: dict[str, InversionNetwork] = {}
        self._networks: dict[Hashable, AttackNetwork] = {}

    def beside(self, target: str) -> Workbench:
        """One for another network, with this one's prior."""
        other = Workbench(target, prior=self._names[2], inversion=self._inversion, device=str(self.device))
        other.prior = self.prior
        return other

    # ---------------------------------------------------------------- models

    @cached_property
    def target(self) -> Target:
        """The attacked network."""
        name, weights, _ = self._names
        return targets.load(name, weights).to(self.device)

    @cached_property
    def prior(self) -> Prior:
        """The generative prior."""
        return load_prior(self._names[2]).to(self.device)

    def pipeline(self, split: str, defense: str = "identity", codec: CodecSpec | None = None) -> EdgePipeline:
        """The edge that is attacked."""
        key = (split, str(parse_defense(defense)), codec or CodecSpec())
        if key not in self._pipelines:
            self._pipelines[key] = EdgePipeline(self.target, *key)
        return self._pipelines[key]

    def initial(self, about: SessionDescription) -> InversionNetwork:
        """The inversion network for a session.

        Raises:
            NoInversionNetwork: there is none.
        """
        key = _key(about)
        if key not in self._initials:
            self._initials[key] = inversion_for(about, self.prior, self._inversion).to(self.device)
        return self._initials[key]

    def network(
        self,
        attack: Attack,
        about: SessionDescription,
        *,
        frames: int = 1,
        text: bool = False,
        path: Path | None = None,
    ) -> AttackNetwork:
        """The network of a black-box attack.

        Args:
            attack: needs one.
            about: what is attacked.
            frames: K, for attacks on windows.
            text: whether there is a prompt.
            path: file of the network; by default the package's or the cache's.
        """
        key = (attack.name, attack.setting, about.split, about.defense, frames, text, path)
        if key not in self._networks:
            if not isinstance(attack, NetAttack):
                raise UserError(f"{attack.name} has no use for a network: leave it out, or choose a black-box method")
            found = attack.load(self.prior, about, frames=frames, text=text, path=path)
            self._networks[key] = found.to(self.device)
        return self._networks[key]

    def asked(self, about: SessionDescription) -> InversionNetwork | None:
        """The inversion network of a session, if an attack has asked for it."""
        return self._initials.get(_key(about))

    def check(self, about: SessionDescription, whose: str) -> None:
        """Whether a session's features are what this target's F1 makes.

        Args:
            about: what it says of itself.
            whose: begins the sentence that says where they differ.

        Raises:
            UserError: other weights, another image size or other features.
        """
        own = self.pipeline(about.split, about.defense).description()
        if (what := own.difference(about)) is not None:
            raise UserError(f"{whose} does not fit {about.target} as it is here: {what}; give the weights it ran with")

    @property
    def knows_f1(self) -> bool:
        """Whether anybody has asked for the attacked network."""
        return "target" in vars(self)

    def loaded(self) -> dict[str, str]:
        """SHA-256 of the weights of target and prior by role, as far as anybody has asked for them."""
        models = {role: vars(self).get(role) for role in ("target", "prior")}
        return {role: model.digest for role, model in models.items() if model is not None}

    def digests(self, sessions: Sequence[SessionDescription] = ()) -> dict[str, str]:
        """SHA-256 of all weights by role, with the inversion network of each session that has one."""
        found = {"target": self.target.digest, "prior": self.prior.digest}
        for about in sessions:
            try:
                found[f"inversion {about.split}"] = digest(self.initial(about).state_dict())
            except NoInversionNetwork:  # an attack that needs it says itself why it is not there
                continue
        return found

    # ---------------------------------------------------------------- problems

    @torch.no_grad()
    def observe(self, pipeline: EdgePipeline, images: Tensor, seeds: Sequence[int] | None = None) -> list[Tensor]:
        """Play the edge: what the tap sees of images, each ``(N, …)`` on the CPU.

        Args:
            pipeline: the edge.
            images: ``(N, 3, H, W)`` in [0, 1].
            seeds: of the defence's draws, one an image; the system's entropy by default.
        """
        parts = []
        for i in range(0, len(images), _AT_ONCE):
            draws = None if seeds is None else Draws(seeds[i : i + _AT_ONCE])
            parts.append([z.cpu() for z in pipeline(images[i : i + _AT_ONCE].to(self.device), draws)])
        return [torch.cat(column) for column in zip(*parts, strict=True)]

    def problem(
        self,
        attack: Attack,
        about: SessionDescription,
        features: Sequence[Tensor],
        *,
        codec: CodecSpec | None = None,
        text: Text | None = None,
        network: AttackNetwork | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> Problem:
        """What an attack gets to know of some frames.

        Args:
            attack: says what it needs.
            about: the session that the features are from.
            features: tapped tensors, each ``(K, …)``.
            codec: how they had been encoded.
            text: prompt.
            network: of a black-box attack.
            seed: of the attack's draws.
            first: index of the first frame within the run.
        """
        wanted = attack.needs | attack.uses
        known: dict[str, Any] = {"text": text, "seed": seed, "first": first, "specs": about.features}
        known["image_size"] = about.input_size
        if "prior" in wanted:
            known["prior"], known["image_size"] = self.prior, self.prior.image_size
        if "pipeline" in wanted:
            known["pipeline"] = Expected(self.pipeline(about.split, about.defense, codec))
        if "initial" in wanted:
            known["initial"] = lambda: self.initial(about)
        seen = tuple(z.to(self.device) for z in features)
        if network is not None:
            known["network"] = lambda: network
        elif parse_defense(about.defense).keyed:
            # whoever reads the server's tap has the server's key, too
            seen = self.pipeline(about.split, about.defense, codec).opened(seen)
        return Problem(list(seen), **known)

    def fitted(self, images: Tensor, about: SessionDescription | None = None) -> Tensor:
        """Reconstructions of any size, on the CPU, in the size of the originals: what F1 takes.

        Args:
            images: ``(B, 3, H, W)``.
            about: the session that they are from; the target says its size by default.
        """
        return resized(images.detach().cpu(), self.target.input_size if about is None else about.input_size)
