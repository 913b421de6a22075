"""Evaluators: loading, recognition, matching, and their independence."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from splitsight import evaluators
from splitsight.artifacts import save_weights
from splitsight.errors import UserError
from splitsight.evaluators import mbconv

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("evaluator") / "tiny"
    save_weights(path / "model.safetensors", mbconv.build(5).state_dict())
    config = {"architecture": "mbconv", "num_classes": 5, "input_size": 64, "mean": [0.5] * 3, "std": [0.25] * 3}
    (path / "config.json").write_text(json.dumps(config))
    (path / "classes.tsv").write_text("".join(f"{i}\tn{i}\tclass {i}\n" for i in range(5)))
    return path


@pytest.fixture(scope="module")
def evaluator(folder):
    return evaluators.load(folder)


@pytest.fixture(scope="module")
def images():
    return torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def test_is_small_enough_to_ship():
    parameters = sum(p.numel() for p in mbconv.build(200).parameters())
    assert parameters <= 1_600_000


def test_features_lead_to_logits(evaluator, images):
    features = evaluator.features(images, batch=5)
    assert features.shape == (12, mbconv.FEATURES)
    whole = evaluator.model(evaluator.preprocess(images))
    torch.testing.assert_close(evaluator.logits(images), whole, rtol=1e-4, atol=1e-5)
    assert evaluator.features(images[:0]).shape == (0, mbconv.FEATURES)


def test_other_sizes_are_resampled(evaluator, images):
    large = torch.nn.functional.interpolate(images, scale_factor=2, mode="nearest")
    assert evaluator.logits(large).shape == (12, 5)


def test_recognised_by_label_and_by_the_evaluators_own_answer(evaluator, images):
    answers = evaluator.logits(images).argmax(1)
    wrong = (answers + 1) % 5
    assert evaluator.recognised(images, answers).all()
    assert not evaluator.recognised(images, wrong).any()
    unknown = torch.full((12,), -1)
    assert evaluator.recognised(images, unknown, images).all()
    mixed = torch.where(torch.arange(12) % 2 == 0, unknown, wrong)
    assert evaluator.recognised(images, mixed, images).tolist() == [True, False] * 6
    with pytest.raises(ValueError, match="originals"):
        evaluator.recognised(images, unknown)
    with pytest.raises(ValueError, match="12 reconstructions"):
        evaluator.recognised(images, answers[:3])


def test_nan_is_never_recognised(evaluator, images):
    broken = images[:2].clone()
    broken[1, 0, 3, 3] = float("nan")
    answers = [int(evaluator.logits(images[:1]).argmax()), 0]
    assert evaluator.recognised(broken, answers).tolist() == [True, False]


def test_matching_finds_the_original(evaluator, images):
    found = evaluator.matched(images[[7, 2]], images, [7, 2])
    assert found.ranks.tolist() == [1, 1] and found.gallery == 12
    again = evaluator.matched(images[[7, 2]], evaluator.features(images), [2, 7])
    assert again.ranks.tolist() != [1, 1] and again.gallery == 12


def test_errors_are_sentences(folder, tmp_path):
    with pytest.raises(UserError, match=r"unknown evaluator 'nobody'"):
        evaluators.load("nobody")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no config\.json"):
        evaluators.load(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"architecture": "vgg"}')
    with pytest.raises(UserError, match="does not describe an evaluator"):
        evaluators.load(tmp_path / "empty")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "empty" / "config.json").write_text(json.dumps({**config, "num_classes": 7}))
    (tmp_path / "empty" / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="5 classes but the evaluator empty has 7"):
        evaluators.load(tmp_path / "empty")


def test_absent_embedded_evaluator_says_how_to_make_one(monkeypatch, tmp_path):
    monkeypatch.setattr(evaluators, "asset", lambda *parts: tmp_path.joinpath(*parts))
    assert evaluators.evaluator_names() == []
    with pytest.raises(UserError, match="splitsight train evaluator"):
        evaluators.load()


def _imports(file: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value)
    return found


def test_no_attack_knows_an_evaluator():
    files = sorted((ROOT / "adversary").rglob("*.py"))
    assert files
    for file in files:
        named = {name for name in _imports(file) if name.startswith("splitsight.evaluators")}
        assert not named, f"{file.relative_to(ROOT)} must not use {named}"
    # nor by way of anything it imports
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for f in files]
    code = (
        f"import importlib, sys\nfor m in {modules!r}:\n    importlib.import_module(m)\n"
        "sys.exit(any(m.startswith('splitsight.evaluators') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120).returncode == 0
