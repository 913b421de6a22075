"""Targets: networks that are split between edge and cloud, and whose features are attacked.

A family is one file in this package: a class that derives from :class:`Target` and registers itself with
``@TARGETS.register("name")``. It says how the model is built, how images become its input, where it can be
cut (head and tail share the model's modules, so memory is held once), and how its output is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from splitsight.artifacts import digest, load_weights
from splitsight.errors import UserError, unknown_name
from splitsight.registry import Registry
from splitsight.split import FeatureSpec

__all__ = [
    "TARGETS",
    "FeatureSpec",
    "Head",
    "Normalize",
    "Prediction",
    "Ranked",
    "Tail",
    "Target",
    "load",
    "load_state",
    "read_classes",
]


class Ranked(NamedTuple):
    """One class of a prediction: index, label, softmax probability in [0, 1]."""

    index: int
    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a classifier says about one image.

    Attributes:
        top: most probable class first; five, or all where there are fewer.
    """

    top: list[Ranked]


class Normalize(nn.Module):
    """``(x − mean) / std`` per channel; differentiable.

    Args:
        mean: one a channel, on the scale of images in [0, 1].
        std: likewise.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` in [0, 1] → normalised, same shape."""
        return (images - self.mean) / self.std


class Head(nn.Module):
    """F1 with the preprocessing in front: images in [0, 1] → the tensors that cross.

    Args:
        preprocess: images → model input.
        body: model input → a tensor, or a tuple of tensors.
    """

    def __init__(self, preprocess: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.body = body

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``(B, 3, H, W)`` in [0, 1] → features, each with the batch dimension first."""
        features = self.body(self.preprocess(images))
        return features if isinstance(features, tuple) else (features,)


class Tail(nn.Module):
    """F2: the tensors that crossed → the model's output.

    Args:
        body: takes the features as positional arguments.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features as :class:`Head` gave them → logits ``(B, classes)``."""
        return self.body(*features)


class Target(ABC):
    """A network in eval mode without gradients on its weights, and everything needed to split and read it.

    Subclasses build the model and call this constructor; they implement :meth:`points` and :meth:`bodies`.

    Args:
        name: under which it is registered.
        model: takes preprocessed images, returns logits ``(B, classes)``.
        preprocess: maps images in [0, 1] to the model's input; differentiable.
        synonyms: all names of each class, in label order; the first of each is its label.
        input_size: side of the square input image, in pixels.
    """

    def __init__(
        self, name: str, model: nn.Module, preprocess: nn.Module, synonyms: list[list[str]], input_size: int
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.preprocess = preprocess.eval()
        self.synonyms = synonyms
        self.labels = [names[0] for names in synonyms]
        self.input_size = input_size
        self.digest = digest(model.state_dict())
        self._specs = lru_cache(maxsize=None)(self._measure)

    @abstractmethod
    def points(self) -> list[str]:
        """Names of the split points, shallow first."""

    @abstractmethod
    def bodies(self, point: str) -> tuple[nn.Module, nn.Module]:
        """``(F1, F2)`` on model inputs for a name out of :meth:`points`; both share the model's weights."""

    def _check(self, point: str) -> None:
        if point not in self.points():
            raise unknown_name(f"split of {self.name}", point, self.points())

    def head(self, point: str) -> nn.Module:
        """F1 on images: ``(B, 3, S, S)`` in [0, 1] → tuple of features, with the preprocessing inside.

        Raises:
            UserError: no such split point.
        """
        self._check(point)
        return Head(self.preprocess, self.bodies(point)[0]).eval()

    def tail(self, point: str) -> nn.Module:
        """F2: the tuple of features → logits ``(B, classes)``.

        Raises:
            UserError: no such split point.
        """
        self._check(point)
        return Tail(self.bodies(point)[1]).eval()

    @torch.no_grad()
    def _measure(self, point: str) -> tuple[FeatureSpec, ...]:
        features = self.head(point)(torch.zeros(1, 3, self.input_size, self.input_size, device=self.device))
        return tuple(FeatureSpec(f"z{i}", tuple(f.shape[1:])) for i, f in enumerate(features))

    def feature_specs(self, point: str) -> list[FeatureSpec]:
        """What crosses the split point, in order, without batch dimension.

        Raises:
            UserError: no such split point.
        """
        self._check(point)
        return list(self._specs(point))

    def read(self, logits: Tensor) -> list[Prediction]:
        """``(B, classes)`` → one prediction an image."""
        top = logits.detach().float().softmax(1).topk(min(5, logits.shape[1]), dim=1)
        return [
            Prediction([Ranked(i, self.labels[i], p) for p, i in zip(values, indices, strict=True)])
            for values, indices in zip(top.values.tolist(), top.indices.tolist(), strict=True)
        ]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> Target:
        """Move weights and preprocessing, for heads and tails already made too; returns itself."""
        self.model.to(device)
        self.preprocess.to(device)
        return self


TARGETS: Registry[type[Target]] = Registry("target", __name__)


def load(name: str, weights: Path | None = None) -> Target:
    """Build a target.

    Args:
        name: registered name (``splitsight list targets``).
        weights: safetensors file or PyTorch state dict; ``None`` for the embedded weights.

    Raises:
        UserError: unknown name, no such file, unreadable file, or weights that do not fit.
    """
    return TARGETS.get(name)(weights)  # type: ignore[arg-type, call-arg]


def load_state(model: nn.Module, path: Path, *, name: str, classifier: str) -> None:
    """Load a state dict from a safetensors or PyTorch file into a model, all of it or not at all.

    Args:
        model: receives the weights.
        path: ``*.safetensors``, or a file that ``torch.save`` wrote: a state dict, or one under
            ``state_dict`` or ``model``; a ``module.`` prefix of data parallel training is dropped.
        name: of the target, for messages.
        classifier: parameter whose first dimension is the number of classes.

    Raises:
        UserError: missing, unreadable, or not the weights of this model; says what differs.
    """
    state = _read_state(path)
    own = model.state_dict()
    if classifier in state and state[classifier].shape[0] != own[classifier].shape[0]:
        raise UserError(
            f"{path} holds {state[classifier].shape[0]} classes but {name} has {own[classifier].shape[0]}: "
            "give weights trained on the same classes"
        )
    # counters that BatchNorm keeps only since PyTorch 0.4.1, without effect in eval mode
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    if missing or extra:
        what = f"lacks '{missing[0]}'" if missing else f"has an unexpected '{extra[0]}'"
        raise UserError(
            f"{path} does not hold the weights of {name}: it {what} "
            f"({len(missing)} missing, {len(extra)} unexpected); give a file saved from the same architecture"
        )
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise UserError(
                f"{path} does not fit {name}: '{key}' is {tuple(value.shape)} where {tuple(own[key].shape)} is needed; "
                "give a file saved from the same architecture"
            )
        if not torch.isfinite(value).all():
            raise UserError(f"{path} holds NaN or infinite weights in '{key}': retrain or restore it")
    model.load_state_dict(state, strict=False)


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors" or not path.is_file():
        return load_weights(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler raises whatever the bytes lead it to
        raise UserError(
            f"{path} is not a readable PyTorch state dict ({type(error).__name__}): "
            "give a .safetensors file, or a .pt file written by torch.save(model.state_dict(), …)"
        ) from error
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{path} does not hold a state dict: save model.state_dict() into it")
    state = {str(k).removeprefix("module."): v for k, v in state.items()}
    return {k: (v.float() if v.is_floating_point() else v) for k, v in state.items()}


def read_classes(path: Path) -> list[list[str]]:
    """Synonyms of each class, in label order, from ``label ⟶ WordNet id ⟶ names`` (tab- and comma-separated).

    Raises:
        UserError: the file is missing or a line is not in that form.
    """
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [[name.strip() for name in row[2].split(",")] for row in sorted(rows, key=lambda row: int(row[0]))]
    except (OSError, IndexError, ValueError) as error:
        raise UserError(
            f"{path} is not a readable class table ({type(error).__name__}): it needs label, id and names on each line"
        ) from error
