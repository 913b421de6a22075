"""net-flow: FIA-Flow (arXiv 2511.15316), features aligned to the prior's latent, then one step of a flow.

Its two parts (:mod:`adversary.blackbox.flow`) are trained one after the other, with its own losses (its equations 5 to
10): ``‖z_s − z_x‖² + ‖Dec(z_s) − x‖₁`` for the alignment, ``‖v(z_t, t) − (z_x − z_s)‖² + perceptual(x', x) +
‖x' − x‖₁`` for the flow; means over their numbers, one t a batch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from adversary.attacks.base import ATTACKS, option
from adversary.attacks.blackbox import NetAttack
from adversary.blackbox._batches import Batch
from adversary.blackbox.flow import FlowInversion
from adversary.blackbox.losses import PERCEPTUAL, Perceptual, check_perceptual
from adversary.blackbox.networks import AttackNetwork, Made
from adversary.blackbox.training import Fit, Stage, Training
from adversary.priors.prior import Prior, Text

__all__ = ["NetFlow"]


class _Training(Training):
    iterations: int = option(24000, "steps without another budget, of both parts together", ge=1)
    batch: int = option(16, "pairs of a step", ge=1)
    flow_lr: float = option(5e-4, "peak learning rate of the flow's adaptations", gt=0)
    perceptual: Perceptual = option("autoencoder", "perceptual distance of the flow's loss")
    width: int = option(64, "channels of the alignment, a multiple of 4", ge=4, multiple_of=4)
    rank: int = option(16, "of the adaptations (LoRA)", ge=1)
    everywhere: bool = option(True, "adapt every linear layer, not only those of the attention")

    def length(self, per_epoch: int) -> int:
        """See :class:`Training`."""
        return self.iterations


@ATTACKS.register("net-flow")
class NetFlow(NetAttack):
    """Black-box, FIA-Flow (arXiv 2511.15316): features aligned to the latent, then one deterministic flow step."""

    name = "net-flow"
    aim = "latent, refined by a flow's step"
    prior_part = "all"
    parts = ("align", "flow")
    Training = _Training
    trainings: ClassVar = {
        "tuned": {},
        "paper": {
            "iterations": 128000,
            "batch": 8,
            "lr": 1e-4,
            "flow_lr": 1e-4,
            "schedule": "constant",
            "decay": 0.0,
            "average": 0.0,
            "clip": 0.0,
            "perceptual": "lpips",
            "rank": 4,
            "everywhere": False,
            "early_stopping": False,
        },
    }

    @classmethod
    def training(cls, setting: str | None = None, changes: Mapping[str, Any] | None = None) -> tuple[str, Any]:
        """See :class:`NetAttack`; a perceptual distance without weights is refused."""
        chosen, values = super().training(setting, changes)
        check_perceptual(values.perceptual)
        return chosen, values

    @classmethod
    def core(cls, made: Made, values: Any, prior: Prior) -> nn.Module:
        """Alignment and flow."""
        return FlowInversion(made.features, prior, values.width, values.rank, everywhere=values.everywhere)

    @classmethod
    def answer(cls, network: AttackNetwork, features: Sequence[Tensor], text: Text | None) -> Tensor:
        """Latents."""
        return network.core(features, text)

    @classmethod
    def evaluations(cls, network: AttackNetwork) -> int:
        """Of the adapted denoiser."""
        return _core(network).flow.evaluations

    @classmethod
    def stages(cls, fit: Fit) -> Generator[Stage]:
        """The alignment, then the flow behind it."""
        core, values, truths = _core(fit.network), fit.network.values, fit.truths()
        perceptual, generator = PERCEPTUAL[values.perceptual], fit.generator()

        def align(network: AttackNetwork, batch: Batch) -> Tensor:
            aligned = network(batch.z, batch.text)
            truth = truths[batch.index.to(truths.device)]
            return (aligned - truth).square().mean() + (network.images(aligned) - batch.x).abs().mean()

        def refine(network: AttackNetwork, batch: Batch) -> Tensor:
            with torch.no_grad():
                aligned = core.aligned.eval()(batch.z)
            truth = truths[batch.index.to(truths.device)]
            t = float(torch.rand(1, generator=generator))
            moved = core.flow.velocity(t * truth + (1 - t) * aligned, t, batch.text)
            y = network.images(core.flow(aligned, batch.text))
            flow = (moved - (truth - aligned)).square().mean()
            return flow + perceptual(network.prior, y, batch.x) + (y - batch.x).abs().mean()

        try:
            core.refines = False
            yield Stage(core.aligned, align, values.lr, fit.generator(), "align", 0.5)
        finally:
            core.refines = True
        yield Stage(core.flow.adaptations, refine, values.flow_lr, generator, "flow", 0.5)


def _core(network: AttackNetwork) -> FlowInversion:
    return cast(FlowInversion, network.core)
