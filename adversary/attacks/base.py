"""What every attack shares: the problem it gets, the answer it gives, its settings, the registry.

An attack declares its settings once, as a pydantic model: validation, ``--set NAME=VALUE``, YAML, ``splitsight list
attacks`` and what tuning may choose from follow from that. :class:`Attack` says what a new one has to define.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

import pydantic
import torch
from pydantic import ConfigDict, Field
from torch import Tensor, nn

from adversary.callback import Callback
from adversary.whitebox.terms import Told
from splitsight.defenses import Scale
from splitsight.errors import UserError, unknown_name
from splitsight.features import FeatureSpec, shapes_of, show_shapes
from splitsight.registry import Registry

if TYPE_CHECKING:
    from adversary.blackbox.inversion import InversionNetwork
    from adversary.blackbox.networks import AttackNetwork
    from adversary.priors.prior import Prior, Text

__all__ = [
    "ATTACKS",
    "TUNED",
    "Attack",
    "Callback",
    "Known",
    "Need",
    "Problem",
    "Reconstruction",
    "Settings",
    "check_features",
    "option",
    "validated",
]

TUNED = Path(__file__).with_name("tuned.json")
"""Values that ``splitsight bench tune`` chose on validation images: target → method → setting → split (or "any")."""

M = TypeVar("M", bound=pydantic.BaseModel)

Need = Literal["pipeline", "initial", "network", "prior"]
"""What an attacker may have: F1 (or a surrogate), an inversion network, a black-box network, a generative prior."""

_MISSING: dict[Need, str] = {
    "pipeline": "the first part of the attacked network, and this attacker does not know it: choose a black-box attack",
    "initial": "an inversion network, and there is none: make one with `splitsight train inversion`",
    "network": "its network: make one with `splitsight train inversion --oracle`",
    "prior": "a generative prior: give one with --prior",
}


class Settings(pydantic.BaseModel):
    """The values of an attack; each is declared by :func:`option`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    def dump(self) -> dict[str, Any]:
        """Name → value, as it goes into JSON."""
        return self.model_dump(mode="json")


def option(
    default: Any,
    description: str,
    *,
    tune: Sequence[Any] = (),
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    multiple_of: float | None = None,
) -> Any:
    """A field of :class:`Settings`.

    Args:
        default: value where a named setting does not change it.
        description: one line for people.
        tune: values that tuning may choose from; none leaves it alone.
        ge: least value.
        gt: the value is more than this.
        le: greatest value.
        lt: the value is less than this.
        multiple_of: the value is a multiple of this.
    """
    return Field(
        default,
        description=description,
        json_schema_extra={"tune": list(tune)} if tune else None,
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        multiple_of=multiple_of,
    )


def validated(model: type[M], values: Mapping[str, Any], whose: str) -> M:
    """A model of settings with these values, which may come out of JSON.

    Args:
        model: derives from :class:`Settings`.
        values: by name.
        whose: begins the sentence that says what is wrong.

    Raises:
        UserError: one of them cannot be that.
    """
    listed = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return model.model_validate(listed)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        key, why = str(first["loc"][0]), first["msg"]
        raise UserError(
            f"{whose} {key} cannot be {json.dumps(first['input'], default=str)}: {why[0].lower()}{why[1:]}"
        ) from error


class _Counted(nn.Module):
    """F1, which counts the images that pass."""

    def __init__(self, pipeline: nn.Module) -> None:
        super().__init__()
        self.pipeline, self.passed = pipeline, 0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """As the pipeline's own."""
        self.passed += len(images)
        return self.pipeline(images)


def _rms(noise: Scale) -> float:
    return float(torch.as_tensor(noise).double().square().mean().sqrt())


@dataclass
class Known:
    """Fields of a :class:`Problem` that follow from a defence; see there."""

    features: list[Tensor]
    pipeline: nn.Module
    noise: list[Scale]
    support: list[Tensor | None] | None
    laplace: bool
    covariances: list[Tensor | None] | None
    fresh: bool


