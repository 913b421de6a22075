"""Black-box attacks: networks that were trained on an oracle's answers alone, one pass an image.

They get no F1. Nothing here, nor in what it imports, can build one, and ``problem.pipeline`` is not read. Their
networks are made by ``splitsight train inversion --oracle`` and found again in the cache by target, split and digests.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import torch

from adversary.attacks.base import ATTACKS, Attack, Callback, Problem, Reconstruction, Settings, option
from adversary.blackbox.networks import AttackNetwork, Made, load_network, prior_key
from adversary.priors.prior import Prior

__all__ = ["NetAttack", "NetDB", "NetDMB", "NetDO", "NetFlow"]


class NetAttack(Attack):
    """A network by its method's name.

    Attributes:
        method: of the network; a name out of :data:`~adversary.blackbox.networks.METHODS`.
    """

    method: ClassVar[str]
    presets: ClassVar = {"trained": {}}
    needs = frozenset({"network"})

    def load(
        self,
        prior: Prior,
        *,
        target: str,
        split: str,
        digest: str,
        defense: str = "identity",
        frames: int = 1,
        text: bool = False,
        path: Path | None = None,
    ) -> AttackNetwork:
        """The network for what is attacked.

        Args:
            prior: in use.
            target: name of the attacked network.
            split: its split point.
            digest: SHA-256 of its weights, as announced.
            defense: what the edge does to the features.
            frames: K, for methods that solve windows.
            text: whether there is a prompt.
            path: file of the network; the cache's by default.

        Raises:
            UserError: there is none for that.
        """
        wanted = Made(
            method=self.method,
            target=target,
            split=split,
            target_digest=digest,
            defense=defense,
            features=(),
            image=prior.image_size,
            prior=prior.name,
            prior_digest=prior_key(prior, self.method),
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
        begin, before = callback.now(), _steps(network)
        images = network.images(network(problem.features, problem.text), problem.text).clamp(0, 1)
        callback.show(lambda: images)
        seconds = (callback.now() - begin) / problem.frames
        about = {"queries": str(network.made.queries), "training": network.made.setting}
        evaluations = problem.evaluations + (_steps(network) - before) / problem.frames
        curve = list(network.made.curve)
        return Reconstruction(images, math.nan, 0, evaluations, seconds, curve=curve, about=about)


def _steps(network: AttackNetwork) -> int:
    """Passes through a denoiser of its own, which the problem does not see."""
    return 0 if network.flow is None else network.flow.evaluations


@ATTACKS.register("net-do")
class NetDO(NetAttack):
    """Black-box, direct: a network from features to pixels, trained on an oracle's answers."""

    name = method = "net-do"


@ATTACKS.register("net-db")
class NetDB(NetAttack):
    """Black-box, decoder-based: a network from features to the prior's latent, trained on an oracle's answers."""

    name = method = "net-db"


@ATTACKS.register("net-dmb")
class NetDMB(NetAttack):
    """Black-box, diffusion-model-based (equations 11 and 12): a network from features to the sampler's noise."""

    name = method = "net-dmb"
    text = True


@ATTACKS.register("net-flow")
class NetFlow(NetAttack):
    """Black-box, FIA-Flow (arXiv 2511.15316): features aligned to the latent, then one deterministic flow step."""

    name = method = "net-flow"


class _Windows(NetAttack):
    """Several frames at once (equation 13); ``control`` is a network of the same size that looks at each alone."""

    class Settings(Settings):
        """What the network is."""

        mixed: bool = option(True, "frames see each other, or each is looked at alone")

    windowed = True
    presets: ClassVar = {"mixed": {}, "control": {"mixed": False}}


@ATTACKS.register("net-do-multi")
class NetDOMulti(_Windows):
    """Black-box, direct, on the frames of a window together (equation 13)."""

    name, method = "net-do-multi", "net-do"


@ATTACKS.register("net-db-multi")
class NetDBMulti(_Windows):
    """Black-box, decoder-based, on the frames of a window together (equation 13)."""

    name, method = "net-db-multi", "net-db"


@ATTACKS.register("net-dmb-multi")
class NetDMBMulti(_Windows):
    """Black-box, diffusion-model-based, on the frames of a window together (equation 13)."""

    name, method = "net-dmb-multi", "net-dmb"
    text = True
