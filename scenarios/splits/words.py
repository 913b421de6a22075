"""The answer in sentences."""

from __future__ import annotations

from collections.abc import Sequence

from scenarios.splits.figures import HEADLINES, Figures, Verdict
from scenarios.splits.recommend import LATENCY, SLACK, TOLERANCE, UTILITY, Limit
from scenarios.splits.utility import AGREEMENT
from splitsight.metrics import METRICS

__all__ = ["none_keeps", "obtained", "utility_name", "why"]


def utility_name(name: str) -> str:
    """What utility is called in a sentence."""
    if name == AGREEMENT:
        return "agreement with the uncut network"
    return f"{name} accuracy" if name.startswith("top") else name


def _percent(part: float | None) -> str:
    return "–" if part is None else f"{100 * part:.1f} %"


def obtained(measure: str, value: float) -> str:
    """What an attacker obtains, as the end of a sentence that begins with who."""
    shown = METRICS.get(measure).text(value)
    return {
        "matched_top1": f"finds the original first for {shown} of the images",
        "recognised": f"makes {shown} of the images recognisable",
        "ssim": f"comes to an SSIM of {shown}",
        "psnr": f"comes to {shown} dB",
    }.get(measure, f"comes to {METRICS.get(measure).title} {shown}")


def why(
    verdict: Verdict,
    figures: Sequence[Figures],
    limits: Sequence[Limit],
    absent: Sequence[str] = (),
    weakened: Sequence[str] = (),
) -> str:
    """Why the rule chose what it chose: what it costs, what it leaks, what it is still good for, and among which.

    Args:
        verdict: with a choice.
        figures: of all points.
        limits: that were to be kept.
        absent: attacks that could not try the chosen point.
        weakened: attacks that were not trained or tuned for it.
    """
    choice = verdict.choice
    assert choice is not None
    found = next(f for f in figures if f.point.name == choice.split)
    time = verdict.latency[choice.split]
    parts = [
        f"{time.total_ms:.1f} ms a frame over {verdict.profile.name} (edge {time.edge_ms:.1f}, network "
        f"{time.network_ms:.1f}, cloud {time.cloud_ms:.1f})",
        _leak(verdict, found),
    ]
    if found.utility.mean is not None:
        uncut = "" if found.utility_name == AGREEMENT else f" ({_percent(found.unsplit.mean)} uncut)"
        parts.append(f"{_percent(found.utility.mean)} {utility_name(found.utility_name)}{uncut}")
    parts.append(_among(verdict, figures, limits))
    if absent:
        parts.append(f"{' and '.join(absent)} could not try there and may obtain more")
    best = None if verdict.measure is None else found.strongest(verdict.measure)
    if best is not None and best[0] in weakened:
        parts.append(f"{best[0]} was not trained or tuned for this point and may obtain more")
    return "; ".join(parts)


def _leak(verdict: Verdict, found: Figures) -> str:
    measure, split = verdict.measure, found.point.name
    if measure is None:
        return "what it leaks is not known, since nothing was attacked (--attacks)"
    if split not in verdict.leakage:
        return "what it leaks is not known, since no attack could try there"
    most, own = verdict.leakage[split], found.strongest(measure)
    if own is not None and own[1].mean == most:
        # what says most comes first, also where it is the same at all points and another measure decides
        known = found.attacks[own[0]]
        shares = [name for name in HEADLINES if METRICS.get(name).kind == "share" and name in known]
        said = [obtained(name, known[name].mean or 0.0) for name in dict.fromkeys([*shares, measure])]
        return f"the strongest attacker, {own[0]}, {' and '.join(said)}"
    return f"an attacker who knows the network {obtained(measure, most)}, as from the features of a deeper point"


def _among(verdict: Verdict, figures: Sequence[Figures], limits: Sequence[Limit]) -> str:
    choice = verdict.choice
    assert choice is not None
    limited = {limit.measure for limit in limits}
    total, near = len(figures), len(choice.near)
    pool = f"{len(choice.admitted)} of {total} points that keep the limits" if limits else f"{total} points"
    if len(choice.admitted) == 1:
        return f"it is the only one of {total} points that keeps the limits" if limits else "it is the only point"
    fastest = min(choice.admitted, key=lambda name: verdict.latency[name].total_ms)
    told = []
    if LATENCY not in limited:
        best = verdict.latency[fastest].total_ms
        told.append(f"at most {100 * SLACK:.0f} % slower than the fastest, {fastest} ({best:.1f} ms)")
    if UTILITY not in limited:
        told.append(f"within {100 * TOLERANCE:.0f} point of the best utility")
    if near == 1 and told:
        return f"of {pool} it is the only one {' and '.join(told)}"
    among = f"of {pool}, {near} are {' and '.join(told)}, and of these it" if told else f"of {pool} it"
    alike = len({verdict.leakage.get(name) for name in choice.near}) == 1
    return f"{among} {'is the fastest' if verdict.measure is None or alike else 'leaks least'}"


def none_keeps(verdict: Verdict) -> str:
    """That no point keeps every limit, and which to relax to what."""
    over = f"no split point keeps every limit over {verdict.profile.name}"
    if not verdict.relax:
        return f"{over}, since a limited measure was measured at none: measure it, or leave its limit out"
    ways = []
    for way in verdict.relax:
        moved = " and ".join(f"{limit.option}{limit.value:g}" for limit in way.limits)
        ways.append(f"{moved} ({way.split} would do)")
    return f"{over}: relax to {', or to '.join(ways)}"
