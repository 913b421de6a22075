import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from scipy.integrate import solve_ivp
from torch import nn

from adversary.priors.prior import _adams_bashforth


def _lively(prior, std=0.3):
    torch.manual_seed(1)
    last = prior.denoiser.proj_out if hasattr(prior.denoiser, "proj_out") else prior.denoiser.conv_out
    nn.init.normal_(last.weight, std=std)
    return prior


def _velocity(prior, text):
    def velocity(x, t):
        return prior.denoiser(
            x,
            encoder_hidden_states=text.states.expand(len(x), -1, -1),
            encoder_attention_mask=text.mask.expand(len(x), -1),
            timestep=torch.full((len(x),), 1000.0 * t),
        ).sample

    return velocity


@torch.no_grad()
def test_one_step_of_the_flow_sampler_is_diffusers_own(flow_prior):
    prior = _lively(flow_prior)
    v, text = torch.randn(2, *prior.latent_shape), prior.embed_text(["red panda"])
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(prior.scheduler.config)
    scheduler.set_timesteps(1)
    x = scheduler.step(_velocity(prior, text)(v, 1.0), scheduler.timesteps[0], v).prev_sample
    torch.testing.assert_close(prior.sample(v, text, 1), x)
    assert not torch.allclose(x, v)
    torch.testing.assert_close(
        prior.generate(v, text, 1), (prior.vae.decode(x / prior.vae.config.scaling_factor).sample + 1) / 2
    )


@torch.no_grad()
def test_the_flow_sampler_converges_to_scipys_solution_and_is_of_second_order(flow_prior):
    prior = _lively(flow_prior)
    v, text = torch.randn(1, *prior.latent_shape), prior.embed_text(["red panda"])
    velocity = _velocity(prior, text)

    def derivative(t, x):
        return velocity(torch.tensor(x, dtype=torch.float32).view_as(v), t).flatten().numpy()

    exact = torch.tensor(solve_ivp(derivative, (1.0, 0.0), v.flatten().numpy(), rtol=1e-6, atol=1e-6).y[:, -1])
    # the timestep's embedding has periods of a thousandth: before, errors do not fall by a rule
    errors = [float((prior.sample(v, text, n).flatten() - exact).norm() / exact.norm()) for n in (256, 512)]
    # twice the steps, a quarter of the error; Euler's method would halve it
    assert errors[1] < 0.3 * errors[0] < 1e-3


@pytest.mark.parametrize("shift", [1.0, 2.0])
def test_no_step_of_the_flow_sampler_is_spent_on_nothing(flow_prior, shift):
    flow_prior.scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    levels = flow_prior.levels(4)
    even = torch.linspace(1, 0, 5)
    torch.testing.assert_close(torch.tensor(levels), shift * even / (1 + (shift - 1) * even))


def test_the_multistep_method_is_exact_where_the_velocity_is_linear_in_time_after_its_first_step():
    levels = [1.0, 0.9, 0.5, 0.45, 0.0]
    found = _adams_bashforth(lambda x, t: torch.full_like(x, 3.0 * t - 1.0), torch.zeros(1), levels)
    first = (0.9 - 1.0) * (3.0 * 1.0 - 1.0)
    rest = 1.5 * (0.0**2 - 0.9**2) - (0.0 - 0.9)
    torch.testing.assert_close(found, torch.tensor([first + rest]))


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
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.4 * errors[1] and errors[2] < 0.02
    assert not torch.allclose(prior.invert(u, steps=64), u, atol=0.1)
