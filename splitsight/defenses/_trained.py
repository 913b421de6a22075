"""Defences that come as a file of weights: where it is found, what it was made for, and the sentence that refuses it.

A file is safetensors (:func:`splitsight.artifacts.save_weights`) with four groups of tensors, each of which may be
missing: ``edge.…`` and ``server.…`` for the parts of the defence, ``head.…`` and ``tail.…`` for halves that were
trained together with it. Its metadata names the defence and the :class:`~splitsight.defenses.Place` that it was made
for.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from splitsight.artifacts import asset, home, load_weights, save_weights
from splitsight.defenses._base import Defense, Parameters, Place
from splitsight.errors import UserError

__all__ = ["Trained", "TrainedParameters", "trained_file"]

GROUPS = ("edge", "server", "head", "tail")
_SUFFIX = ".safetensors"


class TrainedParameters(Parameters):
    """Parameters of a defence that comes as a file."""

    weights: str = Field(
        min_length=1,
        description="file of the trained defence, the folder that holds it, or its name in $SPLITSIGHT_HOME/defenses",
    )


P = TypeVar("P", bound=TrainedParameters)


def trained_file(name: str) -> Path:
    """A file by its path, or by its name among the user's own and then the package's; it may not exist."""
    path = Path(name).expanduser()
    stem = name if name.endswith(_SUFFIX) else name + _SUFFIX
    places = [path, home() / "defenses" / stem, asset("defenses", stem)]
    return next((place for place in places if place.is_file()), path)


class Trained(Defense[P]):
    """A defence whose weights were made for one target and split.

    Subclasses build modules in ``build`` and fill them by :meth:`fill`; :meth:`adapted` needs no change.

    Attributes:
        maker: the command that makes such a file, for messages; ``{name}`` stands for the defence.
    """

    maker: ClassVar[str] = "splitsight train defense {name}"

    @property
    def _make(self) -> str:
        return f"`{self.maker.format(name=self.name)}`"

    @cached_property
    def file(self) -> Path:
        """Where its weights are.

        Raises:
            UserError: nowhere.
        """
        if not self.parameters.weights:
            raise UserError(f"'{self}' names no file: give weights=FILE, or make one with {self._make}")
        path = trained_file(self.parameters.weights)
        if path.is_dir():
            path = path / f"{self.name}{_SUFFIX}"
        if not path.is_file():
            raise UserError(
                f"the defence {self.name} has no weights at {path}: give a file or a name in {home() / 'defenses'}, or "
                f"make one with {self._make}"
            )
        return path

    @cached_property
    def about(self) -> dict[str, Any]:
        """The file's metadata.

        Raises:
            UserError: it is damaged, or another defence's.
        """
        try:
            with safe_open(str(self.file), "pt") as opened:
                about = {k: json.loads(v) for k, v in (opened.metadata() or {}).items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(
                f"{self.file} is not a readable safetensors file ({error}): restore or retrain it"
            ) from error
        if (made := about.get("defense")) != self.name:
            what = f"the defence {made}" if made else "no defence"
            raise UserError(f"{self.file} holds {what}, not {self.name}: give the file that fits")
        return about

    @cached_property
    def _state(self) -> dict[str, dict[str, Tensor]]:
        state = load_weights(self.file)
        return {g: {k[len(g) + 1 :]: v for k, v in state.items() if k.startswith(f"{g}.")} for g in GROUPS}

    def check(self, place: Place) -> None:
        """Refuse another target, split, or digest than it was trained for.

        Raises:
            UserError: one sentence that says what differs.
        """
        made, here = self.about.get("place", {}), asdict(place)
        for key, word in _WORDS.items():
            if made.get(key) != here[key]:
                ours, theirs = (_short(key, value) for value in (made.get(key), here[key]))
                raise UserError(
                    f"{self.file.name} was trained for {word} {ours}, not {theirs}: make another with {self._make}"
                )

    def has(self, group: str) -> bool:
        """Whether the file brings weights of that group, one of :data:`GROUPS`."""
        return bool(self._state[group])

    def fill(self, group: str, module: nn.Module) -> nn.Module:
        """A module with the file's weights of one group, without gradients, in eval mode.

        Raises:
            UserError: they do not fit.
        """
        try:
            module.load_state_dict(self._state[group])
        except (RuntimeError, KeyError) as error:
            raise UserError(
                f"{self.file} does not hold what the defence {self.name} needs ({str(error).splitlines()[0]}): "
                f"make it again with {self._make}"
            ) from error
        return module.eval().requires_grad_(False)

    def adapted(self, head: nn.Module, tail: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The halves with the weights that the file brings for them; the target's own are not touched."""
        return (
            self.fill("head", copy.deepcopy(head)) if self.has("head") else head,
            self.fill("tail", copy.deepcopy(tail)) if self.has("tail") else tail,
        )

    @classmethod
    def save(cls, path: Path, place: Place, parts: Mapping[str, nn.Module | None], **about: Any) -> None:
        """Write a file that :meth:`check` and :meth:`fill` read.

        Args:
            path: of the file.
            place: that it was made for.
            parts: modules by group; ``None`` and groups left out are not in the file.
            about: JSON values that travel with it, such as the training's configuration.
        """
        state = {
            f"{group}.{key}": value
            for group, part in parts.items()
            if part is not None
            for key, value in part.state_dict().items()
        }
        save_weights(path, state, {"defense": cls.name, "place": asdict(place), **about})


_WORDS = {
    "target": "target",
    "split": "split point",
    "head_digest": "weights of F1 with digest",
    "tail_digest": "weights of F2 with digest",
}


def _short(key: str, value: object) -> str:
    text = str(value or "none")
    return text[:12] + "…" if key.endswith("digest") and value else text
