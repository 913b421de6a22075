"""Inversion networks: features → the prior's latent, in one pass.

A small residual network at the latent's resolution; the prior's frozen decoder turns its answer into an
image, so the preview and the refinement live in the same latent space and one starts the other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from adversary.blackbox.layouts import entry, resized, side_of
from adversary.gaussian import GaussianErrors
from splitsight.artifacts import asset, home, kernels, load_weights, save_weights
from splitsight.errors import UserError
from splitsight.features import FeatureSpec, shapes_of
from splitsight.names import file_stem
from splitsight.wire.sessions import UNDEFENDED, SessionDescription

if TYPE_CHECKING:
    from adversary.priors.prior import Prior

__all__ = [
    "WIDTH",
    "InversionNetwork",
    "NoInversionNetwork",
    "inversion_file",
    "inversion_for",
    "inversion_kept",
    "inversion_name",
    "inversion_path",
    "inversion_width",
    "load_inversion",
]

WIDTH = 80
"""Channels at the latent's resolution, unless asked for otherwise."""
_FOLDED = 1024
"""Channels, at most, that enter 3 × 3 convolutions at half the latent's resolution, of all tensors together."""


class NoInversionNetwork(UserError):
    """There is none for this target, split and prior; an attack that can do without may go on."""


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.norm2.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(h)))


class _Resized(nn.Module):
    """``(B, C, h, w)`` → ``(B, C, side, side)``."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return resized(x, (self.side, self.side))


class _Entry(nn.Module):
    """One tapped tensor ``(B, *shape)`` → ``(B, width, grid, grid)``, losing no position of a finer map on the way.

    A finer map is folded into channels, a coarser one unfolded in steps of two by learnt sub-positions (interpolation
    alone could not tell where within a coarse cell something is); more channels than :data:`_FOLDED` are projected to
    fewer before the 3 × 3 convolution. A class token is added everywhere; what has no grid enters as 4 × 4 cells.
    """

    def __init__(self, spec: FeatureSpec, width: int, grid: int, folded: int = _FOLDED) -> None:
        super().__init__()
        self.spec = spec
        cells = side_of(spec)
        square = spec.grid is None or spec.grid[0] == spec.grid[1]
        parts = [entry(spec, width)] if spec.grid is None else []
        if spec.grid is not None:
            channels, fold = spec.channels, max(1, math.ceil(cells / grid))
            fewer = max(2, folded // max(2, fold**2))
            if channels * fold**2 > folded and fewer < channels:
                parts.append(nn.Conv2d(channels, fewer, 1))
                channels = fewer
            if fold > 1:
                if cells != fold * grid or not square:
                    parts.append(_Resized(fold * grid))
                parts.append(nn.PixelUnshuffle(fold))
                channels, cells, square = channels * fold**2, grid, True
            parts.append(nn.Conv2d(channels, width, 3 if cells > 1 else 1, padding="same"))
        while 2 * cells <= grid:
            parts += [nn.ReLU(), nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2)]
            cells *= 2
        if cells != grid or not square:
            parts.append(_Resized(grid))
        self._parts = len(parts)
        for i, part in enumerate(parts):
            self.add_module(str(i), part)
        self.summary = nn.Linear(spec.channels, width) if spec.class_token else None

    def forward(self, z: Tensor) -> Tensor:
        h = z if self.spec.grid is None else self.spec.as_map(z)
        for i in range(self._parts):
            h = self.get_submodule(str(i))(h)
        return h if self.summary is None else h + self.summary(z[:, 0])[:, :, None, None]


class InversionNetwork(nn.Module):
    """Features of one split point → scaled latents of one prior.

    Args:
        features: the tensors that cross the split.
        latent: ``(C, h, w)`` of the prior.
        width: channels at the latent's resolution; twice as many at half of it.
        coarse: residual blocks at half the latent's resolution.
        depth: residual blocks at the latent's resolution.
        gains: factor on each tensor before anything else, so that noise far above the features' size, or a clip far
            below it, leaves numbers of a size that a network can be trained on; 1 where none are given.

    Attributes:
        errors: what it does not know, once that was measured; see :mod:`adversary.gaussian`.
        pixels: likewise for the image that the prior's decoder makes of its answer, clamped to [0, 1].
        defense: what the edge did to the features that it was trained on.
    """

    defense: str = UNDEFENDED
    errors: GaussianErrors | None
    pixels: GaussianErrors | None

    def __init__(
        self,
        features: Sequence[FeatureSpec],
        latent: tuple[int, int, int],
        width: int = WIDTH,
        coarse: int = 2,
        depth: int = 4,
        gains: Sequence[float] = (),
    ) -> None:
        super().__init__()
        self.features, self.latent = tuple(features), latent
        self.width, self.depths = width, (coarse, depth)
        self.gains = tuple(gains) or (1.0,) * len(self.features)
        grid = math.ceil(max(latent[1:]) / 2)
        self.entries = nn.ModuleList(
            _Entry(spec, 2 * width, grid, _FOLDED // len(self.features)) for spec in self.features
        )
        self.coarse = nn.Sequential(*(_Block(2 * width) for _ in range(coarse)))
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.exit = nn.Conv2d(width, latent[0], 3, padding=1)
        self.errors = None
        self.pixels = None

    def expect_errors(self, *, features: bool = True) -> GaussianErrors:
        """Make room for measured errors, to be filled by measuring or by loading.

        Args:
            features: also for what F1, or a surrogate of it, makes of a decoded image.
        """
        self.errors = GaussianErrors(self.latent, self.features if features else [])
        return self.errors

    def expect_pixels(self, size: int) -> GaussianErrors:
        """The same for the errors of images of ``size`` pixels a side."""
        self.pixels = GaussianErrors((3, size, size), [])
        return self.pixels

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Features, each ``(B, …)`` → latents ``(B, C, h, w)``."""
        each = zip(self.entries, features, self.gains, strict=True)
        total = torch.stack([entry(z if gain == 1 else gain * z) for entry, z, gain in each]).sum(0)
        h = nn.functional.pixel_shuffle(self.up(self.coarse(torch.relu(total))), 2)
        return self.exit(self.blocks(torch.relu(resized(h, self.latent[1:]))))

    def save(
        self,
        path: Path,
        *,
        target: str,
        split: str,
        head_digest: str,
        prior: str,
        prior_digest: str,
        defense: str = UNDEFENDED,
    ) -> None:
        """Write float16 safetensors, kernels in 8 bits; what the network was trained for travels in the metadata."""
        config = {
            "features": [asdict(spec) for spec in self.features],
            "latent": self.latent,
            "width": self.width,
            "coarse": self.depths[0],
            "depth": self.depths[1],
        }
        if any(gain != 1 for gain in self.gains):
            config["gains"] = list(self.gains)
        about = {"config": config, "head_digest": head_digest, "prior_digest": prior_digest}
        about |= {"target": target, "split": split, "prior": prior, "defense": defense}
        save_weights(path, self.state_dict(), about, kernels(self))


