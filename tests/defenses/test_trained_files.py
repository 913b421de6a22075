"""Defences that come as a file: their parts and their own halves, for one place only."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from splitsight.defenses import DEFENSES, Place, Protection, parse_defense
from splitsight.defenses._trained import Trained, TrainedParameters
from splitsight.errors import UserError
from splitsight.pipeline import EdgePipeline


class _Scaled(Protection):
    def __init__(self, channels):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1))

    def expected(self, features):
        return tuple(z * self.scale for z in features)


class _Scaling(Trained[TrainedParameters]):
    """One factor a channel."""

    name = "scaling"
    Parameters = TrainedParameters

    def build(self, specs):
        return self.fill("edge", _Scaled(specs[0].shape[0])), None


@pytest.fixture(autouse=True)
def scaling():
    DEFENSES.names()
    DEFENSES._items["scaling"] = _Scaling
    yield
    del DEFENSES._items["scaling"]


@pytest.fixture
def place(tiny_target):
    cut = tiny_target.cut("S1")
    return Place("tiny", "S1", cut.head_digest, cut.tail_digest)


def _saved(path, place, target, *, own_tail):
    """Factors 1, 2, …, and where asked for a tail of its own, all weights halved."""
    import copy

    part = _Scaled(8)
    part.scale.data = torch.arange(1.0, 9.0).view(8, 1, 1)
    tail = copy.deepcopy(target.cut("S1").tail)
    for weight in tail.parameters():
        weight.data /= 2
    _Scaling.save(path, place, {"edge": part, "tail": tail if own_tail else None}, steps=3)
    return f"scaling:weights={path}"


@pytest.mark.parametrize("own_tail", [False, True])
def test_it_brings_its_parts_and_its_halves(tiny_target, place, tmp_path, own_tail):
    text = _saved(tmp_path / "s.safetensors", place, tiny_target, own_tail=own_tail)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    before = tiny_target.model(tiny_target.preprocess(images))
    plain, pipeline = EdgePipeline(tiny_target, "S1"), EdgePipeline(tiny_target, "S1", text)
    (clean,), (sent,) = plain(images), pipeline(images)
    torch.testing.assert_close(sent, clean * torch.arange(1.0, 9.0).view(8, 1, 1))
    assert not any(w.requires_grad for w in pipeline.parameters())
    about, known = pipeline.description(), plain.description()
    assert about.head_digest == known.head_digest and len(about.defense_digest) == 64
    assert (about.tail_digest != known.tail_digest) == own_tail
    # the target's own halves are as they were
    assert torch.equal(tiny_target.model(tiny_target.preprocess(images)), before)
    assert plain.description() == EdgePipeline(tiny_target, "S1").description()


def test_it_is_found_by_its_name_and_checks_the_place(tiny_target, place, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITSIGHT_HOME", str(tmp_path))
    _saved(tmp_path / "defenses" / "mine.safetensors", place, tiny_target, own_tail=False)
    EdgePipeline(tiny_target, "S1", "scaling:weights=mine")
    chain = parse_defense("scaling:weights=mine")
    assert chain.parts[0].about["steps"] == 3
    for changed, words in (
        (
            {"split": "S2"},
            "mine.safetensors was trained for split point S1, not S2: make another with `splitsight train",
        ),
        ({"target": "other"}, "for target tiny, not other"),
        ({"tail_digest": "f" * 64}, "weights of F2 with digest .*, not ffffffffffff…"),
    ):
        with pytest.raises(UserError, match=words) as error:
            chain.check(replace(place, **changed))
        assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_one_sentence(tiny_target, place, tmp_path):
    _Scaling.save(tmp_path / "s.safetensors", place, {"edge": _Scaled(3)})
    with pytest.raises(UserError, match="does not hold what the defence scaling needs") as error:
        EdgePipeline(tiny_target, "S1", f"scaling:weights={tmp_path / 's.safetensors'}")
    assert "\n" not in str(error.value)
