"""Models as their libraries save them, loaded by the public command, and one attack through each."""

from __future__ import annotations

import json

import pytest
import torch
import torchvision
from diffusers import DDIMInverseScheduler
from safetensors.torch import save_file
from saved import clip, stable_diffusion, vit, yolov2

from adversary.priors.prior import load_prior
from scenarios import cli
from splitsight.data import write_png

OWN = """
from torch import nn


def net():
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Flatten(1), nn.Linear(1024, 3))
"""


@pytest.fixture
def attack(tmp_path, capsys):
    """Run ``splitsight attack`` on one image; its summary."""
    picture = torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()
    (tmp_path / "pictures").mkdir()
    write_png(tmp_path / "pictures" / "a.png", picture)

    def run(*words):
        out = ["--images", str(tmp_path / "pictures"), "--out", str(tmp_path / "out"), "--json"]
        with pytest.raises(SystemExit) as ended:
            cli.main(["attack", *map(str, words), *out])
        said = capsys.readouterr()
        assert not ended.value.code, said.err
        return json.loads(said.out)

    return run


def psnr(summary):
    (method,) = summary["methods"].values()
    return method["psnr"]["mean"]


def test_torchvision_file(attack, tmp_path):
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50(num_classes=3).state_dict(), tmp_path / "w.pth")
    weights = ("--weights", tmp_path / "w.pth", "--input", 64)
    found = attack("do", "--target", "torchvision:resnet50", *weights, "--split", "L12", "--set", "iterations=2")
    assert found["target"] == "torchvision:resnet50@64" and psnr(found) > 0


def test_timm_file(attack, tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    save_file(timm.create_model("resnet10t", num_classes=3).state_dict(), tmp_path / "w.safetensors")
    weights = ("--weights", tmp_path / "w.safetensors", "--input", "3x64x64")
    found = attack("do", "--target", "timm:resnet10t", *weights, "--split", "layer2", "--set", "iterations=2")
    assert found["target"] == "timm:resnet10t@64" and psnr(found) > 0


def test_transformers_folder(attack, tmp_path):
    found = attack("do", "--target", f"transformers:{vit(tmp_path / 'vit')}", "--split", "L3", "--set", "iterations=2")
    assert found["target"] == "transformers:vit" and psnr(found) > 0


def test_clip_end_to_end(attack, tmp_path):
    clip(tmp_path / "clip")
    target = ("--target", f"transformers:{tmp_path / 'clip'}", "--split", "output")
    found = attack("do", *target, "--set", "iterations=2")
    assert found["environment"]["session"]["task"] == "embed" and psnr(found) > 0


def test_yolov2_folder(attack, tmp_path):
    yolov2(tmp_path / "garden")
    found = attack("db", "--target", f"yolov2:{tmp_path / 'garden'}", "--split", "L12", "--set", "iterations=2")
    assert found["target"] == "yolov2:garden" and found["environment"]["session"]["task"] == "detect"
    assert psnr(found) > 0


@pytest.mark.parametrize("options", ["", ":slicing,checkpointing"])
@pytest.mark.parametrize("method", ["dmb", "db"])
def test_stable_diffusion_folder(attack, tmp_path, method, options):
    (tmp_path / "own.py").write_text(OWN)
    prior = stable_diffusion(tmp_path / "sd", tiny_decoder=method == "db") + options
    target = ("--target", f"{tmp_path / 'own.py'}:net@32", "--split", "1")
    changes = ("--set", "iterations=2", *(("--set", "steps=2") if method == "dmb" else ()))
    assert psnr(attack(method, *target, "--prior", prior, *changes)) > 0


def test_options_change_no_figure_but_rounding(tmp_path):
    folder = stable_diffusion(tmp_path / "sd")
    plain, lean = load_prior(folder), load_prior(f"{folder}:slicing,checkpointing")
    v = torch.randn(2, *plain.latent_shape)

    def image(prior):
        noise = v.clone().requires_grad_(True)
        made = prior.generate(noise, prior.embed_text(["a dog"]), steps=2)
        made.square().sum().backward()
        return made.detach(), noise.grad

    for ours, theirs in zip(image(lean), image(plain), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    half = load_prior(f"{folder}:half")
    assert half.vae.dtype == half.denoiser.dtype == torch.float16 and half.name == "sd"
    made = half.generate(v, half.embed_text(["a dog"]), steps=2)
    assert made.dtype == torch.float32 and (made - image(plain)[0]).abs().max() < 0.05


@torch.no_grad()
def test_ddim_inversion_returns_as_steps_grow(tmp_path):
    prior = load_prior(stable_diffusion(tmp_path / "sd"))
    u = 0.5 * torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(1))
    errors = [float((prior.sample(prior.invert(u, steps=n), steps=n) - u).norm() / u.norm()) for n in (5, 20, 80)]
    assert errors[1] < 0.5 * errors[0] and errors[2] < 0.5 * errors[1] and errors[2] < 0.05
    # PNDM's configuration has no clip_sample, which DDIM's default would switch on
    assert prior.scheduler.config.clip_sample is False
    inverse = DDIMInverseScheduler.from_config(prior.scheduler.config)
    inverse.set_timesteps(20)
    x = u
    for t in inverse.timesteps:
        output = prior.denoiser(x, t, prior.embed_text([""]).states).sample
        x = inverse.step(output, t, x).prev_sample
    torch.testing.assert_close(prior.invert(u, steps=20), x, rtol=1e-3, atol=1e-3)
