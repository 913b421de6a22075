"""What a person would ask of a reconstruction, asked while the stream runs: is it recognised, is the original found?

An independent classifier (:mod:`splitsight.evaluators`) says whether the reconstruction looks to it like what the
original looks like; where there is a gallery, the original's place among its images says whether one could tell which
image this was. One thread at low priority, the latest frame first; what it had no time for is passed over.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scenarios.priority import step_back
from splitsight.data import to_tensor
from splitsight.pipeline import resized

if TYPE_CHECKING:
    from splitsight.evaluators import Evaluator
    from splitsight.metrics.gallery import Gallery
    from splitsight.targets import Target

__all__ = ["Judge", "Tally", "Verdict", "judged", "whole"]

_WAITING, _KEPT, _TALLIED = 16, 256, 60


@dataclass(frozen=True)
class Verdict:
    """What is said of one reconstruction.

    Attributes:
        seen: what the classifier sees in it.
        original: what it sees in the original.
        rank: the original's place among the gallery, 1 for found first; ``None`` without a gallery.
        gallery: images that it was found among, itself included.
    """

    seen: str
    original: str
    rank: int | None = None
    gallery: int = 0

    @property
    def recognised(self) -> bool:
        """Whether both look like the same thing."""
        return self.seen == self.original

    @property
    def sentence(self) -> str:
        """For people."""
        if self.recognised:
            said = f"Recognised: a classifier sees “{self.seen}”, as in the original."
        else:
            said = f"Not recognised: a classifier sees “{self.seen}”, in the original “{self.original}”."
        if self.rank is None:
            return said
        if self.rank == 1:
            return said + f" The original is found first among {self.gallery:,} images."
        return said + f" Looking for the original among {self.gallery:,} images, {self.rank - 1:,} seem more alike."


def judged(image: np.ndarray, truth: np.ndarray, evaluator: Evaluator, gallery: Gallery | None = None) -> Verdict:
    """Judge a reconstruction.

    Args:
        image: ``(h, w, 3)`` uint8 RGB.
        truth: the original, likewise.
        evaluator: who is asked.
        gallery: among which the original is looked for.
    """
    originals = to_tensor(truth[None])
    images = resized(to_tensor(image[None]), originals.shape[-1])
    seen, right = evaluator.logits(torch.cat([images, originals])).argmax(1).tolist()
    rank = None if gallery is None else gallery.against(originals).ranks(images)[0]
    size = 0 if gallery is None else gallery.size
    return Verdict(evaluator.labels[seen], evaluator.labels[right], rank, size)


@dataclass(frozen=True)
class Tally:
    """Of the last reconstructions of one tier."""

    judged: int
    recognised: int
    first: int | None


class Judge:
    """Judges in a thread; tells also how often the cloud answers what the whole network would."""

    def __init__(self) -> None:
        self._evaluator: Evaluator | None = None
        self._gallery: Gallery | None = None
        self._whole: Callable[[np.ndarray], str] | None = None
        self._answers: deque[bool] = deque(maxlen=_TALLIED)
        self._waiting: deque[tuple[tuple[str, int | str], np.ndarray, np.ndarray]] = deque(maxlen=_WAITING)
        self._verdicts: OrderedDict[tuple[str, int], Verdict] = OrderedDict()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="judge", daemon=True)
        self._thread.start()

    def submit(self, tier: str, sequence: int, image: np.ndarray, truth: np.ndarray) -> None:
        """Have a reconstruction judged, soon."""
        if self._evaluator is not None:
            with self._changed:
                self._waiting.append(((tier, sequence), image, truth))
                self._changed.notify()

    def verdict(self, tier: str, sequence: int) -> Verdict | None:
        """What was said, if anything yet."""
        with self._changed:
            return self._verdicts.get((tier, sequence))

    def latest(self, tier: str) -> tuple[int, Verdict] | None:
        """The frame of a tier that was judged last, and what was said; ``None`` before the first."""
        with self._changed:
            return next(((n, v) for (of, n), v in reversed(self._verdicts.items()) if of == tier), None)

    def tally(self, tier: str) -> Tally | None:
        """Of the last reconstructions of a tier; ``None`` before the first."""
        with self._changed:
            found = [v for (of, _), v in self._verdicts.items() if of == tier][-_TALLIED:]
        if not found:
            return None
        ranked = [v.rank for v in found if v.rank is not None]
        first = sum(rank == 1 for rank in ranked) if ranked else None
        return Tally(len(found), sum(v.recognised for v in found), first)

    def begin(self, evaluator: Evaluator | None, gallery: Gallery | None, whole: Callable[[np.ndarray], str]) -> None:
        """Another stream begins.

        Args:
            evaluator: who is asked; ``None`` judges nothing.
            gallery: see :func:`judged`.
            whole: the class that the whole, undefended network sees in an image; empty for none.
        """
        with self._changed:
            self._evaluator, self._gallery, self._whole = evaluator, gallery, whole
            self._waiting.clear()
            self._verdicts.clear()
            self._answers.clear()

    @property
    def gallery_size(self) -> int:
        """Images that originals are looked for among; 0 for no gallery."""
        return 0 if self._gallery is None else self._gallery.size

    def now(self, image: np.ndarray, truth: np.ndarray) -> Verdict | None:
        """Judge at once, in the caller's thread."""
        return None if self._evaluator is None else judged(image, truth, self._evaluator, self._gallery)

    def compare(self, answer: str, truth: np.ndarray) -> None:
        """Have a cloud's answer compared with what the whole network says of the original, soon."""
        with self._changed:
            self._waiting.append((("", answer), truth, truth))
            self._changed.notify()

    def agreement(self) -> float | None:
        """Share of the last answers that are as the whole network's; ``None`` before the first."""
        with self._changed:
            return sum(self._answers) / len(self._answers) if self._answers else None

    def close(self) -> None:
        """End the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(5)

    def _work(self) -> None:
        step_back()
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                key, image, truth = self._waiting.pop()
                evaluator, gallery, whole = self._evaluator, self._gallery, self._whole
            tier, what = key
            if isinstance(what, str):
                if whole is not None and (right := whole(truth)):
                    self._answers.append(right == what)
                continue
            if evaluator is None:
                continue
            verdict = judged(image, truth, evaluator, gallery)
            with self._changed:
                self._verdicts[tier, what] = verdict
                while len(self._verdicts) > _KEPT:
                    self._verdicts.popitem(last=False)


def whole(target: Target) -> Callable[[np.ndarray], str]:
    """The class that the whole, undefended network sees in an image; empty where its task names none."""

    def seen(image: np.ndarray) -> str:
        with torch.inference_mode():
            output = target.model(target.preprocess(resized(to_tensor(image[None]), target.input_size)))
        best = target.task.read(output)[0].best()
        return "" if best is None else str(best.name)

    return seen
