"""Memory of back-propagation through the sampler: the count, and that shapes alone give it."""

import pytest
import torch
from torch import nn

from adversary import memory

# narrow, and a picture of 128 pixels
TINY = memory._stable((32, 32, 32, 32), (1, 1, 1, 1), 16, (32, 32, 32, 32), 128)


def test_each_saved_storage_counts_once_and_parameters_never():
    x = torch.randn(10, 8, requires_grad=True)
    linear = nn.Linear(8, 4)
    assert memory.saved_bytes(lambda: x.exp(), nn.Identity()) == 10 * 8 * 4
    assert memory.saved_bytes(lambda: linear(x), linear) == 10 * 8 * 4
    assert memory.saved_bytes(lambda: linear(x).exp(), linear) == 10 * (8 + 4) * 4
    assert memory.saved_bytes(lambda: (x * x, x.view(8, 10) * x.view(8, 10))[1], linear) == 10 * 8 * 4


def test_shapes_alone_give_the_count_of_a_real_pass():
    torch.manual_seed(0)
    unet, decoder = TINY.build()
    latent, text = TINY.latent(), TINY.text()
    found = memory.kept(TINY)
    assert found.step == memory.saved_bytes(lambda: unet(latent, 500, text, return_dict=False)[0], unet)
    assert found.decoder == memory.saved_bytes(lambda: decoder(latent), decoder)
    assert found.latent == 4 * 16 * 16 * 4
    assert found.weights == sum(p.numel() for model in (unet, decoder) for p in model.parameters()) * 4


def test_half_precision_halves_what_is_kept():
    whole, half = memory.kept(TINY), memory.kept(TINY, torch.float16)
    assert half.weights * 2 == whole.weights
    assert half.step < 0.6 * whole.step and half.decoder < 0.6 * whole.decoder


@pytest.mark.parametrize(("step", "decoder"), [(100, 30), (30, 100)])
def test_what_checkpoints_save(step, decoder):
    found = memory.Kept(step, decoder, latent=1, weights=7)
    assert found.plain(20) == 20 * step + decoder
    assert found.checkpointed(20) == 20 + 100
