"""``splitsight attack``: one method on images, a clip or a recording, from features to a folder of results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from adversary.attacks import ATTACKS, Attack, Callback, Reconstruction, check_features
from adversary.priors.prior import EMBEDDED
from adversary.prompts import embed_prompts, solve_with_prompts
from scenarios.attack_page import write_page
from scenarios.evaluation import asked_beside, labels_for, load_evaluators, named
from scenarios.splits.auto import AUTO, auto_split
from scenarios.workbench import Workbench
from splitsight.data import load_images, to_pixels, to_tensor, write_png
from splitsight.devices import device_name
from splitsight.errors import UserError
from splitsight.files import write_json, write_parquet
from splitsight.metrics import Batch, Metric, image_metrics, matched, measure, proportion_interval
from splitsight.metrics.gallery import Gallery, space_of
from splitsight.numerics import subnormals_flushed
from splitsight.pictures import Panel, grid, spread
from splitsight.recording import Recording
from splitsight.specification import target_name
from splitsight.summary import MethodSummary, Summary, environment, write_summary
from splitsight.video import open_source
from splitsight.wire.sessions import UNDEFENDED, SessionDescription
from splitsight.wire.tensors import CodecSpec

__all__ = ["Attacked", "Progress", "run_attack"]

Progress = Callable[[int, int, str], None]
_BATCH = 8


@dataclass
class _Input:
    """Frames to attack: names, features, where they are from, and the originals where they are known."""

    names: list[str]
    times: list[float]
    features: list[Tensor]
    originals: Tensor | None
    about: SessionDescription
    codec: CodecSpec | None = None
    static: int = 1
    labels: Tensor | None = None

    def tapped(self, index: Sequence[int]) -> list[Tensor]:
        """Features of some of the frames, each as often as it was sent, ``(K · static, …)``."""
        sent = [i * self.static + k for i in index for k in range(self.static)]
        return [z[sent] for z in self.features]

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Attacked:
    """What an attack left.

    Attributes:
        out: the folder.
        says: one line: quality, how often the original was found, time, where to look.
    """

    out: Path
    says: str


def _played(
    models: Workbench,
    names: list[str],
    times: list[float],
    pixels: np.ndarray,
    split: str,
    defense: str,
    seed: int,
    static: int = 1,
) -> _Input:
    """Images, with the features that an edge would send of them, each ``static`` times."""
    images, pipeline = to_tensor(pixels), models.pipeline(split, defense)
    features = models.observe_static(pipeline, images, static, seed, range(len(images)))
    return _Input(names, times, features, images, pipeline.description(), static=static)


def _filmed(
    models: Workbench, video: str, split: str, defense: str, seed: int, fps: float, limit: int | None
) -> _Input:
    sampled = []
    with open_source(video, fps=fps, size=models.target.input_size) as source:
        for frame in source:
            if limit is not None and len(sampled) >= limit:
                break
            sampled.append(frame)
    names = [f"{f.index:06d}" for f in sampled]
    return _played(
        models, names, [f.time_s for f in sampled], np.stack([f.image for f in sampled]), split, defense, seed
    )


def _recorded(folder: Path, target: str, split: str, limit: int | None) -> _Input:
    recording = Recording.open(folder)
    about = recording.session.about
    if (about.target, about.split) != (target, split):
        raise UserError(
            f"{folder} holds features of {about.target} at {about.split}: give --target {about.target} "
            f"--split '{about.split}'"
        )
    names, times, arrays = [], [], []
    for sequence, capture_us, tensors in recording.frames():
        if limit is not None and len(names) >= limit:
            break
        names.append(f"{sequence:06d}")
        times.append(capture_us / 1e6)
        arrays.append(tensors)
    if not names:
        raise UserError(f"{folder} holds no frames: record a run first")
    features = [torch.from_numpy(np.stack(parts)) for parts in zip(*arrays, strict=True)]
    return _Input(names, times, features, None, about, recording.session.codec)


def _truth(folder: Path, names: Sequence[str], size: int) -> Tensor:
    """Originals of recorded frames, by sequence number."""
    found = load_images(folder, size)
    known = dict(zip(found.names, to_tensor(found.images), strict=True))
    if missing := [name for name in names if name not in known]:
        raise UserError(
            f"{folder} holds no original for frame {missing[0]}: give the edge's truth folder of the same run"
        )
    return torch.stack([known[name] for name in names])


def _groups(times: list[float], windowed: bool, frames: int, stride: float) -> Iterator[list[int]]:
    """Index groups that are solved together: windows of ``frames`` at least ``stride`` seconds apart, or batches."""
    if not windowed:
        for i in range(0, len(times), _BATCH):
            yield list(range(i, min(i + _BATCH, len(times))))
        return
    # frames between two of a window belong to further windows, shifted, so that each frame is in exactly one
    left = list(range(len(times)))
    while left:
        group = [left[0]]
        for i in left[1:]:
            if len(group) == frames:
                break
            if times[i] - times[group[-1]] >= 0.8 * stride:
                group.append(i)
        left = [i for i in left if i not in set(group)]
        yield group


def _columns(rows: list[dict[str, Any]], originals: Tensor | None, images: Tensor) -> list[list[Panel]]:
    """Each reconstruction with its original (where that is known), for up to twelve inputs, evenly spread."""
    columns = []
    for i in spread(len(rows), 12):
        row = rows[i]
        original = [] if originals is None else [Panel(to_pixels(originals[i]), "original", row["name"])]
        figures = None if row["psnr"] is None else f"{row['psnr']:.1f} dB · SSIM {row['ssim']:.2f}"
        columns.append([*original, Panel(to_pixels(images[i]), row["method"], figures)])
    return columns


@subnormals_flushed()
def run_attack(
    method: str,
    *,
    images: Path | None = None,
    video: str | None = None,
    recording: Path | None = None,
    target: str = "resnet18",
    split: str = "L8",
    defense: str | None = None,
    adaptive: bool = True,
    static: int = 1,
    limit: int | None = None,
    seed: int = 0,
    setting: str | None = None,
    time_budget: float | None = None,
    out: Path,
    prior: str = EMBEDDED,
    threads: int | None = None,
    device: str = "cpu",
    frames: int = 4,
    stride: float = 0.5,
    fps: float = 2.0,
    prompts: Sequence[str] | None = None,
    changes: Mapping[str, Any] | None = None,
    truth: Path | None = None,
    gallery: Path | None = None,
    gallery_size: int = 1000,
    gallery_features: str = "pixels",
    weights: Path | None = None,
    inversion: Path | None = None,
    network: Path | None = None,
    evaluators: Sequence[str] = (),
    command: str = "",
    progress: Progress | None = None,
) -> Attacked:
    """Reconstruct every input; write figures, ``grid.png``, ``index.html`` and ``reconstructions/``.

    Exactly one of ``images``, ``video``, ``recording`` is given. For the first two this function also plays
    the edge: it computes the features, and keeps the originals only to score the answers.

    Args:
        method: a name out of ``splitsight list attacks``.
        images: folder of PNG/JPEG, one such file, or Parquet in Hugging Face image format.
        video: path or URL; sampled at ``fps``.
        recording: folder written by a tap's adversary.
        target: attacked network.
        split: a cut of it; ``auto`` for that of the recording, or else :func:`~scenarios.splits.auto.auto_split`'s.
        defense: what the edge does to the features; nothing by default. A recording says itself what was done.
        adaptive: whether the attacker was told the defence; if not, he believes that there is none.
        static: with images, how often each is sent, by an edge in front of a scene that stands still; averaged.
        limit: at most this many inputs.
        seed: of all draws.
        setting: named setting of the method; its first one by default.
        time_budget: wall-clock seconds for the whole run; shared evenly among what is left to do. Every
            input gets an answer, the best one by then.
        out: folder for the results; created.
        prior: name or folder of the generative prior.
        threads: compute threads; PyTorch's default where not given.
        device: where the attack computes: ``auto``, ``cpu``, ``cuda``.
        frames: K, for methods that solve windows.
        stride: seconds between the frames of a window.
        fps: frames a second taken from a video.
        prompts: text prior; each is tried, and for every image (or window) the one with the lowest final loss is
            kept. Without any, the empty one.
        changes: values to replace in the setting, by name.
        truth: for a recording, a folder of originals by sequence number (the edge's side file) to score with.
        gallery: folder of PNG/JPEG or Parquet file with distractors; each reconstruction is then ranked against its
            original and them (see :mod:`splitsight.metrics.gallery`). Without one, still images are ranked among
            each other.
        gallery_size: images that an original is found among, itself included.
        gallery_features: where they are compared, a name out of :data:`splitsight.metrics.gallery.SPACES`.
        weights: the target's weights; the embedded ones by default.
        inversion: file of an inversion network, for methods that start from a preview; the embedded one by default.
        network: file of a black-box method's network; the one in the cache by default. Such a method gets no F1, and on
            a recording none is even loaded.
        evaluators: names or folders of independent classifiers that say whether each reconstruction is recognised
            and which original it is; none by default. None of them may be the attacked network.
        command: that the page names as the one to repeat this run.
        progress: called with (inputs done, inputs, what is going on).

    Raises:
        UserError: unknown names, inputs that cannot be read or attacked, or not exactly one input. Nothing was
            written then.
    """
    if sum(x is not None for x in (images, video, recording)) != 1:
        raise UserError("give exactly one of --images, --video, --recording")
    if limit is not None and limit < 1:
        raise UserError("--limit must be at least 1")
    if time_budget is not None and time_budget <= 0:
        raise UserError("--time-budget must be positive")
    if inversion is not None and not inversion.is_file():
        raise UserError(f"no such file: {inversion}")
    if recording is not None and defense is not None:
        raise UserError("a recording says itself what was done to its features: leave --defense out")
    if static > 1 and images is None:
        raise UserError("--static repeats still images: give it with --images")
    if threads:
        torch.set_num_threads(threads)
    name = target_name(target)
    models = Workbench(target, weights=weights, prior=prior, inversion=inversion, device=device)
    if split == AUTO:
        if recording is not None:
            split = Recording.open(recording).session.about.split
        else:
            split, says = auto_split(models.target)
            print(f"splitsight: {says}", file=sys.stderr)
    attack = ATTACKS.get(method).configured(setting, target=name, split=split, changes=changes)
    needs_network = "network" in attack.needs
    if prompts is not None and not attack.text:
        raise UserError(f"{method} has no use for a text: leave --prompt out, or choose a method with a denoiser")
    if network is not None and not needs_network:
        raise UserError(f"{method} has no use for --network: leave it out, or choose a black-box method")
    if "pipeline" not in attack.needs | attack.uses and prompts is not None and len(prompts) > 1:
        raise UserError(f"{method} cannot tell which prompt fits best, since it has no F1: give one --prompt")
    if images is not None:
        found = load_images(images, models.target.input_size, limit)
        times = [i * stride for i in range(len(found))]
        data = _played(models, found.names, times, found.images, split, defense or UNDEFENDED, seed, static)
        data.labels = torch.from_numpy(found.stored_labels.known(models.target.synonyms))
    elif video is not None:
        data = _filmed(models, video, split, defense or UNDEFENDED, seed, fps, limit)
    else:
        assert recording is not None
        data = _recorded(recording, name, split, limit)
        # an attack that does not know F1 needs no target at all, on features that somebody else recorded
        if "pipeline" in attack.needs | attack.uses:
            models.check(data.about, str(recording))
        if truth is not None:
            data.originals = _truth(truth, data.names, data.about.input_size)
    known = models.target if models.knows_f1 else None
    classes = None if known is None else known.synonyms
    judges = load_evaluators(evaluators, classes, None if known is None else known.digest, name)
    if judges and data.originals is None:
        raise UserError("--evaluator needs the originals of the recording: give them with --truth, or leave it out")
    drawn = lineup = None
    if gallery is not None:
        if data.originals is None:
            raise UserError("--gallery needs the originals of the recording: give them with --truth, or leave it out")
        drawn = Gallery.draw(gallery, models.target, size=gallery_size, features=gallery_features, seed=seed)
        lineup = drawn.against(data.originals)
    texts = None if prompts is None else embed_prompts(models.prior, prompts)
    check_features(data.features, data.about.features)
    _check_windows(attack, frames, len(data), limit)
    groups = list(_groups(data.times, attack.windowed, frames, stride))
    trained = None
    # only an attacker who is told less than there is to know has a belief of his own
    believed = data.about if adaptive else models.believed(data.about)
    if needs_network:
        trained = models.network(attack, believed, frames=frames, text=texts is not None, path=network)
        for group in groups:
            trained.check_features([z[group] for z in data.features])
        if data.originals is not None:
            trained.check_unseen(data.names, to_pixels(data.originals))
    # whatever is missing is said before anything is written
    told: dict[str, Any] = {"codec": data.codec, "network": trained, "adaptive": adaptive, "static": static}
    models.problem(attack, data.about, data.tapped([0]), **told)
    if "initial" in attack.needs:
        models.initial(models.believed(data.about, adaptive=adaptive))

    (out / "reconstructions").mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    answers: dict[int, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        deadline = None
        if time_budget is not None:
            left = start + time_budget - time.monotonic()
            share = len(group) / sum(len(g) for g in groups[number:])
            deadline = time.monotonic() + max(left, 0.0) * share
        problem = models.problem(attack, data.about, data.tapped(group), seed=seed, first=group[0], **told)
        callback = Callback(deadline, progress=_within(progress, len(answers), len(data), len(group)))
        if texts is None:
            answer, prompted = attack.reconstruct(problem, callback=callback), None
        else:
            prompted = solve_with_prompts(attack, problem, texts, callback)
            answer = prompted.answer
        made = models.fitted(answer.images, data.about)
        for position, index in enumerate(group):
            answers[index] = made[position]
            write_png(out / "reconstructions" / f"{data.names[index]}.png", to_pixels(made[position]))
            row = _row(data, index, number, answer, position, made[position], attack, seed)
            if prompted is not None:
                row["prompt"] = prompted.won[position]
                row["prompt_losses"] = [
                    {"prompt": text, "loss": float(loss[position])} for text, loss in prompted.losses.items()
                ]
            rows.append(row)
        if progress is not None:
            progress(len(answers), len(data), "done")
    rows.sort(key=lambda row: row["index"])
    ordered = torch.stack([answers[i] for i in range(len(data))])
    match = None
    if drawn is not None and lineup is not None:
        ranks = lineup.ranks(to_tensor(to_pixels(ordered)))
        rows = [row | {"rank": rank} for row, rank in zip(rows, ranks, strict=True)]
        match = drawn.summary(ranks)
    elif images is not None and len(data) > 1 and data.originals is not None:
        # frames of one clip are too alike for that
        space = space_of(gallery_features, models.target)
        ranks = matched(to_tensor(to_pixels(ordered)), data.originals, range(len(data)), space.features).ranks.tolist()
        rows = [row | {"rank": rank} for row, rank in zip(rows, ranks, strict=True)]
        tops = {f"top{k}": proportion_interval([rank <= k for rank in ranks]) for k in (1, 5)}
        match = {"gallery": len(data), "features": space.name, **tops}
    if judges and data.originals is not None:
        labels = data.labels
        said = asked_beside(
            judges,
            to_tensor(to_pixels(ordered)),
            data.originals,
            labels=None if labels is None else lambda judge: labels_for(judge, labels, classes or []),
            lineup=lineup,
            among=images is not None,
        )
        rows = [row | {column: values[row["index"]] for column, values in said.items()} for row in rows]
    write_parquet(out / "rows.parquet", pa.Table.from_pylist(rows))
    defended = (
        "" if data.about.defense == UNDEFENDED else f", {data.about.defense}" + ("" if adaptive else ", not told")
    )
    threat = "black-box" if needs_network else "white-box"
    header = f"{name} at {split}{defended} · {threat} · {method} ({attack.setting}) · from the features alone"
    columns = _columns(rows, data.originals, ordered)
    write_png(out / "grid.png", grid(columns, header))
    digests = {"head": data.about.head_digest, **models.loaded()}
    digests |= {f"evaluator:{judge.name}": judge.digest for judge in judges}
    summary = Summary.model_validate(
        {
            "target": name,
            "split": split,
            "methods": {method: _method(rows, match, named(judges))},
            "environment": environment(digests, device_name(models.device))
            | {"session": data.about.to_dict()}
            | ({"defense": models.pipeline(split, data.about.defense).accounting()} if models.knows_f1 else {})
            | _prompts(rows),
        }
    )
    write_summary(out / "summary.json", summary)
    config = {
        "method": method,
        "setting": attack.setting,
        "settings": attack.settings.dump(),
        "defense": data.about.defense,
        "adaptive": adaptive,
        "static": static,
        "seed": seed,
        "limit": limit,
        "time_budget": time_budget,
        "prior": prior,
        "prompts": prompts,
        "frames": frames,
        "stride": stride,
        "fps": fps,
        "input": str(images or video or recording),
        "recording": recording is not None,
        "threat": threat,
        "command": command,
        "gallery": None if gallery is None else str(gallery),
        "evaluators": [judge.name for judge in judges],
        "seconds": time.monotonic() - start,
    }
    write_json(out / "config.json", config)
    write_page(out, summary, rows, config, columns, [] if known is None else list(known.aliases))
    return Attacked(out, _says(out, method, split, summary.methods[method], named(judges)))


def _says(out: Path, method: str, split: str, found: MethodSummary, asked: Sequence[Metric]) -> str:
    parts = [f"{found.n} image{'s' if found.n != 1 else ''}"]
    for metric in [*image_metrics(), *asked]:
        interval = found.interval(metric.name)
        if metric.plotted and interval is not None and interval.mean is not None:
            parts.append(f"{metric.title} {metric.text(interval.mean)}{' ' + metric.unit if metric.unit else ''}")
    if found.match is not None and found.match.top1.mean is not None:
        parts.append(f"{found.match.top1.mean:.0%} found first among {found.match.gallery:,}")
    parts.append(f"{found.seconds_per_image:.2g} s an image")
    return f"{method} at {split}: {', '.join(parts)}; see {out / 'grid.png'} and {out / 'index.html'}"


def _check_windows(attack: Attack, frames: int, inputs: int, limit: int | None) -> None:
    if not attack.windowed:
        return
    if frames < 2:
        raise UserError(f"{attack.name} couples the frames of a window: give --frames of at least 2")
    if frames > inputs:
        # a limit that was reached may be what keeps the window from filling, not the input
        who, remedy = ("--limit leaves", " or a larger --limit") if inputs == limit else ("the input holds", "")
        held = f"{inputs} frame{'s' if inputs != 1 else ''}"
        raise UserError(f"{who} {held}, fewer than a window of {frames}: give a smaller --frames{remedy}")


def _prompts(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """For the summary: how often each prompt won, and its mean final loss."""
    if "prompt" not in rows[0]:
        return {}
    found = {}
    for i, entry in enumerate(rows[0]["prompt_losses"]):
        losses = [row["prompt_losses"][i]["loss"] for row in rows]
        won = sum(row["prompt"] == entry["prompt"] for row in rows)
        found[entry["prompt"]] = {"won": won, "loss": float(np.mean(losses))}
    return {"prompts": found}


def _within(
    progress: Progress | None, done: int, planned: int, together: int
) -> Callable[[int, int, float], None] | None:
    """A solver's progress as part of the whole run's."""
    if progress is None:
        return None
    return lambda i, n, loss: progress(done, planned, f"{together} together, step {i}/{n}, loss {loss:.4g}")


def _row(
    data: _Input,
    index: int,
    group: int,
    answer: Reconstruction,
    position: int,
    image: Tensor,
    attack: Attack,
    seed: int,
) -> dict[str, Any]:
    # scored as it is written to disk: eight bits a channel
    stored = (image.clamp(0, 1) * 255).round() / 255
    quality: dict[str, float | None] = dict.fromkeys(metric.name for metric in image_metrics())
    if data.originals is not None:
        scores = measure(image_metrics(), Batch(reconstruction=stored[None], original=data.originals[index][None]))
        quality = {name: values[0] for name, values in scores.items()}
    return {
        "name": data.names[index],
        "index": index,
        "time_s": data.times[index],
        "group": group,
        "method": attack.name,
        "setting": attack.setting,
        "defense": data.about.defense,
        "seed": seed,
        **quality,
        "loss": answer.loss if answer.losses is None else float(answer.losses[position]),
        "iterations": answer.iterations,
        "model_evaluations": answer.model_evaluations,
        "seconds": answer.seconds,
        **answer.about,
    }


def _method(rows: list[dict[str, Any]], match: dict[str, Any] | None, asked: Sequence[Metric]) -> MethodSummary:
    known = any(row["psnr"] is not None for row in rows)
    effort = {key: float(np.mean([row[key] for row in rows])) for key in ("iterations", "model_evaluations")}
    return MethodSummary.model_validate(
        {
            "n": len(rows),
            "seconds_per_image": float(np.mean([row["seconds"] for row in rows])),
            **effort,
            "match": match,
            **{m.name: m.interval(row[m.name] for row in rows) if known else None for m in image_metrics()},
            **{m.name: m.interval(m.value(row.get(m.column)) for row in rows) for m in asked},
        }
    )
