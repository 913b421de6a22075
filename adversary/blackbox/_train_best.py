"""How net-best is trained within the query budget of the others: a surrogate of F1, then the network, then a choice.

1. **Surrogate.** ``min_S E ‖(S(x) − z)/σ‖²`` over the query pairs, σ being each channel's spread.
2. **Network.** Absolute and squared error of the decoded image, its gradients, and the distance in the prior's latent
   both of the answer and (for a quarter of each batch, since it costs most) of its image encoded again. Few pairs are
   soon learnt by heart, and pictures cannot be mirrored or cropped to make more of them: F1 is not equivariant, so that
   nobody knows the features of a mirrored picture without asking. The surrogate does, nearly. Part of each batch are
   therefore crops and mirror images of the attacker's own pictures, asked about or not, with features ``S(x') + r``: r
   is the surrogate's error on a pair that it had not seen, drawn anew each time, so that the network relies on it as
   far as it can be relied on. That part shrinks with what the surrogate explains of held-out features (R²).
3. **Choice.** On pairs that neither has seen, both errors of :mod:`adversary.gaussian` are measured, with the surrogate
   in F1's place. Whether a fit through the surrogate brings answers nearer, and at which likelihood weight, is tried on
   further such pairs; where it does not by more than twice its standard error, answers that are to be near do without.
   Those that are to be recognised use it all the same: features tell what a blur leaves out. Only a surrogate that
   explains nothing is dropped. The file records all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from adversary.attacks.base import option
from adversary.blackbox._batches import Batch
from adversary.blackbox.losses import PERCEPTUAL, Perceptual
from adversary.blackbox.networks import AttackNetwork
from adversary.blackbox.queries import Pairs
from adversary.blackbox.surrogate import LatentNetwork, Surrogate
from adversary.blackbox.training import Loss, Training
from adversary.whitebox.posterior import GaussianPrior, WhitenedLatent, WhitenedMatch
from adversary.whitebox.solvers import lbfgs
from splitsight.data import to_tensor
from splitsight.metrics import image_quality
from splitsight.training import gradient_distance, random_crops

__all__ = [
    "LIKELIHOOD_WEIGHTS",
    "BestTraining",
    "Pictures",
    "choose",
    "invert_loss",
    "surrogate_error",
    "surrogate_loss",
]

LIKELIHOOD_WEIGHTS = (0.03, 0.1, 0.3, 1.0)
"""Factors of the surrogate's feature loss that are tried; 1 takes its measured errors for independent."""
_EVALUATIONS = 30
_TRIED = 32
"""Held-out pairs, at most, that the weights are tried on."""
_AT_ONCE = 32


class BestTraining(Training):
    """Values of net-best's training."""

    iterations: int = option(20000, "steps without another budget, of both parts together", ge=1)
    batch: int = option(16, "pairs of a step", ge=1)
    surrogate_lr: float = option(2e-3, "peak learning rate of the surrogate", gt=0)
    surrogate_share: float = option(0.3, "of the budget, for the surrogate", gt=0, le=0.9)
    decay: float = option(0.02, "weight decay", ge=0)
    squared: float = option(4.0, "weight of the squared error", ge=0)
    absolute: float = option(1.0, "weight of the absolute error", ge=0)
    gradient: float = option(0.25, "weight of the images' gradients", ge=0)
    value: float = option(3.0, "weight of the latent's error", ge=0)
    perceptual: Perceptual = option("autoencoder", "perceptual distance")
    perceptual_weight: float = option(0.05, "its weight", ge=0)
    pictures: float = option(0.5, "share of a batch whose features the surrogate tells, times its R²", ge=0, le=0.9)
    fresh: float = option(6.0, "epochs in which that share grows from nothing; 0 for all of it at once", ge=0)
    crop: float = option(0.6, "least side of a crop, as a part of the picture's", gt=0, le=1)

    def length(self, per_epoch: int) -> int:
        """See :class:`~adversary.blackbox.training.Training`."""
        return self.iterations


