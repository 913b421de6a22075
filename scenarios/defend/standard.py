"""``--defenses all|dp``: the defences of this installation in strengths that suit a split.

What a clip bounds and what a strength means depends on the features' size, which is measured on images; what a
defence has to know of F1 (its Jacobian, the features' covariance) is measured on them, too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from splitsight.artifacts import asset, home
from splitsight.defenses import DEFENSES, Chain, Place, parse_defense
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline
from splitsight.targets import Cut, Target

__all__ = ["ALL", "DP", "GROUPS", "fitted", "parse", "standard"]

ALL, DP = "all", "dp"
GROUPS = (ALL, DP)
"""Names that stand for several defences."""
_EPSILONS = (1, 2, 4, 8, 16)
_TEMPLATES = (
    "noise:ratio=0.5",
    "noise:ratio=2",
    "clip:norm={l2}+gaussian:epsilon=8,delta=1e-05",
    "clip:norm={l2}+gaussian:epsilon=200,delta=1e-05",
    "clip:norm={l1},order=1+laplace:epsilon=8",
    "dfil:target=100",
    "fsinfo:target=-1",
    "pac:budget=100",
    "quantise:bits=2",
    "topk:keep=0.1",
    "dropout:p=0.5",
    "permutation:key={key}",
    "rotation:key={key}",
)
"""With the median norms of frames, and a key that is drawn for the purpose."""
_KEY = "evaluation"
_FITTED_ON = 8
"""Images for a Jacobian, each of which takes some passes of F1."""


def parse(text: str) -> list[str]:
    """Defences out of ``NAME:…;NAME:…``; :data:`GROUPS` stand for themselves.

    Raises:
        UserError: one of them is none.
    """
    wanted = [part.strip() for part in text.split(";") if part.strip()]
    if not wanted:
        raise UserError("--defenses names none: give 'all', 'dp', or NAME:KEY=VALUE,… with a ; between two")
    return [part if part in GROUPS else str(parse_defense(part)) for part in wanted]


@torch.no_grad()
def standard(target: Target, split: str, images: Tensor, group: str = ALL) -> list[str]:
    """Every defence for a split, not fitted yet; or differentially private ones alone, at several ε of a frame.

    Those that were trained for the split are among them, noise-aware training behind the defences that it was made for.

    Args:
        target: the split network.
        split: its cut.
        images: ``(N, 3, S, S)``, like those that are to be protected.
        group: one of :data:`GROUPS`.
    """
    frames = torch.cat([z.flatten(1) for z in target.cut(split).head(images)], 1)
    norms = {f"l{p}": _decimal(float(frames.norm(p, dim=1).median())) for p in (1, 2)}
    trained = _trained(target, split)
    if group == DP:
        private = [f"clip:norm={norms['l2']}+gaussian:epsilon={e},delta=1e-05" for e in _EPSILONS]
        aware = [text for text in trained if text.startswith("clip:") and "+aware:" in text]
        return [*dict.fromkeys([*private, *(text.partition("+aware:")[0] for text in aware), *aware])]
    place = home() / "keys" / _KEY
    if not place.is_file():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(secrets.token_bytes(32))
    known = [text.format(**norms, key=_KEY) for text in _TEMPLATES]
    return [*known, *_others(known), *trained]


def _decimal(value: float) -> str:
    """Four digits without an exponent, whose plus sign would part a chain."""
    return np.format_float_positional(value, precision=4, fractional=False, trim="-")


def _others(known: Sequence[str]) -> list[str]:
    """Defences of other packages that take no parameter that must be given."""
    mine = {part.partition(":")[0] for text in known for part in text.split("+")} | {"identity"}
    found = []
    for name, kind in DEFENSES:
        required = any(field.is_required() for field in kind.Parameters.model_fields.values())
        if name not in mine and not required and not kind.__module__.startswith("splitsight."):
            found.append(name)
    return found


def _trained(target: Target, split: str) -> list[str]:
    """Defences that were trained for this place and lie where they are looked for."""
    cut = target.cut(split)
    found = {}
    for folder in (asset("defenses"), home() / "defenses"):
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
            about = _about(path)
            place = about.get("place", {})
            same = place.get("target") == target.name and place.get("split") == split
            # what was only measured on images is fitted here
            if same and place.get("head_digest") == cut.head_digest and about.get("defense") not in ("pac", None):
                own = f"{about['defense']}:weights={path.stem}"
                found[path.stem] = f"{about['chain']}+{own}" if about.get("chain") else own
    return list(found.values())


def _about(path: Path) -> dict:
    try:
        with safe_open(str(path), "pt") as opened:
            return {key: json.loads(value) for key, value in (opened.metadata() or {}).items()}
    except (SafetensorError, OSError, ValueError):
        return {}


def fitted(target: Target, split: str, text: str, images: Tensor) -> str:
    """A defence in canonical form, with what it has to know of features measured where that is missing.

    Args:
        target: the split network.
        split: its cut.
        text: the defence.
        images: as for :func:`standard`.

    Raises:
        UserError: it cannot be applied there.
    """
    chain = parse_defense(text)
    try:
        EdgePipeline(target, split, chain)
    except UserError:
        cut = target.cut(split)
        place = Place(target.name, split, cut.head_digest, cut.tail_digest)
        chain = _measured(chain, cut, images, place)
        EdgePipeline(target, split, chain)
    return str(chain)


def _measured(chain: Chain, cut: Cut, images: Tensor, place: Place) -> Chain:
    """As :meth:`Chain.fitted`; a Jacobian on a few of the images, a covariance on all."""
    few = any(part.name in ("dfil", "fsinfo") for part in chain.parts)
    with torch.enable_grad():
        return chain.fitted(cut.head, cut.specs, images[:_FITTED_ON] if few else images, place)
