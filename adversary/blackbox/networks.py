"""Black-box networks as attacks use them: built by method, kept in files, found again by what they were made for.

A network answers for one split of one target with one prior. Its file (safetensors, matrices and kernels in 8 bits)
says for which, and lists the pictures that it was trained on by the first 64 bits of their SHA-256, so that an attack
can refuse to be measured on them. Some of net-best come with the package; those are looked at before the cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adversary.blackbox.flow import Aligned, Flow
from adversary.blackbox.multiframe import FrameControl, FrameMixer
from adversary.blackbox.surrogate import LatentNetwork, Student
from adversary.blackbox.unet import FeatureUNet
from adversary.priors.prior import Prior, Text
from splitsight.artifacts import asset, home, kernels, load_weights, save_weights
from splitsight.data import image_hash
from splitsight.errors import UserError, unknown_name

__all__ = [
    "METHODS",
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

METHODS = {"net-do": "pixels", "net-db": "latent", "net-dmb": "noise", "net-flow": "flow", "net-best": "refined"}
"""What each method's network is aimed at; ``refined`` is the latent, with a student of F1 beside it."""

_QUERIES = "queries"


@dataclass(frozen=True)
class Made:
    """What a network was made for, and how.

    Attributes:
        method: a name out of :data:`METHODS`.
        target: the attacked network's name.
        split: its split point.
        target_digest: SHA-256 of its weights, as announced.
        defense: what the edge did to the features.
        features: their shapes, without batch dimension.
        image: side of the images, in pixels.
        prior: name of the prior.
        prior_digest: of what of the prior fixes the answer (see :func:`prior_key`).
        frames: K; more than one for windows.
        mixed: whether frames see each other (equation 13) or are the control.
        text: whether it was trained with prompts (equation 12).
        steps: of the sampler, for ``net-dmb``.
        width: of the network.
        rank: of the adaptations, for ``net-flow``.
        everywhere: whether every linear layer is adapted, for ``net-flow``.
        student: whether a student of F1 goes with it, for ``net-best``.
        trust: how far a fit through the student is believed where answers are to be near, as a factor of its feature
            loss; 0 where held-out pairs did not show that it brings them nearer.
        setting: named setting of the training.
        queries: pictures it was trained on.
        figures: mean quality on its test queries.
        curve: mean training loss (of the last part, for methods of several) at each hundredth of the training.
    """

    method: str
    target: str
    split: str
    target_digest: str
    defense: str
    features: tuple[tuple[int, ...], ...]
    image: int
    prior: str
    prior_digest: str
    frames: int = 1
    mixed: bool = True
    text: bool = False
    steps: int = 4
    width: int = 48
    rank: int = 4
    everywhere: bool = False
    student: bool = False
    trust: float = 0.0
    setting: str = "tuned"
    queries: int = 0
    figures: dict[str, float | int | bool] = field(default_factory=dict)
    curve: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise unknown_name("black-box method", self.method, list(METHODS))
        if self.frames < 1:
            raise UserError(f"a window of {self.frames} frames cannot be: give --frames of at least 1")
        if self.frames > 1 and METHODS[self.method] in ("flow", "refined"):
            raise UserError(f"{self.method} takes single frames: leave --frames out, or choose another --method")
        if self.text and self.method != "net-dmb":
            raise UserError(f"{self.method} does not sample, so that a text changes nothing: leave --text out")


def prior_key(prior: Prior, method: str) -> str:
    """SHA-256 of what of a prior fixes a method's answers: nothing, the autoencoder, or all of it."""
    aim = METHODS[method]
    return "none" if aim == "pixels" else prior.latent_digest if aim in ("latent", "refined") else prior.digest


