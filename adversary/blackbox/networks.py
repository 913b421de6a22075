"""Black-box networks as attacks use them: built by method, kept in files, found again by what they were made for.

A network answers for one cut of one target, behind one defence, with one prior. Its file (safetensors, matrices and
kernels in 8 bits) says for which, and lists the pictures that it was trained on by the first 64 bits of their SHA-256,
so that an attack can refuse to be measured on them. Some of net-best come with the package; those are looked at before
the cache. What a method's network is, and how it answers, stands in the method's class
(:class:`~adversary.attacks.blackbox.NetAttack`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adversary.blackbox.multiframe import FrameControl, FrameMixer
from adversary.blackbox.surrogate import LatentNetwork, Surrogate
from adversary.priors.prior import Prior, Text
from splitsight.artifacts import asset, home, kernels, load_weights, save_weights
from splitsight.data import image_hash
from splitsight.errors import UserError
from splitsight.features import FeatureSpec, shapes_of, show_shapes
from splitsight.names import file_stem
from splitsight.wire.sessions import UNDEFENDED

if TYPE_CHECKING:
    from adversary.attacks.blackbox import NetAttack
    from adversary.blackbox.layouts import Standardised

__all__ = [
    "AttackNetwork",
    "Made",
    "cache_file",
    "embedded_file",
    "load_network",
    "network_name",
    "prior_key",
    "read_made",
    "save_network",
]

_QUERIES = "queries"


def _method(name: str) -> type[NetAttack]:
    # methods are attacks, which need the networks
    from adversary.attacks.blackbox import method_of

    return method_of(name)


@dataclass(frozen=True)
class Made:
    """What a network was made for, and how.

    Attributes:
        method: name of a black-box method.
        target: the attacked network's name.
        split: its split point.
        head_digest: SHA-256 of the weights that F1 reads, as announced.
        features: what crosses the split, behind the defence.
        image: side of the images that it answers with, in pixels: the prior's.
        prior: name of the prior.
        prior_digest: of what of the prior fixes the answer (see :func:`prior_key`).
        defense: what the edge does to the features, in its canonical form.
        defense_digest: SHA-256 of the defence's weights; empty where it has none.
        frames: K; more than one for windows.
        mixed: whether frames see each other (equation 13) or are the control.
        text: whether it was trained with prompts (equation 12).
        surrogate: whether a surrogate of F1 goes with it.
        likelihood_weight: factor of the surrogate's feature loss where answers are to be near; 0 where held-out pairs
            did not show that a fit brings them nearer.
        setting: named setting of the training.
        training: its values; what is missing is at its default.
        queries: pictures it was trained on.
        figures: mean quality on its test queries.
        curve: mean training loss (of the last part, for methods of several) at each hundredth of the training.

    Raises:
        UserError: no such method, or one that cannot do with windows or prompts.
    """

    method: str
    target: str
    split: str
    head_digest: str
    features: tuple[FeatureSpec, ...]
    image: int
    prior: str
    prior_digest: str
    defense: str = UNDEFENDED
    defense_digest: str = ""
    frames: int = 1
    mixed: bool = True
    text: bool = False
    surrogate: bool = False
    likelihood_weight: float = 0.0
    setting: str = "tuned"
    training: dict[str, Any] = field(default_factory=dict)
    queries: int = 0
    figures: dict[str, float | int | bool] = field(default_factory=dict)
    curve: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        method = _method(self.method)
        if self.frames < 1:
            raise UserError(f"a window of {self.frames} frames cannot be: give --frames of at least 1")
        if self.frames > 1 and not method.windows:
            raise UserError(f"{self.method} takes single frames: leave --frames out, or choose another --method")
        if self.text and not method.text:
            raise UserError(f"{self.method} does not sample, so that a text changes nothing: leave --text out")

    @classmethod
    def read(cls, about: Mapping[str, Any]) -> Made:
        """Out of plain JSON, as ``dataclasses.asdict`` gives it.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
            UserError: no such method.
        """
        features = tuple(FeatureSpec(f["name"], tuple(f["shape"]), f["layout"]) for f in about["features"])
        return cls(**{**about, "features": features, "curve": tuple(about.get("curve", ()))})


def prior_key(prior: Prior, method: str) -> str:
    """SHA-256 of what of a prior fixes a method's answers: nothing, the autoencoder, or its whole sampler."""
    part = _method(method).prior_part
    return "none" if part == "none" else prior.latent_digest if part == "autoencoder" else prior.generator_digest


class _Core(Protocol):
    standard: Standardised


