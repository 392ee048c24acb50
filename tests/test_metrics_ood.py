"""Out-of-distribution scores and their measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from losslab.errors import InputError
from losslab.metrics import ood

MEASURES = (ood.auroc, ood.fpr_at_tpr, ood.aupr_in, ood.aupr_out)


@st.composite
def two_sets(draw):
    """Scores of both sets, with ties within and between them."""
    numbers = st.lists(st.integers(-6, 6).map(lambda n: n / 2), min_size=1, max_size=30)
    return tuple(torch.tensor(draw(numbers), dtype=torch.float64) for _ in range(2))


def joined(inside, outside):
    is_out = np.r_[np.zeros(len(inside)), np.ones(len(outside))]
    return is_out, np.r_[inside.numpy(), outside.numpy()]


@given(two_sets())
@settings(max_examples=80, deadline=None)
def test_measures_are_scikit_learns(sets):
    """Oracle: scikit-learn, on small whole numbers so that ties are everywhere. A tie counted as a
    win, a reversed score, or interpolated precision fails it."""
    inside, outside = sets
    is_out, score = joined(inside, outside)
    assert ood.auroc(inside, outside).item() == pytest.approx(
        roc_auc_score(is_out, score), rel=1e-12, abs=1e-15
    )
    assert ood.aupr_out(inside, outside).item() == pytest.approx(
        average_precision_score(is_out, score), rel=1e-12
    )
    assert ood.aupr_in(inside, outside).item() == pytest.approx(
        average_precision_score(1 - is_out, -score), rel=1e-12
    )


@given(two_sets(), st.sampled_from([0.05, 0.07, 0.5, 0.9, 0.95, 1.0]))
@settings(max_examples=80, deadline=None)
def test_fpr_at_tpr_is_scikit_learns_first_point_of_the_curve(sets, tpr):
    """Oracle: the first point of roc_curve whose rate is at least tpr, with either set as the
    positive one. The wrong positive class, a strict inequality, or interpolation fails it."""
    inside, outside = sets
    is_out, score = joined(inside, outside)
    for positive, label, sign in (("in", 0, -1), ("out", 1, 1)):
        false, true, _ = roc_curve(is_out == label, sign * score, drop_intermediate=False)
        expected = false[np.argmax(true >= tpr)]
        found = ood.fpr_at_tpr(inside, outside, tpr, positive=positive)
        assert found.item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("count", [1, 19, 20, 21, 100, 1000])
@pytest.mark.parametrize("tpr", [0.07, 0.29, 0.57, 0.95])
def test_the_threshold_lets_no_more_positives_through_than_it_must(count, tpr):
    """Oracle: by counting. 0.07 · 100 is 7.000000000000001 in floats, and must be 7 of 100."""
    inside = torch.arange(count, dtype=torch.float64)
    exact = next(k for k in range(1, count + 1) if k / count >= tpr)
    outside = inside + 0.5  # passes where the next inside example would too
    expected = (exact - 1) / count
    assert ood.fpr_at_tpr(inside, outside, tpr).item() == pytest.approx(expected, abs=1e-15)


def test_measures_by_hand():
    """Oracle: by hand: in 0, 1, 2, 3 and out 2.5, 4."""
    inside, outside = torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.tensor([2.5, 4.0])
    assert ood.auroc(inside, outside).item() == 7 / 8
    assert ood.fpr_at_tpr(inside, outside).item() == 1 / 2  # all four in at ≤ 3, and 2.5
    assert ood.fpr_at_tpr(inside, outside, 0.75).item() == 0
    assert ood.fpr_at_tpr(inside, outside, positive="out").item() == 1 / 4  # 2.5 and above: 3
    assert ood.aupr_out(inside, outside).item() == pytest.approx((1 + 2 / 3) / 2)
    assert ood.aupr_in(inside, outside).item() == pytest.approx((1 + 1 + 1 + 4 / 5) / 4)


def test_a_constant_score_is_chance():
    """Oracle: by hand: all ties: ½, everything passes, precision is the positives' share."""
    inside, outside = torch.zeros(3), torch.zeros(5)
    assert [measure(inside, outside).item() for measure in MEASURES] == [0.5, 1, 3 / 8, 5 / 8]


