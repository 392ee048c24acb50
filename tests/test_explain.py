"""Cards: gradient volume against closed forms, and the properties a reader relies on."""

import math

import numpy as np
import pytest
import torch

import losslab
from laws.settings import SETTINGS
from losslab.losses.explain import card, curves, gradient_volume, odds_function
from oracles import volume

INF = math.inf
# spec -> closed form of V = ∫ |∂L/∂z_y| dp
VOLUMES = {
    "cross_entropy": 0.5,
    "expectation": 1 / 6,
    "mean_absolute_error": 2 * volume.mixed_volume(0, 1),
    "mixed(alpha=0.5, beta=3)": volume.mixed_volume(0.5, 3),
    "mixed(focus=0.3)": volume.mixed_volume(1, 1 / 0.4),
    "encouraging": volume.conservative_volume(0.75),
    "encouraging(log_end=0.5, rho=2)": volume.conservative_volume(0.5, 2.0),
    "encouraging(log_end=1, eps=0)": 1.0,
    "encouraging(log_end=1, eps=0.01)": volume.normal_volume(0.01),
    "encouraging(bonus_start=0.5)": volume.aggressive_volume(0.5),
    "encouraging(bonus_start=0.3, log_end=0.6)": volume.start_then_end_volume(0.3, 0.6),
    "encouraging_power(gamma=2)": 0.5 + volume.power_bonus_volume(2),
    "encouraging_power(gamma=2, bonus_start=0.4)": 0.5 + volume.power_bonus_volume(2, 0.4),
    "encouraging_cosine": 0.5 + volume.cosine_bonus_volume(),
    "focal": volume.focal_volume(2),
    "focal(gamma=0.5)": volume.focal_volume(0.5),
    "generalized_cross_entropy": volume.generalized_cross_entropy_volume(0.7),
    "generalized_cross_entropy(truncation=0.5)": volume.generalized_cross_entropy_volume(0.7, 0.5),
    "tamed_cross_entropy(alpha=1)": volume.tamed_volume(1),
    "tamed_cross_entropy(alpha=3)": volume.tamed_volume(3),
    "hinge": volume.hinge_volume(),
    "squared_hinge": volume.squared_hinge_volume(),
    "exponential": volume.exponential_volume(),
    "cross_entropy + 0.5*expectation": volume.mixed_volume(1, 0.5),
    "1e10*cross_entropy": 5e9,
    "complement_objective(focal)": volume.focal_volume(2),
}


@pytest.mark.parametrize("spec", VOLUMES)
def test_gradient_volume(spec):
    """Oracle: integrals by hand (oracles.volume). Break: a weight other than dp = σ(a)σ(−a) da."""
    assert gradient_volume(losslab.loss(spec)) == pytest.approx(VOLUMES[spec], rel=1e-4)


def test_volume_does_not_exist_outside_the_family():
    """Oracle: by definition. |∂L/∂z_y| of these is no function of p alone."""
    for spec in ("mean_squared_error", "one_vs_rest(cross_entropy)", "complement_entropy",
                 "logit_adjustment(cross_entropy, counts=[1, 2])"):  # fmt: skip
        assert gradient_volume(losslab.loss(spec)) is None


def test_volume_of_a_users_psi_and_of_a_schedules_current_value():
    """Oracle: closed forms at the present value. Break: a card of the value at progress 0."""
    assert gradient_volume(losslab.OddsLoss(lambda a: -3 * a)) == pytest.approx(3.0)
    loss = losslab.loss("mixed(focus=switch(0, 0.5))")
    assert gradient_volume(loss) == pytest.approx(volume.mixed_volume(1, 1))
    loss.set_progress(1.0)
    assert gradient_volume(loss) == pytest.approx(1 / 6)


@pytest.mark.parametrize("setting", SETTINGS[:40:3], ids=lambda s: s.spec)
def test_curves(setting):
    """Oracle: the printed loss and its slope at the log-odds of p."""
    p = np.array([1e-4, 0.03, 0.21, 0.47, 0.66, 0.93, 0.9999])
    loss, slope = curves(losslab.loss(setting.spec), torch.tensor(p))
    odds = np.log(p) - np.log1p(-p)
    assert loss.tolist() == pytest.approx([float(setting.oracle(a)) for a in odds], rel=1e-9)
    assert slope.tolist() == pytest.approx([abs(setting.slope(a)) for a in odds], rel=1e-9)


