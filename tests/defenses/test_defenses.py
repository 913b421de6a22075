from __future__ import annotations

import pytest
import torch
from torch import nn

from splitsight.defenses import DEFENSES, Cost, Defense, parse_defense
from splitsight.draws import Draws
from splitsight.errors import UserError
from splitsight.features import FeatureSpec

SPECS = (FeatureSpec("z0", (4, 2, 2)), FeatureSpec("z1", (3,)))


def test_identity_changes_nothing():
    chain = parse_defense("identity")
    assert not chain and str(chain) == "identity" and chain.cost(SPECS) == Cost() and not chain.guarantees()
    z = (torch.rand(2, 3), torch.rand(2, 4, 4))
    edge, server = chain.build(SPECS)
    assert all(a is b for a, b in zip(edge(z, Draws()), z, strict=True)) and server is None
    head, tail = nn.Linear(2, 2), nn.Linear(2, 2)
    assert chain.adapted(head, tail) == (head, tail) and chain.output_specs(SPECS) == SPECS


def test_every_defense_documents_itself():
    assert all(d.__doc__ and issubclass(d, Defense) and d.name == name for name, d in DEFENSES)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("gaussian:sigma=0.5", "gaussian:sigma=0.5"),
        ("gaussian: sigma = 5e-1 ,ratio=0", "gaussian:sigma=0.5"),
        ("identity+gaussian:ratio=2", "gaussian:ratio=2"),
        ("gaussian:sigma=1+gaussian:sigma=2", "gaussian:sigma=1+gaussian:sigma=2"),
    ],
)
def test_named_with_parameters_and_read_back(given, said):
    assert str(parse_defense(given)) == said == str(parse_defense(said))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("shreder", r"unknown defense 'shreder': choose one of .*identity"),
        ("gaussian", "either sigma or ratio"),
        ("gaussian:sigma=0.5,ratio=0.5", "either sigma or ratio"),
        ("gaussian:sigma=-1", "sigma: input should be greater than or equal to 0"),
        ("gaussian:sigma=nan", "finite"),
        ("gaussian:sigma=much", "valid number"),
        (
            "gaussian:sigmas=1",
            "unknown parameter of the defence gaussian 'sigmas': choose one of delta, epsilon, ratio, sigma",
        ),
        ("gaussian:sigma", "KEY=VALUE"),
        ("gaussian:sigma=1,sigma=1", "twice"),
        ("identity:sigma=1", "takes no parameters"),
        ("", "is no defence"),
        ("gaussian:sigma=1+", "is no defence"),
        ("a b", "is no defence"),
    ],
)
def test_what_cannot_be_is_one_sentence(given, words):
    with pytest.raises(UserError, match=words) as error:
        parse_defense(given)
    assert "\n" not in str(error.value)


def test_noise_adds_up_over_a_chain():
    edge, _ = parse_defense("gaussian:sigma=3+gaussian:sigma=4").build(SPECS)
    z = tuple(torch.zeros(500, *s.shape) for s in SPECS)
    assert edge.deviations(z) == pytest.approx([5, 5])
    assert all(float(found.std()) == pytest.approx(5, rel=0.1) for found in edge(z, Draws()))
    assert all(torch.equal(a, b) for a, b in zip(edge.expected(z), z, strict=True))


def test_seeds_that_the_generator_would_cut_short_are_refused():
    for seed in (1 << 32, -1):
        with pytest.raises(ValueError, match="seeds must be from 0"):
            Draws([seed])


def test_draws_without_seeds_repeat_nothing():
    z = torch.zeros(4, 1000)
    drawn = torch.cat([draws.normal(z) for draws in (Draws(), Draws())])
    assert (torch.corrcoef(drawn) - torch.eye(8)).abs().max() < 0.2
    assert float(drawn.mean()) == pytest.approx(0, abs=0.05) and float(drawn.std()) == pytest.approx(1, abs=0.05)