def inversion_file(
    target: str, split: str, prior: str, *, head_digest: str, prior_digest: str, defense: str = UNDEFENDED
) -> Path:
    """Where an inversion network is kept in the cache; it may not exist."""
    name = inversion_name(target, split, prior, defense)
    return home() / "inversion" / f"{name}-{head_digest[:12]}-{prior_digest[:12]}.safetensors"


def inversion_name(target: str, split: str, prior: str, defense: str = UNDEFENDED) -> str:
    """What names the file of an inversion network."""
    return file_stem(target, split, prior, *([] if defense == UNDEFENDED else [defense]))


def inversion_kept(target: str, split: str, prior: str, *, head_digest: str, defense: str = UNDEFENDED) -> bool:
    """Whether the package or the cache has an inversion network that :func:`load_inversion` would try.

    Asks names of files alone, so that no prior has to be loaded for the answer.
    """
    for trained_for in dict.fromkeys((defense, UNDEFENDED)):
        name = inversion_name(target, split, prior, trained_for)
        cached = (home() / "inversion").glob(f"{name}-{head_digest[:12]}-*.safetensors")
        if asset("inversion", f"{name}.safetensors").is_file() or any(cached):
            return True
    return False


def load_inversion(
    target: str,
    split: str,
    prior: str,
    *,
    head_digest: str,
    prior_digest: str,
    path: Path | None = None,
    defense: str = UNDEFENDED,
    features: Sequence[FeatureSpec] = (),
) -> InversionNetwork:
    """The inversion network for one target, split, prior and defence: out of the package, the cache, or a file.

    Args:
        target: name of the attacked network.
        split: its split point.
        prior: the prior's name.
        head_digest: SHA-256 of the weights of F1.
        prior_digest: SHA-256 of the prior's autoencoder.
        path: the file, or a folder of such files; by default the package's where that fits, else the cache's.
        defense: what the edge does to the features, in its canonical form; where no network was trained against it, the
            one for undefended features is taken (``network.defense`` says which it is).
        features: what crosses, behind the defence, as far as it is known.

    Raises:
        NoInversionNetwork: there is none, or only one for undefended features, and the defence changes their shape.
        UserError: the file was trained for other weights.
    """
    digests = {"head_digest": head_digest, "prior_digest": prior_digest}
    # without one that was trained against the defence, an attacker has the one for undefended features
    candidates = [
        _found(path, target, split, prior, trained_for, digests) for trained_for in dict.fromkeys((defense, UNDEFENDED))
    ]
    path = next((file for file in candidates if file.is_file()), candidates[0])
    flags = f" --target {target} --split {split}" + (f" --prior {prior}" if prior != "small" else "")
    flags += f" --defense '{defense}'" if defense != UNDEFENDED else ""
    none = NoInversionNetwork(
        f"no inversion network for {target} at {split} with prior '{prior}'"
        + (f" against '{defense}'" if defense != UNDEFENDED else "")
        + f": train one with `splitsight train inversion{flags} --data DIR --minutes 30`, DIR being a folder of "
        "images, or go on without previews"
    )
    if not path.is_file():
        raise none
    if (what := _misfit(path, digests)) is not None:
        if path != candidates[0]:
            # the defence was trained with a head of its own, for which the network for undefended features is no start
            raise none
        raise UserError(f"{path.name} was trained for {what}: retrain it with `splitsight train inversion`")
    state, about = load_weights(path), _about(path)
    try:
        config = dict(about["config"])
        own = [FeatureSpec(f["name"], tuple(f["shape"]), f["layout"]) for f in config.pop("features")]
        network = InversionNetwork(own, tuple(config.pop("latent")), **config)
        if any(key.startswith("errors.") for key in state):
            network.expect_errors()
        if "pixels.latent" in state:
            network.expect_pixels(len(state["pixels.latent"]))
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error
    network.defense = about.get("defense", UNDEFENDED)
    if features and shapes_of(network.features) != shapes_of(features):
        raise none
    return network.eval().requires_grad_(False)