@given(seed=st.integers(0, 10**6), rows=st.integers(1, 40), classes=st.integers(2, 6))
@settings(max_examples=40, deadline=None)
def test_scores_are_the_formulas(seed, rows, classes):
    """Oracle: numpy, where nothing saturates. A score of the other sign fails it."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    z = logits.numpy()
    total = np.exp(z).sum(axis=1)
    found = ood.scores(logits)
    assert tuple(found) == ood.SCORES
    np.testing.assert_allclose(found["min_energy"], -z.max(axis=1))
    np.testing.assert_allclose(found["free_energy"], -np.log(total), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        found["max_probability"].exp(), 1 - np.exp(z.max(axis=1)) / total, rtol=1e-9
    )


def test_a_model_sure_of_everything_is_still_ranked():
    """Oracle: by hand: margins of 100, 900 and 2000 all have p = 1 in float64, and those of 900 and
    2000 even 1 − p = 0; the order must be theirs. Uniform logits give log(1 − 1/C)."""
    logits = torch.tensor([[2000.0, 0.0], [0.0, 900.0], [100.0, 0.0], [5.0, 5.0]])
    expected = [-2000, -900, -100, math.log(1 / 2)]
    assert ood.max_probability(logits).tolist() == pytest.approx(expected, rel=1e-14)
    assert ood.max_probability(torch.zeros(1, 4)).item() == pytest.approx(math.log(3 / 4))
    found = ood.detect(logits[:2], logits[2:])
    assert found["auroc.max_probability"] == 1 and found["fpr95.max_probability"] == 0


def test_half_precision_logits_are_scored_in_float64():
    """Oracle: the exact sum: 1 + e^−12 is 1 in float16 and float32 rounds it to seven digits."""
    logits = torch.tensor([[0.0, -12.0]], dtype=torch.float16)
    assert ood.free_energy(logits).dtype == torch.float64
    assert ood.free_energy(logits).item() == pytest.approx(-math.log1p(math.exp(-12)), rel=1e-12)


def test_detect_is_every_measure_of_every_score():
    """Oracle: the functions one by one. A measure under another's name fails it."""
    generator = torch.Generator().manual_seed(0)
    inside = 3 * torch.randn(50, 4, generator=generator)
    outside = torch.randn(30, 4, generator=generator)
    found = ood.detect(inside, outside)
    assert len(found) == len(ood.SCORES) * len(ood.MEASURES)
    for name in ood.SCORES:
        score = getattr(ood, name)
        for measure, of in zip(ood.MEASURES, MEASURES, strict=True):
            value = found[f"{measure}.{name}"]
            assert type(value) is float and value == of(score(inside), score(outside)).item()
    assert found["auroc.min_energy"] > 0.5


def test_histograms_share_their_edges_and_lose_no_one():
    """Oracle: numpy.histogram over the range of both sets."""
    inside = torch.tensor([[3.0, 0.0], [9.0, 1.0], [4.5, 0.0]])
    outside = torch.tensor([[1.0, 0.0], [0.2, 0.1]])
    for name, (ins, outs) in ood.histograms(inside, outside, bins=7).items():
        score = getattr(ood, name)
        values = torch.cat([score(inside), score(outside)])
        edges = np.histogram_bin_edges(values, 7)
        np.testing.assert_allclose(ins.edges, edges, rtol=1e-12)
        assert torch.equal(ins.edges, outs.edges)
        assert ins.counts.tolist() == np.histogram(score(inside), edges)[0].tolist()
        assert outs.counts.sum() == 2 and ins.counts.sum() == 3
    same = ood.histograms(inside[:1], inside[:1], bins=4)["min_energy"]
    assert same[0].counts.sum() == same[1].counts.sum() == 1  # all scores equal


@pytest.mark.parametrize(
    ("inside", "outside", "message"),
    [
        (
            torch.zeros(2, 3),
            torch.zeros(0, 3),
            "one example outside the distribution, but got none, only 2 in it",
        ),
        (
            torch.zeros(0, 3),
            torch.zeros(2, 3),
            "one example in the distribution, but got none, only 2 outside",
        ),
        (torch.zeros(0, 3), torch.zeros(0, 3), "and one outside it, but got neither"),
        (np.zeros((2, 3)), torch.zeros(2, 3), r"in_logits .* got a NumPy array; pass"),
        (torch.zeros(2, 3), [[0.0, 1.0]], r"out_logits .* got a list; pass torch.as_tensor"),
        (torch.zeros(2, 3), torch.zeros(2, 4), r"\(2, 3\) and \(2, 4\)"),
        (torch.zeros(2, 3), torch.full((2, 3), math.nan), "those of 2 of 2 examples are not"),
        (torch.tensor([[math.inf, 0.0]]), torch.zeros(2, 2), "those of 1 of 1 examples are not"),
        (torch.zeros(2, 1), torch.zeros(2, 1), "at least 2 classes"),
        (torch.zeros(2), torch.zeros(2), r"logits of shape \(examples, classes\)"),
        (torch.zeros(2, 3).long(), torch.zeros(2, 3), "floating-point"),
    ],
)
def test_sets_that_cannot_be_compared_are_refused(inside, outside, message):
    """Oracle: the message."""
    for call in (ood.detect, ood.histograms):
        with pytest.raises(InputError, match=message):
            call(inside, outside)


@pytest.mark.parametrize("measure", MEASURES)
def test_scores_that_cannot_be_measured_are_refused(measure):
    """Oracle: the message, with the argument's name."""
    good = torch.tensor([0.0, 1.0])
    with pytest.raises(InputError, match="outside the distribution, but got none"):
        measure(good, torch.zeros(0))
    with pytest.raises(InputError, match="in_scores to be finite, but 1 of 2"):
        measure(torch.tensor([0.0, math.nan]), good)
    with pytest.raises(InputError, match=r"out_scores to be a floating.*\(2, 1\)"):
        measure(good, good[:, None])


def test_rates_and_classes_that_do_not_exist_are_refused():
    """Oracle: the message; 95 for 0.95 is an easy slip."""
    good = torch.tensor([0.0, 1.0])
    for tpr in (0, 95, -0.5, math.nan):
        with pytest.raises(InputError, match=r"tpr to lie in \(0, 1\]"):
            ood.fpr_at_tpr(good, good, tpr)
    with pytest.raises(InputError, match="positive to be one of in, out"):
        ood.fpr_at_tpr(good, good, positive="ood")