class AttackNetwork(nn.Module):
    """Features → images, in one pass.

    Args:
        made: what for.
        prior: the one that ``made`` names.

    Attributes:
        refines: for ``net-flow``, whether the flow's step is taken; the first half of its training goes without.
        known: first 64 bits of the SHA-256 of each picture it was trained on, ``(N,)`` int64.
        student: stands in for F1, for ``net-best`` where ``made`` says so.
    """

    def __init__(self, made: Made, prior: Prior) -> None:
        super().__init__()
        self.made = made
        self._prior = [prior]  # in a list, so that it is no part of this module's state
        self.refines = True
        self.known = np.zeros(0, np.int64)
        self.mixer: nn.Module | None = None
        if made.frames > 1:
            self.mixer = (FrameMixer if made.mixed else FrameControl)(made.features, made.frames)
        self.flow: Flow | None = None
        self.student: Student | None = Student(made.features, made.image) if made.student else None
        aim = METHODS[made.method]
        if aim == "refined":
            self.core: nn.Module = LatentNetwork(made.features, prior.latent_shape, made.width, student=made.student)
        elif aim == "flow":
            self.core = Aligned(made.features, prior.latent_shape, made.width)
            self.flow = Flow(prior, made.rank, everywhere=made.everywhere)
        else:
            shape = (3, made.image, made.image) if aim == "pixels" else prior.latent_shape
            self.core = FeatureUNet(made.features, aim, shape, made.image, made.width)

    def __deepcopy__(self, memo: dict[int, Any]) -> AttackNetwork:
        # averages of weights are copies; the prior must stay the one it is
        other = AttackNetwork(self.made, self.prior).to(next(self.parameters()).device)
        other.load_state_dict(self.state_dict())
        for ours, theirs in zip(self.parameters(), other.parameters(), strict=True):
            theirs.requires_grad_(ours.requires_grad)
        other.train(self.training)
        other.refines, other.known = self.refines, self.known
        return other

    @property
    def prior(self) -> Prior:
        """The prior that turns its answers into images."""
        return self._prior[0]

    @property
    def standard(self) -> nn.Module:
        """What standardises the features."""
        return self.core.standard  # type: ignore[return-value]

    def decide(self, trust: float, *, student: bool = True) -> None:
        """Believe the student so far where answers are to be near; and keep it, or go on without one."""
        self.made = replace(self.made, trust=trust, student=student)
        if not student:
            assert isinstance(self.core, LatentNetwork) and trust == 0
            self.student = None
            self.core.without_student()

    def forward(self, features: Sequence[Tensor], text: Text | None = None) -> Tensor:
        """Features, each ``(B, …)`` → pixels ``(B, 3, H, W)``, latents or noise ``(B, C, h, w)``.

        For windows B is a multiple of K, the frames of each side by side.
        """
        if self.mixer is not None:
            features = self.mixer(features)
        value = self.core(features)
        return value if self.flow is None or not self.refines else self.flow(value, text)

    def images(self, value: Tensor, text: Text | None = None) -> Tensor:
        """What :meth:`forward` gave → images ``(B, 3, H, W)``, nominally in [0, 1]."""
        aim = METHODS[self.made.method]
        if aim == "pixels":
            return value
        return self.prior.generate(value, text, self.made.steps) if aim == "noise" else self.prior.decode(value)

    def check_features(self, features: Sequence[Tensor]) -> None:
        """Refuse features that it was not made for.

        Raises:
            UserError: another number of tensors, other shapes, or windows that are not whole.
        """
        given = [tuple(z.shape[1:]) for z in features]
        if given != [tuple(s) for s in self.made.features]:
            show = [" and ".join("×".join(map(str, s)) for s in shapes) for shapes in (given, self.made.features)]
            raise UserError(
                f"features of shape {show[0]} do not fit this network, which takes {show[1]}: "
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
    """What a network is for, in a word: target, split, method and what else tells it from others of the same."""
    name = f"{made.target}-{made.split}-{made.method}"
    if made.text:
        name += "-text"
    if made.frames > 1:
        name += f"-{made.frames}frames" + ("" if made.mixed else "-control")
    if made.defense != "identity":
        name += f"-{made.defense}"
    return name


def cache_file(made: Made) -> Path:
    """Where a network of this kind is kept; it may not exist."""
    name = f"{network_name(made)}-{made.target_digest[:12]}-{made.prior_digest[:12]}"
    return home() / "inversion" / f"{name}.safetensors"


def embedded_file(made: Made) -> Path:
    """Where a network of this kind would be in the package; it may not exist."""
    return asset("inversion", f"{network_name(made)}-{made.prior}.safetensors")


def _cached(wanted: Made) -> Path:
    """The cache's file; for any weights of the target, the one that there is.

    Raises:
        UserError: there are several.
    """
    if wanted.target_digest:
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
        wanted: what it is needed for; how it was made (width, steps, setting …) is taken from the file. An empty
            ``target_digest`` takes a network for any weights, for an attacker that has not met its victim yet.
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
        raise UserError(
            f"no {wanted.method} network {where}: make one with `splitsight train inversion --oracle HOST:PORT "
            f"--method {wanted.method}{flags}`, or give one with --network"
        )
    state = load_weights(file)
    made = read_made(file)
    if (what := _difference(wanted, made)) is not None:
        raise UserError(
            f"{file} was trained for another {what}: train one with `splitsight train inversion --oracle HOST:PORT`"
        )
    try:
        known = state.pop(_QUERIES).numpy()
        network = AttackNetwork(made, prior)
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
            about = json.loads((opened.metadata() or {})["made"])
        about["features"] = tuple(tuple(shape) for shape in about["features"])
        return Made(**about)
    except (KeyError, TypeError, ValueError, OSError, SafetensorError) as error:
        raise UserError(f"{file} is not a black-box network ({type(error).__name__}): train it again") from error


def _difference(wanted: Made, made: Made) -> str | None:
    """What a network was made for that is not what is wanted, in words; ``None`` where nothing is."""
    for name, what in (
        ("method", "method"),
        ("target", "target"),
        ("split", "split"),
        ("target_digest", "weights' digest"),
        ("defense", "defence"),
        ("prior_digest", "prior's digest"),
        ("frames", "number of frames"),
        ("mixed", "kind of window"),
        ("text", "use of text"),
    ):
        ours, theirs = getattr(wanted, name), getattr(made, name)
        if (name == "mixed" and made.frames == 1) or (name in ("target_digest", "defense") and not ours):
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
