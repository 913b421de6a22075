"""F_u, how features of any layout enter and leave, and the layers for several frames."""

import numpy as np
import pytest
import torch
from torch import nn

from adversary.blackbox.flow import Aligned
from adversary.blackbox.inversion import InversionNetwork
from adversary.blackbox.layouts import Standardised, entry, leave
from adversary.blackbox.multiframe import FrameControl, FrameMixer
from adversary.blackbox.surrogate import Surrogate
from adversary.blackbox.unet import FeatureUNet
from splitsight.features import FeatureSpec

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
    [(12, 7, 14)],  # not square
    [(7, 7, 24)],  # channels last
    [(198, 32)],  # tokens with two that stand beside the square
    [(4, 3, 7, 7)],
]

LIMITS = {
    # layout: tensors, then millions of parameters at most of an inversion network, a U-Net, an alignment, a surrogate
    # and what mixes four frames
    "ResNet-18 L4, 64 pixels": ([(64, 16, 16)], 3.0, 2.0, 1.5, 0.5, 0.1),
    "ResNet-18 L4, 224 pixels": ([(64, 56, 56)], 3.0, 2.0, 1.5, 0.5, 0.1),
    "ResNet-50 L12": ([(512, 28, 28)], 3.0, 2.0, 1.5, 0.5, 4.5),
    "ResNet-50 L48": ([(2048, 7, 7)], 4.0, 2.0, 2.0, 1.0, 3.5),
    "ViT-base": ([(197, 768)], 4.0, 2.0, 2.0, 0.5, 2.0),
    "Swin, channels last": ([(7, 7, 768)], 3.5, 2.0, 2.0, 1.0, 2.0),
    "tokens of no square": ([(198, 768)], 3.0, 2.0, 2.0, 1.0, 2.0),
    "CLIP embedding": ([(512,)], 4.0, 2.5, 2.5, 1.5, 4.5),
    "long vector": ([(25088,)], 4.0, 3.5, 3.5, 2.5, 3.5),
    "MobileNetV3, two tensors": ([(40, 28, 28), (80, 14, 14)], 3.0, 2.0, 2.0, 0.5, 0.5),
    "stem at full resolution": ([(64, 112, 112)], 4.0, 2.0, 2.0, 0.5, 0.1),
}
"""Sensible sizes, whatever crosses: a network is to be trained on some thousand pictures."""


def _specs(shapes):
    return [FeatureSpec(f"z{i}", tuple(shape)) for i, shape in enumerate(shapes)]


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
        network = FeatureUNet(_specs(shapes), output, shape, 64, width=16)
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


@pytest.mark.parametrize(("latent", "image"), [((8, 16, 16), 64), ((8, 56, 56), 224), ((4, 7, 7), 56)], ids=str)
@pytest.mark.parametrize("layout", LIMITS)
def test_networks_stay_small_whatever_crosses(layout, latent, image):
    shapes, *limits = LIMITS[layout]
    specs = _specs(shapes)
    with torch.device("meta"):
        networks = (
            InversionNetwork(specs, latent),
            FeatureUNet(specs, "latent", latent, image),
            Aligned(specs, latent),
            Surrogate(specs, image),
            FrameMixer(specs, 4),
        )
    counts = [_count(network) / 1e6 for network in networks]
    assert all(count <= limit for count, limit in zip(counts, limits, strict=True)), counts


@pytest.mark.parametrize("latent", [(4, 8, 8), (4, 7, 7), (4, 14, 14)], ids=str)
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_inversion_networks_and_surrogates_fit_any_feature(shapes, latent):
    specs, z = _specs(shapes), [torch.randn(2, *shape) for shape in shapes]
    network = InversionNetwork(specs, latent, width=8, depth=1)
    answer = network(z)
    assert answer.shape == (2, *latent)
    answer.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.entries.parameters())
    made = Surrogate(specs, 4 * latent[1])(torch.rand(2, 3, 4 * latent[1], 4 * latent[1]))
    assert [f.shape for f in made] == [f.shape for f in z]


def test_a_larger_map_loses_no_position_on_its_way_in():
    # 14 × 14 onto 4 × 4: each position changes the answer
    spec = FeatureSpec("z0", (3, 14, 14))
    enter = InversionNetwork([spec], (4, 8, 8), width=8).entries[0]
    z = torch.randn(1, 3, 14, 14, requires_grad=True)
    enter(z).square().sum().backward()
    assert (z.grad.abs().sum(1) > 0).all()


