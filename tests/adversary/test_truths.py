"""What pictures' latents and noise are, kept for the next training."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from adversary.blackbox._truths import true_values
from adversary.blackbox.queries import Pairs
from adversary.whitebox.variables import normalised
from splitsight.data import image_hash, to_tensor

CPU = torch.device("cpu")


def _pairs(count=3, seed=0, caption=""):
    images = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), np.uint8)
    return Pairs(images, [np.zeros((count, 2), np.float32)], [caption] * count, [image_hash(x) for x in images])


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path))
    return lambda: sorted((tmp_path / "truths").glob("*"))


def test_latents_and_noise_are_the_priors_own(flow_prior, kept):
    pairs = _pairs()
    with torch.no_grad():
        latents = flow_prior.encode(to_tensor(pairs.images))
        noise = normalised(flow_prior.invert(latents, None, 2))
    torch.testing.assert_close(true_values(flow_prior, pairs, CPU), latents)
    torch.testing.assert_close(true_values(flow_prior, pairs, CPU, steps=2), noise)
    assert len(kept()) == 2 and all(file.suffix == ".safetensors" for file in kept())


def test_second_time_nothing_is_computed(flow_prior, kept, monkeypatch):
    first = true_values(flow_prior, _pairs(), CPU, steps=2)
    monkeypatch.setattr(flow_prior, "encode", None)
    assert torch.equal(true_values(flow_prior, _pairs(), CPU, steps=2), first)
    # features do not matter to it
    other = Pairs(_pairs().images, [np.ones((3, 9), np.float32)], ["cat"] * 3, _pairs().hashes)
    assert torch.equal(true_values(flow_prior, other, CPU, steps=2), first)


def test_what_it_depends_on_is_told_apart(flow_prior, kept):
    flow_prior.embed_text(["a cat", "a dog"])
    for pairs, steps, text in [
        (_pairs(), None, None),
        (_pairs(seed=1), None, None),
        (_pairs(), 1, None),
        (_pairs(), 2, None),
        (_pairs(caption="a cat"), 2, flow_prior.embed_text(["a cat"] * 3)),
        (_pairs(caption="a dog"), 2, flow_prior.embed_text(["a dog"] * 3)),
    ]:
        true_values(flow_prior, pairs, CPU, steps=steps, text=None if text is None else lambda _, t=text: t)
    assert len(kept()) == 6
    with torch.no_grad():
        next(flow_prior.vae.parameters()).add_(0.1)
    true_values(flow_prior, _pairs(), CPU)
    assert len(kept()) == 7


@pytest.mark.parametrize("damage", ["short", "cut", "nan"])
def test_what_cannot_be_used_is_made_anew(flow_prior, kept, damage):
    first = true_values(flow_prior, _pairs(), CPU)
    (file,) = kept()
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-9])
    else:
        bad = first[:2] if damage == "short" else first * float("nan")
        save_file({"truths": bad.contiguous()}, str(file))
    assert torch.equal(true_values(flow_prior, _pairs(), CPU), first)
    assert torch.equal(load_file(str(file))["truths"], first)