class AttackNetwork(nn.Module):
    """Features → images, in one pass.

    Args:
        made: what for.
        prior: the one that ``made`` names.

    Attributes:
        method: of ``made``.
        values: of its training.
        core: what its method builds: features → pixels, latents or noise.
        mixer: for windows, what stands before it (equation 13).
        surrogate: of F1, where ``made`` says so.
        known: first 64 bits of the SHA-256 of each picture it was trained on, ``(N,)`` int64.
    """

    def __init__(self, made: Made, prior: Prior) -> None:
        super().__init__()
        self.made, self.method = made, _method(made.method)
        self.values = self.method.trained(made.training)
        self._prior = [prior]  # in a list, so that it is no part of this module's state
        self.known = np.zeros(0, np.int64)
        self.mixer: nn.Module | None = None
        if made.frames > 1:
            self.mixer = (FrameMixer if made.mixed else FrameControl)(made.features, made.frames)
        self.surrogate: Surrogate | None = Surrogate(made.features, made.image) if made.surrogate else None
        self.core = self.method.core(made, self.values, prior)

    def __deepcopy__(self, memo: dict[int, Any]) -> AttackNetwork:
        # averages of weights are copies; the prior must stay the one it is
        other = AttackNetwork(self.made, self.prior).to(next(self.parameters()).device)
        other.load_state_dict(self.state_dict())
        for ours, theirs in zip(self.parameters(), other.parameters(), strict=True):
            theirs.requires_grad_(ours.requires_grad)
        other.train(self.training)
        other.known = self.known
        return other

    @property
    def prior(self) -> Prior:
        """The prior that turns its answers into images."""
        return self._prior[0]

    @property
    def standard(self) -> Standardised:
        """What standardises the features."""
        return cast(_Core, self.core).standard

    def decide(self, likelihood_weight: float, *, surrogate: bool = True) -> None:
        """Weight the surrogate's feature loss so where answers are to be near; keep the surrogate, or drop it."""
        self.made = replace(self.made, likelihood_weight=likelihood_weight, surrogate=surrogate)
        if not surrogate:
            assert isinstance(self.core, LatentNetwork) and likelihood_weight == 0
            self.surrogate = None
            self.core.without_surrogate()

    def forward(self, features: Sequence[Tensor], text: Text | None = None) -> Tensor:
        """Features, each ``(B, …)`` → pixels ``(B, 3, H, W)``, latents or noise ``(B, C, h, w)``.

        For windows B is a multiple of K, the frames of each side by side.
        """
        if self.mixer is not None:
            features = self.mixer(features)
        return self.method.answer(self, features, text)

    def images(self, value: Tensor, text: Text | None = None) -> Tensor:
        """What :meth:`forward` gave → images ``(B, 3, H, W)``, nominally in [0, 1]."""
        return self.method.images(self, value, text)

    def check_features(self, features: Sequence[Tensor]) -> None:
        """Refuse features that it was not made for.

        Raises:
            UserError: another number of tensors, other shapes, or windows that are not whole.
        """
        given, wanted = [tuple(z.shape[1:]) for z in features], shapes_of(self.made.features)
        if given != wanted:
            raise UserError(
                f"features of shape {show_shapes(given)} do not fit this network, which takes {show_shapes(wanted)}: "
                "give the one that was trained for their split"
            )
        if len(features[0]) % self.made.frames:
            raise UserError(
                f"{len(features[0])} frames are no whole windows of {self.made.frames}, which this network was trained "
                "for: give a multiple of it"
            )

    def check_unseen(self, names: Sequence[str], images: Iterable[np.ndarray]) -> None:
        """Refuse to be measured on pictures that it was trained on.

        Args:
            names: one a picture.
            images: each ``(S, S, 3)`` uint8.

        Raises:
            UserError: names the first one.
        """
        known = set(self.known.tolist())
        for name, image in zip(names, images, strict=True):
            if int(_short([image_hash(image)])[0]) in known:
                raise UserError(
                    f"'{name}' is among the pictures that the network was trained on, so that measuring on it would "
                    "show nothing: leave it out"
                )


def _short(hashes: Sequence[str]) -> np.ndarray:
    """First 64 bits of each SHA-256, ``(N,)`` int64."""
    return np.array([int(h[:16], 16) for h in hashes], np.uint64).view(np.int64)


def network_name(made: Made) -> str:
    """What a network is for, as a part of file names: target, split, method and what else tells it from others."""
    words = [made.target, made.split, made.method]
    if made.text:
        words.append("text")
    if made.frames > 1:
        words.append(f"{made.frames}frames")
        words += [] if made.mixed else ["control"]
    if made.defense != UNDEFENDED:
        words.append(made.defense)
    if made.defense_digest:
        words.append(made.defense_digest[:12])
    return file_stem(*words)


def cache_file(made: Made) -> Path:
    """Where a network of this kind is kept; it may not exist."""
    name = f"{network_name(made)}-{made.head_digest[:12]}-{made.prior_digest[:12]}"
    return home() / "inversion" / f"{name}.safetensors"


def embedded_file(made: Made) -> Path:
    """Where a network of this kind would be in the package; it may not exist."""
    return asset("inversion", f"{network_name(made)}-{file_stem(made.prior)}.safetensors")


