"""What differential privacy of a network's features comes to in figures: theory beside what the edge draws and shows.

For each ε of a frame: the noise in units of the clip; ε of a stream, by the edge's accountant and by the closed form of
dp-accounting; a χ² test of the noise as the edge draws it; and the ε that a distinguisher shows at least
(:mod:`scenarios.audit`), for the farthest two points that the clip leaves and for the two real frames that are farthest
apart. Beside it what he shows of noise for a sensitivity of C, half of what it must be: there more than the claim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scenarios.audit import audit, scale_test, worst_pair
from scenarios.ledger import Ledger
from splitsight.accounting import DELTA, gaussian_multiplier, laplace_multiplier
from splitsight.data import load_images, to_tensor
from splitsight.defenses import parse_defense
from splitsight.files import write_json
from splitsight.targets import Target

__all__ = ["EPSILONS", "STREAM", "privacy"]

EPSILONS = (1.0, 2.0, 4.0, 8.0, 16.0)
STREAM = 1000
"""Frames."""
_LAWS = ("gaussian", "laplace")

Row = dict[str, Any]


def _closed_form(law: str, multiplier: float, frames: int) -> float | None:
    """By dp-accounting; for Laplace noise it has none."""
    if law != "gaussian":
        return None
    from dp_accounting import get_epsilon_gaussian

    return float(get_epsilon_gaussian(multiplier / frames**0.5, DELTA))


def privacy(
    *,
    target: Target,
    split: str,
    images: Path,
    out: Path,
    epsilons: Sequence[float] = EPSILONS,
    draws: int = 20_000,
    limit: int = 64,
    seed: int = 0,
    progress: Callable[[int, int, str], None] = lambda done, planned, what: None,
) -> list[Row]:
    """Measure it, going on with what is there.

    Args:
        target: the split network.
        split: its cut.
        images: folder or Parquet file; the clip is the median norm of so many last ones.
        out: folder for ``privacy.parquet`` and ``summary.json``.
        epsilons: of a frame.
        draws: of each frame in an audit, ≥ 10,000.
        limit: images.
        seed: of all draws.
        progress: called with steps done, planned, and what is going on.

    Returns:
        One a law and ε.

    Raises:
        UserError: unknown names, or unreadable images.
    """
    cut = target.cut(split)
    pixels = load_images(images, target.input_size, limit, tail=True)
    with torch.no_grad():
        features = cut.head(to_tensor(pixels.images))
    about = {"target": target.name, "head": cut.head_digest, "split": split, "names": pixels.names, "seed": seed}
    ledger = Ledger(out / "privacy.parquet", {**about, "draws": draws, "stream": STREAM})
    done = {(row["law"], row["epsilon"]) for row in ledger.rows}
    wanted = [(law, float(epsilon)) for law in _LAWS for epsilon in epsilons]
    for i, (law, epsilon) in enumerate(wanted):
        progress(i, len(wanted), f"{law}, ε = {epsilon:g}")
        if (law, epsilon) not in done:
            ledger.add([_measured(cut.specs, features, law, epsilon, draws, seed)])
    rows = [row for row in ledger.rows if (row["law"], row["epsilon"]) in wanted]
    write_json(out / "summary.json", {"schema": "splitsight.privacy/1", **ledger.about, "rows": rows})
    return rows


def _measured(specs: Any, features: tuple[Tensor, ...], law: str, epsilon: float, draws: int, seed: int) -> Row:
    order = 1 if law == "laplace" else 2
    whole = torch.cat([z.flatten(1) for z in features], 1)
    clip = float(f"{float(whole.norm(order, dim=1).median()):.4g}")
    before = f"clip:norm={clip}" + (",order=1" if order == 1 else "")
    multiplier = laplace_multiplier(epsilon) if order == 1 else gaussian_multiplier(epsilon, DELTA)
    strength = "scale" if order == 1 else "sigma"
    chain = parse_defense(f"{before}+{law}:epsilon={epsilon}")
    right = chain.build(specs)[0]
    # noise for C, as if frames were added or removed, where any frame may be replaced by any other
    wrong = parse_defense(f"{before}+{law}:{strength}={multiplier * clip}").build(specs)[0]
    mechanism = chain.mechanism
    assert mechanism is not None
    delta = mechanism.stated_delta or 0.0
    scale = scale_test(right, [spec.shape for spec in specs], seed=seed)
    worst, real = worst_pair(right, features), worst_pair(right, features, opposite=False)
    shown = {
        name: audit(edge, *pair, draws=draws, delta=delta, seed=seed)
        for name, edge, pair in (("worst", right, worst), ("real", right, real), ("wrong", wrong, worst))
    }
    return {
        "law": law,
        "epsilon": epsilon,
        "delta": delta,
        "clip": clip,
        "scale_over_clip": 2 * multiplier,
        "frame_epsilon": mechanism.epsilon(),
        "stream_epsilon": mechanism.epsilon(STREAM),
        "closed_form": _closed_form(law, multiplier, STREAM),
        "measured": scale.measured,
        "expected": scale.expected,
        "p": scale.p,
        "numbers": scale.numbers,
        "distance_real": shown["real"].distance,
        **{f"shown_{name}": found.epsilon for name, found in shown.items()},
    }