def inversion_width(path: Path) -> int:
    """Channels at the latent's resolution of the network in a file.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return int(_about(path)["config"]["width"])
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, error) from error


def inversion_for(about: SessionDescription, prior: Prior, path: Path | None = None) -> InversionNetwork:
    """The inversion network for a session with a prior; see :func:`load_inversion` for the file and the errors.

    Raises:
        UserError: also where it answers with latents of another size than the prior's for this session's images.
    """
    wanted = prior.sized(about.input_size).latent_shape
    network = load_inversion(
        about.target,
        about.split,
        prior.name,
        head_digest=about.head_digest,
        prior_digest=prior.latent_digest,
        path=path,
        defense=about.defense,
        features=about.features,
    )
    if tuple(network.latent) != wanted:
        raise UserError(
            f"the inversion network for {about.target} at {about.split} gives latents {tuple(network.latent)} where "
            f"images of {about.input_size} pixels take {wanted}: retrain it with `splitsight train inversion`"
        )
    return network


def inversion_path(about: SessionDescription, prior: Prior) -> Path | None:
    """The file of the package or the cache that fits a session, its defence included; ``None`` where there is none."""
    digests = {"head_digest": about.head_digest, "prior_digest": prior.latent_digest}
    file = _found(None, about.target, about.split, prior.name, about.defense, digests)
    return file if file.is_file() and _misfit(file, digests) is None else None


def _found(path: Path | None, target: str, split: str, prior: str, defense: str, digests: Mapping[str, str]) -> Path:
    """The file itself, the one in that folder, or the package's where that fits, else the cache's; it may not exist."""
    name = f"{inversion_name(target, split, prior, defense)}.safetensors"
    if path is not None:
        return path / name if path.is_dir() else path
    embedded, cached = asset("inversion", name), inversion_file(target, split, prior, defense=defense, **digests)
    return cached if cached.is_file() and (not embedded.is_file() or _misfit(embedded, digests)) else embedded


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"{path} is not an inversion network ({type(error).__name__}): retrain it with `splitsight train inversion`"
    )


def _about(path: Path) -> dict[str, Any]:
    """A file's metadata."""
    try:
        with safe_open(str(path), "pt") as opened:
            return {k: json.loads(v) for k, v in (opened.metadata() or {}).items()}
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _misfit(path: Path, digests: Mapping[str, str]) -> str | None:
    """Which other weights a file was trained for, in words; ``None`` where it fits."""
    about = _about(path)
    for name, what in (("head_digest", "other weights of F1"), ("prior_digest", "another prior")):
        if name not in about:
            raise _damaged(path, KeyError(name))
        if about[name] != digests[name]:
            return f"{what} (digest {about[name][:12]}…, not {digests[name][:12]}…)"
    return None
