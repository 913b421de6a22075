"""``splitsight train inversion --oracle``: ask, train on the answers, measure, file the network.

Nothing here knows F1 by anything but its answers: neither this module nor what it imports can build a target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adversary.attacks.blackbox import method_of
from adversary.blackbox.networks import (
    AttackNetwork,
    Made,
    cache_file,
    network_name,
    prior_key,
    save_network,
)
from adversary.blackbox.pictures import draw_groups, draw_unasked
from adversary.blackbox.queries import OracleClient, QueryStore, Role, collect
from adversary.blackbox.training import Training, train_pairs
from adversary.priors.prior import EMBEDDED, Prior, load_prior
from splitsight.artifacts import home
from splitsight.cards import write_card
from splitsight.data import fit, image_hash
from splitsight.devices import pick_device
from splitsight.errors import UserError
from splitsight.names import file_stem
from splitsight.specification import target_name
from splitsight.wire.credentials import ANONYMOUS, ClientCredentials
from splitsight.wire.sessions import UNDEFENDED, SessionDescription

__all__ = ["LEAST", "PairOptions", "collect_pairs", "default_pairs", "train_pairs_command"]

LEAST = 16
"""Fewest pictures that anything can be learnt from, or measured on."""

UNASKED = 8192
"""Pictures that a method may learn from without asking, by default."""

_RUN = "run.json"

Progress = Callable[[int, int, str], None]
Asking = Callable[[], AbstractContextManager[Progress]]
"""Shows how the asking goes: what it gives is called with (pairs, pairs wanted, what is going on)."""


@dataclass(frozen=True)
class PairOptions:
    """What to train, and on which answers.

    Attributes:
        method: name of a black-box method.
        oracle: ``HOST:PORT``; ``None`` to train on what ``pairs`` holds.
        data: what to ask about; see :func:`~adversary.blackbox.pictures.draw_groups`.
        pairs: folder of the query pairs; by default one in the cache for what the oracle serves.
        queries: pictures to train on.
        test_queries: pictures to measure with, which count against the oracle's budget too.
        unasked: for methods that use them, further pictures of ``data``, at most, that are learnt from without asking
            about them; :data:`UNASKED` by default.
        out: folder of the run, and of the network; by default both are in the cache.
        prior: name or folder of the prior.
        setting: named setting of the training; the method's first one by default.
        changes: values to replace in it.
        frames: K; more than one for windows.
        mixing: whether frames of a window see each other (equation 13), or the control is trained.
        stride: seconds between the frames of a window from a video.
        text: train with the pictures' captions (equation 12).
        target: what the oracle is expected to serve; any by default.
        split: likewise.
        credentials: what the oracle asks for.
        patience: seconds to wait for an oracle that is away.
        minutes: time budget, over resumed runs.
        computing: on a CPU, count only minutes in which the training's thread computes, so that networks that are
            compared get the same however busy the machine is.
        steps: budget in optimiser steps.
        device: ``auto``, ``cpu``, ``cuda``.
        seed: of weights and draws.
        threads: CPU threads.
    """

    method: str
    oracle: str | None = None
    data: Path | None = None
    pairs: Path | None = None
    queries: int = 4096
    test_queries: int = 1024
    unasked: int | None = None
    out: Path | None = None
    prior: str = EMBEDDED
    setting: str | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    frames: int = 1
    mixing: bool = True
    stride: float = 0.5
    text: bool = False
    target: str | None = None
    split: str | None = None
    credentials: ClientCredentials = ANONYMOUS
    patience: float = 10.0
    minutes: float | None = None
    computing: bool = False
    steps: int | None = None
    device: str = "auto"
    seed: int = 0
    threads: int | None = None

    def __post_init__(self) -> None:
        method = method_of(self.method)
        for name, count in (("queries", self.queries), ("test-queries", self.test_queries)):
            if count < LEAST:
                raise UserError(f"--{name} {count} is too few to learn or to measure anything: give at least {LEAST}")
            if self.frames > 1 and count % self.frames:
                raise UserError(
                    f"--{name} {count} makes no whole windows of {self.frames} frames: give a multiple of {self.frames}"
                )
        if self.oracle is None and self.pairs is None:
            raise UserError("give --oracle HOST:PORT to ask, or --pairs with answers that were kept")
        if self.unasked is not None and not method.unasked:
            raise UserError(f"{self.method} learns from answers only: leave --unasked out, or choose another --method")
        if self.unasked and self.data is None:
            raise UserError("--unasked takes pictures from --data: give both, or --unasked 0")
        if not self.mixing and self.frames == 1:
            raise UserError("--no-mixing is the control for windows: give --frames of at least 2 with it")


def train_pairs_command(options: PairOptions, asking: Asking | None = None) -> Path:
    """Ask for what is missing, train, and write the network with a card beside it.

    Args:
        options: what to do.
        asking: entered while the oracle is asked.

    Returns:
        The network's file.

    Raises:
        UserError: bad options; an oracle that refuses, is gone, or changed (what it answered before is kept); pairs of
            another network; a training that does not fit or diverges.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    # whatever can be refused is refused before a query is spent
    name, values = method_of(options.method).training(options.setting, options.changes)
    prior = load_prior(options.prior)
    with asking() if asking is not None else nullcontext() as progress:
        store = _store(options, prior, progress)
    victim = store.victim
    prior = prior.sized(victim.input_size)
    made = _made(options, victim, prior, name, values)
    train = store.pairs("train", options.queries, frames=options.frames)
    test = store.pairs("test", options.test_queries, frames=options.frames)
    torch.manual_seed(options.seed)
    network = AttackNetwork(made, prior)
    more, unasked = _unasked(options, victim.input_size, store.hashes("train") | store.hashes("test"))
    folder = _run_folder(options, made, values, [*train.hashes, *unasked])
    sized = train.sized(made.image)
    network, figures = train_pairs(
        network,
        sized,
        test.sized(made.image),
        folder,
        seconds=options.minutes * 60 if options.minutes else None,
        steps=options.steps,
        seed=options.seed,
        device=pick_device(options.device),
        unasked=np.stack([fit(image, made.image) for image in more]) if more else None,
        computing=options.computing,
    )
    file = cache_file(made) if options.out is None else options.out / f"{network_name(made)}.safetensors"
    if made.image != victim.input_size:
        # pictures are told by their hash at either size
        unasked += [*sized.hashes, *(image_hash(fit(image, made.image)) for image in more)]
    save_network(file, network, train.hashes, figures, unasked)
    write_card(
        folder,
        f"{made.method}, {made.target} at {made.split}",
        what=(
            f"Black-box inversion network, features to {network.method.aim} (prior '{made.prior}'), "
            + (f"against '{made.defense}', " if made.defense != UNDEFENDED else "")
            + f"learnt from an oracle's answers alone; setting '{name}', "
            f"{sum(p.numel() for p in network.parameters()):,} parameters"
            + (f", windows of {made.frames} frames" if made.frames > 1 else "")
            + (", with prompts" if made.text else "")
            + "."
        ),
        data=f"{len(train)} query pairs"
        + (f" and {len(more)} pictures that were not asked about" if more else "")
        + f"; figures on {len(test)} others (PSNR in dB), no picture in both (by SHA-256).",
        command=(
            f"splitsight train inversion --oracle HOST:PORT --method {made.method} --queries {len(train)} --data DIR"
            + (f" --unasked {len(more)}" if network.method.unasked else "")
        ),
        figures=figures,
    )
    return file


