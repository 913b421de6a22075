"""What a network that aims at latents, or at the sampler's noise, should answer, as far as the prior can tell.

Encoding the pictures, and running the sampler backwards on top, takes minutes on a CPU and depends on nothing but the
pictures and the prior. All trainings on the same pictures, whatever the split and the method, therefore share what the
first of them found, in ``$SPLITSIGHT_HOME/truths``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adversary.blackbox.queries import Pairs
from adversary.priors.prior import Prior, Text
from adversary.whitebox.variables import normalised
from splitsight.artifacts import home
from splitsight.data import to_tensor

__all__ = ["true_values"]

_AT_ONCE = 64


@torch.no_grad()
def true_values(
    prior: Prior,
    pairs: Pairs,
    device: torch.device,
    *,
    steps: int | None = None,
    text: Callable[[Tensor], Text] | None = None,
) -> Tensor:
    """Latents of the pictures, or the noise that they come from.

    Args:
        prior: on ``device``.
        pairs: pictures; their features are not looked at.
        device: where to compute, and where the answer lies.
        steps: of the sampler that is run backwards; ``None`` for latents.
        text: captions of the pictures with the given numbers, embedded; only the noise depends on them.

    Returns:
        ``(N, C, h, w)``; noise is normalised to mean 0 and variance 1.

    Raises:
        UserError: noise is asked for and the sampler cannot be run backwards.
    """
    file = home() / "truths" / f"{_key(prior, pairs, steps, text is not None)}.safetensors"
    found = _read(file, len(pairs))
    if found is None:
        parts = []
        for index in torch.arange(len(pairs)).split(_AT_ONCE):
            part = prior.encode(to_tensor(pairs.images[index.numpy()]).to(device))
            if steps is not None:
                part = normalised(prior.invert(part, None if text is None else text(index), steps))
            parts.append(part)
        found = torch.cat(parts).cpu()
        file.parent.mkdir(exist_ok=True)
        # others may be at the same pictures at the same time
        partial = file.with_suffix(f".{os.getpid()}.partial")
        save_file({"truths": found.contiguous()}, str(partial))
        partial.replace(file)
    return found.to(device)


def _key(prior: Prior, pairs: Pairs, steps: int | None, text: bool) -> str:
    of = {
        "prior": prior.latent_digest if steps is None else prior.generator_digest,
        "pictures": pairs.hashes,
        "levels": None if steps is None else prior.levels(steps) if prior.flow else steps,
        "captions": pairs.captions if text and steps is not None else None,
    }
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()[:32]


def _read(file: Path, count: int) -> Tensor | None:
    """What is there; ``None`` where nothing is, or nothing that can be used."""
    try:
        found = load_file(str(file))["truths"]
    except (SafetensorError, OSError, KeyError):
        return None
    return found if len(found) == count and bool(found.isfinite().all()) else None
