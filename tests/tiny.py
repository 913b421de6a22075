"""Tiny random models for tests of attacks: a target and priors of 16 pixels."""

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, FlowMatchEulerDiscreteScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from adversary.priors._train_autoencoder import build_autoencoder
from adversary.priors._train_denoiser import build_denoiser, build_text_encoder, build_unet
from adversary.priors.pixels import PixelDenoiser, build_pixel_denoiser
from adversary.priors.prior import Prior
from splitsight.captions import build_tokenizer
from splitsight.data import encode_png
from splitsight.targets import Normalize, Target
from splitsight.tasks.classify import Classify


def _text(tokenizer, width):
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=width,
            projection_dim=width,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


def quiet_denoiser():
    """Of pixels: finds no noise, so that what an attack did before it is seen."""
    with torch.random.fork_rng():
        network = build_pixel_denoiser((8, 8))
    nn.init.zeros_(network.conv_out.weight)
    nn.init.zeros_(network.conv_out.bias)
    return PixelDenoiser(network)


def save_prior(folder, *classes):
    """A random prior of our own kind in ``folder``: 64 pixels, with a text encoder for these classes; its path."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([[name] for name in classes or ("goldfish",)])
    parts = build_autoencoder(8, 8), build_denoiser(8, 16, 16, width=32, layers=1), FlowMatchEulerDiscreteScheduler()
    Prior(*parts, build_text_encoder(tokenizer, 16), tokenizer, pixel_denoiser=quiet_denoiser()).save(folder)
    return str(folder)


@pytest.fixture
def flow_prior():
    """A random prior of our own kind: 16 pixels, 4 × 4 latents."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([["goldfish"], ["red panda", "panda"]])
    denoiser = build_denoiser(8, 4, 16, width=32, layers=1)
    parts = build_autoencoder(8, 8), denoiser, FlowMatchEulerDiscreteScheduler()
    return Prior(*parts, _text(tokenizer, 16), tokenizer, "tiny", quiet_denoiser())


@pytest.fixture
def unet_prior():
    """A random prior with flow matching in a U-Net: 16 pixels, 4 × 4 latents."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([["goldfish"], ["red panda", "panda"]])
    denoiser = build_unet(8, 4, 16, widths=(8, 8), layers=1)
    return Prior(
        build_autoencoder(8, 8), denoiser, FlowMatchEulerDiscreteScheduler(), _text(tokenizer, 16), tokenizer, "tiny-u"
    )


@pytest.fixture
def stable_prior():
    """A random prior in Stable Diffusion's formats: KL autoencoder, U-Net, DDIM with v prediction."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer([["goldfish"]])
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=16,
        scaling_factor=0.18215,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    return Prior(vae, unet, scheduler, _text(tokenizer, 16), tokenizer, "tiny-sd")


class TinyTarget(Target):
    """Two convolutions and a linear layer on 16 pixels; split after each convolution."""

    def __init__(self):
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.Tanh(), nn.Conv2d(8, 16, 3, 2, 1), nn.Flatten(1), nn.Linear(256, 3)
        )
        super().__init__("tiny", model, Normalize([0.5] * 3, [0.25] * 3), Classify(["a", "b", "c"]), 16)

    def points(self):
        return ["S1", "S2"]

    def halves(self, point):
        cut = {"S1": 2, "S2": 3}.get(point)
        return None if cut is None else (self.model[:cut], self.model[cut:])


@pytest.fixture
def tiny_target():
    """A random target of 16 pixels with split points S1 and S2."""
    return TinyTarget()


@pytest.fixture
def tiny_lab(monkeypatch, flow_prior, tiny_target):
    """The tiny target and prior by any name on a workbench, which has no inversion network for them."""
    nn.init.normal_(flow_prior.denoiser.proj_out.weight, std=0.3)
    monkeypatch.setattr("scenarios.workbench.targets.load", lambda name, weights: tiny_target)
    monkeypatch.setattr("scenarios.workbench.load_prior", lambda name: flow_prior)


@pytest.fixture
def pictures(tmp_path):
    """A folder of twelve images of 16 pixels, 00.png to 11.png."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        coarse = rng.integers(0, 255, (4, 4, 3), np.uint8)
        (folder / f"{i:02d}.png").write_bytes(encode_png(coarse.repeat(4, 0).repeat(4, 1)))
    return folder
