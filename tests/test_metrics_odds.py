"""Margins, energies, their distributions, and which examples carry the gradient."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import losslab
from losslab import metrics
from losslab.errors import InputError
from losslab.metrics.distributions import LEVELS


def sample(seed: int, rows: int, classes: int, scale: float = 3.0):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    return logits, torch.randint(classes, (rows,), generator=generator)


cases = given(seed=st.integers(0, 10**6), rows=st.integers(1, 60), classes=st.integers(2, 7))


@cases
@settings(max_examples=40, deadline=None)
def test_a_distribution_is_numpys(seed, rows, classes):
    """Oracle: numpy.quantile and numpy means. Another interpolation, or ≤ for <, fails it."""
    logits, target = sample(seed, rows, classes)
    for found, values in (
        (metrics.margins(logits, target).logits, metrics.margin(logits, target).numpy()),
        (metrics.margins(logits, target).log_odds, metrics.log_odds(logits, target).numpy()),
    ):
        assert found.examples == rows
        assert found.mean == pytest.approx(values.mean(), rel=1e-12, abs=1e-13)
        assert found.share_negative == np.mean(values < 0)
        assert found.levels == LEVELS
        expected = np.quantile(values, LEVELS)
        assert found.quantiles == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_a_margin_of_zero_is_not_negative():
    """Oracle: two equal logits. A tie is not a wrong side: counting it as one fails."""
    found = metrics.margins(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0]))
    assert found.logits.share_negative == found.log_odds.share_negative == 0.5


def test_margins_far_apart_are_told_exactly():
    """Oracle: by hand, with two classes both margins are z_0 − z_1; through p they would be inf."""
    logits = torch.tensor([[900.0, 0.0], [-900.0, 0.0]])
    for found in metrics.margins(logits, torch.tensor([0, 0])):
        assert found.quantiles[0] == -900 and found.quantiles[-1] == 900 and found.mean == 0


@cases
@settings(max_examples=40, deadline=None)
def test_energies_are_a_plain_loops(seed, rows, classes):
    """Oracle: Python loops over rows. y among the others, or a wrong sign, fails it."""
    logits, target = sample(seed, rows, classes)
    z, y = logits.tolist(), target.tolist()
    other = [min(-z[i][k] for k in range(classes) if k != y[i]) for i in range(rows)]
    assert metrics.lowest_other_energy(logits, target).tolist() == other
    found = metrics.conditional_energies(logits, target)
    assert found.lowest_other.mean == pytest.approx(np.mean(other), rel=1e-12)
    assert found.true.mean == pytest.approx(
        np.mean([-z[i][y[i]] for i in range(rows)]), rel=1e-12, abs=1e-13
    )
    counts, table = metrics.class_energies(logits, target)
    for c in range(classes):
        of_class = [z[i] for i in range(rows) if y[i] == c]
        assert counts[c] == len(of_class)
        if of_class:
            np.testing.assert_allclose(table[c], -np.mean(of_class, axis=0), rtol=1e-12, atol=1e-13)
        else:
            assert table[c].isnan().all()


def test_the_difference_of_the_energies_is_the_margin():
    """Oracle: the identity E_other − E_true = margin, row by row."""
    logits, target = sample(3, 50, 4)
    gap = metrics.lowest_other_energy(logits, target) - metrics.energy(logits, target)
    assert torch.equal(gap, metrics.margin(logits, target))


@pytest.mark.parametrize(
    ("loss", "size"),
    [
        ("cross_entropy", lambda p: 1 - p),
        ("expectation", lambda p: p * (1 - p)),
        ("encouraging(log_end=1, eps=0)", lambda p: np.ones_like(p)),
        ("cross_entropy + 0.5*expectation", lambda p: (1 - p) + 0.5 * p * (1 - p)),
        (lambda a: torch.sigmoid(-a), lambda p: p * (1 - p)),
        (losslab.CrossEntropyLoss(reduction="sum"), lambda p: 1 - p),
    ],
)
def test_shares_of_the_gradient_by_hand(loss, size):
    """Oracle: |∂L/∂z_y| as a function of p from the papers, summed band by band in numpy."""
    logits, target = sample(0, 400, 5)
    a = metrics.log_odds(logits, target)
    p = torch.sigmoid(a).numpy()
    edges = (0.0, 0.2, 0.5, 0.9, 1.0)
    found = metrics.gradient_shares(a, loss, edges=edges)
    sizes = size(p)
    inside = [(low < p) & (p <= high) for low, high in itertools.pairwise(edges)]
    assert found.edges.tolist() == list(edges)
    assert found.counts.tolist() == [int(i.sum()) for i in inside]
    expected = [sizes[i].sum() / sizes.sum() for i in inside]
    assert found.shares.tolist() == pytest.approx(expected, rel=1e-10)
    assert found.mean.item() == pytest.approx(sizes.mean(), rel=1e-10)


@pytest.mark.parametrize("spec", sorted(losslab.CATALOG))
def test_shares_are_those_of_the_gradient_that_training_has(spec):
    """Oracle: ∂L/∂logits of the loss itself, by autograd on the logits. Break: a slope by another
    variable, a share by counts, a loss that is not ψ(a) let through."""
    logits, target = sample(1, 200, 4)
    loss = losslab.loss(spec, reduction="sum")
    if loss.psi is None:
        with pytest.raises(InputError, match="is not a function of the true class's log-odds"):
            metrics.gradient_shares(torch.zeros(3), loss)
        return
    leaf = logits.clone().requires_grad_()
    loss(leaf, target).backward()
    sizes = leaf.grad.gather(1, target[:, None]).squeeze(1).abs()
    a = metrics.log_odds(logits, target)
    found = metrics.gradient_shares(a, spec)
    band = np.digitize(torch.sigmoid(a), metrics.BANDS[1:-1], right=True)
    expected = [float(sizes[band == b].sum() / sizes.sum()) for b in range(len(found.shares))]
    assert found.shares.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-14)
    assert found.mean.item() == pytest.approx(sizes.mean().item(), rel=1e-9)


def test_bands_near_one_are_told_apart_where_p_rounds_to_one():
    """Oracle: by hand: p = 1 − 1e-12 has the log-odds 12 log 10 = 27.63, between 27 and 29, whose p
    are both 1 in the float32 of stored log-odds; 800 has a gradient of 1 under −a."""
    edges = (0, 0.5, 1 - 1e-12, 1)
    a = torch.tensor([-800.0, 0.0, 27.0, 29.0, 800.0])
    assert metrics.gradient_shares(a, "cross_entropy", edges=edges).counts.tolist() == [2, 1, 2]
    found = metrics.gradient_shares(a, lambda a: -a, edges=edges)
    assert found.shares.tolist() == pytest.approx([2 / 5, 1 / 5, 2 / 5])


def test_where_no_example_has_a_gradient_all_shares_are_zero():
    """Oracle: the docstring; 0/0 would be NaN. A constant ψ has no gradient either."""
    a = torch.tensor([2.0, 3.0])
    for psi in (lambda a: torch.relu(1 - a), torch.zeros_like):
        found = metrics.gradient_shares(a, psi, edges=(0, 0.5, 1))
        assert found.shares.tolist() == [0, 0] and found.mean == 0
        assert found.counts.tolist() == [0, 2]


def test_huge_slopes_do_not_overflow():
    """Oracle: by hand: three equal slopes of e^709, whose sum is beyond float64, in one band."""
    found = metrics.gradient_shares(
        torch.tensor([-709.0, -709.0, -709.0]), lambda a: torch.exp(-a), edges=(0, 0.5, 1)
    )
    assert found.shares.tolist() == pytest.approx([1, 0])
    assert found.mean.item() == pytest.approx(math.exp(709))


def test_a_schedule_stands_where_the_loss_has_got_to():
    """Oracle: the loss with the plain numbers of that moment."""
    a = torch.linspace(-5, 5, 50)
    loss = losslab.loss("mixed(focus=phases(0, 0.5))")
    for progress, plain in ((0.0, "mixed(focus=0)"), (1.0, "mixed(focus=0.5)")):
        loss.set_progress(progress)
        shares = metrics.gradient_shares(a, loss).shares
        assert torch.allclose(shares, metrics.gradient_shares(a, plain).shares, rtol=1e-12)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("one_vs_rest(cross_entropy)", "more of the logits"),
        ("additive_margin(cross_entropy, margin=0.3, scale=10)", "more of the logits"),
        ("complement_objective(cross_entropy)", "alternates"),
        (losslab.loss("focal", weight=torch.ones(3)), "weight differs from class to class"),
        (losslab.loss("focal", label_smoothing=0.1), "label smoothing"),
        (losslab.loss("focal + mean_absolute_error", label_smoothing=0.1), "label smoothing"),
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), "no losslab loss"),
        (torch.nn.CrossEntropyLoss(weight=torch.ones(3)), "no losslab loss"),
        ("foccal", "Did you mean 'focal'"),
        (3, "a function of log-odds, but got 3"),
        (lambda a: a.sum(), r"shape, \(2,\), but got \(\)"),
        (lambda a: 1.0, "but got float"),
        (lambda a: torch.exp(-1000 * a), "slope at log-odds -1 is"),
    ],
)
def test_losses_that_are_not_of_the_log_odds_are_refused(loss, message):
    """Oracle: the message; a share computed from ψ alone would be wrong for each of these."""
    with pytest.raises(InputError, match=message):
        metrics.gradient_shares(torch.tensor([-1.0, 2.0]), loss)


@pytest.mark.parametrize("edges", [(0.5,), (0, 0.5), (0.1, 1), (0, 0.6, 0.6, 1), (0, 0.7, 0.3, 1)])
def test_edges_must_rise_from_zero_to_one(edges):
    """Oracle: the message; an example outside all bands would be lost without a word."""
    with pytest.raises(InputError, match="rise from 0 to 1"):
        metrics.gradient_shares(torch.zeros(2), "focal", edges=edges)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(0), "at least one example"),
        (torch.zeros(2, 2), r"\(N,\), but got \(2, 2\)"),
        (torch.zeros(2).long(), "floating-point"),
        ([0.0], "got a list"),
        (torch.tensor([0.0, math.nan]), "1 of 2 numbers are not"),
        (torch.tensor([math.inf, -math.inf]), "2 of 2 numbers are not"),
    ],
)
def test_numbers_that_cannot_be_summed_up_are_refused(values, message):
    """Oracle: the message, the same in all functions of one number an example."""
    for call in (
        lambda: metrics.gradient_shares(values, "focal"),
        lambda: metrics.distribution(values),
        lambda: metrics.histogram(values),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.mark.parametrize(
    "call",
    [
        metrics.margins,
        metrics.conditional_energies,
        metrics.lowest_other_energy,
        metrics.class_energies,
    ],
)
def test_logits_that_are_not_finite_are_refused(call):
    """Oracle: the message; a mean over them would be a silent NaN or infinity."""
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(InputError, match="those of 1 of 2 examples are not"):
            call(torch.tensor([[bad, 0.0], [1.0, 2.0]]), torch.tensor([0, 0]))
    with pytest.raises(InputError, match="at least one example"):
        call(torch.zeros(0, 2), torch.zeros(0).long())


@pytest.mark.parametrize(
    "call", [metrics.margins, metrics.conditional_energies, metrics.lowest_other_energy]
)
def test_one_class_alone_has_no_margin(call):
    """Oracle: the message; the margin would be infinite."""
    with pytest.raises(InputError, match="at least 2 classes, but the logits have 1"):
        call(torch.zeros(3, 1), torch.zeros(3).long())


@given(seed=st.integers(0, 10**6), count=st.integers(2, 50), bins=st.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_histograms_are_numpys(seed, count, bins):
    """Oracle: numpy.histogram; random values do not lie on edges. A lost end value fails it."""
    values = torch.from_numpy(np.random.default_rng(seed).normal(size=count))
    found = metrics.histogram(values, bins)
    counts, edges = np.histogram(values, bins)
    assert found.counts.tolist() == counts.tolist()
    np.testing.assert_allclose(found.edges, edges, rtol=1e-12, atol=1e-14)


def test_levels_outside_their_range_are_refused():
    """Oracle: the message."""
    with pytest.raises(InputError, match=r"in \[0, 1\]"):
        metrics.distribution(torch.zeros(3), levels=[0.5, 95])


def test_graphs_are_left_behind():
    """Oracle: metrics of logits that are being trained are plain numbers, and grad mode stays."""
    logits = torch.randn(5, 3, requires_grad=True)
    target = torch.tensor([0, 1, 2, 0, 1])
    a = metrics.log_odds(logits, target)
    with torch.no_grad():
        found = metrics.gradient_shares(a, "cross_entropy")
        assert not torch.is_grad_enabled()
    assert not found.shares.requires_grad
    assert isinstance(metrics.margins(logits, target).logits.mean, float)
    assert F.cross_entropy(logits, target).requires_grad


def test_torchs_cross_entropy_is_known():
    """Oracle: the spec. Break: the commonest criterion refused, or taken for another."""
    a = torch.linspace(-3, 5, 9)
    losses = torch.nn.CrossEntropyLoss(), "cross_entropy"
    found, truth = (metrics.gradient_shares(a, loss) for loss in losses)
    assert torch.equal(found.shares, truth.shares)


@pytest.mark.parametrize(
    ("psi", "message"),
    [
        (lambda a: math.exp(-a), "ψ to be a function of one tensor .* it fails: "),
        (lambda a: np.exp(a), "ψ to be a function of one tensor .* it fails: "),
        (lambda a, b: a, "ψ to be a function of one tensor .* positional argument"),
        (lambda a: a.no_such(), "ψ to be a function of one tensor .*no_such"),
        (lambda a: 1.0, "ψ to return a tensor"),
    ],
)
def test_functions_that_are_no_psi_are_told(psi, message):
    """Oracle: the message. Break: Python's own error about what the caller cannot see."""
    with pytest.raises(InputError, match=message):
        metrics.gradient_shares(torch.zeros(3), psi)


@pytest.mark.parametrize("edges", [0.5, None, "ab", [0, "half", 1]])
def test_edges_that_are_no_numbers_are_told(edges):
    """Oracle: the message."""
    with pytest.raises(InputError, match="edges of the bands of p to rise from 0 to 1"):
        metrics.gradient_shares(torch.zeros(3), "focal", edges=edges)
