"""The metrics against scikit-learn, plain numpy loops and numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss

from losslab import metrics
from losslab.errors import InputError


def sample(seed: int, rows: int, classes: int, scale: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    target = torch.randint(classes, (rows,), generator=generator)
    return logits, target


def probabilities(logits: torch.Tensor) -> np.ndarray:
    z = logits.numpy()
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


cases = given(seed=st.integers(0, 10**6), rows=st.integers(1, 60), classes=st.integers(2, 7))


@cases
@settings(max_examples=40, deadline=None)
def test_accuracy_balanced_accuracy_and_nll_are_scikit_learns(seed, rows, classes):
    """Oracle: scikit-learn. A wrong mean, class or logarithm fails it."""
    logits, target = sample(seed, rows, classes)
    p, y = probabilities(logits), target.numpy()
    predicted = p.argmax(axis=1)
    assert metrics.accuracy(logits, target).item() == accuracy_score(y, predicted)
    present = np.unique(y)
    recall = [np.mean(predicted[y == c] == c) for c in present]
    assert metrics.balanced_accuracy(logits, target).item() == pytest.approx(np.mean(recall))
    if len(present) > 1 and np.isin(predicted, present).all():  # else scikit-learn warns
        assert metrics.balanced_accuracy(logits, target).item() == pytest.approx(
            balanced_accuracy_score(y, predicted), abs=1e-15
        )
    expected = log_loss(y, p, labels=range(classes))
    assert metrics.nll(logits, target).item() == pytest.approx(expected, rel=1e-12)


@cases
@settings(max_examples=40, deadline=None)
def test_brier_margin_and_energy_are_a_plain_loops(seed, rows, classes):
    """Oracle: Python loops over rows. A sum that should be a mean, or y among the others, fails."""
    logits, target = sample(seed, rows, classes)
    p, y, z = probabilities(logits), target.tolist(), logits.tolist()
    brier = sum((p[i, k] - (k == y[i])) ** 2 for i in range(rows) for k in range(classes)) / rows
    assert metrics.brier(logits, target).item() == pytest.approx(brier, rel=1e-12, abs=1e-15)
    margin = [z[i][y[i]] - max(z[i][k] for k in range(classes) if k != y[i]) for i in range(rows)]
    assert metrics.margin(logits, target).tolist() == margin
    assert metrics.energy(logits, target).tolist() == [-z[i][y[i]] for i in range(rows)]


@cases
@settings(max_examples=40, deadline=None)
def test_ece_and_reliability_are_a_plain_loops(seed, rows, classes):
    """Oracle: a loop over bins written from Guo et al. 2017. Other bins or weights fail it."""
    logits, target = sample(seed, rows, classes, scale=1.0)
    p, y = probabilities(logits), target.numpy()
    confidence, hit = p.max(axis=1), p.argmax(axis=1) == y
    table = metrics.reliability(logits, target)
    ece = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        assert table.counts[b] == inside.sum()
        if inside.any():
            gap = abs(hit[inside].mean() - confidence[inside].mean())
            ece += inside.sum() / rows * gap
            assert table.accuracy[b].item() == pytest.approx(hit[inside].mean())
            assert table.confidence[b].item() == pytest.approx(confidence[inside].mean())
        else:
            assert math.isnan(table.accuracy[b]) and math.isnan(table.confidence[b])
    assert metrics.ece(logits, target).item() == pytest.approx(ece, abs=1e-12)


def test_values_worked_out_by_hand():
    """Oracle: two rows with probabilities (4/5, 1/5) and (1/4, 3/4), true class 0 in both."""
    logits = torch.tensor([[4.0, 1.0], [1.0, 3.0]]).log()
    target = torch.tensor([0, 0])
    assert metrics.evaluate(logits, target) == pytest.approx(
        {
            "accuracy": 1 / 2,
            "balanced_accuracy": 1 / 2,
            "nll": -(math.log(4 / 5) + math.log(1 / 4)) / 2,
            "brier": (2 * (1 / 5) ** 2 + 2 * (3 / 4) ** 2) / 2,
            "ece": (abs(1 - 4 / 5) + abs(0 - 3 / 4)) / 2,
            "margin": (math.log(4) - math.log(3)) / 2,
            "energy": -math.log(4) / 2,
        },
        rel=1e-7,  # the logits themselves are float32
        abs=1e-7,
    )
    log_odds = metrics.log_odds(torch.tensor([[3.0, 1.0, 1.0]]), torch.tensor([0]))
    assert log_odds.tolist() == pytest.approx([2 - math.log(2)], rel=1e-15)


def test_confidence_on_an_edge_belongs_to_the_bin_below():
    """Oracle: softmax(0, 0) is exactly ½, the upper edge of the first bin of (0, ½], (½, 1]."""
    table = metrics.reliability(torch.zeros(3, 2), torch.tensor([0, 0, 1]), bins=2)
    assert table.edges.tolist() == [0.0, 0.5, 1.0]
    assert table.counts.tolist() == [3, 0]
    assert table.accuracy[0].item() == pytest.approx(2 / 3)


def test_balanced_accuracy_of_a_constant_guess_is_one_over_the_classes():
    """Oracle: 97 of 100 right by always saying 0 is 97 % accuracy, 1/4 balanced over 4 classes."""
    logits = torch.tensor([[1.0, 0, 0, 0]]).expand(100, -1)
    target = torch.tensor([0] * 97 + [1, 2, 3])
    assert metrics.accuracy(logits, target).item() == 0.97
    assert metrics.balanced_accuracy(logits, target).item() == 0.25


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_arithmetic_is_done_in_float64(dtype):
    """Oracle: −log p = log(1 + e^−30) ≈ 9.4e-14, which is 0 in any narrower arithmetic."""
    logits = torch.tensor([[30.0, 0.0]], dtype=dtype)
    nll = metrics.nll(logits, torch.tensor([0]))
    assert nll.dtype == torch.float64
    assert nll.item() == pytest.approx(math.log1p(math.exp(-30)), rel=2e-3)
    assert metrics.brier(logits, torch.tensor([0])).item() == pytest.approx(
        2 * math.exp(-60), rel=2e-3
    )


def test_ties_go_to_the_first_class_and_rows_with_nan_are_wrong():
    """Oracle: the docstring; counting a NaN row as right would flatter a broken model."""
    logits = torch.tensor([[1.0, 1.0], [1.0, 1.0], [math.nan, 0.0], [math.nan, 0.0]])
    target = torch.tensor([0, 1, 0, 1])
    assert metrics.correct(logits, target).tolist() == [True, False, False, False]
    scores = metrics.evaluate(logits, target)
    assert scores["accuracy"] == 0.25
    assert math.isnan(scores["nll"]) and math.isnan(scores["ece"]) and math.isnan(scores["brier"])


def test_classes_ruled_out_by_minus_infinity_are_no_trouble():
    """Oracle: softmax(0, 0, −inf) = (½, ½, 0): every metric but the margin's tail is finite."""
    logits = torch.tensor([[0.0, 0.0, -math.inf]])
    scores = metrics.evaluate(logits, torch.tensor([0]))
    assert scores["nll"] == pytest.approx(math.log(2))
    assert scores["brier"] == pytest.approx(0.5)
    assert scores["ece"] == pytest.approx(0.5)
    assert metrics.margin(torch.tensor([[2.0]]), torch.tensor([0])).item() == math.inf


