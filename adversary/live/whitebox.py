"""What a live white-box adversary knows: F1, with its weights."""

from __future__ import annotations

from adversary.blackbox.inversion import load_inversion
from adversary.live.engine import Engine
from adversary.live.run import Known, LiveOptions
from adversary.priors.prior import load_prior
from splitsight import targets
from splitsight.errors import UserError

__all__ = ["know"]


def know(options: LiveOptions) -> Known:
    """An engine with F1 and the inversion network that fits target, split and prior.

    Raises:
        UserError: unknown names, weights or a prior that do not fit, no fitting inversion network, or a network that
            only a black-box attacker has a use for.
    """
    if options.network is not None:
        raise UserError("a white-box adversary has no use for --network: leave it out, or give --attack net-best")
    target = targets.load(options.target, options.weights)
    prior = load_prior(options.prior)
    if prior.image_size != target.input_size:
        raise UserError(
            f"prior '{prior.name}' makes images of {prior.image_size} pixels, {target.name} takes "
            f"{target.input_size}: choose another prior"
        )
    head = target.head(options.split)
    network = load_inversion(
        target.name,
        options.split,
        prior.name,
        target_digest=target.digest,
        prior_digest=prior.latent_digest,
        path=options.inversion,
    )
    text = prior.embed_text([options.prompt]) if options.prompt else None
    return Known(
        target.name,
        options.split,
        target.cut(options.split).head_digest,
        target.feature_specs(options.split),
        Engine(prior, head, network, options.settings, text),
        {"target": target.digest, "prior": prior.digest},
        "a white-box attack needs the same weights, give them with --weights",
    )
