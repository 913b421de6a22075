"""What a live white-box adversary knows: the edge pipeline, with its weights and its defence, but not its chance.

It sits on the server, which must hold the key of a defence that has one: it reads what is sent as the server does.
"""

from __future__ import annotations

from functools import partial

from adversary.attacks import ATTACKS
from adversary.blackbox.inversion import InversionNetwork, NoInversionNetwork, inversion_for
from adversary.defended import told
from adversary.live.engine import Engine
from adversary.live.options import Known, LiveOptions
from adversary.priors.prior import Prior, load_prior
from splitsight import targets
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline, Expected
from splitsight.wire.sessions import SessionDescription

__all__ = ["know"]


def know(options: LiveOptions) -> Known:
    """An engine with the edge pipeline, and the inversion network that fits target, split and prior where there is one.

    Raises:
        UserError: unknown names, weights that do not fit, an attack that needs an inversion network where there is
            none, or a network that only a black-box attacker has a use for.
    """
    if options.network is not None:
        raise UserError("a white-box adversary has no use for --network: leave it out, or give --threat black-box")
    target = targets.load(options.target, options.weights)
    edge = EdgePipeline(target, options.split, options.defense)
    about = edge.description()
    attack = ATTACKS.get(options.attack).configured(
        options.setting or None, target=target.name, split=options.split, changes=options.changes
    )
    prior = load_prior(options.prior).sized(target.input_size)
    network = _initial(options, about, prior) if options.preview or options.inversion is not None else None
    if network is None and "initial" in attack.needs:
        raise UserError(
            f"{attack.name}:{attack.setting} starts from previews, and there are none: give an attack that runs "
            "without, such as --attack best-multi or --attack window:denoised, or an inversion network with --inversion"
        )
    caveat = ""
    if network is not None and options.preview and network.defense != about.defense:
        make = (
            f"`splitsight train inversion --target {target.name} --split {options.split} --defense '{about.defense}'`"
        )
        caveat = (
            f"previews come from a network that was trained on features without {about.defense}, and are worse than an "
            f"attacker's need be: {make} makes one that knows it"
        )
    through_prior = "prior" in attack.needs | attack.uses
    return Known(
        target.name,
        options.split,
        about.head_digest,
        edge.specs,
        Engine(
            attack,
            edge.specs,
            pipeline=Expected(edge),
            prior=prior,
            initial=network,
            image_size=prior.image_size if through_prior else target.input_size,
            text=prior.embed_text([options.prompt]) if options.prompt else None,
            seed=options.seed,
            told=partial(told, edge) if edge.defense else None,
            opened=edge.opened,
        ),
        {"target": target.digest, "prior": prior.digest},
        "a white-box attack needs the same weights, give them with --weights",
        caveat=caveat,
    )


def _initial(options: LiveOptions, about: SessionDescription, prior: Prior) -> InversionNetwork | None:
    """The inversion network, or none where there is none for what is attacked."""
    try:
        return inversion_for(about, prior, options.inversion)
    except NoInversionNetwork:
        if options.inversion is not None:
            raise
        return None
