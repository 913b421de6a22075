"""What a page says to somebody who has never seen one: a diagram, who knew what, words, and what to try next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from splitsight.wire.sessions import UNDEFENDED

__all__ = ["WORDS", "diagram", "glossary", "try_next", "who_knew"]

WORDS = {
    "split point, cut": "where the network is divided; `L8` is behind its eighth layer",
    "F1, F2": "first part of the network, on the edge, and the rest, on the server",
    "features": "what crosses the cut for a frame: one tensor or several",
    "tap": "where the adversary reads the features: inside the server, behind any encryption",
    "prior": "a generative model of images, which the attack searches for those with the tapped features",
    "preview": "a reconstruction by one pass of an inversion network, for each frame at once",
    "window": "K frames reconstructed together, until a deadline",
    "on time": "a window that was done before the next one was complete",
    "solver, attack": "what finds the image: `do`, `db`, `dmb` of the paper, `best` and `window` of this testbed, "
    "`net-…` without F1",
    "lag": "from when the adversary has read a frame until its reconstruction is a file",
}
"""The words of a page; docs/glossary.md has these and more."""

_KNEW = {
    "white-box": "the network and its weights (<b>white-box</b>: a public, bought or stolen model)",
    "black-box": "nothing of the network but what an oracle answered to pictures of its own (<b>black-box</b>: whoever "
    "can use such a device)",
}


def diagram(target: str, split: str, defense: str = UNDEFENDED) -> str:
    """Edge, cloud and adversary, and what passes between them; boxes that stand below each other where it is narrow."""
    noise = "" if defense == UNDEFENDED else f", then <b>{escape(defense)}</b>"
    return (
        "<div class='flow'>"
        f"<div><b>Edge</b><span>camera → F1: {escape(target)} up to {escape(split)}{noise}</span></div>"
        "<i>features only, TLS or not →</i>"
        "<div><b>Cloud</b><span>must decrypt to compute F2, the rest, and answers</span></div>"
        "<i>the same features →</i>"
        "<div class='bad'><b>Adversary</b><span>whoever runs, reads or broke into that server rebuilds the picture"
        "</span></div></div>"
    )


def who_knew(threat: str) -> str:
    """What the adversary had, as HTML; for an unknown threat model no more than the features."""
    more = f" and {_KNEW[threat]}" if threat in _KNEW else ""
    return (
        f"The adversary had the features as the server gets them{more}. It never had a picture: the originals on "
        "this page were not sent, and are here to compare. Encryption on the way changes nothing, since the server has "
        "to read what it computes with."
    )


def glossary() -> str:
    """:data:`WORDS` as HTML."""
    lines = "".join(f"<dt>{escape(word)}</dt><dd>{escape(what).replace('`', '')}</dd>" for word, what in WORDS.items())
    return f"<dl>{lines}</dl>"


def try_next(options: Mapping[str, Any], points: Sequence[str]) -> list[tuple[str, str]]:
    """Three commands that change one thing each, with what they show.

    Args:
        options: of the run, by the names of :class:`scenarios.demo.DemoOptions`; what is missing is the default.
        points: split points of the target, from the first to the last.
    """
    split, defense = options.get("split", "L8"), options.get("defense", UNDEFENDED)
    base = ["splitsight", "demo"]
    for name, usual in (("video", None), ("target", "resnet18"), ("weights", None), ("prior", "small")):
        if (value := options.get(name)) not in (None, "", usual):
            base += [f"--{name}", str(value)]
    at = ["--split", split] if split != "L8" else []
    found = []
    others = [point for point in points if point != split]
    deeper = list(points)[list(points).index(split) + 1 :] if split in points else []
    if others:
        there = deeper[0] if deeper else others[-1]
        words = "a deeper cut: less is left to see, more is left to compute on the device"
        found.append(([*base, "--split", there], words if deeper else "an earlier cut: more is left to see"))
    if defense == UNDEFENDED:
        found.append(
            (
                [*base, *at, "--defense", "gaussian:ratio=0.5", "--compare"],
                "noise on the features: what does it hide, and what does it cost in right answers?",
            )
        )
    else:
        found.append(
            ([*base, *at, "--defense", defense, "--compare"], "the same defence beside none, on the same frames")
        )
    if options.get("threat", "white-box") == "white-box":
        found.append(([*base, *at, "--threat", "black-box"], "the same for an adversary who does not know the network"))
    else:
        found.append(([*base, *at, "--threat", "white-box"], "the same for an adversary who has the network"))
    return [(shlex.join(map(str, command)), why) for command, why in found]