@dataclass
class Problem:
    """What an attack knows.

    Attributes:
        features: tapped tensors, each ``(K, …)``.
        pipeline: F1 as the attacker knows it, differentiable: images in [0, 1] of any size → tuple of features. For
            white-box attacks :class:`splitsight.pipeline.Expected`, for others a surrogate of it; ``None`` where the
            attacker has neither.
        specs: what crosses the split, one a tensor; found by asking ``pipeline``, or by their shapes, where not given.
        image_size: side of the images that are reconstructed, pixels; the prior's by default.
        prior: the generative prior; ``None`` where there is none.
        initial: makes the inversion network when asked; raises ``NoInversionNetwork`` where there is none.
        network: makes the network of a black-box attack when asked; raises ``UserError`` where there is none.
        text: prompt; ``None`` for the empty one.
        seed: of all draws; frame i of the whole run draws from ``seed + first + i``.
        first: index of the first frame within the run.
        noise: standard deviation of the noise on each tensor, in its unit, or what broadcasts against it, where the
            attacker was told; ``None`` where not; zeros for one who believes that there is none.
        support: where a defence let numbers through, ``(K, …)`` of 0 and 1 a tensor, or ``None`` for all of them.
        laplace: whether the noise is known to be Laplace's.
        covariances: ``(C, C)`` of noise that depends from channel to channel, one a tensor, or ``None``.
        fresh: whether each frame has noise of its own; if not, averaging frames takes none of it away.

    Raises:
        UserError: the features are not finite, or do not fit ``specs`` or ``pipeline``; one sentence.
    """

    features: list[Tensor]
    pipeline: nn.Module | None = None
    specs: Sequence[FeatureSpec] = ()
    image_size: int = 0
    prior: Prior | None = None
    initial: Callable[[], InversionNetwork] | None = None
    network: Callable[[], AttackNetwork] | None = None
    text: Text | None = None
    seed: int = 0
    first: int = 0
    noise: Sequence[Scale] | None = None
    support: Sequence[Tensor | None] | None = None
    laplace: bool = False
    covariances: Sequence[Tensor | None] | None = None
    fresh: bool = True

    def __post_init__(self) -> None:
        if not self.image_size and self.prior is not None:
            self.image_size = self.prior.image_size
        if not self.specs:
            _check_finite(self.features)
            self.specs = _probed(self.pipeline, self.image_size, self.features)
        check_features(self.features, self.specs)
        if self.noise is not None and len(self.noise) != len(self.features):
            raise ValueError(f"{len(self.noise)} standard deviations of noise for {len(self.features)} tensors")
        if self.support is not None and len(self.support) != len(self.features):
            raise ValueError(f"{len(self.support)} supports for {len(self.features)} tensors")
        if self.pipeline is not None:
            known = self.pipeline.pipeline if isinstance(self.pipeline, _Counted) else self.pipeline
            # the same numbers in another order: a fifth less time for features and their gradient on a CPU
            self.pipeline = _Counted(known.to(memory_format=torch.channels_last))
        self._before = 0 if self.prior is None else self.prior.evaluations

    @property
    def frames(self) -> int:
        """K."""
        return len(self.features[0])

    @property
    def noisy(self) -> bool:
        """Whether the attacker knows of noise on the features."""
        return self.noise is not None and any(bool(torch.as_tensor(sigma).any()) for sigma in self.noise)

    def told(self, copies: int = 1, noise: Sequence[Scale] | None = None) -> Told:
        """What a feature loss takes of a defence.

        Args:
            copies: of the frames, side by side.
            noise: what is left of it, where the frames of a window have told more than each alone.
        """
        known = self.noise or [0.0] * len(self.features)
        left = known if noise is None else noise
        covariances = self.covariances
        if covariances is not None and noise is not None:
            shares = [(_rms(now) / max(_rms(before), 1e-12)) ** 2 for now, before in zip(noise, known, strict=True)]
            covariances = [None if c is None else c * share for c, share in zip(covariances, shares, strict=True)]
        support = (
            None if self.support is None else [None if m is None else torch.cat([m] * copies) for m in self.support]
        )
        return {
            "noise": [self._copied(sigma, copies) for sigma in left],
            "support": support,
            "laplace": self.laplace,
            "covariances": covariances,
        }

    def _copied(self, sigma: Scale, copies: int) -> Scale:
        """σ for copies of the frames; one for all of them serves them, too."""
        if not isinstance(sigma, Tensor) or sigma.ndim < 2 or len(sigma) != self.frames:
            return sigma
        return torch.cat([sigma] * copies)

    @property
    def device(self) -> torch.device:
        """Where the attack computes: that of the features. Draws do not depend on it."""
        return self.features[0].device

    @property
    def seeds(self) -> list[int]:
        """One a frame."""
        return [self.seed + self.first + i for i in range(self.frames)]

    @property
    def evaluations(self) -> float:
        """Passes of one image through F1 or of one latent through the denoiser so far, a frame."""
        passed = self.pipeline.passed if isinstance(self.pipeline, _Counted) else 0
        denoised = 0 if self.prior is None else self.prior.evaluations - self._before
        return (passed + denoised) / self.frames

    @property
    def f1(self) -> nn.Module:
        """``pipeline``, for attacks that need it.

        Raises:
            UserError: there is none.
        """
        if self.pipeline is None:
            raise UserError(f"this attack needs {_MISSING['pipeline']}")
        return self.pipeline

    @property
    def generator(self) -> Prior:
        """``prior``, for attacks that need it.

        Raises:
            UserError: there is none.
        """
        if self.prior is None:
            raise UserError(f"this attack needs {_MISSING['prior']}")
        return self.prior

    def inversion_network(self) -> InversionNetwork:
        """The network that ``initial`` makes, for attacks that need it.

        Raises:
            UserError: there is none.
        """
        if self.initial is None:
            raise UserError(f"this attack needs {_MISSING['initial']}")
        return self.initial()


