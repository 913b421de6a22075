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

from adversary.alignment import Restore, find_key, keyless
from adversary.attacks import Attack, Problem, check_features
from adversary.attacks.blackbox import NetAttack
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork, inversion_for
from adversary.blackbox.networks import AttackNetwork
from adversary.defended import averaged, told
from adversary.priors.prior import EMBEDDED, Prior, Text, load_prior
from splitsight import targets
from splitsight.artifacts import digest
from splitsight.defenses import parse_defense
from splitsight.devices import pick_device, standard_normal
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline, Expected, resized
from splitsight.targets import Target
from splitsight.wire.sessions import UNDEFENDED, SessionDescription
from splitsight.wire.tensors import CodecSpec

__all__ = ["Workbench", "edge_seeds"]

_AT_ONCE = 64
_PICTURES = 128
"""Of an attacker's own, to find out a key with."""


def edge_seeds(seed: int, index: Sequence[int], frame: int = 0) -> list[int]:
    """Seeds of the edge's draws for some images of an experiment: they depend on its seed, the image and the frame.

    Args:
        seed: of the experiment.
        index: of the images.
        frame: of a scene that stands still, sent again and again.
    """
    return [(1_000_003 * seed + 7919 * i + 15_485_863 * frame + 1) % 2**32 for i in index]


def _key(about: SessionDescription) -> str:
    return f"{about.split} {about.head_digest} {about.defense}"


class Workbench:
    """Models of an experiment, loaded when they are first asked for.

    Attributes:
        pictures: images ``(N, 3, S, S)`` of an attacker's own, of the kind that is attacked and none of them; ``None``
            where there are none.
        files: inversion networks by split and defence that are taken before all others.

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
        self.files: dict[tuple[str, str], Path] = {}
        self.pictures: Tensor | None = None
        self._names = (target, weights, prior)
        self._inversion = inversion
        self._pipelines: dict[tuple[str, str, CodecSpec], EdgePipeline] = {}
        self._initials: dict[str, InversionNetwork] = {}
        self._networks: dict[Hashable, AttackNetwork] = {}
        self._restores: dict[tuple[str, str], Restore] = {}

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
            path = self.files.get((about.split, about.defense), self._inversion)
            self._initials[key] = inversion_for(about, self.prior, path).to(self.device)
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
            found = attack.load(self.prior.sized(about.input_size), about, frames=frames, text=text, path=path)
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

    def observe_static(
        self, pipeline: EdgePipeline, images: Tensor, frames: int, seed: int, index: Sequence[int]
    ) -> list[Tensor]:
        """What the tap sees of images that each stand still for so many frames, ``(N · frames, …)``, scene by scene.

        Args:
            pipeline: the edge.
            images: ``(N, 3, H, W)`` in [0, 1].
            frames: T.
            seed: of the experiment.
            index: of the images within it.
        """
        seen = [self.observe(pipeline, images, edge_seeds(seed, index, frame)) for frame in range(frames)]
        return [torch.stack(column, 1).flatten(0, 1) for column in zip(*seen, strict=True)]

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
        adaptive: bool = True,
        static: int = 1,
        tapped: Sequence[Tensor] | None = None,
    ) -> Problem:
        """What an attack gets to know of some frames.

        Args:
            attack: says what it needs.
            about: the session that the features are from.
            features: tapped tensors, each ``(K · static, …)``.
            codec: how they had been encoded.
            text: prompt.
            network: of a black-box attack.
            seed: of the attack's draws.
            first: index of the first frame within the run.
            adaptive: whether the attacker was told the defence; if not, he believes that there is none.
            static: T, frames of a static scene side by side, which the attacker averages.
            tapped: features of the session, from which an attacker finds out the key of a defence that has one; without
                any he reads the server's tap, and holds the key as the server does.

        Raises:
            UserError: something that the attack needs is not there; the defence changes the shape of the features, and
                the attacker does not know it.
        """
        wanted, session = attack.needs | attack.uses, about
        if not adaptive or "network" not in wanted:
            about = self.believed(about, adaptive=adaptive)
        known: dict[str, Any] = {"text": text, "seed": seed, "first": first, "specs": about.features}
        known["image_size"] = about.input_size
        known["features"] = [z.to(self.device) for z in features]
        if about is not session and adaptive:
            keyed = self.pipeline(about.split, session.defense)
            if tapped is None:
                known["features"] = list(keyed.opened(tuple(known["features"])))
            else:
                known["features"] = self._restored(keyed, about, tapped)(known["features"])
        if not adaptive:
            check_features(features, about.features)
            known["noise"] = [0.0] * len(known["features"])
        if "prior" in wanted:
            prior = known["prior"] = self.prior.sized(about.input_size)
            known["image_size"] = prior.image_size
        if "pipeline" in wanted and adaptive:
            edge = self.pipeline(about.split, about.defense, codec)
            known |= vars(told(edge, known["features"], static=static))
            if not edge.defense:
                known["noise"] = None  # nothing was told; an attack looks for itself
        else:
            known["features"] = averaged(known["features"], static)[0]
            if "pipeline" in wanted:
                known["pipeline"] = Expected(self.pipeline(about.split, about.defense, codec))
        if "initial" in wanted:
            known["initial"] = lambda: self.initial(about)
        if network is not None:
            known["network"] = lambda: network
        return Problem(**known)

    def _restored(self, edge: EdgePipeline, left: SessionDescription, tapped: Sequence[Tensor]) -> Restore:
        """What undoes the key of a defence, found out once; ``left`` is the session without it."""
        key = (edge.split, str(edge.defense))
        if key not in self._restores:
            moved = [z.to(self.device) for z in tapped]
            alike, plain = self.pictures is not None, self.pipeline(left.split, left.defense)
            self._restores[key] = find_key(edge, plain, self._pictures, moved, alike=alike)
        return self._restores[key]

    @torch.no_grad()
    def _pictures(self) -> Tensor:
        """Images of an attacker's own; without any, what the prior makes of noise."""
        if self.pictures is not None:
            return self.pictures.to(self.device)
        noise = standard_normal(self.prior.latent_shape, range(_PICTURES), self.device)
        parts = [self.prior.generate(part, steps=4).clamp(0, 1) for part in noise.split(_AT_ONCE)]
        return resized(torch.cat(parts), self.target.input_size)

    def believed(self, about: SessionDescription, *, adaptive: bool = False) -> SessionDescription:
        """A session as a white-box attacker sees it.

        Args:
            about: the session.
            adaptive: he was told of the defence, and has found its key out where it has one; if not, he believes that
                there is none.
        """
        if about.defense == UNDEFENDED:
            return about
        if not adaptive:
            return self.pipeline(about.split).description()
        left = str(keyless(parse_defense(about.defense)))
        return about if left == about.defense else self.pipeline(about.split, left).description()

    def fitted(self, images: Tensor, about: SessionDescription | None = None) -> Tensor:
        """Reconstructions of any size, on the CPU, in the size of the originals: what F1 takes.

        Args:
            images: ``(B, 3, H, W)``.
            about: the session that they are from; the target says its size by default.
        """
        return resized(images.detach().cpu(), self.target.input_size if about is None else about.input_size)
