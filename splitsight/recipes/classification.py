"""Classification: cross-entropy with smoothed labels, and optionally what another network answers (distillation).

``L = (1 − w) · CE(y) + w · T² · KL(softmax(t / T) ‖ softmax(s / T))`` with a teacher's logits t (Hinton et al., arXiv
1503.02531), w = ½, T = 2. The teacher answers once for each image as it is and mirrored, the mean of which is kept: a
student then sees crops of what the teacher saw whole, which costs a little accuracy and saves the teacher's time at
every step. Images are cropped at random and mirrored; their resolution grows with the spent budget (progressive
resizing), which on a CPU buys about twice the epochs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax, softmax

from splitsight.artifacts import home, kernels, load_weights, save_weights
from splitsight.data import read_classes, to_tensor
from splitsight.errors import UserError
from splitsight.files import write_text, writing
from splitsight.recipes import MEAN, STD, Draw, Options, Recipe
from splitsight.targets import Normalize, Target, load
from splitsight.training import progress_of, random_crops

__all__ = ["Classification", "accuracy", "distillation", "teacher_logits"]

_SMOOTHING, _SHARE, _TEMPERATURE = 0.1, 0.5, 2.0
# (from this spent fraction on, resolution as a part of the full one, crop side range)
_STAGES = ((0.0, 0.5, (0.5, 1.0)), (0.35, 0.75, (0.6, 1.0)), (0.55, 1.0, (0.6, 1.05)))


@torch.no_grad()
def accuracy(
    logits: Callable[[Tensor], Tensor], images: np.ndarray, labels: np.ndarray, batch: int = 250
) -> dict[str, float]:
    """Top-1 and top-5 accuracy, each in [0, 1].

    Args:
        logits: images in [0, 1] → ``(B, classes)``.
        images: ``(N, H, W, 3)`` uint8.
        labels: ``(N,)``.
        batch: images at a time.
    """
    top1 = top5 = 0
    for i in range(0, len(images), batch):
        out = logits(to_tensor(images[i : i + batch]))
        order = out.topk(min(5, out.shape[1])).indices.cpu()
        hit = order == torch.from_numpy(labels[i : i + batch])[:, None]
        top1 += int(hit[:, 0].sum())
        top5 += int(hit.sum())
    return {"top1": top1 / len(images), "top5": top5 / len(images)}


def distillation(student: Tensor, teacher: Tensor, temperature: float = _TEMPERATURE) -> Tensor:
    """``T² · KL(softmax(t / T) ‖ softmax(s / T))``, the mean over ``(B, classes)`` logits."""
    target = softmax(teacher / temperature, 1)
    return temperature**2 * kl_div(log_softmax(student / temperature, 1), target, reduction="batchmean")


@torch.no_grad()
def teacher_logits(teacher: Target, images: np.ndarray, batch: int = 250) -> np.ndarray:
    """A classifier's logits, the mean over an image and its mirror image, ``(N, classes)`` float16; kept in the cache.

    Args:
        teacher: answers.
        images: ``(N, S, S, 3)`` uint8 of its input size.
        batch: images at a time.
    """
    sample = hashlib.sha256(np.ascontiguousarray(images[:: max(1, len(images) // 200)]).tobytes()).hexdigest()
    file = home() / "teachers" / f"{teacher.digest[:16]}-{sample[:16]}-{len(images)}.npy"
    if not file.is_file():
        model = teacher.model.to(memory_format=torch.channels_last)
        found = []
        with progress_of(f"answers of {teacher.name}", len(images)) as done:
            for i in range(0, len(images), batch):
                x = teacher.preprocess(to_tensor(images[i : i + batch]).to(teacher.device))
                x = x.contiguous(memory_format=torch.channels_last)
                found.append(((model(x) + model(x.flip(-1))) / 2).half().cpu().numpy())
                done(len(x))
        with writing(file) as partial, partial.open("wb") as opened:
            np.save(opened, np.concatenate(found))
    return np.load(file, mmap_mode="r")


class Classification(Recipe):
    """A classifier of 64 × 64 images.

    Args:
        options: of the training.

    Raises:
        UserError: no labels; or a teacher of other classes, ``--start`` weights of another network.
    """

    name: str
    size = 64
    eight_bit = True
    """Whether kernels are kept in 8 bits; else everything in float16."""

    def __init__(self, options: Options) -> None:
        if options.photos is not None:
            raise UserError(f"{self.name} is trained on --data alone: leave --photos out")
        self._options = options
        self._images, self._held = options.data.images(self.size)
        self._labels, self._held_labels = options.data.classified(self.size)
        assert options.data.classes is not None
        self._classes = read_classes(options.data.classes)
        self.count = len(self._images)
        self.preprocess = Normalize(MEAN, STD).to(options.device)
        torch.manual_seed(options.seed)
        model = self.build(len(self._classes))
        if options.start is not None:
            try:
                model.load_state_dict(load_weights(options.start))
            except RuntimeError as error:
                raise UserError(
                    f"{options.start} does not hold a {self.name} with {len(self._classes)} classes: give another "
                    "--start, or none"
                ) from error
            self.peak *= 0.6
        self.model = model.to(options.device).to(memory_format=torch.channels_last)
        self._teacher = None if options.teacher is None else self._answers(options.teacher)

    def _answers(self, name: str) -> np.ndarray:
        teacher = load(name).to(self._options.device)
        if teacher.synonyms != self._classes or teacher.input_size != self.size:
            raise UserError(
                f"--teacher {name} answers in other classes, or for other sizes, than {self.name} is to learn: give "
                "another, or none"
            )
        return teacher_logits(teacher, self._images)

    @abstractmethod
    def build(self, classes: int) -> nn.Module:
        """The network with random weights."""

    def logits(self, model: nn.Module, images: Tensor, draw: Draw) -> Tensor:
        """What a step computes: cropped images ``(B, 3, s, s)`` in [0, 1] → logits ``(B, classes)``."""
        return model(self.preprocess(images).contiguous(memory_format=torch.channels_last))

    def stage(self, fraction: float) -> tuple[int, tuple[float, float]]:
        """Pixels of a crop, and its side's range as a part of the image's, at a spent fraction of the budget."""
        part, scale = next((part, scale) for start, part, scale in reversed(_STAGES) if fraction >= start)
        return int(self.size * part) // 8 * 8, scale

    def loss(self, draw: Draw) -> tuple[Tensor, dict[str, float]]:
        """Cross-entropy, with a teacher half of it and half distillation; the log has the training's top-1."""
        device = self._options.device
        x = to_tensor(self._images[draw.index]).to(device)
        y = torch.from_numpy(self._labels[draw.index]).to(device)
        size, scale = self.stage(draw.fraction)
        logits = self.logits(self.model, random_crops(x, size, scale, draw.generator), draw).float()
        loss = cross_entropy(logits, y, label_smoothing=_SMOOTHING)
        if self._teacher is not None:
            answers = torch.from_numpy(self._teacher[draw.index].astype(np.float32)).to(device)
            loss = (1 - _SHARE) * loss + _SHARE * distillation(logits, answers)
        return loss, {"train_top1": float((logits.argmax(1) == y).float().mean())}

    def measure(self, model: nn.Module, most: int | None = None) -> dict[str, float]:
        """``top1`` and ``top5``."""

        def logits(images: Tensor) -> Tensor:
            images = self.preprocess(images.to(self._options.device))
            return model.eval()(images.contiguous(memory_format=torch.channels_last))

        return accuracy(logits, self._held[:most], self._held_labels[:most])

    def save(self, folder: Path, model: nn.Module) -> None:
        """``model.safetensors``, ``config.json``, ``classes.tsv``."""
        eight_bit = kernels(model) if self.eight_bit else ()
        save_weights(folder / "model.safetensors", model.state_dict(), eight_bit=eight_bit)
        config = {
            "name": self.name,
            "architecture": self.name,
            "num_classes": len(self._classes),
            "input_size": self.size,
            "mean": MEAN,
            "std": STD,
        }
        write_text(folder / "config.json", json.dumps(config) + "\n")
        assert self._options.data.classes is not None
        shutil.copyfile(self._options.data.classes, folder / "classes.tsv")

    def restore(self, folder: Path, model: nn.Module) -> None:
        """From ``model.safetensors``."""
        model.load_state_dict(load_weights(folder / "model.safetensors"))

    def describe(self) -> dict[str, str]:
        """With the classes and the teacher; ``what`` is to be extended by what the network is."""
        bits = "8-bit kernels" if self.eight_bit else "float16 weights"
        notes = "Made to be attacked: a realistic, not a state-of-the-art classifier."
        if self._options.teacher:
            notes += (
                f" It learnt from labels and from the logits of {self._options.teacher} on its training images "
                "(distillation), half and half."
            )
        return {
            "what": f"{len(self._classes)} classes, input {self.size} × {self.size}, {bits}.",
            "data": f"{self._options.data.description}.",
            "notes": notes,
        }