def _unasked(options: PairOptions, size: int, known: set[str]) -> tuple[list[np.ndarray], list[str]]:
    """Pictures that the oracle is not asked about, none of them among the ``known``, and their SHA-256."""
    count = UNASKED if options.unasked is None else options.unasked
    if not method_of(options.method).unasked or options.data is None or count == 0:
        return [], []
    images = draw_unasked(options.data, size, count, known, seed=options.seed)
    return images, [image_hash(image) for image in images]


def _run_folder(options: PairOptions, made: Made, values: Training, seen: Sequence[str]) -> Path:
    """Where the run goes on, or begins; only a run of the same pictures and settings is gone on with.

    Raises:
        UserError: ``--out`` holds another one.
    """
    same = {
        "made": {k: v for k, v in asdict(made).items() if k != "training"},
        # more of the same is a longer run, not another one
        "values": {k: v for k, v in values.dump().items() if k not in ("epochs", "iterations")},
        "seed": options.seed,
        "pairs": hashlib.sha256("".join(seen).encode()).hexdigest(),
    }
    text = json.dumps(same, indent=2, default=list) + "\n"
    if options.out is None:
        cached = cache_file(made)
        folder = cached.parent / "runs" / f"{cached.stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    else:
        folder = options.out
    file = folder / _RUN
    if file.is_file():
        if file.read_text(encoding="utf-8") != text:
            raise UserError(
                f"{folder} holds a run with other settings or other pairs: give another --out, or remove it"
            )
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(file)
    return folder