def _cached(wanted: Made) -> Path:
    """The cache's file; for any weights of F1, the one that there is.

    Raises:
        UserError: there are several.
    """
    if wanted.head_digest:
        return cache_file(wanted)
    pattern = f"{network_name(wanted)}-{'[0-9a-f]' * 12}-{wanted.prior_digest[:12]}.safetensors"
    found = sorted((home() / "inversion").glob(pattern))
    if len(found) > 1:
        raise UserError(
            f"{found[0].parent} holds {len(found)} {wanted.method} networks for {wanted.target} at {wanted.split}: "
            "say which one with --network"
        )
    return found[0] if found else cache_file(wanted)


def save_network(
    path: Path, network: AttackNetwork, hashes: Sequence[str], figures: dict[str, Any], unasked: Sequence[str] = ()
) -> None:
    """Write a network with what it was trained on; the file appears complete or not at all.

    Args:
        path: of the file.
        network: trained.
        hashes: SHA-256 of each picture that the oracle was asked about for training.
        figures: of its quality.
        unasked: SHA-256 of each further picture that it has seen.
    """
    made = replace(network.made, queries=len(hashes), figures=figures)
    state = {**network.state_dict(), _QUERIES: torch.from_numpy(_short([*hashes, *unasked]))}
    # an answer moves by less than a thousandth of a dB, and the package has to hold one for each split
    save_weights(path, state, {"made": asdict(made)}, kernels(network))


def load_network(wanted: Made, prior: Prior, path: Path | None = None) -> AttackNetwork:
    """A network out of a file, out of the package, or out of the cache.

    Args:
        wanted: what it is needed for; how it was made (training, setting …) is taken from the file. An empty
            ``head_digest`` takes a network for any weights, for an attacker that has not met its victim yet; an empty
            ``defense`` one for any defence.
        prior: the one in use.
        path: the file; by default the package's if that fits, else the cache's.

    Raises:
        UserError: there is none, or it was made for something else; one sentence that says for what.
    """
    if path is None:
        embedded, file = embedded_file(wanted), _cached(wanted)
        if embedded.is_file() and (not file.is_file() or _difference(wanted, read_made(embedded)) is None):
            file = embedded
    else:
        file = path
    if not file.is_file():
        flags = f" --frames {wanted.frames}" * (wanted.frames > 1) + " --text" * wanted.text
        flags += " --no-mixing" * (wanted.frames > 1 and not wanted.mixed)
        where = f"at {path}" if path else f"for {wanted.target} at {wanted.split}"
        where += f" against '{wanted.defense}'" if path is None and wanted.defense != UNDEFENDED else ""
        raise UserError(
            f"no {wanted.method} network {where}: make one with `splitsight train inversion --oracle HOST:PORT "
            f"--method {wanted.method}{flags} --data DIR`, or give one with --network"
        )
    state = load_weights(file)
    made = read_made(file)
    if (what := _difference(wanted, made)) is not None:
        raise UserError(
            f"{file} was trained for another {what}: train one with `splitsight train inversion --oracle HOST:PORT`"
        )
    try:
        known = state.pop(_QUERIES).numpy()
        network = AttackNetwork(made, prior.sized(made.image))
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        raise UserError(f"{file} is not a whole black-box network: train it again") from error
    network.known = known
    return network.eval().requires_grad_(False)


def read_made(file: Path) -> Made:
    """What a network's file says that it was made for, and how.

    Raises:
        UserError: it is no such file.
    """
    try:
        with safe_open(str(file), "pt") as opened:
            return Made.read(json.loads((opened.metadata() or {})["made"]))
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{file} is not a black-box network ({type(error).__name__}): train it again") from error


_COMPARED = {
    "method": "method",
    "target": "target",
    "split": "split",
    "head_digest": "digest of F1's weights",
    "defense": "defence",
    "defense_digest": "digest of the defence's weights",
    "prior_digest": "prior's digest",
    "frames": "number of frames",
    "mixed": "kind of window",
    "text": "use of text",
}


def _difference(wanted: Made, made: Made) -> str | None:
    """What a network was made for that is not what is wanted, in words; ``None`` where nothing is."""
    for name, what in _COMPARED.items():
        ours, theirs = getattr(wanted, name), getattr(made, name)
        if (name == "mixed" and made.frames == 1) or (name == "head_digest" and not ours):
            continue
        if name.startswith("defense") and not wanted.defense:
            continue
        if ours != theirs:
            shown = [_words(name, value) for value in (theirs, ours)]
            return f"{what} ({shown[0]}, not {shown[1]})"
    return None


def _words(name: str, value: object) -> str:
    if name == "mixed":
        return "frames mixed" if value else "each frame alone"
    if name == "text":
        return "with prompts" if value else "without prompts"
    return f"{value[:12]}…" if name.endswith("digest") and isinstance(value, str) else str(value)
