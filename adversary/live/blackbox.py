"""What a live black-box adversary knows: net-best, trained on an oracle's answers, and nothing else of F1.

The preview is the network's answer. The window solver fits the student of F1, so that what the blur of a preview leaves
out can be recognised; without one, the window's frames correct each other where their features agree.
"""

from __future__ import annotations

from adversary.blackbox.networks import Made, load_network, prior_key
from adversary.blackbox.surrogate import LatentNetwork
from adversary.live.engine import Engine
from adversary.live.run import Known, LiveOptions
from adversary.priors.prior import load_prior
from splitsight.artifacts import digest
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = ["METHOD", "know"]

METHOD = "net-best"
"""The black-box attack that runs live."""


def know(options: LiveOptions) -> Known:
    """An engine with the network that was trained for target, split and prior.

    Raises:
        UserError: there is none, or something is given that only who knows F1 has a use for.
    """
    for name, given in (("--weights", options.weights), ("--inversion", options.inversion)):
        if given is not None:
            raise UserError(f"{METHOD} knows nothing of F1 and has no use for {name}: leave it out")
    prior = load_prior(options.prior)
    wanted = Made(
        method=METHOD,
        target=options.target,
        split=options.split,
        target_digest="",
        defense="identity",
        features=(),
        image=prior.image_size,
        prior=prior.name,
        prior_digest=prior_key(prior, METHOD),
    )
    network = load_network(wanted, prior, options.network)
    core, made = network.core, network.made
    assert isinstance(core, LatentNetwork)
    text = prior.embed_text([options.prompt]) if options.prompt else None
    return Known(
        made.target,
        made.split,
        made.target_digest,
        [FeatureSpec(f"z{i}", shape) for i, shape in enumerate(made.features)],
        Engine(prior, network.student, core, options.settings, text),
        {"network": digest(network.state_dict()), "prior": prior.digest},
        "train a network on what its oracle answers, with `splitsight train inversion --oracle HOST:PORT "
        f"--method {METHOD}`",
        made.defense,
    )
