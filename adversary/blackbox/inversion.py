"""Inversion networks: features → the prior's latent, in one pass.

A small residual network at the latent's resolution; the prior's frozen decoder turns its answer into an
image, so the preview and the refinement live in the same latent space and one starts the other.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from adversary.gaussian import GaussianErrors
from splitsight.artifacts import asset, kernels, load_weights, save_weights
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

__all__ = ["WIDTH", "InversionNetwork", "NoInversionNetwork", "load_inversion"]

WIDTH = 80
"""Channels at the latent's resolution, unless asked for otherwise."""


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


def _entry(shape: tuple[int, ...], width: int, grid: int) -> nn.Module:
    """One tapped tensor → ``(B, width, grid, grid)``, losing no position of a finer map on the way.

    A finer map is folded into channels, a coarser one is unfolded in steps of two by learnt sub-positions
    (interpolation alone could not tell where within a coarse cell something is); a map whose side is no
    multiple is interpolated, anything without a grid goes through a dense layer to 4 × 4 cells.
    """
    if len(shape) != 3:
        cells = 4
        parts: list[nn.Module] = [
            nn.Flatten(),
            nn.Linear(int(torch.Size(shape).numel()), width * cells**2),
            nn.Unflatten(1, (width, cells, cells)),
        ]
    else:
        channels, cells = shape[0], shape[1]
        parts = []
        if cells > grid and cells % grid == 0:
            parts.append(nn.PixelUnshuffle(cells // grid))
            channels, cells = channels * (cells // grid) ** 2, grid
        parts.append(nn.Conv2d(channels, width, 3 if cells > 1 else 1, padding="same"))
    while cells < grid and grid % (2 * cells) == 0:
        parts += [nn.ReLU(), nn.Conv2d(width, 4 * width, 1), nn.PixelShuffle(2)]
        cells *= 2
    if cells != grid:
        parts.append(nn.Upsample((grid, grid), mode="bilinear", align_corners=False))
    return nn.Sequential(*parts)


class InversionNetwork(nn.Module):
    """Features of one split point → scaled latents of one prior.

    Args:
        features: shapes of the tensors that cross the split, without batch dimension.
        latent: ``(C, h, w)`` of the prior.
        width: channels at the latent's resolution; twice as many at half of it.
        coarse: residual blocks at half the latent's resolution.
        depth: residual blocks at the latent's resolution.

    Attributes:
        errors: what it does not know, once that was measured; see :mod:`adversary.gaussian`.
        pixels: likewise for the image that the prior's decoder makes of its answer, clamped to [0, 1].
    """

    errors: GaussianErrors | None
    pixels: GaussianErrors | None

    def __init__(
        self,
        features: list[tuple[int, ...]],
        latent: tuple[int, int, int],
        width: int = WIDTH,
        coarse: int = 2,
        depth: int = 4,
    ) -> None:
        super().__init__()
        self.config = {
            "features": [list(s) for s in features],
            "latent": list(latent),
            "width": width,
            "coarse": coarse,
            "depth": depth,
        }
        self.entries = nn.ModuleList(_entry(shape, 2 * width, latent[1] // 2) for shape in features)
        self.coarse = nn.Sequential(*(_Block(2 * width) for _ in range(coarse)))
        self.up = nn.Conv2d(2 * width, 4 * width, 1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(depth)))
        self.exit = nn.Conv2d(width, latent[0], 3, padding=1)
        self.errors = None
        self.pixels = None

    def expect_errors(self, *, features: bool = True) -> GaussianErrors:
        """Make room for measured errors, to be filled by measuring or by loading.

        Args:
            features: also for what F1, or who stands in for it, makes of a decoded image.
        """
        shapes = self.config["features"] if features else []
        specs = [FeatureSpec(f"z{i}", tuple(s)) for i, s in enumerate(shapes)]  # type: ignore[arg-type]
        self.errors = GaussianErrors(tuple(self.config["latent"]), specs)  # type: ignore[arg-type]
        return self.errors

    def expect_pixels(self, size: int) -> GaussianErrors:
        """The same for the errors of images of ``size`` pixels a side."""
        self.pixels = GaussianErrors((3, size, size), [])
        return self.pixels

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        """Features, each ``(B, …)`` → latents ``(B, C, h, w)``."""
        total = torch.stack([entry(z) for entry, z in zip(self.entries, features, strict=True)]).sum(0)
        h = nn.functional.pixel_shuffle(self.up(self.coarse(torch.relu(total))), 2)
        return self.exit(self.blocks(torch.relu(h)))

    def save(self, path: Path, *, target_digest: str, prior_digest: str, target: str, split: str, prior: str) -> None:
        """Write float16 safetensors, kernels in 8 bits; what the network was trained for travels in the metadata."""
        about = {"config": self.config, "target_digest": target_digest, "prior_digest": prior_digest}
        about |= {"target": target, "split": split, "prior": prior}
        save_weights(path, self.state_dict(), about, kernels(self))


def load_inversion(
    target: str, split: str, prior: str, *, target_digest: str, prior_digest: str, path: Path | None = None
) -> InversionNetwork:
    """The inversion network for one target, split and prior: the embedded one, or a file.

    Raises:
        NoInversionNetwork: there is none.
        UserError: it was trained for other weights.
    """
    file = path or asset("inversion", f"{target}-{split}-{prior}.safetensors")
    if not file.is_file():
        raise NoInversionNetwork(
            f"no inversion network for {target} at {split} with prior '{prior}': "
            f"make one with `splitsight train inversion --target {target} --split {split}`, or run without previews"
        )
    state = load_weights(file)
    with safe_open(str(file), "pt") as opened:
        about = {k: json.loads(v) for k, v in (opened.metadata() or {}).items()}
    try:
        config = about["config"]
        for what, want in (("target_digest", target_digest), ("prior_digest", prior_digest)):
            if about[what] != want:
                raise UserError(
                    f"{file.name} was trained for another {what.split('_')[0]} (digest "
                    f"{about[what][:12]}…, not {want[:12]}…): "
                    "retrain it with `splitsight train inversion`"
                )
        network = InversionNetwork([tuple(s) for s in config.pop("features")], tuple(config.pop("latent")), **config)
        if any(key.startswith("errors.") for key in state):
            network.expect_errors()
        if "pixels.latent" in state:
            network.expect_pixels(len(state["pixels.latent"]))
        network.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"{file} is not an inversion network ({type(error).__name__}): retrain it with `splitsight train inversion`"
        ) from error
    return network.eval().requires_grad_(False)
