"""Choosing the values of a method's tuned setting on validation images, with equal effort for each method.

Every method gets the same number of trials on the same images at the same splits: the setting as the package ships
it, whatever an earlier tuning found, then random draws from the values that the method's options allow. Each trial
runs at each split, and is scored there by the mean over images of an objective:

* ``fidelity``: PSNR + 20 · SSIM, so that a decibel weighs as much as 0.05 of SSIM;
* ``psnr``, ``ssim``;
* ``match``: reciprocal rank of the original among the images that were read, in the attacked network's penultimate
  features or in pixels. Neither is an evaluator, which no choice may depend on.

The best trial is chosen for each split, and one over all splits ("any"). What is chosen on these images must be
reported on others.

``OUT`` holds ``trials.parquet`` (a row an image, trial and split, written after each trial and resumed from), and
``best.json``. Trials do not depend on the objective, so that another one can be asked of the same folder.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import RandomSampler

from adversary.attacks import ATTACKS, Attack
from adversary.priors.prior import EMBEDDED
from scenarios.ledger import Ledger
from scenarios.stills import Stills
from scenarios.workbench import Workbench
from splitsight.devices import device_name
from splitsight.errors import UserError, unknown_name
from splitsight.files import write_json
from splitsight.metrics.gallery import SPACES
from splitsight.numerics import subnormals_flushed
from splitsight.summary import environment
from splitsight.wire.sessions import UNDEFENDED

__all__ = ["GALLERY", "OBJECTIVES", "choose", "merge", "trials", "tune"]

SCHEMA = "splitsight.tuning/1"
OBJECTIVES = ("fidelity", "psnr", "ssim", "match")
GALLERY = 1000
"""Images, at most, that an original is found among."""
_BATCH = 8

Progress = Callable[[int, int, str], None]


def trials(attack: type[Attack], count: int, seed: int) -> list[dict[str, Any]]:
    """Values to try: none changed, then distinct random draws of all keys of the method's space.

    Args:
        attack: with a space.
        count: at most; a small space may hold fewer.
        seed: of the draws.
    """
    space = attack.space()
    # by position, since optuna's choices are numbers and texts only
    places: dict[str, BaseDistribution] = {
        key: CategoricalDistribution(range(len(options))) for key, options in space.items()
    }
    study = optuna.create_study(sampler=RandomSampler(seed))
    found: list[dict[str, Any]] = [{}]
    for _ in range(50 * count):
        if len(found) >= count:
            break
        drawn = study.ask(places).params
        values = {key: space[key][place] for key, place in drawn.items()}
        if values not in found:
            found.append(values)
    return found[:count]


@subnormals_flushed()
def tune(
    method: str,
    *,
    images: Path,
    out: Path,
    splits: Sequence[str] | None = None,
    defense: str = UNDEFENDED,
    count: int = 16,
    limit: int = 8,
    tail: bool = True,
    objective: str = "fidelity",
    match_features: str = "target",
    setting: str | None = None,
    frames: int = 4,
    seed: int = 0,
    target: str = "resnet18",
    weights: Path | None = None,
    prior: str = EMBEDDED,
    inversions: Path | None = None,
    threads: int | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the trials that ``out`` does not hold yet, and choose.

    Args:
        method: a name out of ``splitsight list attacks``.
        images: validation images, as for ``splitsight attack``; none of them may be reported on later. For a method
            that solves windows, a clip's frames in order.
        out: folder; created.
        splits: where to try; all that the target names by default.
        defense: what the edge does to the features.
        count: trials.
        limit: images attacked; ``match`` finds them among up to :data:`GALLERY` of ``images``.
        tail: read the last images instead of the first.
        objective: a name out of :data:`OBJECTIVES`.
        match_features: where images are compared, a name out of :data:`splitsight.metrics.gallery.SPACES`.
        setting: which one to tune; the method's own choice by default.
        frames: K, for methods that solve windows.
        seed: of the values drawn and of the attacks.
        target: attacked network.
        weights: its weights.
        prior: name or folder of the generative prior.
        inversions: file or folder of inversion networks; the package's and the cache's by default.
        threads: compute threads.
        device: where the attacks compute: ``auto``, ``cpu``, ``cuda``.
        progress: called with (done, planned, what is going on).

    Returns:
        What ``best.json`` holds.

    Raises:
        UserError: unknown names, nothing to tune, or ``out`` holds another tuning.
    """
    attack = ATTACKS.get(method)
    if not attack.space():
        raise UserError(f"{method} has nothing to tune: choose a method whose settings have a space of values")
    if objective not in OBJECTIVES:
        raise unknown_name("objective", objective, list(OBJECTIVES))
    if objective == "match" and attack.windowed:
        raise UserError(
            f"{method} solves windows, and frames of one clip are too alike to be told apart: choose another objective"
        )
    if attack.windowed and frames < 2:
        raise UserError(f"{method} couples the frames of a window: give --frames of at least 2")
    if match_features not in SPACES:
        raise unknown_name("--match-features", match_features, list(SPACES))
    if (splits is not None and not splits) or count < 1 or limit < 1:
        raise UserError("tuning needs at least one split, one trial and one image")
    if threads:
        torch.set_num_threads(threads)
    tuned = setting or attack.tunes
    if tuned == "paper" or tuned not in attack.presets:
        free = [name for name in attack.presets if name != "paper"]
        raise UserError(f"{method} has no setting '{tuned}' that may be tuned: choose one of {', '.join(free)}")
    models = Workbench(target, weights=weights, prior=prior, inversion=inversions, device=device)
    lab = Stills(models, images, max(limit, GALLERY), tail=tail)
    attacked = list(range(len(lab)))[-limit:] if tail else list(range(len(lab)))[:limit]
    if attack.windowed and len(attacked) % frames:
        raise UserError(f"{method} solves windows of {frames}: give a --limit that is a multiple, and as many frames")
    splits = list(models.target.points() if splits is None else dict.fromkeys(splits))
    sessions = [models.pipeline(split, defense).description() for split in splits]
    drawn = trials(attack, count, seed)
    plan = [(i, split) for i in range(len(drawn)) for split in splits]
    digests = models.digests(sessions)
    about = {
        "schema": SCHEMA,
        "method": method,
        "setting": tuned,
        "target": models.target.name,
        "defense": sessions[0].defense,
        "images": [lab.names[i] for i in attacked],
        "gallery": None if attack.windowed else len(lab),
        "match_features": None if attack.windowed else match_features,
        "seed": seed,
        "frames": frames if attack.windowed else None,
        "weights": digests,
        "sampler": "optuna random",
    }
    out.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(out / "trials.parquet", about)
    done = {(row["trial"], row["split"]) for row in ledger.rows}
    together = frames if attack.windowed else _BATCH
    for number, (i, split) in enumerate(plan):
        if (i, split) in done:
            continue
        if progress is not None:
            progress(number, len(plan), f"trial {i + 1} of {len(drawn)} at {split}")
        tried = attack.configured(tuned, target=models.target.name, split=split, changes=drawn[i], use_tuned=False)
        rows: list[dict[str, Any]] = []
        for start in range(0, len(attacked), together):
            index = attacked[start : start + together]
            answer = tried.reconstruct(lab.problem(tried, split, index, seed=seed, defense=defense))
            ranks = [None] * len(index) if attack.windowed else lab.ranks(answer.images, index, match_features)
            for j, quality in enumerate(lab.score(answer.images, index)):
                rows.append(
                    {
                        "trial": i,
                        "split": split,
                        "changes": json.dumps(drawn[i], default=list),
                        "values": json.dumps(tried.settings.dump()),
                        "index": index[j],
                        "name": lab.names[index[j]],
                        **quality,
                        "rank": ranks[j],
                        "loss": answer.loss if answer.losses is None else float(answer.losses[j]),
                        "seconds": answer.seconds,
                        "model_evaluations": answer.model_evaluations,
                    }
                )
        ledger.add(rows)
    # a resumed run may hold trials beyond those asked for now
    wanted = set(plan)
    best = choose([row for row in ledger.rows if (row["trial"], row["split"]) in wanted], objective)
    result = {
        **about,
        "objective": objective,
        "trials": len(drawn),
        **best,
        "environment": environment(digests, device_name(models.device)),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    write_json(out / "best.json", result)
    if progress is not None:
        progress(len(plan), len(plan), "done")
    return result


def _value(row: dict[str, Any], objective: str) -> float:
    if objective == "fidelity":
        return row["psnr"] + 20 * row["ssim"]
    if objective == "match":
        return 1 / row["rank"]
    return row[objective]


def choose(rows: Sequence[dict[str, Any]], objective: str) -> dict[str, Any]:
    """The best trial of each split, and over all of them.

    Args:
        rows: of ``trials.parquet``.
        objective: a name out of :data:`OBJECTIVES`.

    Returns:
        ``any`` and ``splits`` (by split), each with ``trial``, ``score``, ``values``, of them ``changes``, and
        ``first``, the score of the setting as it ships; ``seconds`` and ``model_evaluations`` a trial and image, mean.
        A score that is not a number is never the best.
    """
    scores: dict[str, dict[int, list[float]]] = {}
    tried: dict[int, dict[str, dict[str, Any]]] = {}
    for row in rows:
        scores.setdefault(row["split"], {}).setdefault(row["trial"], []).append(_value(row, objective))
        tried[row["trial"]] = {name: json.loads(row[name]) for name in ("values", "changes")}
    means = {split: {trial: float(np.mean(v)) for trial, v in by.items()} for split, by in scores.items()}
    overall = {trial: float(np.mean([by[trial] for by in means.values()])) for trial in tried}

    def best(by: dict[int, float]) -> dict[str, Any]:
        trial = max(sorted(by), key=lambda t: -np.inf if np.isnan(by[t]) else by[t])
        return {"trial": trial, "score": by[trial], "first": by.get(0), **tried[trial]}

    return {
        "any": best(overall),
        "splits": {split: best(by) for split, by in means.items()},
        "seconds": float(np.mean([row["seconds"] for row in rows])),
        "model_evaluations": float(np.mean([row["model_evaluations"] for row in rows])),
    }


def merge(result: dict[str, Any], file: Path) -> None:
    """Put a result of :func:`tune` among the settings in ``file``, which other methods' results keep.

    Args:
        result: with ``target``, ``method``, ``setting``, ``any`` and ``splits``.
        file: in the form of :data:`adversary.attacks.base.TUNED`; made if it is not there.

    Raises:
        UserError: the file is something else.
    """
    try:
        known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        own = known.setdefault(result["target"], {}).setdefault(result["method"], {})
        own[result["setting"]] = {
            # all values, so that what was found does not move with the code's defaults
            "any": result["any"]["values"],
            **{split: found["values"] for split, found in result["splits"].items()},
        }
    except (ValueError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is no file of tuned settings: give another one, or a new name") from error
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, dict(sorted(known.items())))