def check_features(features: Sequence[Tensor], specs: Sequence[FeatureSpec]) -> None:
    """Whether tapped features can be attacked at all.

    Args:
        features: each ``(K, …)``.
        specs: what they should be.

    Raises:
        UserError: none, numbers that are not finite, or other shapes.
    """
    _check_finite(features)
    wanted, given = shapes_of(specs), [tuple(z.shape[1:]) for z in features]
    if wanted != given or len({len(z) for z in features}) > 1:
        raise UserError(
            f"features of shape {show_shapes(given)} do not fit this split, which makes {show_shapes(wanted)}: "
            "give the target and split they were tapped at"
        )


def _check_finite(features: Sequence[Tensor]) -> None:
    if not features or len(features[0]) == 0:
        raise UserError("there are no features to attack: give at least one frame")
    for i, z in enumerate(features):
        bad = (~z.reshape(len(z), -1).isfinite().all(1)).nonzero().flatten().tolist()
        if bad:
            raise UserError(
                f"the features of frame {bad[0]} hold NaN or infinity (tensor {i}, {len(bad)} of {len(z)} frames): "
                "leave these frames out or record them again"
            )


@torch.no_grad()
def _probed(pipeline: nn.Module | None, size: int, features: Sequence[Tensor]) -> tuple[FeatureSpec, ...]:
    """What F1 makes of one image of ``size`` pixels, or what the features look like."""
    seen = features if pipeline is None else pipeline(torch.zeros(1, 3, size, size).to(features[0]))
    return tuple(FeatureSpec(f"z{i}", tuple(z.shape[1:])) for i, z in enumerate(seen))


@dataclass
class Reconstruction:
    """An attack's answer.

    Attributes:
        images: ``(K, 3, H, W)`` in [0, 1], where the attack computed.
        loss: final loss a frame, mean; NaN where the method has none.
        iterations: optimiser steps.
        model_evaluations: passes of one image through F1 or of one latent through the denoiser, a frame.
        seconds: wall-clock time a frame.
        losses: final loss of each frame ``(K,)``, where the method has one.
        curve: mean loss a frame, one an optimiser step.
        about: what a reader of the result should know, e.g. where the search started.
        state: a warm start for the next window, to be given back to the same attack; ``None`` where it carries nothing.
    """

    images: Tensor
    loss: float
    iterations: int
    model_evaluations: float
    seconds: float
    losses: Tensor | None = None
    curve: list[float] = field(default_factory=list)
    about: dict[str, str] = field(default_factory=dict)
    state: Any = None


