"""The accountant: closed forms against privacy loss distributions, and the sensitivity that is doubled once."""

from __future__ import annotations

import math

import pytest
from dp_accounting import (
    GaussianDpEvent,
    LaplaceDpEvent,
    NeighboringRelation,
    get_epsilon_gaussian,
    get_sigma_gaussian,
)
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from scipy.special import log_ndtr

from splitsight.accounting import Accountant, Mechanism, gaussian_multiplier, laplace_multiplier
from splitsight.errors import UserError

EIGHT = gaussian_multiplier(8, 1e-5)


def _delta(multiplier: float, epsilon: float) -> float:
    """Balle and Wang (2018), equation 6, by hand."""
    a, b = 0.5 / multiplier, epsilon * multiplier
    return math.exp(log_ndtr(a - b)) - math.exp(epsilon + log_ndtr(-a - b))


def test_the_noise_of_the_analytic_gaussian_mechanism():
    assert pytest.approx(0.60023, abs=5e-6) == EIGHT
    assert _delta(EIGHT, 8) == pytest.approx(1e-5, rel=1e-6)
    assert Mechanism("gaussian", EIGHT).epsilon() == pytest.approx(8, abs=1e-9)


@pytest.mark.parametrize("frames", [1, 1000])
def test_a_stream_is_the_closed_form(frames):
    spent = Accountant(1e-5).spent(Mechanism("gaussian", EIGHT), frames).epsilon
    assert spent == pytest.approx(get_epsilon_gaussian(EIGHT / math.sqrt(frames), 1e-5), abs=1e-6)
    assert spent == pytest.approx({1: 8, 1000: 1611.6}[frames], abs=0.05)


def test_the_closed_form_agrees_with_privacy_loss_distributions_and_is_below_renyi():
    accountant = PLDAccountant(value_discretization_interval=1e-3)
    accountant.compose(GaussianDpEvent(EIGHT), 20)
    spent = Accountant(1e-5).spent(Mechanism("gaussian", EIGHT), 20).epsilon
    assert spent == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3)
    assert RdpAccountant().compose(GaussianDpEvent(EIGHT)).get_epsilon(1e-5) == pytest.approx(8.60, abs=0.005)


def test_replacement_doubles_the_sensitivity_in_one_accountant_and_not_in_the_other():
    """Why σ/(2C) goes with the default relation: with REPLACE_ONE the loss distributions would double it again."""
    event, relation = GaussianDpEvent(EIGHT), NeighboringRelation.REPLACE_ONE
    plain = PLDAccountant(value_discretization_interval=1e-3).compose(event).get_epsilon(1e-5)
    doubled = PLDAccountant(relation, value_discretization_interval=1e-3).compose(event).get_epsilon(1e-5)
    assert plain == pytest.approx(8, rel=1e-3) and doubled == pytest.approx(get_epsilon_gaussian(EIGHT / 2, 1e-5), 1e-3)
    renyi = [
        RdpAccountant(**given).compose(event).get_epsilon(1e-5) for given in ({}, {"neighboring_relation": relation})
    ]
    assert renyi[0] == renyi[1]


def test_different_gaussian_noise_composes_exactly():
    mixed = Accountant(1e-5).spent(Mechanism("gaussian", 2.0), 4).spent(Mechanism("gaussian", 5.0), 10)
    accountant = PLDAccountant(value_discretization_interval=1e-4)
    accountant.compose(GaussianDpEvent(2.0), 4).compose(GaussianDpEvent(5.0), 10)
    assert mixed.epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=1e-3) and mixed.frames == 14


def test_mixtures_with_laplace_noise_go_by_loss_distributions_and_never_above_the_sum():
    laplace = Mechanism("laplace", laplace_multiplier(2.0))
    assert laplace.epsilon() == 2 and laplace.stated_delta == 0
    alone = Accountant(1e-5).spent(laplace, 50).epsilon
    exact = PLDAccountant(value_discretization_interval=1e-4)
    exact.compose(LaplaceDpEvent(0.5), 50)
    assert exact.get_epsilon(1e-5) - 1e-6 <= alone <= 100 and alone == pytest.approx(exact.get_epsilon(1e-5), rel=0.01)
    mixed = Accountant(1e-5).spent(laplace, 50).spent(Mechanism("gaussian", 3.0), 10)
    exact.compose(GaussianDpEvent(3.0), 10)
    assert mixed.epsilon == pytest.approx(exact.get_epsilon(1e-5), rel=0.01) and mixed.epsilon > alone


def test_a_budget_holds_as_many_frames_as_it_says():
    one = Mechanism("gaussian", EIGHT)
    accountant = Accountant(1e-5).spent(one, 3)
    fits = accountant.affordable(one, 100)
    assert accountant.frames == 3
    spent = [Accountant(1e-5).spent(one, 3 + fits + more).epsilon for more in (0, 1)]
    assert spent[0] <= 100 < spent[1]
    # exactly one frame's worth: rounding must not make a whole frame unaffordable
    assert Accountant(1e-5).affordable(one, Mechanism("gaussian", EIGHT).epsilon()) == 1


@pytest.mark.parametrize(("before", "budget", "words"), [(0, 4, "nothing so far"), (10, 20, "of 10 frames so far")])
def test_a_spent_budget_is_one_sentence(before, budget, words):
    with pytest.raises(UserError, match=rf"the budget ε = {budget} is spent: .*{words}.*--epsilon-budget") as error:
        Accountant(1e-5).spent(Mechanism("gaussian", EIGHT), before).affordable(Mechanism("gaussian", EIGHT), budget)
    assert "\n" not in str(error.value)


def test_nothing_released_is_nothing_spent():
    assert Accountant().epsilon == 0 and Accountant().spent(Mechanism("laplace", 1.0), 0).frames == 0
    assert get_sigma_gaussian(1, 1e-5) == gaussian_multiplier(1, 1e-5)
