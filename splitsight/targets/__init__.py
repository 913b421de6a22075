"""Targets: networks that are split between edge and cloud, and whose features are attacked.

A family is one file in this package (or in another, by the entry-point group ``splitsight.targets``): a class that
derives from :class:`Target` and registers itself with ``@TARGETS.register("name")``. It says how the model is built,
how images become its input, and what its output means. Where it can be cut is found by :mod:`splitsight.split`; a
family may give points the names that its literature uses, and may cut those by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from splitsight.artifacts import asset, digest, load_weights
from splitsight.data import read_classes
from splitsight.errors import UserError, unknown_name
from splitsight.features import FeatureSpec
from splitsight.registry import Registry
from splitsight.specification import LIBRARIES, Specification, specify
from splitsight.split import CutPoint, Traced, half_state, trace
from splitsight.tasks import Task

__all__ = [
    "OUTPUT",
    "TARGETS",
    "Cut",
    "FeatureSpec",
    "Head",
    "Normalize",
    "Tail",
    "Target",
    "load",
    "load_state",
    "read_classes",
    "read_state",
]

OUTPUT = "output"
"""The cut behind the last layer: what crosses is the output itself."""


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

    def forward(self, features: Sequence[Tensor]) -> Any:
        """Features as :class:`Head` gave them → the model's output."""
        return self.body(*features)


@dataclass(frozen=True)
class Cut:
    """A target in two halves, which share its weights.

    Attributes:
        name: as the target knows it.
        head: F1 on images ``(B, 3, S, S)`` in [0, 1], with the preprocessing inside → tuple of features.
        tail: F2, the tuple of features → the model's output.
        specs: what crosses, in order.
        head_digest: SHA-256 over the weights that F1 reads, and the constants of the preprocessing.
        tail_digest: SHA-256 over the weights that F2 reads.
    """

    name: str
    head: nn.Module
    tail: nn.Module
    specs: tuple[FeatureSpec, ...]
    head_digest: str
    tail_digest: str


