import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import nn


def _lively(prior, std=0.3):
    torch.manual_seed(1)
    last = prior.denoiser.proj_out if hasattr(prior.denoiser, "proj_out") else prior.denoiser.conv_out
    nn.init.normal_(last.weight, std=std)
    return prior


@pytest.mark.parametrize("steps", [1, 3, 10])
@torch.no_grad()
def test_flow_sampler_against_a_loop_over_diffusers_scheduler(flow_prior, steps):
    prior = _lively(flow_prior)
    v, text = torch.randn(2, *prior.latent_shape), prior.embed_text(["red panda"])
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(prior.scheduler.config)
    scheduler.set_timesteps(steps)
    x = v
    for t in scheduler.timesteps:
        velocity = prior.denoiser(
            x,
            encoder_hidden_states=text.states.expand(2, -1, -1),
            encoder_attention_mask=text.mask.expand(2, -1),
            timestep=t.expand(2),
        ).sample
        x = scheduler.step(velocity, t, x).prev_sample
    torch.testing.assert_close(prior.sample(v, text, steps), x)
    assert not torch.allclose(x, v)
    torch.testing.assert_close(
        prior.generate(v, text, steps), (prior.vae.decode(x / prior.vae.config.scaling_factor).sample + 1) / 2
    )


@pytest.mark.parametrize("steps", [1, 3, 10])
@torch.no_grad()
def test_ddim_sampler_against_a_loop_over_diffusers_scheduler(stable_prior, steps):
    prior = _lively(stable_prior)
    v, text = torch.randn(2, *prior.latent_shape), prior.embed_text(["goldfish"])
    scheduler = DDIMScheduler.from_config(prior.scheduler.config)
    scheduler.set_timesteps(steps)
    x = v
    for t in scheduler.timesteps:
        x = scheduler.step(prior.denoiser(x, t, text.states.expand(2, -1, -1)).sample, t, x, eta=0.0).prev_sample
    torch.testing.assert_close(prior.sample(v, text, steps), x)
    assert not torch.allclose(x, v)


@torch.no_grad()
def test_inversion_then_generation_returns_the_image_as_steps_grow(flow_prior):
    prior = _lively(flow_prior)
    u = prior.encode(torch.rand(1, 3, prior.image_size, prior.image_size))
    image = prior.decode(u)
    errors = []
    for steps in (4, 16, 64):
        again = prior.generate(prior.invert(u, steps=steps), steps=steps)
        errors.append(float((again - image).norm() / image.norm()))
    # of first order: four times the steps, a quarter of the error
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.4 * errors[1] and errors[2] < 0.02
    assert not torch.allclose(prior.invert(u, steps=64), u, atol=0.1)
