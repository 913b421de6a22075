"""Every white-box attack on features of every layout, through a target of another size than the prior's."""

import math

import pytest
import torch
from torch import nn

from adversary.attacks import ATTACKS, Problem
from adversary.blackbox.inversion import InversionNetwork
from adversary.whitebox.noise import shrunk
from adversary.whitebox.terms import agreement
from splitsight.features import FeatureSpec

SHAPES = {
    "map": [(6, 4, 4)],
    "channels last": [(4, 4, 6)],
    "many channels": [(1100, 2, 2)],
    "tokens with a class token": [(17, 6)],
    "tokens": [(7, 5)],
    "vector": [(20,)],
    "two tensors": [(6, 4, 4), (9, 5)],
}
METHODS = [("do", "tuned"), ("db", "tuned"), ("dmb", "fast"), ("dmb-multi", "tuned"), ("best", "faithful")]
METHODS += [("best", "sharp"), ("best-multi", "sharp"), ("preview", "default"), ("window", "live")]
METHODS += [("window", "denoised")]
BRIEF = {"iterations": 2, "steps": 1, "fit_evaluations": 2, "fit_samples": 2, "pixel_evaluations": 2, "inner": 2}
BRIEF |= {"pixel_samples": 2, "round_evaluations": 2, "samples": 1, "levels": (0.2,), "residual_evaluations": 2}
BRIEF |= {"pixels": 2}


class _Pipeline(nn.Module):
    """Resizes to 24 pixels; random linear features of any shape."""

    def __init__(self, shapes):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.shapes = shapes
        self.maps = [torch.randn(math.prod(s), 3 * 36, generator=generator) / 10 for s in shapes]

    def forward(self, x):
        x = nn.functional.interpolate(x, (24, 24), mode="bilinear", align_corners=False)
        small = nn.functional.avg_pool2d(x, 4).flatten(1)
        return tuple((small @ m.T).unflatten(1, s) for m, s in zip(self.maps, self.shapes, strict=True))


@pytest.mark.parametrize("layout", SHAPES)
def test_every_attack_takes_it(flow_prior, layout):
    torch.manual_seed(0)
    shapes, pipeline = SHAPES[layout], _Pipeline(SHAPES[layout])
    specs = [FeatureSpec(f"z{i}", shape) for i, shape in enumerate(shapes)]
    network = InversionNetwork(specs, flow_prior.latent_shape, width=8, depth=1).eval()
    residuals = [0.1 * torch.randn(40, *shape) for shape in shapes]
    network.expect_errors().measure(torch.randn(40, *flow_prior.latent_shape), residuals)
    network.expect_pixels(16).measure(0.1 * torch.randn(40, 3, 16, 16), [])
    network.requires_grad_(False)
    z = [t + 0.01 * torch.randn_like(t) for t in pipeline(torch.rand(2, 3, 24, 24))]
    for method, setting in METHODS:
        attack = ATTACKS.get(method)
        changes = {key: value for key, value in BRIEF.items() if key in attack.Settings.model_fields}
        prior = None if method == "do" else flow_prior
        known = {
            "prior": prior,
            "image_size": 16 if prior else 24,
            "initial": lambda: network,
            "noise": [0.01] * len(z),
        }
        answer = attack.configured(setting, changes=changes).reconstruct(Problem(z, pipeline, specs, **known))
        size = 16 if prior else 24
        assert answer.images.shape == (2, 3, size, size) and answer.images.isfinite().all(), method


def test_what_frames_agree_in_is_told_by_position_where_there_are_positions():
    spec = FeatureSpec("z", (17, 6))
    z = torch.ones(4, 17, 6)
    z[3, 1:9] = -2  # half of the last frame's grid moved
    weight = agreement([z], [spec], 4)
    assert weight[3, 0, 0].max() < 0.01 and weight[3, 0, -1].min() > 0.9 and weight[:3].min() > 0.9
    noisy = torch.zeros(4, 17, 60) + 0.5 * torch.randn(4, 17, 60, generator=torch.Generator().manual_seed(0))
    noisy[3, 0] += 10
    (got,), _ = shrunk([noisy], [FeatureSpec("z", (17, 60))], [0.5])
    assert (got[3, 0] - noisy[3, 0]).abs().max() < 0.2  # a token that differs stays
    assert got[:, 1:].square().mean() < 0.5 * noisy[:, 1:].square().mean()