def test_tokens_lie_where_they_came_from():
    module = entry(FeatureSpec("z0", (10, 1)), 1)
    nn.init.ones_(module.project.weight), nn.init.zeros_(module.project.bias)
    nn.init.zeros_(module.summary.weight), nn.init.constant_(module.summary.bias, 100.0)
    grid = module(torch.arange(10.0).view(1, 10, 1))
    torch.testing.assert_close(grid, torch.arange(1.0, 10.0).view(1, 1, 3, 3) + 100)


@pytest.mark.parametrize("shape", [(3, 4, 5), (5, 5, 3), (9, 3), (10, 3)], ids=str)
def test_what_leaves_lies_where_it_entered(shape):
    spec, z = FeatureSpec("z0", shape), torch.randn(2, *shape)
    enter, out = entry(spec, spec.channels), leave(spec.channels, spec)
    for layer in (enter.project, out.read):
        nn.init.dirac_(layer.weight), nn.init.zeros_(layer.bias)
    for summary in filter(None, (enter.summary, out.summary)):
        nn.init.zeros_(summary.weight), nn.init.zeros_(summary.bias)
    back = out(enter(z))
    wanted = torch.cat([torch.zeros_like(z[:, :1]), z[:, 1:]], 1) if spec.class_token else z
    torch.testing.assert_close(back, wanted)


def test_features_are_standardised_by_what_was_seen():
    rng = np.random.default_rng(0)
    maps = rng.normal(5, [[[1]], [[100]]], (400, 2, 3, 3)).astype(np.float32)
    tokens = rng.normal(-2, 0.01, (400, 4, 2)).astype(np.float32)
    still = np.concatenate([tokens, np.ones_like(tokens[..., :1])], -1)
    standard = Standardised(_specs([(2, 3, 3), (4, 3)]))
    standard.measure([maps, still])
    a, b = standard([torch.from_numpy(maps), torch.from_numpy(still)])
    for z in (a.movedim(1, -1).flatten(0, 2), b[..., :2].flatten(0, 1)):
        torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=2e-3, rtol=0)
        torch.testing.assert_close(z.std(0), torch.ones(2), atol=2e-3, rtol=0)
    # a channel that never moved is not blown up when it does
    later = torch.from_numpy(still[:1]).clone()
    later[..., 2] += 1e-4
    assert standard([torch.from_numpy(maps[:1]), later])[1][..., 2].abs().max() < 20


@pytest.mark.parametrize("shape", [(3, 4, 5), (7, 7, 24), (6, 3), (7,), (2, 3, 4, 5)], ids=str)
def test_standardising_is_by_channel_in_any_layout(shape):
    rng, spec = np.random.default_rng(0), FeatureSpec("z0", shape)
    strength = torch.from_numpy(rng.uniform(0.5, 5, spec.channels).astype(np.float32))
    z = spec.per_channel(strength) * torch.from_numpy(rng.normal(3, 1, (500, *shape)).astype(np.float32))
    standard = Standardised([spec])
    standard.measure([z.numpy()])
    rows = spec.rows(standard([z])[0])
    torch.testing.assert_close(rows.mean(0), torch.zeros(spec.channels), atol=2e-3, rtol=0)
    torch.testing.assert_close(rows.std(0), torch.ones(spec.channels), atol=2e-3, rtol=0)
    torch.testing.assert_close(standard.restored(standard([z]))[0], z, atol=1e-3, rtol=1e-3)


def test_many_channels_are_mixed_by_a_matrix_of_low_rank():
    spec = FeatureSpec("z0", (1200, 2, 2))
    mixer, z = FrameMixer([spec], 2), torch.randn(4, 1200, 2, 2)
    torch.testing.assert_close(mixer([z])[0], z)
    assert _count(mixer) < 2400**2 / 2
    nn.init.normal_(mixer.layers[0].up.weight)
    moved = z.clone()
    moved[1] += 1
    assert not torch.allclose(mixer([z])[0][0], mixer([moved])[0][0])
    assert torch.equal(mixer([z])[0][2], mixer([moved])[0][2])


@pytest.mark.parametrize("shape", [(3, 4, 5), (6, 3), (7,)], ids=str)
def test_frames_are_mixed_by_a_1x1_convolution_over_the_stack(shape):
    torch.manual_seed(0)
    mixer, z = FrameMixer(_specs([shape]), 3), torch.randn(6, *shape)
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
    mixer, control = FrameMixer(_specs([shape]), frames), FrameControl(_specs([shape]), frames)
    assert abs(_count(control) / _count(mixer) - 1) < 0.02
    for layer in (mixer.layers[0], control.layers[0][2]):
        nn.init.normal_(layer.weight)
    z = torch.randn(frames, *shape)
    moved = z.clone()
    moved[-1] += 1
    for module, alone in ((mixer, False), (control, True)):
        same = torch.allclose(module([z])[0][0], module([moved])[0][0])
        assert same == alone
