import json

import numpy as np
import pytest
import torch

from adversary.priors.evaluate import frechet_distance
from adversary.priors.pixels import PixelDenoiser, build_pixel_denoiser
from adversary.priors.prior import Prior, Text, load_prior
from splitsight.errors import UserError


class _Towards(torch.nn.Module):
    """A flow towards one point: the velocity of straight paths that all end in ``u``."""

    def __init__(self, u):
        super().__init__()
        self.u = u

    def forward(self, prior, x, timestep, text):
        t = torch.as_tensor(timestep, dtype=torch.float32).reshape(-1, 1, 1, 1) / 1000
        return (x - self.u) / t.clamp_min(1e-6)


def _exact(prior, monkeypatch):
    u = torch.randn(1, *prior.latent_shape)
    field = _Towards(u)
    monkeypatch.setattr(Prior, "_predict", lambda self, x, t, text: field(self, x, t, text))
    return u


KINDS = pytest.mark.parametrize("kind", ["flow_prior", "unet_prior", "stable_prior"])


def _loud(prior):
    """A last layer that has something to say."""
    last = getattr(prior.denoiser, "proj_out", None) or prior.denoiser.conv_out
    torch.nn.init.normal_(last.weight, std=0.3)


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_flow_sampler_and_denoiser_against_a_closed_form(flow_prior, monkeypatch, steps):
    u = _exact(flow_prior, monkeypatch)
    v = torch.randn(2, *flow_prior.latent_shape)
    torch.testing.assert_close(flow_prior.sample(v, steps=steps), u.expand(2, -1, -1, -1), atol=1e-4, rtol=1e-4)
    noisy = flow_prior.noised(u, v[:1], 0.3)
    torch.testing.assert_close(flow_prior.denoise(noisy, 0.3), u, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["flow_prior", "unet_prior"])
def test_invert_is_the_inverse_of_sample_in_the_limit(kind, request):
    prior = request.getfixturevalue(kind)
    v = torch.randn(1, *prior.latent_shape)
    errors = [float((prior.invert(prior.sample(v, steps=n), steps=n) - v).norm() / v.norm()) for n in (5, 80)]
    assert errors[1] < errors[0] and errors[1] < 0.05


def test_ddim_denoise_undoes_noising_when_the_prediction_is_exact(stable_prior, monkeypatch):
    u, eps = torch.randn(1, *stable_prior.latent_shape), torch.randn(1, *stable_prior.latent_shape)
    alpha, _ = stable_prior._alpha(0.4)
    velocity = alpha**0.5 * eps - (1 - alpha) ** 0.5 * u
    monkeypatch.setattr(Prior, "_predict", lambda self, x, t, text: velocity)
    torch.testing.assert_close(stable_prior.denoise(stable_prior.noised(u, eps, 0.4), 0.4), u, atol=1e-5, rtol=1e-4)


@KINDS
def test_generator_is_differentiable_down_to_the_noise(kind, request):
    prior = request.getfixturevalue(kind)
    _loud(prior)
    v = torch.randn(1, *prior.latent_shape, requires_grad=True)
    x = prior.generate(v, prior.embed_text(["goldfish"]), steps=3)
    assert x.shape == (1, 3, prior.image_size, prior.image_size)
    (g,) = torch.autograd.grad(x.sum(), v)
    assert g.isfinite().all() and g.abs().sum() > 0
    assert prior.evaluations == 3
    again = prior.generate(v, prior.embed_text(["goldfish"]), steps=3, checkpoint=True)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), v)[0], g, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("kind", "masked"), [("flow_prior", True), ("unet_prior", True), ("stable_prior", False)])
def test_a_flow_does_not_attend_to_padding(kind, masked, request):
    prior = request.getfixturevalue(kind)
    _loud(prior)
    text = prior.embed_text(["goldfish"])
    padding = torch.arange(text.states.shape[1]) >= 3
    other = Text(text.states + 5.0 * padding[None, :, None], text.mask)
    x = torch.randn(1, *prior.latent_shape)
    assert torch.allclose(prior.denoise(x, 0.5, text), prior.denoise(x, 0.5, other), atol=1e-5) == masked


def test_a_convolutional_flow_denoises_latents_of_other_sizes(unet_prior):
    _loud(unet_prior)
    for size in (4, 7, 14):
        out = unet_prior.denoise(torch.randn(2, 8, size, size), 0.3)
        assert out.shape == (2, 8, size, size) and out.isfinite().all()


