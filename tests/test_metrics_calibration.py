"""Calibration: errors of several binnings, the Brier score's parts, temperature scaling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from losslab import metrics
from losslab.errors import InputError


def sample(seed: int, rows: int, classes: int, scale: float = 1.5):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=generator)


def probabilities(logits: torch.Tensor) -> np.ndarray:
    return torch.softmax(logits, dim=1).numpy()


cases = given(seed=st.integers(0, 10**6), rows=st.integers(1, 60), classes=st.integers(2, 7))


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(2, 80),
    bins=st.integers(1, 20),
    norm=st.sampled_from(["l1", "l2", "max"]),
)
@settings(max_examples=60, deadline=None)
def test_calibration_error_is_torchmetrics(seed, rows, bins, norm):
    """Oracle: torchmetrics, which rounds to float32 (no probability of a random row lies on an
    edge). Another norm, weight or bin fails it."""
    logits, target = sample(seed, rows, 4)
    expected = multiclass_calibration_error(
        torch.softmax(logits, 1), target, num_classes=4, n_bins=bins, norm=norm
    )
    found = metrics.calibration_error(logits, target, bins, norm=norm)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)


@given(seed=st.integers(0, 10**6), rows=st.integers(2, 80), bins=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_bins_of_equal_mass_are_scikit_learns(seed, rows, bins):
    """Oracle: calibration_curve(strategy="quantile"), with powers of two as bins, whose quantiles
    NumPy does not round. Other quantiles, or the upper bin for an edge, fail it."""
    logits, target = sample(seed, rows, 3)
    p = probabilities(logits)
    hit = p.argmax(axis=1) == target.numpy()
    accuracy, confidence = calibration_curve(hit, p.max(axis=1), n_bins=bins, strategy="quantile")
    table = metrics.reliability(logits, target, bins, binning="mass")
    edges = np.quantile(p.max(axis=1), np.linspace(0, 1, bins + 1))
    np.testing.assert_allclose(table.edges, edges, rtol=1e-12)
    used = table.counts > 0
    np.testing.assert_allclose(table.accuracy[used], accuracy, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(table.confidence[used], confidence, rtol=1e-12)
    gaps = np.abs(accuracy - confidence)
    expected = (gaps * table.counts[used].numpy()).sum() / rows
    found = metrics.calibration_error(logits, target, bins, binning="mass")
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_equal_masses_hold_equal_counts_and_ties_stay_together():
    """Oracle: by hand. 12 different confidences in 4 bins are 3 each; equal confidences cannot be
    told apart, so all rows of one value share a bin whatever their order."""
    steps = torch.linspace(0.1, 3, 12, dtype=torch.float64)
    logits = torch.stack([steps, torch.zeros_like(steps)], dim=1)
    target = torch.arange(12) % 2
    assert metrics.reliability(logits, target, 4, binning="mass").counts.tolist() == [3, 3, 3, 3]
    tied = metrics.reliability(logits[:1].expand(12, 2), target, 4, binning="mass")
    assert sorted(tied.counts.tolist()) == [0, 0, 0, 12]
    mixed = torch.cat([logits[:4], logits[:1].expand(8, 2)])
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    one = metrics.calibration_error(mixed, target, 4, binning="mass")
    two = metrics.calibration_error(mixed[order], target[order], 4, binning="mass")
    assert one.item() == pytest.approx(two.item(), rel=1e-12)


def test_norms_by_hand():
    """Oracle: two rows with confidences 0.9 (right) and 0.75 (wrong), each in its bin."""
    logits = torch.tensor([[9.0, 1.0], [1.0, 3.0]], dtype=torch.float64).log()
    target = torch.tensor([0, 0])
    for norm, expected in (
        ("l1", (0.1 + 0.75) / 2),
        ("l2", math.sqrt((0.1**2 + 0.75**2) / 2)),
        ("max", 0.75),
    ):
        found = metrics.calibration_error(logits, target, norm=norm)
        assert found.item() == pytest.approx(expected, rel=1e-12)
    assert metrics.calibration_error(logits, target).item() == metrics.ece(logits, target).item()


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(2, 60),
    classes=st.integers(2, 6),
    binning=st.sampled_from(["width", "mass"]),
)
@settings(max_examples=40, deadline=None)
def test_classwise_ece_is_a_plain_loops(seed, rows, classes, binning):
    """Oracle: loops over classes and bins from Kull et al. 2019 and Nixon et al. 2019. Binning by
    the predicted class, other weights, or a class left out fail it."""
    bins = 4
    logits, target = sample(seed, rows, classes)
    p, y = probabilities(logits), target.numpy()
    errors = []
    for k in range(classes):
        edges = np.linspace(0, 1, bins + 1)
        if binning == "mass":
            edges = np.quantile(p[:, k], edges)
        place = np.searchsorted(edges[1:-1], p[:, k])
        error = 0.0
        for b in range(bins):
            inside = place == b
            if inside.any():
                error += inside.mean() * abs((y[inside] == k).mean() - p[inside, k].mean())
        errors.append(error)
    found = metrics.classwise_ece(logits, target, bins, binning=binning, per_class=True)
    assert found.tolist() == pytest.approx(errors, rel=1e-10, abs=1e-13)
    mean = metrics.classwise_ece(logits, target, bins, binning=binning)
    assert mean.item() == pytest.approx(np.mean(errors), rel=1e-10)


def test_a_class_that_does_not_occur_counts_in_classwise_ece():
    """Oracle: by hand: p = (½, ¼, ¼) for both of two rows of class 0: errors ½, ¼, ¼."""
    logits = torch.tensor([[2.0, 1.0, 1.0]], dtype=torch.float64).log().expand(2, 3)
    found = metrics.classwise_ece(logits, torch.tensor([0, 0]), per_class=True)
    assert found.tolist() == pytest.approx([0.5, 0.25, 0.25], rel=1e-12)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(1, 60),
    classes=st.integers(1, 6),
    bins=st.integers(1, 12),
    binning=st.sampled_from(["width", "mass"]),
)
@settings(max_examples=60, deadline=None)
def test_the_brier_scores_parts_add_up_to_it(seed, rows, classes, bins, binning):
    """Oracle: the identity, against `brier` and scikit-learn. A term with a wrong sign or factor,
    or a sum over the wrong bins, fails it."""
    logits, target = sample(seed, rows, classes)
    parts = metrics.brier_decomposition(logits, target, bins, binning=binning)
    total = parts.reliability - parts.resolution + parts.uncertainty
    total = total + parts.within_variance - parts.within_covariance
    assert parts.brier.item() == pytest.approx(metrics.brier(logits, target).item(), rel=1e-12)
    assert total.item() == pytest.approx(parts.brier.item(), rel=1e-10, abs=1e-14)
    p, y = probabilities(logits), target.numpy()
    expected = sum(brier_score_loss(y == k, p[:, k], pos_label=True) for k in range(classes))
    assert parts.brier.item() == pytest.approx(expected, rel=1e-10, abs=1e-15)


@cases
@settings(max_examples=40, deadline=None)
def test_the_brier_scores_parts_are_a_plain_loops(seed, rows, classes):
    """Oracle: loops over classes and bins written from Stephenson et al. 2008; the sum of the parts
    alone would not see two errors that cancel."""
    bins = 5
    logits, target = sample(seed, rows, classes)
    p, y = probabilities(logits), target.numpy()
    expected = dict.fromkeys(metrics.BrierDecomposition._fields[1:], 0.0)
    for k in range(classes):
        o = (y == k).astype(float)
        expected["uncertainty"] += o.mean() * (1 - o.mean())
        place = np.searchsorted(np.linspace(0, 1, bins + 1)[1:-1], p[:, k])
        for b in range(bins):
            inside = place == b
            if not inside.any():
                continue
            q, r = p[inside, k], o[inside]
            expected["reliability"] += inside.mean() * (q.mean() - r.mean()) ** 2
            expected["resolution"] += inside.mean() * (r.mean() - o.mean()) ** 2
            expected["within_variance"] += inside.mean() * q.var()
            expected["within_covariance"] += (
                2 * inside.mean() * ((q - q.mean()) * (r - r.mean())).mean()
            )
    parts = metrics.brier_decomposition(logits, target, bins)._asdict()
    for name, value in expected.items():
        assert parts[name].item() == pytest.approx(value, rel=1e-10, abs=1e-14), name


def test_murphys_three_terms_suffice_for_forecasts_of_few_values():
    """Oracle: by hand: forecasts 0.75 and 0.25 of two classes, each right half the time; the
    within-bin terms vanish and reliability is 2 · ¼², resolution 0, uncertainty 2 · ¼."""
    logits = torch.tensor([[3.0, 1.0]], dtype=torch.float64).log().expand(4, 2)
    parts = metrics.brier_decomposition(logits, torch.tensor([0, 1, 0, 1]))
    assert [x.item() for x in parts[1:]] == pytest.approx([1 / 8, 0, 1 / 2, 0, 0], abs=1e-15)


@given(
    seed=st.integers(0, 10**6),
    rows=st.integers(3, 60),
    classes=st.integers(2, 6),
    scale=st.sampled_from([1e-3, 0.3, 3.0, 100.0, 1e6]),
)
@settings(max_examples=60, deadline=None)
def test_temperature_is_scipys(seed, rows, classes, scale):
    """Oracle: scipy's bounded minimiser of the NLL by log T. Stopping early, or a wrong slope or
    curvature, fails it. Multiplying all logits multiplies T."""
    logits, target = sample(seed, rows, classes)
    logits[torch.arange(rows), target] += 1.0  # some information
    try:
        found = metrics.fit_temperature(scale * logits, target)
    except InputError:
        away = logits - logits.gather(1, target[:, None])
        assert away.mean() >= 0 or (away <= 0).all()
        return

    def nll(log_t: float) -> float:
        return metrics.nll(logits / math.exp(log_t), target).item()

    at = math.log(found / scale)
    best = minimize_scalar(nll, bounds=(at - 3, at + 3), method="bounded", options={"xatol": 1e-9})
    assert nll(at) <= best.fun * (1 + 1e-13)
    assume(abs(best.x - at) < 2)
    assert at == pytest.approx(best.x, abs=1e-5)  # as sharp as a minimum of float64 values is


def test_temperature_by_hand():
    """Oracle: by hand: confidence σ(4/T) is right ¾ of the time, so 4/T = log 3."""
    logits = torch.tensor([[4.0, 0.0]]).expand(4, 2)
    target = torch.tensor([0, 0, 1, 0])
    assert metrics.fit_temperature(logits, target) == pytest.approx(4 / math.log(3), rel=1e-12)
    for factor in (1e-200, 1e-3, 1e200):
        found = metrics.fit_temperature(logits.double() * factor, target)
        assert found == pytest.approx(factor * 4 / math.log(3), rel=1e-12)


def test_temperature_of_calibrated_probabilities_is_one_and_mends_others():
    """Oracle: the slope of the NLL at T, 0 by a central difference; labels drawn from the model's
    own probabilities give T near 1, and T times as sharp logits give T times that."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20000, 5, generator=generator, dtype=torch.float64)
    target = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    found = metrics.fit_temperature(logits, target)
    assert found == pytest.approx(1, abs=0.03)
    assert metrics.fit_temperature(2.5 * logits, target) == pytest.approx(2.5 * found, rel=1e-12)
    sharp = 2.5 * logits
    assert metrics.ece(sharp / (2.5 * found), target) < 0.1 * metrics.ece(sharp, target)