def _made(options: PairOptions, victim: SessionDescription, prior: Prior, name: str, values: Training | None) -> Made:
    return Made(
        method=options.method,
        target=victim.target,
        split=victim.split,
        head_digest=victim.head_digest,
        features=victim.features,
        image=prior.image_size,
        prior=prior.name,
        prior_digest=prior_key(prior, options.method),
        defense=victim.defense,
        defense_digest=victim.defense_digest,
        frames=options.frames,
        mixed=options.mixing,
        text=options.text,
        surrogate=method_of(options.method).surrogate,
        setting=name,
        training={} if values is None else values.dump(),
    )


def _store(options: PairOptions, prior: Prior, progress: Progress | None) -> QueryStore:
    """The pairs, complete; the oracle is asked only for what is missing."""
    wanted: dict[Role, int] = {"test": options.test_queries, "train": options.queries}
    if options.pairs is not None and (options.oracle is None or (options.pairs / "oracle.json").is_file()):
        store = QueryStore.open(options.pairs)
        _check(options, store.victim, prior)
        if options.oracle is None or all(store.count(r, options.frames) >= n for r, n in wanted.items()):
            return store
    assert options.oracle is not None
    with OracleClient(options.oracle, credentials=options.credentials, patience=options.patience) as client:
        victim = client.connect()
        _check(options, victim, prior)
        folder = options.pairs or default_pairs(victim, frames=options.frames)
        store = QueryStore.open(folder, victim)
        if all(store.count(r, options.frames) >= n for r, n in wanted.items()):
            return store
        if options.data is None:
            raise UserError("give --data with pictures to ask about")
        groups = draw_groups(
            options.data, victim.input_size, wanted, frames=options.frames, stride=options.stride, seed=options.seed
        )
        if options.text and not any(picture.caption for group in groups["train"] for picture in group):
            raise UserError("--text needs captions: give --data with labels and classes.tsv, or leave it out")
        for role, count in wanted.items():
            done = collect(client, store, role, groups[role], count, frames=options.frames, progress=progress)
            if done.stopped is not None:
                have = {r: store.count(r, options.frames) for r in wanted}
                raise UserError(
                    f"{done.stopped.rstrip('.')}; {have['train']} pairs for training and {have['test']} for testing "
                    f"are kept in {store.folder}: run this again to go on, or train on fewer with --queries and "
                    "--test-queries",
                    code=1,
                )
    return store


def collect_pairs(options: PairOptions) -> QueryStore:
    """Ask for what is missing, and nothing more.

    Raises:
        UserError: as :func:`train_pairs_command`, but for training.
    """
    return _store(options, load_prior(options.prior), None)


def default_pairs(victim: SessionDescription, *, frames: int = 1) -> Path:
    """Where pairs of a network, behind its defence, are kept in the cache; there may be none."""
    words = [victim.target, victim.split]
    words += [victim.defense] if victim.defense != UNDEFENDED else []
    words += [victim.head_digest[:12]] + ([victim.defense_digest[:12]] if victim.defense_digest else [])
    return home() / "queries" / file_stem(*words, *([f"{frames}frames"] if frames > 1 else []))


def _check(options: PairOptions, victim: SessionDescription, prior: Prior) -> None:
    target = None if options.target is None else target_name(options.target)
    for what, expected, found in (("target", target, victim.target), ("split", options.split, victim.split)):
        if expected is not None and expected != found:
            raise UserError(
                f"the oracle answers for {what} {found}, not {expected}: leave --{what} out, or ask another"
            )
    _made(options, victim, prior, "", None)  # refuses what does not go together
