"""What an attacker knows of tapped features who was told the defence."""

import numpy as np
import pytest
import torch

from adversary.defended import averaged, told
from splitsight.draws import Draws
from splitsight.pipeline import EdgePipeline


def test_the_mean_of_what_was_sent_leaves_out_what_was_not():
    z = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 0.0], [0.0, 8.0]])
    sent = z != 0
    (mean,), (count,) = averaged([z], 2, [sent])
    assert torch.equal(mean, torch.tensor([[2.0, 4.0], [5.0, 8.0]]))
    assert torch.equal(count, torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
    (mean,), (count,) = averaged([z], 2)
    assert torch.equal(mean, torch.tensor([[2.0, 2.0], [2.5, 4.0]])) and (count == 2).all()


def _tapped(edge, frames, scenes=2):
    images = torch.rand(scenes, 3, 16, 16, generator=torch.Generator().manual_seed(0)).repeat_interleave(frames, 0)
    with torch.no_grad():
        return list(edge(images, Draws(range(scenes * frames)))), images[::frames]


@pytest.mark.parametrize("defense", ["noise:sigma=0.3", "noise:sigma=0.3,law=laplace", "noise:ratio=0.5"])
@pytest.mark.parametrize("frames", [4, 64])
def test_noise_falls_by_the_root_of_the_number_of_frames_and_the_attacker_knows_it(tiny_target, defense, frames):
    edge, plain = EdgePipeline(tiny_target, "S1", defense), EdgePipeline(tiny_target, "S1")
    features, images = _tapped(edge, frames)
    known = told(edge, features, static=frames)
    with torch.no_grad():
        error = float((known.features[0] - plain(images)[0]).square().mean().sqrt())
    sigma = torch.as_tensor(known.noise[0]).expand_as(known.features[0]).square().mean().sqrt()
    one = torch.as_tensor(told(edge, features).noise[0]).expand_as(features[0]).square().mean().sqrt()
    assert float(one) / float(sigma) == pytest.approx(frames**0.5, rel=1e-3)
    assert error == pytest.approx(float(sigma), rel=0.1)
    assert len(known.features[0]) == 2 and known.fresh and not known.laplace


def test_laplace_noise_on_a_single_frame_is_told(tiny_target):
    edge = EdgePipeline(tiny_target, "S1", "noise:sigma=0.3,law=laplace")
    assert told(edge, _tapped(edge, 1)[0]).laplace


def test_over_a_static_scene_every_dropped_channel_comes(tiny_target):
    edge, plain = EdgePipeline(tiny_target, "S2", "dropout:p=0.5"), EdgePipeline(tiny_target, "S2")
    features, images = _tapped(edge, 32)
    one, whole = told(edge, features), told(edge, features, static=32)
    assert 0.4 < float(one.support[0].mean()) < 0.6 and float(whole.support[0].mean()) == 1
    with torch.no_grad():
        # what is fitted is compared with what came, and the truth agrees with it
        torch.testing.assert_close(whole.pipeline(images)[0], whole.features[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(one.pipeline(images.repeat_interleave(32, 0))[0], features[0], atol=1e-5, rtol=1e-4)
        assert not torch.allclose(whole.features[0], plain(images)[0], atol=1e-2)  # it is scaled up


def test_copies_of_the_frames_are_compared_on_the_same_support(tiny_target):
    edge = EdgePipeline(tiny_target, "S2", "topk:keep=0.2")
    features, images = _tapped(edge, 1)
    known = told(edge, features)
    with torch.no_grad():
        twice = known.pipeline(torch.cat([images, images]))[0]
    assert torch.equal(twice[:2], twice[2:]) and torch.equal(twice[:2], features[0])


def test_what_a_key_does_is_the_same_in_every_frame(tiny_target, tmp_path):
    key = tmp_path / "key"
    key.write_bytes(np.random.default_rng(0).bytes(32))
    edge = EdgePipeline(tiny_target, "S2", f"permutation:key={key}")
    assert not told(edge, _tapped(edge, 4)[0], static=4).fresh
