"""Models for runs of the whole system."""

from pathlib import Path

import numpy as np
import pytest
from browsing import CHROMIUM, watched


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Command-line options that name small random models; a run with them is as quick as it gets."""
    import torch
    from diffusers import FlowMatchEulerDiscreteScheduler
    from tiny import quiet_denoiser
    from transformers import CLIPTextConfig, CLIPTextModel

    from adversary.blackbox._train import measure_errors
    from adversary.blackbox.inversion import InversionNetwork
    from adversary.priors._train_autoencoder import build_autoencoder
    from adversary.priors._train_denoiser import build_denoiser
    from adversary.priors.prior import Prior, load_prior
    from splitsight import targets
    from splitsight.captions import build_tokenizer
    from splitsight.pipeline import EdgePipeline

    folder: Path = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    tokenizer = build_tokenizer([["goldfish"]])
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=tokenizer.model_max_length,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        )
    )
    denoiser = build_denoiser(8, 16, 16, width=32, layers=1)
    parts = build_autoencoder(8, 8), denoiser, FlowMatchEulerDiscreteScheduler(), text, tokenizer
    Prior(*parts, pixel_denoiser=quiet_denoiser()).save(folder / "tiny")
    prior, target = load_prior(str(folder / "tiny")), targets.load("resnet18")
    edge = EdgePipeline(target, "L8")
    network = InversionNetwork(edge.specs, prior.latent_shape, width=8, depth=1)
    # what the window solver wants to know of it
    measure_errors(network, edge, prior, np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), np.uint8))
    network.save(
        folder / "inversion.safetensors",
        target="resnet18",
        split="L8",
        head_digest=target.cut("L8").head_digest,
        prior="tiny",
        prior_digest=prior.latent_digest,
    )
    return ["--prior", str(folder / "tiny"), "--inversion", str(folder / "inversion.safetensors")]


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--headless", "--no-sandbox", "--disable-gpu"]
        )
        yield made
        made.close()


@pytest.fixture
def tab(browser, demo):
    """A tab on a module's demonstration; nothing may be complained of, and nothing loaded from elsewhere."""
    with watched(browser, demo) as made:
        yield made
