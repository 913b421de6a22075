r"""Defences that are trained: one loop for all of them (:mod:`~splitsight.defenses.training.loop`), one loss a method.

A trained defence minimises

    E_x [ distance(F2′(server(edge(F1′(x)))), F2(F1(x))) + penalty(x) ],

where F1 and F2 are the target's own halves, which never change, and F1′ and F2′ copies that start from their weights.
The first summand keeps the task: it is distillation from the undefended network, so no labels are needed and any task
will do. The second one is the method's: what is in its file under :mod:`splitsight.defenses`, as a :class:`Method`. A
method with an opponent (an attacker in training) trains that in turn with it.

Nothing of a method but what :class:`Learned` saves runs on the edge or the server: opponents and priors stay behind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from splitsight.defenses import Features, Norms, Protection
from splitsight.defenses._trained import Trained, TrainedParameters
from splitsight.errors import UserError, unknown_name
from splitsight.features import FeatureSpec

__all__ = ["Batch", "Learned", "Method", "Penalty", "Settings", "settings_of"]

Halves = Literal["none", "tail", "both"]


class Settings(BaseModel):
    """Settings of a training, which travel with the weights; methods add theirs.

    Attributes:
        halves: which halves are trained with the defence: none, F2, or F1 and F2.
        rate: peak learning rate of the halves.
        own_rate: peak learning rate of what the method adds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    halves: Halves = "both"
    rate: float = Field(default=3e-4, gt=0)
    own_rate: float = Field(default=3e-3, gt=0)


@dataclass(frozen=True)
class Batch:
    """What one step knows.

    Attributes:
        images: ``(B, 3, S, S)`` in [0, 1].
        features: what F1′ made of them, each ``(B, …)``.
        sent: behind the edge's part of the defence.
        received: behind the server's part of it.
        outputs: of F2′, in the model's own structure.
        original: what F1 makes of the images, without gradient.
        wanted: what F2 makes of that, without gradient.
        edge: the part of the defence that the edge runs.
    """

    images: Tensor
    features: Features
    sent: Features
    received: Features
    outputs: Any
    original: Features
    wanted: Any
    edge: Protection


class Penalty(NamedTuple):
    """What a method asks for in a step: ``loss``, added to the task's, and ``values``, what it measured, by name."""

    loss: Tensor
    values: dict[str, Tensor]


class Method(nn.Module):
    """One method's part of the loss, with whatever is trained for it and not deployed.

    Its parameters but the opponent's are trained together with the defence.

    Args:
        settings: of the training.
        specs: what comes in to the defence.
        size: side of the images, in pixels.

    Attributes:
        opponent: an attacker who is trained in turn; ``None`` for none.
    """

    opponent: nn.Module | None

    def __init__(self, settings: Any, specs: Sequence[FeatureSpec], size: int) -> None:
        super().__init__()
        self.settings, self.specs = settings, tuple(specs)
        self.opponent = None

    def begin(self, edge: Protection, server: nn.Module | None, features: Features) -> None:
        """Set what depends on data, once, before the first step.

        Args:
            edge: the edge's part, fresh.
            server: the server's.
            features: what F1 makes of a batch of images.
        """

    def penalty(self, batch: Batch) -> Penalty:
        """What is asked for beside the task."""
        return Penalty(batch.images.new_zeros(()), {})

    def against(self, batch: Batch) -> Tensor:
        """What the opponent minimises; only called where there is one."""
        raise NotImplementedError


class Learned(Trained[TrainedParameters]):
    """A defence that this package's loop trains.

    Attributes:
        Settings: of its training.
        Method: its loss.
    """

    Parameters: ClassVar[type[TrainedParameters]] = TrainedParameters
    Settings: ClassVar[type[Settings]] = Settings
    Method: ClassVar[type[Method]] = Method

    @classmethod
    def parts(cls, settings: Any, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """Edge's and server's part with fresh weights; by default none, for methods that change the halves only.

        Raises:
            UserError: settings that do not fit what crosses.
        """
        return Protection(), None

    @cached_property
    def settings(self) -> Any:
        """What it was trained with.

        Raises:
            UserError: the file's do not fit this defence.
        """
        try:
            return self.Settings.model_validate(self.about.get("settings"))
        except ValidationError as error:
            raise UserError(
                f"{self.file} holds settings that the defence {self.name} does not know: make it again with "
                f"`splitsight train defense {self.name}`"
            ) from error

    def build(self, specs: Sequence[FeatureSpec]) -> tuple[Protection, nn.Module | None]:
        """The trained parts."""
        edge, server = self.parts(self.settings, specs)
        if self.has("edge"):
            self.fill("edge", edge)
        return edge, None if server is None else self.fill("server", server)

    def norms(self, before: Norms) -> Norms:
        """Unchanged where the edge adds nothing to F1."""
        return before if type(self).parts.__func__ is Learned.parts.__func__ else super().norms(before)


def settings_of(kind: type[Learned], given: dict[str, Any]) -> Settings:
    """A method's settings with changes, as ``--set NAME=VALUE`` gives them.

    Raises:
        UserError: an unknown name, or a value that cannot be.
    """
    fields = list(kind.Settings.model_fields)
    if unknown := next((name for name in given if name not in fields), None):
        raise unknown_name(f"setting of the training of {kind.name}", unknown, fields)
    try:
        return kind.Settings.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        what = first["msg"].removeprefix("Value error, ")
        name = ".".join(map(str, first["loc"]))
        raise UserError(f"the training of {kind.name}: {name}: {what[:1].lower()}{what[1:]}") from error
