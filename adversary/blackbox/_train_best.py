"""How net-best is trained within the query budget of the others: a student of F1, then the network, then a choice.

1. **Student.** ``min_S E ‖(S(x) − z)/σ‖²`` over the query pairs, σ being each channel's spread.
2. **Network.** Absolute and squared error of the decoded image, its gradients, and the distance in the prior's latent
   both of the answer and (for a quarter of each batch, since it costs most) of its image encoded again. Few pairs are
   soon learnt by heart, and pictures cannot be mirrored or cropped to make more of them: F1 is not equivariant, so that
   nobody knows the features of a mirrored picture without asking. The student does, nearly. Part of each batch are
   therefore crops and mirror images of the attacker's own pictures, asked about or not, with features ``S(x') + r``: r
   is what the student got wrong on a pair that it had not seen, drawn anew each time, so that the network relies on the
   student as far as it can be relied on. That part shrinks with what the student explains of held-out features (R²).
3. **Choice.** On pairs that neither has seen, both errors of :mod:`adversary.gaussian` are measured, with the student
   in F1's place. Whether the fit through the student brings answers nearer, and at which weight, is tried on further
   such pairs; where it does not by more than twice its standard error, answers that are to be near do without. Those
   that are to be recognised fit it all the same: features tell what a blur leaves out. Only a student that explains
   nothing is dropped. The file records all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from adversary.blackbox._batches import Batch
from adversary.blackbox.networks import AttackNetwork
from adversary.blackbox.queries import Pairs
from adversary.blackbox.surrogate import LatentNetwork, Student
from adversary.priors.prior import Prior
from adversary.whitebox.posterior import GaussianPrior, WhitenedLatent, WhitenedMatch
from adversary.whitebox.solvers import lbfgs
from splitsight.data import to_tensor
from splitsight.metrics import image_quality
from splitsight.training import gradient_distance, random_crops

__all__ = ["TRUSTS", "Loss", "Pictures", "choose", "follow", "following", "invert"]

Settings = Mapping[str, Any]
Loss = Callable[[AttackNetwork, Batch], Tensor]
"""Of a network's answers; one number."""

TRUSTS = (0.03, 0.1, 0.3, 1.0)
"""Weights of the student's feature loss that are tried; 1 takes its measured errors for independent."""
_EVALUATIONS = 30
_TRIED = 32
"""Held-out pairs, at most, that the weights are tried on."""
_AT_ONCE = 32


def _parts(network: AttackNetwork) -> tuple[LatentNetwork, Student]:
    core, student = network.core, network.student
    assert isinstance(core, LatentNetwork) and student is not None
    return core, student


def follow(network: AttackNetwork, batch: Batch) -> Tensor:
    """Stage 1's loss; a mean over numbers in standard deviations."""
    student = _parts(network)[1]
    return _apart(student, student(batch.x), batch.z)


def _apart(student: Student, found: Sequence[Tensor], wanted: Sequence[Tensor]) -> Tensor:
    """Mean squared distance of features in standard deviations; a mean over tensors."""
    pairs = zip(student.standard(found), student.standard(wanted), strict=True)
    return torch.stack([(a - b).square().mean() for a, b in pairs]).mean()


def _on(module: nn.Module, pairs: Pairs) -> tuple[Tensor, list[Tensor]]:
    """Images in [0, 1] and features, where a module is."""
    device = next(module.parameters()).device
    return to_tensor(pairs.images).to(device), [torch.from_numpy(f).to(device) for f in pairs.features]


@torch.no_grad()
def following(network: AttackNetwork, held: Pairs) -> float:
    """Stage 1's loss on pairs put aside."""
    student = _parts(network)[1]
    x, z = _on(student, held)
    return float(_apart(student, _batched(lambda part: list(student(part)), x), z))


