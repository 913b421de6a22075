"""What the workbench tells an attacker of a defence."""

import numpy as np
import pytest
import torch

from adversary.attacks import ATTACKS
from scenarios.workbench import Workbench, edge_seeds
from splitsight.errors import UserError


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "key"
    path.write_bytes(np.random.default_rng(0).bytes(32))
    return path


def _problem(bench, defense, images, attack="do", **more):
    edge = bench.pipeline("S1", defense)
    static = more.get("static", 1)
    features = bench.observe_static(edge, images, static, 0, range(len(images)))
    return bench.problem(ATTACKS.get(attack)(), edge.description(), features, **more)


@pytest.fixture
def images():
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_one_who_was_told_fits_the_defence_and_knows_its_noise(tiny_lab, images):
    bench = Workbench()
    problem = _problem(bench, "quantise:bits=2+noise:sigma=0.2", images)
    assert problem.noisy and float(torch.as_tensor(problem.noise[0]).mean()) == pytest.approx(0.2)
    with torch.no_grad():
        assert torch.equal(problem.pipeline(images)[0], bench.pipeline("S1", "quantise:bits=2")(images)[0])


def test_one_who_was_not_believes_that_there_is_none(tiny_lab, images):
    bench = Workbench()
    problem = _problem(bench, "quantise:bits=2+noise:sigma=0.2", images, adaptive=False)
    assert not problem.noisy and problem.noise == [0.0] and problem.support is None
    with torch.no_grad():
        assert torch.equal(problem.pipeline(images)[0], bench.pipeline("S1")(images)[0])


def test_without_a_defence_nothing_is_told_either_way(tiny_lab, images):
    bench = Workbench()
    assert _problem(bench, "identity", images).noise is None


def test_a_static_scene_is_one_frame_with_less_noise(tiny_lab, images):
    bench = Workbench()
    problem = _problem(bench, "noise:sigma=0.2", images, static=25)
    assert problem.frames == 3 and float(torch.as_tensor(problem.noise[0]).mean()) == pytest.approx(0.04)
    clean = bench.pipeline("S1")(images)[0]
    assert float((problem.features[0] - clean).square().mean().sqrt()) == pytest.approx(0.04, rel=0.1)


def test_draws_of_frames_are_their_own(tiny_lab):
    seeds = [seed for frame in range(100) for seed in edge_seeds(0, range(300), frame)]
    assert len(set(seeds)) == len(seeds) and edge_seeds(3, [5]) == edge_seeds(3, [5], 0)


def test_a_key_is_found_out_and_what_is_left_is_attacked(tiny_lab, images, key):
    bench = Workbench()
    defense = f"permutation:key={key}"
    tapped = bench.observe(bench.pipeline("S1", defense), images)
    problem = _problem(bench, defense, images, tapped=tapped)
    clean = bench.pipeline("S1")(images)[0]
    assert not torch.allclose(tapped[0], clean, atol=1e-3)
    torch.testing.assert_close(problem.features[0], clean, atol=1e-4, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(problem.pipeline(images)[0], clean)
    untold = _problem(bench, defense, images, adaptive=False)
    assert torch.equal(untold.features[0], tapped[0])


def test_a_shape_that_the_attacker_does_not_know_is_refused(tiny_lab, images):
    bench = Workbench()
    edge = bench.pipeline("S1")
    with pytest.raises(UserError, match="do not fit this split"):
        bench.problem(ATTACKS.get("do")(), edge.description(), [torch.zeros(1, 5, 8, 8)], adaptive=False)