class Attack(ABC):
    """One method, configured.

    A subclass declares ``name``, a nested ``class Settings(Settings)`` with :func:`option` fields, ``presets``, what it
    ``needs``, and :meth:`reconstruct`; the first line of its docstring is its summary in ``splitsight list attacks``.

    Args:
        settings: its values; the defaults where not given.
        setting: the name that results report for them.

    Attributes:
        name: on the command line.
        summary: the docstring's first line.
        presets: named settings, as changes of the model's defaults; the first one is the default.
        variants: further named settings: which preset they start from, and what they change.
        tunes: the preset that tuning starts from and replaces.
        needs: what must be there.
        uses: what is taken where it is there.
        windowed: whether frames of a window are reconstructed together.
        text: whether a prompt changes anything.
    """

    Settings: ClassVar[type[pydantic.BaseModel]] = Settings
    name: ClassVar[str]
    summary: ClassVar[str]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"default": {}}
    variants: ClassVar[Mapping[str, tuple[str, Mapping[str, Any]]]] = {}
    tunes: ClassVar[str] = "tuned"
    needs: frozenset[Need] = frozenset()
    uses: frozenset[Need] = frozenset()
    windowed: ClassVar[bool] = False
    text: ClassVar[bool] = False

    def __init_subclass__(cls, **more: Any) -> None:
        super().__init_subclass__(**more)
        cls.summary = (cls.__doc__ or "").strip().partition("\n")[0]

    def __init__(self, settings: Any = None, setting: str = "default") -> None:
        self.settings: Any = self.Settings() if settings is None else settings
        self.setting = setting

    @classmethod
    def configured(
        cls,
        setting: str | None = None,
        *,
        target: str = "",
        split: str = "",
        changes: Mapping[str, Any] | None = None,
        use_tuned: bool = True,
    ) -> Self:
        """The attack in one of its named settings.

        Args:
            setting: its name; the first preset by default.
            target: the attacked network. What tuning found for it is laid over the setting; where nothing was tuned for
                it, a setting ``tuned`` is what the code has, and is reported as ``default``.
            split: what tuning found best there is preferred to what it found best over all.
            changes: values laid over both.
            use_tuned: whether to lay anything that tuning found over the setting; not for tuning itself, which must not
                depend on what an earlier one found.

        Raises:
            UserError: no such setting, or a change to what the setting does not have, or to what it cannot be.
        """
        chosen = setting or next(iter(cls.presets))
        known = {**cls.presets, **cls.variants}
        if chosen not in known and chosen.startswith("default"):
            chosen, use_tuned = chosen.replace("default", "tuned", 1), False
        base, varied = cls.variants.get(chosen, (chosen, {}))
        if base not in cls.presets:
            raise unknown_name(f"setting of {cls.name}", chosen, list(known))
        tuned = _tuned().get(target, {}) if use_tuned else {}
        found = tuned.get(cls.name, {}).get(base, {})
        values = {**cls.presets[base], **found.get(split or "any", found.get("any", {})), **varied}
        for key, value in (changes or {}).items():
            if key not in cls.Settings.model_fields:
                raise unknown_name(f"value of {cls.name}'s setting {chosen}", key, list(cls.Settings.model_fields))
            values[key] = value
        reported = chosen if tuned or not chosen.startswith("tuned") else chosen.replace("tuned", "default", 1)
        return cls(cls.validated(values), reported)

    @classmethod
    def tuned_at(cls, setting: str | None, *, target: str, split: str) -> Literal["split", "target", ""]:
        """Where tuning found the values of a named setting: at this split, over the target's splits, or nowhere."""
        chosen = setting or next(iter(cls.presets))
        base, _ = cls.variants.get(chosen, (chosen, {}))
        found = _tuned().get(target, {}).get(cls.name, {}).get(base, {})
        return "split" if split in found else "target" if "any" in found else ""

    @classmethod
    def validated(cls, values: Mapping[str, Any]) -> Any:
        """Settings with these values, which may come out of JSON.

        Raises:
            UserError: one of them cannot be that.
        """
        return validated(cls.Settings, values, f"{cls.name}'s")

    @classmethod
    def space(cls) -> dict[str, list[Any]]:
        """What tuning may choose from: values by the name of an option; none without the preset that it starts from."""
        if cls.tunes not in cls.presets:
            return {}
        extra = {key: info.json_schema_extra for key, info in cls.Settings.model_fields.items()}
        tuned = {key: more.get("tune") for key, more in extra.items() if isinstance(more, dict)}
        return {key: list(values) for key, values in tuned.items() if isinstance(values, list)}

    def check(self, known: object) -> None:
        """Whether everything that the attack needs is there.

        Args:
            known: a :class:`Problem`, or whoever is going to make some: has the attributes that ``needs`` names, which
                are ``None`` for what is not there.

        Raises:
            UserError: something is not; one sentence.
        """
        for need in sorted(self.needs):
            if getattr(known, need) is None:
                raise UserError(f"{self.name} needs {_MISSING[need]}")

    @abstractmethod
    def reconstruct(self, problem: Problem, state: Any = None, callback: Callback | None = None) -> Reconstruction:
        """Reconstruct a problem's frames.

        Args:
            problem: what is known.
            state: a warm start, as this attack returned it for the window before.
            callback: keeps the time, the deadline and the progress.

        Raises:
            UserError: something that the attack needs is not there.
        """


@cache
def _tuned() -> dict[str, dict[str, dict[str, dict[str, dict[str, Any]]]]]:
    return json.loads(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}


ATTACKS: Registry[type[Attack]] = Registry("attack", "adversary.attacks")