class Pictures:
    """Pictures whose features the student tells: crops and mirror images of what the attacker has.

    Args:
        network: its student is trained.
        images: ``(N, S, S, 3)`` uint8.
        held: pairs that the student has not seen.
        share: of a batch, where the student explains everything; it is multiplied by R².
        crop: least side of a crop, as a part of the picture's.
        generator: of all draws.
        fresh: pairs that are still new teach more than what a student says, so that the share grows from nothing until
            each was seen so often; 0 for the whole share from the start.

    Attributes:
        r2: the part of the held-out features' variance that the student explains, at most 1; a mean over tensors.
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
        self.student = _parts(network)[1].eval()
        self.images, self.crop, self.generator = images, crop, generator
        self.residuals, self.r2 = self._measure(held)
        self._most, self._fresh = share * max(self.r2, 0.0), fresh

    def share(self, epoch: float) -> float:
        """Of a batch before which each pair was seen so often."""
        return self._most * (min(1.0, epoch / self._fresh) if self._fresh else 1.0)

    @torch.no_grad()
    def _measure(self, held: Pairs) -> tuple[list[Tensor], float]:
        x, z = _on(self.student, held)
        found = _batched(lambda part: list(self.student(part)), x)
        residuals = [a - b for a, b in zip(z, found, strict=True)]
        # in the features' own units, where a channel that hardly ever moves counts for little
        totals = [(a - a.mean(0)).square().sum().clamp_min(1e-12) for a in z]
        left = [float(r.square().sum() / total) for r, total in zip(residuals, totals, strict=True)]
        return residuals, 1 - sum(left) / len(left)

    @torch.no_grad()
    def draw(self, count: int) -> tuple[Tensor, list[Tensor]]:
        """Images ``(count, 3, S, S)`` in [0, 1] and their features."""
        device = next(self.student.parameters()).device
        rows = torch.randint(len(self.images), (count,), generator=self.generator)
        x = to_tensor(self.images[rows.numpy()]).to(device)
        x = random_crops(x, x.shape[-1], (self.crop, 1.0), self.generator)
        wrong = torch.randint(len(self.residuals[0]), (count,), generator=self.generator).to(device)
        return x, [z + r[wrong] for z, r in zip(self.student(x), self.residuals, strict=True)]


def invert(
    s: Settings, truths: Tensor, pictures: Pictures, perceptual: Callable[[Prior, Tensor, Tensor], Tensor]
) -> Loss:
    """Stage 2's loss.

    Args:
        s: the setting's values.
        truths: latent of each training picture ``(N, C, h, w)``.
        pictures: take the place of part of each batch.
        perceptual: out of :data:`~adversary.blackbox._train_pairs.PERCEPTUAL`.
    """

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
        total = s["absolute"] * (y - x).abs().mean() + s["squared"] * (y - x).square().mean()
        total = total + s["gradient"] * gradient_distance(y, x) + s["value"] * (u[drawn:] - truth).square().mean()
        if not s["perceptual_weight"]:
            return total
        # of those that were asked about, which come last
        some = max(1, len(x) // 4)
        return total + s["perceptual_weight"] * perceptual(network.prior, y[-some:], x[-some:])

    return loss


@torch.no_grad()
def _batched(answer: Callable[[Tensor], list[Tensor]], x: Tensor) -> list[Tensor]:
    parts = [answer(part) for part in x.split(_AT_ONCE)]
    return [torch.cat(column) for column in zip(*parts, strict=True)]


@torch.no_grad()
def _measure_errors(network: AttackNetwork, pairs: Pairs) -> None:
    """What answer and student do not know, from pairs that neither has seen."""
    core, student = _parts(network)
    x, z = _on(core, pairs)
    truth = _batched(lambda part: [network.prior.encode(part)], x)[0]
    answer = torch.cat([core(part) for part in zip(*(f.split(_AT_ONCE) for f in z), strict=True)])
    found = _batched(lambda part: list(student(network.prior.decode(part))), truth)
    assert core.errors is not None
    core.errors.measure(truth - answer, [a - b for a, b in zip(found, z, strict=True)])


def _psnr(images: Tensor, x: Tensor) -> Tensor:
    return image_quality(images.clamp(0, 1), x)["psnr"]


def choose(network: AttackNetwork, held: Pairs, explained: float) -> dict[str, float]:
    """Measure errors, find out whether the student brings answers nearer, and drop one that explains nothing.

    Args:
        network: trained, on the CPU, in eval mode.
        held: pairs that it has not seen; one half measures, the other one tries.
        explained: R² of the student on held-out pairs.

    Returns:
        ``refine_trust``, 0 where it does not; ``refine_gain`` of the best weight in dB and its standard error;
        ``refine_tried`` pairs.
    """
    core, student = _parts(network)
    half = len(held) // 2
    _measure_errors(network, held[:half])
    tried = held[half : half + _TRIED]
    x, z = _on(core, tried)
    with torch.no_grad():
        centre = core(z)
        before = _psnr(network.prior.decode(centre), x)
    assert core.errors is not None
    found = []
    for trust in TRUSTS:
        variable = WhitenedLatent(network.prior, core.errors, centre)
        terms = [WhitenedMatch(student, z, core.errors, weight=trust), GaussianPrior()]
        gain = _psnr(lbfgs(variable, terms, evaluations=_EVALUATIONS, together=False).images, x) - before
        found.append((float(gain.mean()), float(gain.std() / len(gain) ** 0.5), trust))
    mean, error, trust = max(found)
    _measure_errors(network, held)
    helps = mean > 2 * error
    network.decide(trust if helps else 0.0, student=helps or explained > 0)
    return {
        "refine_trust": network.made.trust,
        "refine_gain": round(mean, 3),
        "refine_gain_error": round(error, 3),
        "refine_tried": len(x),
    }