class Target:
    """A network in eval mode without gradients on its weights, and everything needed to split and read it.

    Subclasses build the model and call this constructor.

    Args:
        name: under which it is registered.
        model: takes preprocessed images.
        preprocess: maps images in [0, 1] to the model's input; differentiable.
        task: what the output means.
        input_size: side of the square input image, in pixels.
        aliases: the family's names of split points, shallow first → names that :mod:`splitsight.split` finds. Without
            any, the points of one tensor that are found are the ones that are offered.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        preprocess: nn.Module,
        task: Task,
        input_size: int,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.model = model.eval().requires_grad_(False)
        self.preprocess = preprocess.eval()
        self.task = task
        self.input_size = input_size
        self.aliases = dict(aliases or {})
        self.digest = digest(model.state_dict())
        self.cut = lru_cache(maxsize=None)(self._cut)

    @property
    def labels(self) -> list[str]:
        """Names of the classes; empty where the task has none."""
        return list(self.task.labels)

    @property
    def synonyms(self) -> list[list[str]]:
        """All names of each class, its label first."""
        return getattr(self.task, "synonyms", [[label] for label in self.labels])

    @cached_property
    def traced(self) -> Traced:
        """The model as a graph.

        Raises:
            UserError: it cannot be traced.
        """
        return trace(self.model, self.preprocess(self._blank(2)))

    def _blank(self, batch: int) -> Tensor:
        return torch.zeros(batch, 3, self.input_size, self.input_size, device=self.device)

    def points(self) -> list[str]:
        """Names of the split points that are offered, shallow first; :meth:`cut` takes others of the graph too."""
        return list(self.aliases) or [point.name for point in self.cut_points()]

    def cut_points(self, max_tensors: int = 1) -> list[CutPoint]:
        """Points of the graph where at most so many tensors cross, shallow first; see :mod:`splitsight.split`."""
        return self.traced.cut_points(max_tensors)

    def halves(self, point: str) -> tuple[nn.Module, nn.Module] | None:
        """``(F1, F2)`` on model inputs, cut by hand; ``None`` leaves it to the graph.

        For families that know their modules and would rather not be traced at every start.
        """
        return None

    @torch.no_grad()
    def _cut(self, point: str) -> Cut:
        halves: tuple[nn.Module, nn.Module] | None = self.halves(point)
        if halves is None and point == OUTPUT:
            halves = (self.model, nn.Identity())
        if halves is None:
            try:
                halves = self.traced.split(self.aliases.get(point, point))
            except UserError as error:
                if type(self).points is Target.points and not self.aliases:
                    raise
                named = f"{', '.join(self.points())}, {OUTPUT}"
                raise UserError(
                    f"unknown split of {self.name} '{point}': choose one of {named}, or a point of its graph ({error})"
                ) from error
        head, tail = Head(self.preprocess, halves[0]).eval(), Tail(halves[1]).eval()
        features = head(self._blank(2))
        if not all(isinstance(z, Tensor) and z.is_floating_point() and len(z) == 2 for z in features):
            raise UserError(f"the output of {self.name} is no tensor that could cross: choose a split point before it")
        specs = tuple(FeatureSpec(f"z{i}", tuple(z.shape[1:])) for i, z in enumerate(features))
        constants = {f"preprocess.{k}": v for k, v in self.preprocess.named_buffers()}
        constants |= {f"preprocess.{k}": v for k, v in self.preprocess.named_parameters()}
        return Cut(
            point,
            head,
            tail,
            specs,
            digest(half_state(self.model, halves[0]) | constants),
            digest(half_state(self.model, halves[1])),
        )

    def head(self, point: str) -> nn.Module:
        """F1 of a cut; see :class:`Cut`."""
        return self.cut(point).head

    def tail(self, point: str) -> nn.Module:
        """F2 of a cut; see :class:`Cut`."""
        return self.cut(point).tail

    def feature_specs(self, point: str) -> list[FeatureSpec]:
        """What crosses a cut, in order, without batch dimension."""
        return list(self.cut(point).specs)

    @torch.no_grad()
    def answers(self, images: Tensor) -> Tensor:
        """Images ``(B, 3, H, W)`` in [0, 1] → class of the best answer to each, ``(B,)``; −1 where there is none."""
        best = [reading.best() for reading in self.task.read(self.model(self.preprocess(images.to(self.device))))]
        return torch.tensor([-1 if label is None else label.index for label in best])

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.model.parameters()).device

    def to(self, device: torch.device | str) -> Target:
        """Move weights and preprocessing, for heads and tails already made too; returns itself."""
        self.model.to(device)
        self.preprocess.to(device)
        return self


TARGETS: Registry[Callable[[Path | None], Target]] = Registry("target", __name__)
"""What takes a file of weights, ``None`` for the embedded ones; as a rule a class that derives from :class:`Target`."""


def load(name: str, weights: Path | None = None, *, input_size: int | None = None) -> Target:
    """Build a target.

    Args:
        name: registered name (``splitsight list targets``), or a specification of a network that is none of them; see
            :mod:`splitsight.specification`.
        weights: safetensors file or PyTorch state dict; ``None`` for those that come with the target. For a library's
            network also a name that the library has for weights of its own, or ``random``.
        input_size: side of the images in pixels, where the specification leaves it open.

    Raises:
        UserError: unknown name, no such file, unreadable file, weights that do not fit, or a model that does not take
            images of this size.
    """
    given = Specification.parse(specify(name, None if input_size is None else str(input_size)))
    if given.source:
        source = import_module(f"splitsight.targets.sources.{given.source}")
        target: Target = source.build(given.what, weights, given.input_size)
    elif given.what in (known := TARGETS.names()):
        target = TARGETS.get(given.what)(weights)
    else:
        others = ", ".join(f"{library}:…" for library in LIBRARIES)
        raise UserError(f"{unknown_name('target', given.what, known)}; or give {others}, or MODULE:CALLABLE")
    target.name = given.name
    return target


def load_state(model: nn.Module, path: Path, *, name: str, classifier: str | None) -> None:
    """Load a state dict from a safetensors or PyTorch file into a model, all of it or not at all.

    Args:
        model: receives the weights.
        path: ``*.safetensors``, or a file that ``torch.save`` wrote: a state dict, or one under
            ``state_dict`` or ``model``; a ``module.`` prefix of data parallel training is dropped.
        name: of the target, for messages.
        classifier: parameter whose first dimension is the number of classes; ``None`` where there is none.

    Raises:
        UserError: missing, unreadable, or not the weights of this model; says what differs.
    """
    if not path.is_file() and path.is_relative_to(asset()):
        raise UserError(
            f"the weights of {name} are not in this installation ({path}): make them with `splitsight train target "
            f"{name} --data DIR --minutes 60 --out DIR`, and give the model.safetensors that this leaves with --weights"
        )
    state = read_state(path)
    own = model.state_dict()
    if classifier is not None and classifier in state and state[classifier].shape[0] != own[classifier].shape[0]:
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


def read_state(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, as :func:`load_state` takes it.

    Raises:
        UserError: missing or unreadable.
    """
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
