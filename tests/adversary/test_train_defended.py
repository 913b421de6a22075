"""Inversion networks behind a defence: numbers of a size to train on, and never worse than what they started from."""

import torch

from adversary.blackbox._train import train_inversion
from adversary.blackbox.inversion import InversionNetwork, load_inversion
from splitsight.pipeline import EdgePipeline
from splitsight.training import Budget
from splitsight.training_data import TrainingSet

WEIGHTS = {"head_digest": "a" * 64, "prior_digest": "b" * 64}
ABOUT = {"target": "tiny", "split": "S1", "prior": "small"}
HEAVY = "clip:norm=1+gaussian:epsilon=0.01"


def _trained(target, prior, pictures, out, defense, steps=3, **more):
    edge = EdgePipeline(target, "S1", defense)
    return edge, *train_inversion(
        edge, prior, TrainingSet.open(pictures), out, Budget(steps=steps), batch=4, width=8, **more
    )


def test_noise_far_above_the_features_leaves_a_network_that_answers(tiny_target, flow_prior, pictures, tmp_path):
    edge, network, figures = _trained(tiny_target, flow_prior, pictures, tmp_path / "run", HEAVY)
    images = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sent, clean = edge(images), EdgePipeline(tiny_target, "S1")(images)
    assert float(sent[0].std() / clean[0].std()) > 50
    seen = network.gains[0] * sent[0]
    assert 0.3 < float(seen.square().mean().sqrt() / clean[0].square().mean().sqrt()) < 3
    file = tmp_path / "n.safetensors"
    network.save(file, **ABOUT, **WEIGHTS, defense=HEAVY)
    loaded = load_inversion("tiny", "S1", "small", path=file, **WEIGHTS)
    assert loaded.gains == network.gains
    with torch.no_grad():
        assert loaded(sent).isfinite().all()
    assert "start_kept" not in figures


def test_the_same_training_again_gives_the_same_network(tiny_target, flow_prior, pictures, tmp_path):
    one, two, other = (
        _trained(tiny_target, flow_prior, pictures, tmp_path / name, "noise:ratio=1", seed=seed)[1:]
        for name, seed in (("one", 1), ("two", 1), ("other", 2))
    )
    assert one[1]["psnr"] == two[1]["psnr"] != other[1]["psnr"]
    weights = [list(network.state_dict().values()) for network, _ in (one, two, other)]
    assert all(map(torch.equal, weights[0], weights[1])) and not all(map(torch.equal, weights[0], weights[2]))


def test_without_a_defence_features_enter_as_they_are(tiny_target, flow_prior, pictures, tmp_path):
    _, network, _ = _trained(tiny_target, flow_prior, pictures, tmp_path / "run", "identity", steps=1)
    assert network.gains == (1.0,)


def test_a_training_that_spoils_its_start_keeps_it(tiny_target, flow_prior, pictures, tmp_path):
    _, first, _ = _trained(tiny_target, flow_prior, pictures, tmp_path / "first", "identity", steps=20)
    file = tmp_path / "first.safetensors"
    first.save(file, **ABOUT, **WEIGHTS)
    # far too large a rate, whatever the defence draws
    defense, spoilt = "noise:ratio=0.1", {"start": file, "lr": 1e20}
    _, network, figures = _trained(tiny_target, flow_prior, pictures, tmp_path / "spoilt", defense, **spoilt)
    assert figures["start_kept"] and network.gains == (1.0,)
    same = load_inversion("tiny", "S1", "small", path=file, **WEIGHTS)
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), same.parameters(), strict=True))
    assert network.errors is not None  # measured behind the defence
    _, other, figures = _trained(tiny_target, flow_prior, pictures, tmp_path / "good", defense, steps=60, start=file)
    assert not figures["start_kept"] and isinstance(other, InversionNetwork)


def test_answers_are_drawn_to_the_features_that_they_were_made_from(tiny_target, flow_prior, pictures, tmp_path):
    plain, drawn = (
        _trained(
            tiny_target, flow_prior, pictures, tmp_path / f"{weight}", "identity", steps=60, features_weight=weight
        )[2]
        for weight in (0.0, 3.0)
    )
    assert drawn["feature_error"] < plain["feature_error"] and drawn["psnr"] < plain["psnr"]


def test_a_start_is_kept_by_the_loss_that_was_trained_with(tiny_target, flow_prior, pictures, tmp_path):
    _, first, _ = _trained(tiny_target, flow_prior, pictures, tmp_path / "first", "identity", steps=60)
    file = tmp_path / "first.safetensors"
    first.save(file, **ABOUT, **WEIGHTS)
    figures = _trained(
        tiny_target, flow_prior, pictures, tmp_path / "drawn", "identity", steps=40, start=file, features_weight=3.0
    )[2]
    assert not figures["start_kept"]
