"""Which inversion networks a scenario trains for white-box attackers."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest

from scenarios.run import initials
from scenarios.run.initials import initial_jobs, last_fraction
from scenarios.run.spec import Scenario
from splitsight.features import FeatureSpec
from splitsight.wire.sessions import UNDEFENDED, SessionDescription

PLAIN = SessionDescription(
    target="resnet18",
    split="L8",
    features=(FeatureSpec("z", (4, 2, 2)),),
    defense=UNDEFENDED,
    head_digest="a" * 64,
    tail_digest="b" * 64,
    task="classify",
    input_size=64,
)
PRIOR = SimpleNamespace(name="small", latent_digest="c" * 64)


def _jobs(cells, minutes=1.0, narrow=(), **more):
    raw = {"title": "t", "cells": cells, "train": {"initial_minutes": minutes}, **more}
    scenario = Scenario.model_validate(raw)

    def describe(cell):
        if not cell.adaptive:
            return PLAIN
        features = (FeatureSpec("z", (2, 2, 2)),) if cell.defense in narrow else PLAIN.features
        return replace(PLAIN, defense=cell.defense, features=features)

    return initial_jobs(scenario, describe, lambda split: PLAIN, PRIOR)


@pytest.fixture
def kept(monkeypatch, tmp_path):
    """The network for undefended features is there."""
    file = tmp_path / "plain.safetensors"
    file.write_bytes(b"weights")
    monkeypatch.setattr(initials, "inversion_path", lambda about, prior: file)
    return file


NOISY = {"method": "preview", "defense": "noise:sigma=1.0"}


def test_one_for_each_defence_that_an_attacker_knows_and_starts_at(kept):
    others = [{"method": "do", "defense": "noise:sigma=2.0"}, {**NOISY, "adaptive": False}, {"method": "preview"}]
    (job,) = _jobs([NOISY, {**NOISY, "method": "best", "count": 2}, *others])
    assert job.defense == "noise:sigma=1" and job.start == str(kept) and job.minutes == 1 and not job.done


def test_another_shape_starts_from_nothing(kept):
    (job,) = _jobs([NOISY], narrow=["noise:sigma=1"])
    assert job.start is None


def test_one_for_undefended_features_where_there_is_none(monkeypatch):
    monkeypatch.setattr(initials, "inversion_path", lambda about, prior: None)
    plain, noisy = _jobs([{"method": "preview"}, NOISY])
    assert (plain.defense, noisy.defense) == (UNDEFENDED, "noise:sigma=1") and noisy.start is None


def test_its_folder_follows_from_all_that_decides_its_weights(kept):
    folders = [_jobs([NOISY])[0].folder, _jobs([NOISY], minutes=2.0)[0].folder]
    kept.write_bytes(b"other weights")
    folders.append(_jobs([NOISY])[0].folder)
    assert len(set(folders)) == 3


def test_how_far_a_run_is(kept, tmp_path):
    (job,) = _jobs([NOISY])
    log = tmp_path / "log.jsonl"
    assert last_fraction(log) == 0 == job.fraction and job.runs == []
    log.write_text('{"fraction": 0.25}\n{"val_psnr": 3}\n{"fraction": 0.5}\n{"frac')
    assert last_fraction(log) == 0.5
    run = initials.Path(job.folder) / "run"
    run.mkdir(parents=True)
    initials.Path(job.file).write_bytes(b"")
    (run / "figures.json").write_text(json.dumps({"finished": False}))
    assert not job.done
    (run / "figures.json").write_text(json.dumps({"finished": True}))
    assert job.done and job.fraction == 1
