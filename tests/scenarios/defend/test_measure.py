"""Utility, cost, and what a probe reads."""

import numpy as np
import pytest
import torch

from scenarios.defend.measure import measure, probe, utility
from scenarios.workbench import Workbench
from splitsight.wire.sessions import UNDEFENDED


@pytest.fixture
def bench(tiny_lab):
    return Workbench()


@pytest.fixture
def images():
    coarse = np.random.default_rng(0).integers(0, 255, (80, 4, 4, 3), np.uint8)
    return coarse.repeat(4, 1).repeat(4, 2)


def test_a_probe_is_ridge_regression():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 5, generator=generator).double()
    weights = torch.tensor([1.0, -2, 0.5, 0, 0]).double()
    said = torch.stack(
        [(x @ weights > 0).long(), torch.zeros(300).long(), torch.randint(2, (300,), generator=generator)], 1
    )
    found = probe(x[:200], said[:200], x[200:], said[200:])
    assert found[0] > 0.95 and found[1] is None and 0.3 < found[2] < 0.7


def test_an_undefended_network_keeps_all_of_its_use(bench, images):
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    pipeline = bench.pipeline("S1")
    labels = bench.target.model(bench.target.preprocess(tensors)).argmax(1).numpy()
    found = utility(bench, pipeline, tensors, labels, 0)
    assert found == {"name": "accuracy", "n": 80, "accuracy": 1.0, "accuracy_undefended": 1.0}
    # images whose class nobody knows say nothing of it
    labels[:30], labels[30:55] = -1, (labels[30:55] + 1) % len(bench.target.labels)
    found = utility(bench, pipeline, tensors, labels, 0)
    assert found == {"name": "accuracy", "n": 50, "accuracy": 0.5, "accuracy_undefended": 0.5}


def test_without_labels_it_is_agreement_and_noise_costs_some(bench, images):
    tensors = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    unknown = np.full(80, -1)
    found = [utility(bench, bench.pipeline("S1", d), tensors, unknown, 0) for d in (UNDEFENDED, "noise:ratio=3")]
    assert "agreement" in found[0]["name"] and found[0]["accuracy"] == 1 == found[1]["accuracy_undefended"]
    assert 0.2 < found[1]["accuracy"] < 0.95


def test_everything_that_a_defence_costs_and_proves(bench, images):
    ticks = iter(range(1000))
    labels = np.full(80, -1)
    defense = "clip:norm=1+gaussian:epsilon=8,delta=1e-05"
    found = measure(bench, "S1", defense, images, labels, images[:70], clock=lambda: next(ticks) * 0.01)
    assert found["epsilon"] == pytest.approx(8, rel=1e-6) and found["delta"] == 1e-5 and found["guarantees"]
    assert found["bytes"] == 4 * 8 * 8 * 8 and found["edge_ms"] == pytest.approx(10)
    assert found["config"] == {
        "clip": {"norm": 1.0, "order": 2},
        "gaussian": {"sigma": 0.0, "ratio": 0.0, "epsilon": 8.0, "delta": 1e-5},
    }
    plain = measure(bench, "S1", UNDEFENDED, images, labels, images[:70])
    assert plain["epsilon"] is None and plain["config"] == {}
    # noise of this strength leaves nothing to read
    assert plain["attribute"]["value"] > 0.7 > 0.6 > found["attribute"]["value"]


def test_what_compresses_is_packed(bench, images):
    labels = np.full(80, -1)
    found = measure(bench, "S1", "topk:keep=0.05", images, labels, images[:10])
    assert found["bytes_zstd"] < 0.4 * found["bytes"] and found["attribute"] is None