def test_evaluate_is_the_single_functions_as_plain_numbers():
    """Oracle: the functions one by one; a metric under another's name fails it."""
    logits, target = sample(0, 40, 5)
    scores = metrics.evaluate(logits.float(), target.int())
    assert tuple(scores) == tuple(metrics.METRICS)
    for name, value in scores.items():
        assert type(value) is float
        single = getattr(metrics, name)(logits.float(), target).double()
        assert value == single.mean().item()


@pytest.mark.parametrize(
    ("logits", "target", "message"),
    [
        (torch.zeros(3), torch.zeros(3).long(), r"logits of shape \(examples, classes\)"),
        (torch.zeros(3, 2).long(), torch.zeros(3).long(), "floating-point"),
        (torch.zeros(3, 2), torch.zeros(4).long(), r"shape \(3,\), but got \(4,\)"),
        (torch.zeros(3, 2), torch.zeros(3, 2), "not probabilities"),
        (torch.zeros(3, 2), torch.zeros(3), "class numbers, but got torch.float32"),
        (torch.zeros(0, 2), torch.zeros(0).long(), "at least one example"),
        (torch.zeros(2, 0), torch.zeros(2).long(), "at least one example and one class"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"in \[0, 2\], but they lie in \[0, 3\]"),
        (torch.zeros(2, 3), torch.tensor([-100, 1]), r"leave out rows to be ignored"),
    ],
)
@pytest.mark.parametrize(
    "name", ["evaluate", "correct", "log_odds", "reliability", *metrics.METRICS]
)
def test_bad_input_says_what_was_expected_and_what_came(name, logits, target, message):
    """Oracle: the message; a metric without the check would crash elsewhere or, worse, answer."""
    with pytest.raises(InputError, match=message):
        getattr(metrics, name)(logits, target)