# spec -> (lower bound, upper bound, slope for hopeless, slope for settled, convex, calibrated)
FACTS = {
    "cross_entropy": (0, INF, -1, 0, True, True),
    "expectation": (0, 1, 0, 0, False, True),
    "100*expectation": (0, 100, 0, 0, False, True),
    "1e-8*expectation": (0, 1e-8, 0, 0, False, True),
    "mixed(focus=0.3)": (0, INF, -1, 0, False, True),
    "mean_absolute_error": (0, 2, 0, 0, False, True),
    "encouraging(log_end=1, eps=0)": (-INF, INF, -1, -1, True, True),
    "encouraging": (-1 + math.log(0.25), INF, -1, 0, True, True),
    "encouraging(bonus_start=0.5)": (math.log(2e-5), INF, -1, 0, False, True),
    "focal": (0, INF, -1, 0, False, True),
    "generalized_cross_entropy(q=0.01)": (0, 100, 0, 0, False, True),
    "tamed_cross_entropy(alpha=1)": (0, INF, 0, 0, False, True),
    "tamed_cross_entropy(alpha=2)": (0, 1, 0, 0, False, True),
    "hinge": (0, INF, -1, 0, True, True),
    "hinge(margin=0)": (0, INF, -1, 0, True, False),
    "hinge(margin=-2)": (0, INF, -1, 0, True, False),
    "hinge(margin=100)": (0, INF, -1, 0, True, True),
    "squared_hinge": (0, INF, -INF, 0, True, True),
    "exponential": (0, INF, -math.exp(30), 0, True, True),
    "-1*cross_entropy": (-INF, 0, 1, 0, False, False),
    "0*cross_entropy": (0, 0, 0, 0, True, False),
    "mean_squared_error": (0, 2, 0, 0, False, True),
    "one_vs_rest(cross_entropy)": (math.log(2), INF, -1, 0, True, True),
}


@pytest.mark.parametrize("spec", FACTS)
def test_card(spec):
    """Oracle: by hand. Calibrated: a margin loss with ψ'(0) < 0 if convex; hinge at margin 0 or
    below is flat at 0. Break: thresholds that depend on the loss's scale."""
    found = card(losslab.loss(spec))
    low, high, hopeless, settled, convex, calibrated = FACTS[spec]
    assert found.lower_bound == pytest.approx(low, rel=1e-9, abs=1e-12 * min(1, abs(high)))
    assert found.upper_bound == pytest.approx(high, rel=1e-9)
    assert found.bounded == (math.isfinite(low) and math.isfinite(high))
    assert found.slope_hopeless == pytest.approx(hopeless, abs=1e-5)
    assert found.slope_settled == pytest.approx(settled, abs=1e-5)
    assert (found.convex, found.calibrated) == (convex, calibrated)


PEAKS = {
    "cross_entropy": 0.0,
    "expectation": 0.5,
    "mixed(focus=0.1)": 0.1,
    "mixed(focus=0.3)": 0.3,
    "mixed(focus=0.45)": 0.45,
    "generalized_cross_entropy(q=0.5)": 1 / 3,  # of p^q (1 − p): q/(1 + q)
    "one_vs_rest(expectation)": 0.5,
    "squared_hinge": 0.0,
}


@pytest.mark.parametrize("spec", PEAKS)
def test_peak(spec):
    """Oracle: where the derivative of the printed slope is 0; focus=F is defined by its peak."""
    assert card(losslab.loss(spec)).peak == pytest.approx(PEAKS[spec], abs=1e-3)


def test_card_says_what_the_loss_is():
    """The text comes from the catalogue row; a user's ψ and a sum have none, and say so."""
    found = card(losslab.loss("poly1(epsilon=2)"))
    assert found.spec == "mixed(beta=2)"
    assert "Battash" in found.source
    assert "mixed(beta=0) = cross_entropy" in found.identities
    assert found.volume_ratio == pytest.approx(2 * found.volume)
    assert found.is_psi
    users = card(losslab.OddsLoss(torch.relu))
    assert (users.spec, users.source, users.parameters) == ("custom", "", ())
    assert card(losslab.loss("focal + hinge")).formula == "focal + hinge"


@pytest.mark.parametrize("change", ["ldam", "logit_adjustment"])
def test_card_of_losses_with_class_counts(change):
    """Oracle: a change of logits by class counts keeps the loss's shape: cross-entropy's slope,
    times the scale. Break: two-class logits for three counts."""
    for counts in ("[5, 3]", "[100, 30, 10, 1]"):
        loss = losslab.loss(f"{change}(cross_entropy, counts={counts})")
        _, is_psi = odds_function(loss)
        found = card(loss)
        assert not is_psi
        assert found.convex
        assert found.slope_hopeless == pytest.approx(-30.0 if change == "ldam" else -1.0)
