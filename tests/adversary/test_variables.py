import pytest
import torch
from torch import nn

from adversary.whitebox.variables import Latent, Noise, Pixels, Residual


def _lively(prior, dtype=torch.float64):
    """With a denoiser that answers: a new one's last layer is zero."""
    torch.manual_seed(1)
    last = prior.denoiser.proj_out if hasattr(prior.denoiser, "proj_out") else prior.denoiser.conv_out
    nn.init.normal_(last.weight, std=0.3)
    return prior.to(dtype)


def _double(prior, shape, seed=0):
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _variable(name, prior):
    start = _double(prior, prior.latent_shape)
    pictures = torch.rand(2, 3, prior.image_size, prior.image_size, dtype=torch.float64)
    text = prior.embed_text(["goldfish"])
    return {
        "pixels": lambda: Pixels(pictures),
        "residual": lambda: Residual(pictures),
        "latent": lambda: Latent(prior, start),
        "noise": lambda: Noise(prior, start, text, steps=3),
        "checkpoint": lambda: Noise(prior, start, text, steps=3, checkpoint=True),
    }[name]()


@pytest.mark.parametrize("kind", ["flow_prior", "stable_prior"])
@pytest.mark.parametrize("name", ["pixels", "residual", "latent", "noise", "checkpoint"])
def test_gradients_against_finite_differences(name, kind, request):
    variable = _variable(name, _lively(request.getfixturevalue(kind)))
    weights = torch.randn(variable.images().shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * variable.images()).sum(), variable.value)
    assert gradient.abs().sum() > 0
    point = variable.value.detach().clone()
    # diffusers' flow scheduler adds its steps in float32, whatever comes in
    h, tolerance = (3e-3, 2e-3) if kind == "flow_prior" else (1e-5, 1e-6)
    for seed in range(3):
        along = torch.randn(point.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        along /= along.norm()
        with torch.no_grad():
            sides = []
            for sign in (1, -1):
                variable.value.copy_(point + sign * h * along)
                sides.append((weights * variable.images()).sum())
        slope = float(sides[0] - sides[1]) / (2 * h)
        assert slope == pytest.approx(float((gradient * along).sum()), abs=tolerance * float(gradient.norm()))


@pytest.mark.parametrize("kind", ["flow_prior", "stable_prior"])
def test_checkpointing_gives_the_same_image_and_gradient(kind, request):
    prior = _lively(request.getfixturevalue(kind), torch.float32)
    start = torch.randn(2, *prior.latent_shape)
    found = []
    for checkpoint in (False, True):
        variable = Noise(prior, start, steps=4, checkpoint=checkpoint)
        images = variable.images()
        found.append((images, *torch.autograd.grad(images.square().sum(), variable.value)))
    for plain, saved in zip(*found, strict=True):
        torch.testing.assert_close(plain, saved)


def test_checkpointing_keeps_one_step_in_memory_instead_of_all(flow_prior):
    prior = _lively(flow_prior, torch.float32)

    def kept(steps, checkpoint):
        numbers = 0

        def count(tensor):
            nonlocal numbers
            numbers += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            Noise(prior, torch.randn(1, *prior.latent_shape), steps=steps, checkpoint=checkpoint).images()
        return numbers

    latent = torch.Size(prior.latent_shape).numel()
    grows = (kept(8, False) - kept(4, False)) / 4, (kept(8, True) - kept(4, True)) / 4
    assert grows[1] < 4 * latent < grows[0] / 10


def test_pixels_stay_in_their_box_only_if_asked():
    start = torch.tensor([-0.5, 0.5, 1.5]).view(1, 3, 1, 1)
    free, boxed = Pixels(start), Pixels(start, box=True)
    free.project()
    boxed.project()
    assert torch.equal(free.images(), start) and torch.equal(boxed.images(), start.clamp(0, 1))


def test_a_residual_starts_at_its_base_and_does_not_move_it():
    base = torch.rand(1, 3, 4, 4)
    variable = Residual(base)
    torch.testing.assert_close(variable.images().detach(), base)
    with torch.no_grad():
        variable.value += 1
    torch.testing.assert_close(variable.images().detach(), base + 1)


def test_start_values_are_copies(flow_prior):
    start = torch.randn(1, *flow_prior.latent_shape)
    kept = start.clone()
    for variable in (Latent(flow_prior, start), Noise(flow_prior, start)):
        with torch.no_grad():
            variable.value += 1
    assert torch.equal(start, kept)
