"""What a live black-box adversary knows: a network trained on an oracle's answers, and nothing else of F1.

An attack that needs a network gets its own. Any other gets what net-best was trained with: its network for previews
and starts, and its surrogate in F1's place, so that what the blur of a preview leaves out can be recognised; without a
surrogate, a window's frames correct each other where their features agree.
"""

from __future__ import annotations

from adversary.attacks import ATTACKS
from adversary.attacks.blackbox import NetAttack
from adversary.blackbox.networks import Made, load_network, prior_key
from adversary.blackbox.surrogate import LatentNetwork
from adversary.live.engine import Engine
from adversary.live.options import Known, LiveOptions
from adversary.priors.prior import load_prior
from splitsight.artifacts import digest
from splitsight.errors import UserError
from splitsight.specification import target_name

__all__ = ["METHOD", "know"]

METHOD = "net-best"
"""The method whose network and surrogate serve attacks that have none of their own."""


def know(options: LiveOptions) -> Known:
    """An engine with the network that was trained for target, split and prior; its own record says for which defence.

    Raises:
        UserError: there is none, or something is given that only who knows F1 has a use for.
    """
    target = target_name(options.target)
    attack = ATTACKS.get(options.attack).configured(
        options.setting or None, target=target, split=options.split, changes=options.changes
    )
    own = type(attack) if isinstance(attack, NetAttack) else None
    method = METHOD if own is None else own.method
    for name, given in (("--weights", options.weights), ("--inversion", options.inversion)):
        if given is not None:
            raise UserError(f"{method} knows nothing of F1 and has no use for {name}: leave it out")
    prior = load_prior(options.prior)
    wanted = Made(
        method=method,
        target=target,
        split=options.split,
        head_digest="",
        # a file says itself what it was trained behind
        defense=options.defense if options.network is None else "",
        features=(),
        image=prior.image_size,
        prior=prior.name,
        prior_digest=prior_key(prior, method),
        frames=options.frames if attack.windowed and own is not None else 1,
        mixed=getattr(attack.settings, "mixed", True),
        text=bool(options.prompt) and attack.text and own is not None,
    )
    network = load_network(wanted, prior, options.network)
    core, made = network.core, network.made
    return Known(
        made.target,
        made.split,
        made.head_digest,
        made.features,
        Engine(
            attack,
            made.features,
            pipeline=network.surrogate if own is None else None,
            prior=network.prior,
            initial=core if isinstance(core, LatentNetwork) else None,
            network=network if own is not None else None,
            text=prior.embed_text([options.prompt]) if options.prompt else None,
            seed=options.seed,
        ),
        {"network": digest(network.state_dict()), "prior": prior.digest},
        "train a network on what its oracle answers, with `splitsight train inversion --oracle HOST:PORT "
        f"--method {method}`",
        made.defense,
        "black-box",
    )