@KINDS
def test_saved_in_diffusers_layout_and_loaded_again(kind, request, tmp_path):
    prior = request.getfixturevalue(kind)
    prior.save(tmp_path / "p")
    loaded = load_prior(str(tmp_path / "p"))
    v = torch.randn(1, *prior.latent_shape)
    torch.testing.assert_close(loaded.generate(v, steps=2), prior.generate(v, steps=2), atol=0.02, rtol=0.05)
    assert loaded.digest != prior.digest  # float16 rounding is a change of weights
    assert load_prior(str(tmp_path / "p")).digest == loaded.digest
    assert (tmp_path / "p" / "vae" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_denoiser_of_pixels_is_part_of_the_folder(unet_prior, tmp_path):
    torch.manual_seed(1)
    unet_prior.save(tmp_path / "p")
    assert load_prior(str(tmp_path / "p")).pixel_denoiser is None
    alone = load_prior(str(tmp_path / "p")).digest
    unet_prior.pixel_denoiser = PixelDenoiser(build_pixel_denoiser((8, 8)))
    unet_prior.save(tmp_path / "p")
    loaded = load_prior(str(tmp_path / "p"))
    x = torch.rand(1, 3, 20, 14)
    torch.testing.assert_close(loaded.pixel_denoiser(x, 0.1), unet_prior.pixel_denoiser(x, 0.1), atol=0.01, rtol=0.05)
    assert not any(p.requires_grad for p in loaded.parameters()) and loaded.digest != alone
    (tmp_path / "p" / "pixel_denoiser" / "config.json").unlink()
    with pytest.raises(UserError, match="denoiser of pixels"):
        load_prior(str(tmp_path / "p"))


def test_prompts_change_the_image_and_unknown_words_do_not_fail(flow_prior):
    torch.nn.init.normal_(flow_prior.denoiser.proj_out.weight, std=0.5)
    v = torch.randn(1, *flow_prior.latent_shape)
    empty, panda = flow_prior.generate(v), flow_prior.generate(v, flow_prior.embed_text(["red panda"]))
    assert not torch.equal(empty, panda)
    flow_prior.embed_text(["a zzyzx, " + "very " * 100 + "long prompt"])
    torch.testing.assert_close(flow_prior.generate(v, flow_prior.embed_text([""])), empty)


def test_bad_folders_get_one_sentence(flow_prior, tmp_path):
    with pytest.raises(UserError, match="unknown prior 'nope'"):
        load_prior("nope")
    with pytest.raises(UserError, match="no prior at"):
        load_prior(str(tmp_path / "gone"))
    flow_prior.save(tmp_path / "p")
    weights = tmp_path / "p" / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        load_prior(str(tmp_path / "p"))
    config = tmp_path / "p" / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "latent_channels": 5}))
    with pytest.raises(UserError, match="cannot be loaded"):
        load_prior(str(tmp_path / "p"))


def test_the_frechet_distance_tells_how_far_it_is(flow_prior, tiny_target):
    seen = []
    images = np.random.default_rng(0).integers(0, 255, (60, 16, 16, 3), np.uint8)
    distance, name = frechet_distance(flow_prior, tiny_target, images, steps=1, count=100, done=seen.append)
    assert seen == [50, 50] and distance > 0 and name.startswith("tiny S2, pooled")


def test_larger_images_on_the_same_weights(flow_prior):
    large = flow_prior.sized(22)
    assert large.latent_shape == (8, 6, 6) and large.image_size == 24 and flow_prior.image_size == 16
    assert large.digest == flow_prior.digest and large.sized(16).latent_shape == (8, 4, 4)
    assert flow_prior.sized(16) is flow_prior and flow_prior.sized(8) is flow_prior
    u = large.encode(torch.rand(2, 3, 24, 24))
    assert u.shape == (2, 8, 6, 6) and large.decode(u).shape == (2, 3, 24, 24)
    v = torch.randn(1, *large.latent_shape, requires_grad=True)
    image = large.generate(v, steps=2)
    image.square().sum().backward()
    assert image.shape == (1, 3, 24, 24) and bool((v.grad != 0).all())


def test_tiles_are_what_the_denoiser_knows(flow_prior):
    torch.nn.init.normal_(flow_prior.denoiser.proj_out.weight, std=0.3)
    large, text = flow_prior.sized(24), flow_prior.embed_text(["goldfish", "panda"])
    one = torch.randn(2, 8, 4, 4)
    # of one tile, as without tiles
    torch.testing.assert_close(large.tiled(one, 500.0, text), flow_prior.denoise(one, 0.5, text).sub(one).div(-0.5))
    # at a corner a single tile answers, with the prompt of its own image
    x = torch.randn(2, 8, 6, 6)
    whole, corner = large.tiled(x, 500.0, text), large.tiled(x[..., :4, :4], 500.0, text)
    torch.testing.assert_close(whole[..., 0, 0], corner[..., 0, 0])
    assert not torch.allclose(whole[..., :4, :4], corner)


def test_stable_diffusion_keeps_its_size(stable_prior):
    assert stable_prior.sized(64) is stable_prior
