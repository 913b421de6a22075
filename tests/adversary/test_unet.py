"""F_u and the layers for several frames: any feature, equal sizes, what depends on what."""

import numpy as np
import pytest
import torch
from torch import nn

from adversary.blackbox.multiframe import FrameControl, FrameMixer
from adversary.blackbox.unet import FeatureUNet, Standardised, entry

SHAPES = [
    [(64, 16, 16)],
    [(128, 8, 8)],
    [(512, 2, 2)],
    [(24, 56, 56)],
    [(50, 32)],  # tokens with a class token
    [(49, 32)],
    [(77, 32)],  # tokens of no square
    [(512,)],
    [(16, 4, 4), (8, 8, 8)],
]


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_the_three_aims_fit_any_feature_with_as_many_parameters(shapes):
    counts = []
    for output, shape in (
        ("pixels", (3, 64, 64)),
        ("latent", (8, 16, 16)),
        ("noise", (8, 16, 16)),
        ("noise", (4, 8, 8)),
    ):
        network = FeatureUNet(shapes, output, shape, 64, width=16)
        out = network([torch.randn(2, *s) for s in shapes])
        assert out.shape == (2, *shape)
        if output == "pixels":
            assert out.min() >= 0 and out.max() <= 1
        if output == "noise":
            flat = out.flatten(1)
            torch.testing.assert_close(flat.mean(1), torch.zeros(2), atol=1e-5, rtol=0)
            torch.testing.assert_close(flat.std(1), torch.ones(2))
        counts.append(_count(network))
    assert max(counts) <= 1.02 * min(counts)


def test_tokens_lie_where_they_came_from():
    module, side = entry((10, 1), 1)
    assert side == 3
    nn.init.ones_(module.tokens.weight), nn.init.zeros_(module.tokens.bias)
    nn.init.zeros_(module.summary.weight), nn.init.constant_(module.summary.bias, 100.0)
    grid = module(torch.arange(10.0).view(1, 10, 1))
    torch.testing.assert_close(grid, torch.arange(1.0, 10.0).view(1, 1, 3, 3) + 100)


def test_features_are_standardised_by_what_was_seen():
    rng = np.random.default_rng(0)
    maps = rng.normal(5, [[[1]], [[100]]], (400, 2, 3, 3)).astype(np.float32)
    tokens = rng.normal(-2, 0.01, (400, 4, 2)).astype(np.float32)
    still = np.concatenate([tokens, np.ones_like(tokens[..., :1])], -1)
    standard = Standardised([(2, 3, 3), (4, 3)])
    standard.measure([maps, still])
    a, b = standard([torch.from_numpy(maps), torch.from_numpy(still)])
    for z in (a.movedim(1, -1).flatten(0, 2), b[..., :2].flatten(0, 1)):
        torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=2e-3, rtol=0)
        torch.testing.assert_close(z.std(0), torch.ones(2), atol=2e-3, rtol=0)
    # a channel that never moved is not blown up when it does
    later = torch.from_numpy(still[:1]).clone()
    later[..., 2] += 1e-4
    assert standard([torch.from_numpy(maps[:1]), later])[1][..., 2].abs().max() < 20


@pytest.mark.parametrize("shape", [(3, 4, 5), (6, 3), (7,)], ids=str)
def test_frames_are_mixed_by_a_1x1_convolution_over_the_stack(shape):
    torch.manual_seed(0)
    mixer, z = FrameMixer([shape], 3), torch.randn(6, *shape)
    torch.testing.assert_close(mixer([z])[0], z)  # it begins at the identity
    nn.init.normal_(mixer.layers[0].weight), nn.init.normal_(mixer.layers[0].bias)
    out = mixer([z])[0]
    for window in range(2):
        frames = z[3 * window : 3 * window + 3]
        if len(shape) == 3:
            weight = mixer.layers[0].weight[:, :, None, None]
            wanted = nn.functional.conv2d(frames.flatten(0, 1)[None], weight, mixer.layers[0].bias)[0]
            wanted = wanted.unflatten(0, (3, shape[0]))
        else:
            stacked = torch.cat(list(frames), -1)
            wanted = torch.stack((stacked @ mixer.layers[0].weight.T + mixer.layers[0].bias).chunk(3, -1))
        torch.testing.assert_close(out[3 * window : 3 * window + 3], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(16, 4, 4), (6, 24), (40,)], ids=str)
@pytest.mark.parametrize("frames", [2, 4])
def test_the_control_is_as_large_and_looks_at_each_frame_alone(shape, frames):
    mixer, control = FrameMixer([shape], frames), FrameControl([shape], frames)
    assert abs(_count(control) / _count(mixer) - 1) < 0.02
    for layer in (mixer.layers[0], control.layers[0][2]):
        nn.init.normal_(layer.weight)
    z = torch.randn(frames, *shape)
    moved = z.clone()
    moved[-1] += 1
    for module, alone in ((mixer, False), (control, True)):
        same = torch.allclose(module([z])[0][0], module([moved])[0][0])
        assert same == alone