def test_a_model_without_errors_has_no_temperature():
    """Oracle: the NLL falls for ever as T goes to 0, ties included: an error, not a tiny number."""
    for logits in ([[3.0, 1.0], [0.0, 0.5]], [[3.0, 1.0], [0.5, 0.5]]):
        with pytest.raises(InputError, match="the best temperature is 0"):
            metrics.fit_temperature(torch.tensor(logits), torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "logits", [[[1.0, 1.0], [2.0, 2.0]], [[3.0, 0.0], [3.0, 0.0]], [[0.0, 3.0], [2.0, 0.0]]]
)
def test_logits_that_say_nothing_of_the_target_have_no_temperature(logits):
    """Oracle: by hand: equal logits, logits that are wrong as often as right by as much, and
    logits that point away: the NLL falls for ever as T grows."""
    with pytest.raises(InputError, match="the best temperature is infinite"):
        metrics.fit_temperature(torch.tensor(logits), torch.tensor([0, 1]))


def test_one_barely_wrong_example_is_enough_for_a_temperature():
    """Oracle: by hand: margins 1 and −δ balance where σ(−β) = δ σ(βδ) ≈ δ/2, β ≈ log(2/δ)."""
    delta = 1e-12
    logits = torch.tensor([[1.0, 0.0], [0.0, delta]], dtype=torch.float64)
    found = metrics.fit_temperature(logits, torch.tensor([0, 0]))
    assert 1 / found == pytest.approx(math.log(2 / delta), rel=1e-9)


