"""LPIPS and the Inception Score, with and without their networks."""

import math

import pytest
import torch
from torchvision.models import alexnet

from splitsight.metrics import perceptual, proportion_interval


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    perceptual._lpips_network.cache_clear()
    yield tmp_path / "hub" / "checkpoints"
    perceptual._lpips_network.cache_clear()


def test_without_weights_nothing_is_measured_and_a_sentence_says_so(hub):
    x = torch.rand(2, 3, 64, 64)
    assert perceptual.lpips(x, x) is None
    assert str(hub) in perceptual.lpips_missing() and "alexnet" in perceptual.lpips_missing()
    assert perceptual.inception_missing().startswith("the Inception Score with the published network is left out")
    assert perceptual.inception_score(x) is None


def test_lpips_with_weights_in_place(hub):
    torch.manual_seed(0)
    torch.save(alexnet(weights=None).state_dict(), hub / "alexnet-owt-7be5be79.pth")
    assert perceptual.lpips_missing() is None
    x = torch.rand(3, 3, 64, 64)
    near, far = (x + 0.02 * torch.randn_like(x)).clamp(0, 1), torch.rand_like(x)
    assert perceptual.lpips(x, x).tolist() == [0, 0, 0]
    one = perceptual.lpips(near, x, batch=2)
    assert one.shape == (3,) and (one > 0).all() and (perceptual.lpips(far, x) > one).all()
    with pytest.raises(ValueError, match="63 pixels"):
        perceptual.lpips(x[..., :32, :32], x[..., :32, :32])
    with pytest.raises(ValueError, match="shapes"):
        perceptual.lpips(x[:1], x)


def test_inception_score_with_a_classifier_follows_its_definition():
    logits = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * 2
    images = torch.zeros(40, 3, 4, 4)
    images[:, 0, 0, 0] = torch.arange(40) / 40
    classify = lambda x: logits[(x[:, 0, 0, 0] * 40).round().long()]  # noqa: E731
    p = logits.double().softmax(1)
    kl = (p * (p.log() - p.mean(0).log())).sum(1).mean()
    state = torch.get_rng_state()
    assert perceptual.inception_score(images, classify, batch=16) == pytest.approx(float(kl.exp()), rel=1e-5)
    assert torch.equal(state, torch.get_rng_state())
    # certain and all different: as many as there are classes; all the same: 1
    assert perceptual.inception_score(images[:7], lambda x: 100 * torch.eye(7)[: len(x)]) == pytest.approx(7)
    assert perceptual.inception_score(images, lambda x: torch.ones(len(x), 7)) == pytest.approx(1)
    assert perceptual.inception_score(images[:0], classify) is None


def test_wilson_interval_against_its_equation():
    # (p̂ − p)² = z² p (1 − p) / n holds at both ends
    got = proportion_interval([True] * 13 + [False] * 51 + [None] * 3)
    assert got["mean"] == 13 / 64
    for end in (got["low"], got["high"]):
        assert (got["mean"] - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / 64)
    none, every = proportion_interval([False] * 8), proportion_interval([True] * 8)
    assert none["low"] == 0 and 0.3 < none["high"] < 0.4
    assert math.isclose(every["low"], 1 - none["high"]) and every["high"] == 1
    assert proportion_interval([None]) == {"mean": None, "low": None, "high": None}
