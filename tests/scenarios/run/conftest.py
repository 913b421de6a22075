"""Tiny random models, tiny images, and an attack that costs nothing, for scenarios."""

import io
import json
import os
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from tiny import quiet_denoiser

from adversary.attacks import ATTACKS
from adversary.priors._train_autoencoder import build_autoencoder
from adversary.priors._train_denoiser import build_denoiser, build_text_encoder
from adversary.priors.prior import Prior
from splitsight.artifacts import save_weights
from splitsight.captions import build_tokenizer
from splitsight.evaluators import mbconv
from splitsight.targets.resnet18 import build

FAKE = '''
"""Attacks that answer at once, for tests; each answer leaves a line in $FAKE_LOG."""

import os
import time

import torch

from adversary.attacks import Attack, Reconstruction, Settings, option
from splitsight.errors import UserError


class Fake(Attack):
    """Noise that depends on the seed of each frame."""

    class Settings(Settings):
        level: float = option(0.2, "mean grey", ge=0)
        sleep: float = option(0.0, "seconds", ge=0)

    name = "fake"
    text = True
    needs = frozenset({"prior"})
    presets = {"dark": {}, "bright": {"level": 0.8}}

    def reconstruct(self, problem, state=None, callback=None):
        level, sleep = self.settings.level, self.settings.sleep
        if level == 13:
            raise UserError("this machine lacks luck")
        time.sleep(sleep)
        if "FAKE_LOG" in os.environ:
            with open(os.environ["FAKE_LOG"], "a") as log:
                log.write(f"{level} {problem.first}\\n")
        size = problem.prior.image_size
        draws = [torch.rand(3, size, size, generator=torch.Generator().manual_seed(s)) for s in problem.seeds]
        images = (torch.stack(draws) * 0.2 + level).clamp(0, 1)
        warmth = 0.0 if problem.text is None else float(problem.text.states.mean())
        losses = torch.arange(problem.frames) + level + warmth
        return Reconstruction(images, float(losses.mean()), 3, 4.0, 0.25, losses, [3.0, 2.0, 1.0], {"start": "fake"})


class FakeWindow(Fake):
    """The same for windows."""

    name = "fake-window"
    windowed = True
'''


@pytest.fixture(scope="session")
def fakes(tmp_path_factory):
    """A folder that, on the path, is an installed package with two attacks."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "fake_attacks.py").write_text(FAKE)
    about = folder / "fake_attacks-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-attacks\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "[splitsight.attacks]\nfake = fake_attacks:Fake\nfake-window = fake_attacks:FakeWindow\n"
    )
    return folder


@pytest.fixture
def registered(fakes, monkeypatch):
    """The fake attacks in this process's registry."""
    monkeypatch.syspath_prepend(str(fakes))
    import fake_attacks

    ATTACKS.names()
    monkeypatch.setitem(ATTACKS._items, "fake", fake_attacks.Fake)
    monkeypatch.setitem(ATTACKS._items, "fake-window", fake_attacks.FakeWindow)
    yield
    sys.modules.pop("fake_attacks", None)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Target weights, prior and evaluator: random, in the formats of the real ones."""
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    save_weights(folder / "target.safetensors", build().state_dict())
    tokenizer = build_tokenizer([["goldfish"]])
    parts = build_autoencoder(8, 8), build_denoiser(8, 16, 16, width=32, layers=1), FlowMatchEulerDiscreteScheduler()
    Prior(*parts, build_text_encoder(tokenizer, 16), tokenizer, pixel_denoiser=quiet_denoiser()).save(folder / "prior")
    save_weights(folder / "evaluator" / "model.safetensors", mbconv.build(5).state_dict())
    config = {"name": "tiny", "architecture": "mbconv", "num_classes": 5, "input_size": 64}
    config |= {"mean": [0.5] * 3, "std": [0.25] * 3}
    (folder / "evaluator" / "config.json").write_text(json.dumps(config))
    (folder / "evaluator" / "classes.tsv").write_text("".join(f"{i}\tn{i}\tclass {i}\n" for i in range(5)))
    return folder


@pytest.fixture(scope="session")
def parquet(tmp_path_factory):
    """Twenty labelled images."""
    rng = np.random.default_rng(0)
    images, labels = [], []
    for i in range(20):
        coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3), np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        coarse.save(buffer, "PNG")
        images.append({"bytes": buffer.getvalue(), "path": f"picture-{i}.png"})
        labels.append(i % 5)
    path = tmp_path_factory.mktemp("images") / "test.parquet"
    pq.write_table(pa.table({"image": images, "label": labels}), path)
    return path


@pytest.fixture
def scenario(models, parquet, tmp_path):
    """Writes a scenario: its keys over a base that runs at once; returns the file."""

    def write(name="try", **keys):
        base = {
            "title": "A try",
            "about": "for tests",
            "weights": str(models / "target.safetensors"),
            "prior": str(models / "prior"),
            "evaluator": str(models / "evaluator"),
            "batch": 2,
            "data": {"path": str(parquet), "count": 4, "gallery": 10},
            "cells": [{"split": ["L8", "L16"], "method": "fake", "setting": ["dark", "bright"]}],
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**base, **keys}, sort_keys=False))
        return str(path)

    return write


@pytest.fixture
def environment(fakes, tmp_path):
    """Variables of a process that has the fake attacks."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(fakes), root]),
        "FAKE_LOG": str(tmp_path / "fake.log"),
        "OMP_NUM_THREADS": "1",
    }