def _parts(network: AttackNetwork) -> tuple[LatentNetwork, Surrogate]:
    core, surrogate = network.core, network.surrogate
    assert isinstance(core, LatentNetwork) and surrogate is not None
    return core, surrogate


def surrogate_loss(network: AttackNetwork, batch: Batch) -> Tensor:
    """Stage 1's loss; a mean over numbers in standard deviations."""
    surrogate = _parts(network)[1]
    return _apart(surrogate, surrogate(batch.x), batch.z)


def _apart(surrogate: Surrogate, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of features in standard deviations; a mean over tensors."""
    pairs = zip(surrogate.standard(found), surrogate.standard(wanted), strict=True)
    return torch.stack([(a - b).square().mean() for a, b in pairs]).mean()


def _on(module: nn.Module, pairs: Pairs) -> tuple[Tensor, list[Tensor]]:
    """Images in [0, 1] and features, where a module is."""
    device = next(module.parameters()).device
    return to_tensor(pairs.images).to(device), [torch.from_numpy(f).to(device) for f in pairs.features]


@torch.no_grad()
def surrogate_error(network: AttackNetwork, held: Pairs) -> float:
    """Stage 1's loss on pairs put aside."""
    surrogate = _parts(network)[1]
    x, z = _on(surrogate, held)
    return float(_apart(surrogate, _batched(lambda part: list(surrogate(part)), x), z))


class Pictures:
    """Pictures whose features the surrogate tells: crops and mirror images of what the attacker has.

    Args:
        network: its surrogate is trained.
        images: ``(N, S, S, 3)`` uint8.
        held: pairs that the surrogate has not seen.
        share: of a batch, where the surrogate explains everything; it is multiplied by R².
        crop: least side of a crop, as a part of the picture's.
        generator: of all draws.
        fresh: pairs that are still new are worth more than what a surrogate says, so that the share grows from nothing
            until each was seen so often; 0 for the whole share from the start.

    Attributes:
        r2: the part of the held-out features' variance that the surrogate explains, at most 1; a mean over tensors.
    """

    def __init__(
        self,
        network: AttackNetwork,
        images: np.ndarray,
        held: Pairs,
        *,
        share: float,
        crop: float,
        generator: torch.Generator,
        fresh: float = 0.0,
    ) -> None:
        self.surrogate = _parts(network)[1].eval()
        self.images, self.crop, self.generator = images, crop, generator
        self.residuals, self.r2 = self._measure(held)
        self._most, self._fresh = share * max(self.r2, 0.0), fresh

    def share(self, epoch: float) -> float:
        """Of a batch before which each pair was seen so often."""
        return self._most * (min(1.0, epoch / self._fresh) if self._fresh else 1.0)

    @torch.no_grad()
    def _measure(self, held: Pairs) -> tuple[list[Tensor], float]:
        x, z = _on(self.surrogate, held)
        found = _batched(lambda part: list(self.surrogate(part)), x)
        residuals = [a - b for a, b in zip(z, found, strict=True)]
        # in the features' own units, where a channel that hardly ever moves counts for little
        totals = [(a - a.mean(0)).square().sum().clamp_min(1e-12) for a in z]
        left = [float(r.square().sum() / total) for r, total in zip(residuals, totals, strict=True)]
        return residuals, 1 - sum(left) / len(left)

    @torch.no_grad()
    def draw(self, count: int) -> tuple[Tensor, list[Tensor]]:
        """Images ``(count, 3, S, S)`` in [0, 1] and their features."""
        device = next(self.surrogate.parameters()).device
        rows = torch.randint(len(self.images), (count,), generator=self.generator)
        x = to_tensor(self.images[rows.numpy()]).to(device)
        x = random_crops(x, x.shape[-1], (self.crop, 1.0), self.generator)
        wrong = torch.randint(len(self.residuals[0]), (count,), generator=self.generator).to(device)
        return x, [z + r[wrong] for z, r in zip(self.surrogate(x), self.residuals, strict=True)]


def invert_loss(s: BestTraining, truths: Tensor, pictures: Pictures) -> Loss:
    """Stage 2's loss.

    Args:
        s: weights.
        truths: latent of each training picture ``(N, C, h, w)``.
        pictures: take the place of part of each batch.
    """
    perceptual = PERCEPTUAL[s.perceptual]

    def loss(network: AttackNetwork, batch: Batch) -> Tensor:
        x, z = batch.x, batch.z
        drawn = round(pictures.share(batch.epoch) * len(x))
        truth = truths[batch.index[drawn:].to(truths.device)]
        if drawn:
            more, features = pictures.draw(drawn)
            x = torch.cat([more, x[drawn:]])
            z = [torch.cat([a, b[drawn:]]) for a, b in zip(features, z, strict=True)]
        u = network.core(z)
        y = network.prior.decode(u)
        total = s.absolute * (y - x).abs().mean() + s.squared * (y - x).square().mean()
        total = total + s.gradient * gradient_distance(y, x) + s.value * (u[drawn:] - truth).square().mean()
        if not s.perceptual_weight:
            return total
        # of those that were asked about, which come last
        some = max(1, len(x) // 4)
        return total + s.perceptual_weight * perceptual(network.prior, y[-some:], x[-some:])

    return loss


@torch.no_grad()
def _batched(answer: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[Tensor]:
    parts = [answer(part) for part in x.split(_AT_ONCE)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@torch.no_grad()
def _measure_errors(network: AttackNetwork, pairs: Pairs) -> None:
    """What answer and surrogate do not know, from pairs that neither has seen."""
    core, surrogate = _parts(network)
    x, z = _on(core, pairs)
    truth = _batched(lambda part: [network.prior.encode(part)], x)[0]
    answer = torch.cat([core(part) for part in zip(*(f.split(_AT_ONCE) for f in z), strict=True)])
    found = _batched(lambda part: list(surrogate(network.prior.decode(part))), truth)
    assert core.errors is not None
    core.errors.measure(truth - answer, [a - b for a, b in zip(found, z, strict=True)])


def _psnr(images: Tensor, x: Tensor) -> Tensor:
    return image_quality(images.clamp(0, 1), x)["psnr"]


def choose(network: AttackNetwork, held: Pairs, explained: float) -> dict[str, float]:
    """Measure errors, find out whether the surrogate brings answers nearer, and drop one that explains nothing.

    Args:
        network: trained, on the CPU, in eval mode.
        held: pairs that it has not seen; one half measures, the other one tries.
        explained: R² of the surrogate on held-out pairs.

    Returns:
        ``refine_weight``, 0 where it does not; ``refine_gain`` of the best weight in dB and its standard error;
        ``refine_tried`` pairs.
    """
    core, surrogate = _parts(network)
    half = len(held) // 2
    _measure_errors(network, held[:half])
    tried = held[half : half + _TRIED]
    x, z = _on(core, tried)
    with torch.no_grad():
        centre = core(z)
        before = _psnr(network.prior.decode(centre), x)
    assert core.errors is not None
    found = []
    for weight in LIKELIHOOD_WEIGHTS:
        variable = WhitenedLatent(network.prior, core.errors, centre)
        terms = [WhitenedMatch(surrogate, z, core.errors, weight=weight), GaussianPrior()]
        gain = _psnr(lbfgs(variable, terms, evaluations=_EVALUATIONS, together=False).images, x) - before
        found.append((float(gain.mean()), float(gain.std() / len(gain) ** 0.5), weight))
    mean, error, weight = max(found)
    _measure_errors(network, held)
    helps = mean > 2 * error
    network.decide(weight if helps else 0.0, surrogate=helps or explained > 0)
    return {
        "refine_weight": network.made.likelihood_weight,
        "refine_gain": round(mean, 3),
        "refine_gain_error": round(error, 3),
        "refine_tried": len(x),
    }