@pytest.mark.parametrize("bins", [0, -1, 1.5, True])
def test_bins_must_be_a_whole_number(bins):
    """Oracle: the message."""
    with pytest.raises(InputError, match="bins to be a whole number"):
        metrics.ece(torch.zeros(2, 2), torch.tensor([0, 1]), bins=bins)


TAKES_BOTH = (
    metrics.accuracy, metrics.balanced_accuracy, metrics.nll, metrics.brier, metrics.ece,
    metrics.margin, metrics.margins, metrics.energy, metrics.log_odds, metrics.correct,
    metrics.conditional_energies, metrics.lowest_other_energy, metrics.class_energies,
    metrics.calibration_error, metrics.classwise_ece, metrics.brier_decomposition,
    metrics.reliability, metrics.fit_temperature, metrics.evaluate,
)  # fmt: skip


@pytest.mark.parametrize("metric", TAKES_BOTH, ids=lambda metric: metric.__name__)
def test_arrays_and_lists_are_refused_by_name(metric):
    """Oracle: the message. Break: an AttributeError from inside, or an array taken silently."""
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    for wrong, came in ((logits.numpy(), "a NumPy array"), (logits.tolist(), "a list")):
        with pytest.raises(InputError, match=rf"logits to be a torch\.Tensor .* {came}; pass"):
            metric(wrong, target)
    for wrong, came in ((target.numpy(), "a NumPy array"), (target.tolist(), "a list")):
        with pytest.raises(InputError, match=rf"target to be a torch\.Tensor .* {came}; pass"):
            metric(logits, wrong)


@pytest.mark.parametrize("measure", [metrics.distribution, metrics.histogram])
def test_values_that_are_no_tensor_are_refused_by_name(measure):
    """Oracle: the message."""
    with pytest.raises(InputError, match=r"values to be a torch\.Tensor .* got a list"):
        measure([1.0, 2.0])


def test_class_energies_have_a_row_a_class_whichever_occur():
    """Oracle: means by NumPy, class by class. Break: rows for the classes that occur alone, true
    classes across, a dtype or counts of another length."""
    logits, target = torch.randn(9, 4), torch.tensor([0, 0, 2, 2, 2, 0, 0, 2, 2])
    counts, table = metrics.class_energies(logits, target)
    assert table.shape == (4, 4) and table.dtype == torch.float64
    assert counts.tolist() == [4, 0, 5, 0] and counts.dtype == torch.int64
    for c in range(4):
        if counts[c]:
            mean = -logits.double().numpy()[target.numpy() == c].mean(0)
            np.testing.assert_allclose(table[c].numpy(), mean, rtol=1e-12)
        else:
            assert table[c].isnan().all()
