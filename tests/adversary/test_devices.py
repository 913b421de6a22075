"""Attacks on another device than the CPU."""

import pytest
import torch
from elsewhere import ELSEWHERE, SecondDevice
from torch import nn

from adversary.attacks import ATTACKS, Problem
from adversary.blackbox.inversion import InversionNetwork
from adversary.prompts import embed_prompts, solve_with_prompts
from splitsight.devices import device_name, pick_device, standard_normal
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

QUICK = {
    "iterations": 3,
    "steps": 2,
    "restarts": 2,
    "fit_evaluations": 4,
    "fit_samples": 2,
    "pixel_evaluations": 4,
    "pixel_samples": 2,
    "round_evaluations": 3,
    "noise_iterations": 2,
    "noise_steps": 2,
    "levels": (0.4, 0.2),
    "samples": 2,
    "residual_evaluations": 4,
    "residual_ratio": 0.0,
}
EVERY_STAGE = {"stages": ("fit", "pixels", "noise", "rounds", "residual")}


class _Head(nn.Module):
    """A convolution that ends in a rectifier, so that noise on its output can be told."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.net = nn.Sequential(nn.Conv2d(3, 4, 4, 2, 1), nn.BatchNorm2d(4), nn.ReLU()).eval().requires_grad_(False)

    def forward(self, x):
        return (self.net(x),)


@pytest.fixture
def elsewhere():
    """A device that is not the CPU."""
    with SecondDevice():
        yield ELSEWHERE


def _problem(prior, device, noise=0.0):
    torch.manual_seed(4)
    nn.init.normal_(prior.denoiser.proj_out.weight, std=0.3)
    network = InversionNetwork([FeatureSpec("z0", (4, 8, 8))], prior.latent_shape, width=8, depth=1).eval()
    network.expect_errors().measure(torch.randn(99, *prior.latent_shape), [0.05 * torch.randn(99, 4, 8, 8)])
    network.expect_pixels(16).measure(0.2 * torch.randn(99, 3, 16, 16), [])
    head = _Head()
    z = head(torch.rand(2, 3, 16, 16))[0]
    z = z + noise * torch.randn_like(z)
    prior.to(device)
    network.requires_grad_(False).to(device)
    return Problem([z.to(device)], head.to(device), prior=prior, initial=lambda: network)


CASES = [
    ("do", "tuned", {}),
    ("db", "tuned", {"start": "noise"}),
    ("db", "tuned", {"start": "prior"}),
    ("db", "tuned", {"start": "grey"}),
    ("dmb", "tuned", {}),
    ("dmb", "tuned", {"checkpoint": True}),
    ("dmb-multi", "tuned", {}),
    ("best", "faithful", EVERY_STAGE),
    ("best", "sharp", {}),
    ("best-multi", "faithful", EVERY_STAGE),
]


@pytest.mark.parametrize(("method", "setting", "changes"), CASES)
def test_an_attack_computes_where_its_features_are_and_finds_the_same(flow_prior, elsewhere, method, setting, changes):
    attack = ATTACKS.get(method)
    quick = {key: value for key, value in QUICK.items() if key in attack.Settings.model_fields}
    attack = attack.configured(setting, changes=quick | changes)
    noise = 0.3 if attack.windowed else 0.0
    here = attack.reconstruct(_problem(flow_prior, "cpu", noise))
    there = attack.reconstruct(_problem(flow_prior, elsewhere, noise))
    assert here.images.device.type == "cpu" and there.images.device == elsewhere
    assert there.images.cpu().numpy() == pytest.approx(here.images.numpy(), abs=2e-3)
    assert there.loss == pytest.approx(here.loss, rel=1e-3, nan_ok=True)


def test_the_preview_and_the_live_window_too(flow_prior, elsewhere):
    for method, changes in (("preview", {}), ("window", {"inner": 3, "pixels": 3})):
        attack = ATTACKS.get(method).configured(changes=changes)
        here = attack.reconstruct(_problem(flow_prior, "cpu"))
        there = attack.reconstruct(_problem(flow_prior, elsewhere))
        assert there.images.cpu().numpy() == pytest.approx(here.images.numpy(), abs=2e-3)


def test_prompts_are_chosen_from_there(flow_prior, elsewhere):
    problem = _problem(flow_prior, elsewhere)
    attack = ATTACKS.get("dmb").configured("tuned", changes={"iterations": 2, "steps": 1})
    found = solve_with_prompts(attack, problem, embed_prompts(flow_prior, ["goldfish", "panda"]))
    assert found.answer.images.shape == (2, 3, 16, 16) and len(found.won) == 2


def test_a_seed_is_the_same_noise_anywhere(elsewhere):
    here, there = standard_normal((3, 4), [5, 6]), standard_normal((3, 4), [5, 6], elsewhere)
    assert there.device == elsewhere and torch.equal(here, there.cpu())
    assert torch.equal(standard_normal((3, 4), [6])[0], here[1])


def test_devices_by_name():
    assert pick_device("cpu") == torch.device("cpu") and device_name(torch.device("cpu")).startswith("CPU")
    with pytest.raises(UserError, match="unknown device 'toaster'"):
        pick_device("toaster")