def test_a_temperature_that_float64_cannot_hold_is_refused():
    """Oracle: by hand: β = log(100)/1e-310 is beyond float64; NaN or the largest float would be a
    silent number."""
    logits = torch.tensor([[1.0, 0.0], [1e-310, 0.0], [0.0, 1e-312]], dtype=torch.float64)
    with pytest.raises(InputError, match="wrong by next to nothing"):
        metrics.fit_temperature(logits, torch.tensor([0, 0, 0]))


def test_classes_ruled_out_by_a_huge_negative_logit_do_not_blur_the_temperature():
    """Oracle: the temperature without the column, which carries no probability."""
    logits, target = sample(0, 50, 3)
    logits[torch.arange(50), target] += 1.0
    masked = torch.cat([logits, torch.full((50, 1), -1e9, dtype=torch.float64)], dim=1)
    expected = metrics.fit_temperature(logits, target)
    assert metrics.fit_temperature(masked, target) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    "call",
    [
        metrics.calibration_error,
        metrics.classwise_ece,
        metrics.brier_decomposition,
        metrics.fit_temperature,
    ],
)
def test_logits_that_are_not_finite_are_refused(call):
    """Oracle: the message."""
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match="those of 1 of 2 examples are not"):
            call(torch.tensor([[bad, 0.0], [1.0, 2.0]]), torch.tensor([0, 0]))
    with pytest.raises(InputError, match="at least one example"):
        call(torch.zeros(0, 2), torch.zeros(0).long())
    with pytest.raises(InputError, match="class numbers"):
        call(torch.zeros(2, 2), torch.zeros(2))


def test_options_that_do_not_exist_are_refused():
    """Oracle: the message."""
    logits, target = sample(0, 5, 3)
    for call in (metrics.calibration_error, metrics.classwise_ece, metrics.brier_decomposition):
        with pytest.raises(InputError, match="binning to be one of width, mass"):
            call(logits, target, binning="quantile")
        with pytest.raises(InputError, match="bins to be a whole number"):
            call(logits, target, bins=0)
    with pytest.raises(InputError, match="norm to be one of l1, l2, max, but got 'l3'"):
        metrics.calibration_error(logits, target, norm="l3")
    with pytest.raises(InputError, match="those of 5 of 5 examples are not"):
        metrics.reliability(logits * math.nan, target, binning="mass")
