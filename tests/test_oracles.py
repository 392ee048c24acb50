"""The oracles are right: hand values, identities, PyTorch's own functions, independent arithmetic.

Only the oracles, numpy, scipy and torch appear here; a failure means that an oracle is wrong, and
no test that leans on it can be trusted until it is mended.
"""

import cmath
import itertools
import math
from decimal import Decimal, localcontext
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from oracles import arithmetic, derivatives, logodds, losses, margins, reduction, rowwise, volume

INF = float("inf")
NAN = float("nan")
ODDS = [-40.0, -11.3, -3.0, -1.0, -0.2, 0.0, 0.4, 1.5, 2.7, 6.0, 13.0, 40.0]

# Every loss of one number, with parameters and the probabilities at which its formula changes.
LOSSES: list[tuple[losses.PrintedLoss, dict[str, Any], tuple[float, ...]]] = [
    (losses.cross_entropy, {}, ()),
    (losses.expectation, {}, ()),
    (losses.mixed, {"alpha": 0.5, "beta": 2.0}, ()),
    (losses.mixed, {"focus": 0.3}, ()),
    (losses.log_bonus, {}, (1 - 1e-5,)),
    (losses.conservative_bonus, {}, (0.75,)),
    (losses.conservative_bonus, {"log_end": 0.0}, ()),
    (losses.aggressive_bonus, {}, (0.5, 1 - 1e-5)),
    (losses.start_then_end_bonus, {}, (0.5, 0.75)),
    (losses.start_then_end_bonus, {"bonus_start": 0.8, "log_end": 0.3}, (0.8,)),
    (losses.power_bonus, {"gamma": 2.0}, ()),
    (losses.power_bonus, {"gamma": 3.0, "bonus_start": 0.4}, (0.4,)),
    (losses.cosine_bonus, {}, ()),
    (losses.encouraging_normal, {"eps": 1e-2}, (0.99,)),
    (losses.encouraging_conservative, {"rho": 0.7}, (0.75,)),
    (losses.encouraging_aggressive, {"eps": 1e-3}, (0.5, 0.999)),
    (losses.encouraging_start_then_end, {}, (0.5, 0.75)),
    (losses.focal, {"gamma": 2.0}, ()),
    (losses.focal, {"gamma": 0.5}, ()),
    (losses.halted_focal, {}, (0.5,)),
    (losses.halted_focal, {"gamma": 1.0, "threshold": 0.3}, (0.3,)),
    (losses.generalized_cross_entropy, {}, ()),
    (losses.truncated_generalized_cross_entropy, {}, (0.5,)),
    (losses.tamed_cross_entropy, {"alpha": 0.5}, ()),
    (losses.tamed_cross_entropy, {"alpha": 1.0}, ()),
    (losses.tamed_cross_entropy, {"alpha": 2.0}, ()),
    (losses.squared_error, {}, ()),
    (losses.squared_error, {"mirror": True}, ()),
    (losses.absolute_error, {}, ()),
    (losses.exponential, {}, ()),
    (losses.hinge, {}, (1 / (1 + math.exp(-1)),)),
    (losses.squared_hinge, {}, (1 / (1 + math.exp(-1)),)),
]
NAMES = [f"{loss.__name__}-{values}" for loss, values, _ in LOSSES]
every_loss = pytest.mark.parametrize("loss, values, breaks", LOSSES, ids=NAMES)


def close(actual: Any, expected: Any, rtol: float = 1e-13, atol: float = 1e-15) -> None:
    """Equal to a few roundings, shapes included, infinities and NaN in the same places."""
    assert np.shape(actual) == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=atol)


def random_logits(*shape: int, seed: int = 0, spread: float = 3.0) -> Any:
    return np.random.default_rng(seed).normal(0, spread, shape)


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    "ours, theirs",
    [
        (arithmetic.exp, cmath.exp),
        (arithmetic.log, cmath.log),
        (arithmetic.log1p, lambda x: cmath.log(1 + x)),
        (arithmetic.expm1, lambda x: cmath.exp(x) - 1),
        (arithmetic.sigmoid, lambda x: 1 / (1 + cmath.exp(-x))),
        (arithmetic.softplus, lambda x: cmath.log(1 + cmath.exp(x))),
    ],
)
def test_complex_arithmetic(ours: Any, theirs: Any) -> None:
    """Oracle: the textbook form in cmath, away from where that form cancels; the real line too."""
    for x in (0.7 + 0.4j, 2.5 - 1.1j, 0.3 + 1e-3j):
        close(ours(x), theirs(x), rtol=1e-14)
        close(ours(x.real), theirs(x.real).real, rtol=1e-14)


def test_real_arithmetic_keeps_its_digits() -> None:
    """Oracle: leading terms far out, where the textbook form rounds to 0 or 1 or overflows."""
    close(arithmetic.softplus(-50.0), math.exp(-50))
    close(arithmetic.sigmoid(-50.0), math.exp(-50))
    close(arithmetic.softplus(800.0), 800.0)
    close(arithmetic.expm1(1e-12), 1e-12 + 5e-25)
    close(arithmetic.log1p(-1e-12), -1e-12 - 5e-25)
    assert arithmetic.exp(800.0) == arithmetic.expm1(800.0) == INF
    assert arithmetic.log(0.0) == arithmetic.log1p(-1.0) == -INF
    assert arithmetic.sigmoid(-INF) == 0


# ---------------------------------------------------------------- log-odds


def decimal_log_odds(row: list[float], target: int) -> float:
    """a in 60-digit decimal arithmetic, with no shift at all."""
    with localcontext() as context:
        context.prec = 60
        others = sum((Decimal(z).exp() for j, z in enumerate(row) if j != target), Decimal(0))
        return float(Decimal(row[target]) - others.ln())


@pytest.mark.parametrize(
    "row",
    [
        [0.1, -0.7, 2.0, 0.30000000000000004],
        [200.0, 0.0, -0.5],
        [0.0, 200.0, 1.0],
        [1e4, 1e4 - 1e-9, 1e4 + 3],
        [-1e4, -1e4 + 0.25, -1e4 - 0.75],
        [1e4, 1e4],
    ],
)
def test_log_odds_match_sixty_digit_arithmetic(row: list[float]) -> None:
    """Oracle: decimal. Breaks if the shift or the sum loses a digit, or a class is miscounted."""
    for target in range(len(row)):
        close(logodds.row_log_odds(row, target), decimal_log_odds(row, target), rtol=3e-16)


def test_log_odds_by_hand() -> None:
    """Oracle: z = (log 2, log 3, log 5) has p = (.2, .3, .5); (log 1/4, log 3/7, log 1)."""
    row = np.log([[2.0, 3.0, 5.0]])
    close(logodds.all_log_odds(row), np.log([[1 / 4, 3 / 7, 1.0]]))
    close(logodds.target_log_odds(row, [1]), np.log([3 / 7]))
    close(logodds.complement_softmax(row[0], 1), np.array([2 / 7, 0, 5 / 7]))
    close(logodds.log_odds_gradient(row[0], 1), np.array([-2 / 7, 1, -5 / 7]))


@pytest.mark.parametrize(
    "row, odds, gradient",
    [
        ([0.3], INF, [0.0]),
        ([0.3, -INF, -INF], INF, [0.0, 0.0, 0.0]),
        ([-INF, 0.0, 0.0], -INF, [1.0, -0.5, -0.5]),
        ([1.0, INF, 0.0], -INF, [1.0, -1.0, 0.0]),
        ([INF, 0.0, 0.0], INF, [1.0, -0.5, -0.5]),
        ([-INF, -INF, -INF], NAN, [0.0, 0.0, 0.0]),
        ([INF, INF, 0.0], NAN, [1.0, -1.0, 0.0]),
        ([0.0, NAN, 0.0], NAN, [NAN, NAN, NAN]),
        ([NAN], NAN, [NAN]),
    ],
)
def test_log_odds_corner_cases(row: list[float], odds: float, gradient: list[float]) -> None:
    """Oracle: the list of corner cases. Breaks if a limit or a NaN is lost."""
    close(logodds.row_log_odds(row, 0), odds)
    close(logodds.log_odds_gradient(row, 0), np.array(gradient))


def test_no_rows_give_no_log_odds() -> None:
    """Oracle: an empty batch is empty, not an error."""
    assert logodds.target_log_odds(np.empty((0, 3)), np.empty(0, dtype=int)).shape == (0,)


def test_log_odds_are_the_logit_of_softmax() -> None:
    """Oracle: torch.softmax in float64, and that the probabilities of a row sum to 1."""
    z = random_logits(20, 5)
    p = torch.softmax(torch.tensor(z), dim=1).numpy()
    close(logodds.all_log_odds(z), np.log(p) - np.log1p(-p), rtol=1e-10)
    from_odds = 1 / (1 + np.exp(-logodds.all_log_odds(z)))
    close(from_odds.sum(axis=1), np.ones(20))


@pytest.mark.parametrize("seed", range(4))
def test_gradient_and_hessian_match_differences(seed: int) -> None:
    """Oracle: numerical derivatives of a and of ψ(a). Breaks on a wrong sign or q."""
    row, target = random_logits(4, seed=seed, spread=1.5), 1
    numeric = derivatives.gradient(lambda z: logodds.row_log_odds(z, target), row)
    close(logodds.log_odds_gradient(row, target), numeric, rtol=0, atol=1e-9)

    def slope(z: Any) -> float:
        return derivatives.complex_step(losses.focal, logodds.row_log_odds(z, target))

    a = logodds.row_log_odds(row, target)
    analytic = logodds.loss_hessian(
        row, target, slope(row), derivatives.second_derivative(losses.focal, a)
    )
    numeric = derivatives.jacobian(lambda z: logodds.loss_gradient(z, target, slope(z)), row)
    close(analytic, numeric, rtol=0, atol=1e-9)


def test_soft_target_gradient() -> None:
    """Oracles: numerical differences, and the closed form t_j ψ'_j − p_j (S − s_j)."""
    row, t = random_logits(5, seed=3, spread=1.0), np.array([0.1, 0.0, 0.55, 0.3, 0.05])

    def loss(z: Any) -> float:
        return float(t @ losses.focal(logodds.all_log_odds(z[None, :])[0]))

    odds = logodds.all_log_odds(row[None, :])[0]
    slopes = np.array([derivatives.complex_step(losses.focal, a) for a in odds])
    p = 1 / (1 + np.exp(-odds))
    s = t * slopes / (1 - p)
    analytic = logodds.soft_target_gradient(row, t, slopes)
    close(analytic, t * slopes - p * (s.sum() - s), rtol=1e-12)
    close(analytic, derivatives.gradient(loss, row), rtol=0, atol=1e-9)


# ---------------------------------------------------------------- losses of one number


@every_loss
def test_log_odds_form_equals_the_formula_at_p(
    loss: losses.PrintedLoss, values: dict[str, Any], breaks: tuple[float, ...]
) -> None:
    """Oracle: the printed formula fed a plain p = σ(a). Breaks if the two differ."""
    for a in [x for x in ODDS if abs(x) < 7]:
        p = 1 / (1 + math.exp(-a))
        close(loss(a, **values), loss.at_probability(p, **values), rtol=1e-12, atol=1e-13)


@every_loss
def test_continuous_at_every_breakpoint(
    loss: losses.PrintedLoss, values: dict[str, Any], breaks: tuple[float, ...]
) -> None:
    """Oracle: the two sides of a breakpoint meet. Breaks on a wrong shift, such as ZH 12's sign."""
    for p in breaks:
        a = math.log(p) - math.log1p(-p)
        below, at, above = (loss(a + nudge, **values) for nudge in (-1e-12, 0.0, 1e-12))
        assert abs(below - at) < 1e-10
        assert abs(above - at) < 1e-10


@every_loss
def test_decreasing_and_finite(
    loss: losses.PrintedLoss, values: dict[str, Any], breaks: tuple[float, ...]
) -> None:
    """Oracle: every loss rewards a better chance, and no finite log-odds give NaN or inf."""
    odds = np.concatenate([np.linspace(-700, 700, 281), np.linspace(-5, 5, 201)])
    found = loss(np.sort(odds), **values)
    assert np.isfinite(found).all()
    assert (np.diff(found) <= 1e-14).all()


@every_loss
def test_nan_stays_nan_and_nothing_else_becomes_it(
    loss: losses.PrintedLoss, values: dict[str, Any], breaks: tuple[float, ...]
) -> None:
    """Oracle: a NaN chance gives a NaN loss in every branch; a = ±inf gives none."""
    assert math.isnan(loss(NAN, **values))
    assert not np.isnan(loss(np.array([-INF, INF]), **values)).any()


@pytest.mark.parametrize(
    "loss, values, low, high",
    [
        (losses.cross_entropy, {}, INF, 0.0),
        (losses.expectation, {}, 1.0, 0.0),
        (losses.mixed, {}, INF, 0.0),
        (losses.mixed, {"focus": 0.5}, 1.0, 0.0),
        (losses.encouraging_normal, {"eps": 0.0}, INF, -INF),
        (losses.encouraging_normal, {"eps": 1e-5}, INF, math.log(1e-5)),
        (losses.encouraging_conservative, {}, INF, -1 - math.log(4)),
        (losses.encouraging_aggressive, {"eps": 0.0}, INF, -INF),
        (losses.encouraging_aggressive, {"eps": 1e-5}, INF, math.log(2e-5)),
        (losses.encouraging_start_then_end, {}, INF, -1 - math.log(2)),
        (losses.power_bonus, {"gamma": 2.0}, 0.0, -1.0),
        (losses.cosine_bonus, {}, 0.0, -2.0),
        (losses.focal, {}, INF, 0.0),
        (losses.halted_focal, {}, INF, -0.75 * math.log(2)),
        (losses.generalized_cross_entropy, {"q": 0.7}, 1 / 0.7, 0.0),
        (losses.truncated_generalized_cross_entropy, {"q": 0.5, "k": 0.25}, 1.0, 0.0),
        (losses.tamed_cross_entropy, {"alpha": 0.5}, INF, 0.0),
        (losses.tamed_cross_entropy, {"alpha": 1.0}, INF, 0.0),
        (losses.tamed_cross_entropy, {"alpha": 3.0}, 0.5, 0.0),
        (losses.squared_error, {}, 1.0, 0.0),
        (losses.squared_error, {"mirror": True}, 1.0, -1.0),
        (losses.exponential, {}, INF, 0.0),
        (losses.hinge, {}, INF, 0.0),
        (losses.squared_hinge, {}, INF, 0.0),
    ],
)
def test_limits(loss: losses.PrintedLoss, values: dict[str, Any], low: float, high: float) -> None:
    """Oracle: the limits p → 0 and p → 1 of the printed formula, worked out on paper."""
    close(loss(np.array([-INF, INF]), **values), np.array([low, high]))


@pytest.mark.parametrize(
    "value, expected",
    [
        (losses.cross_entropy.at_probability(0.25), math.log(4)),
        (losses.expectation.at_probability(0.25), 0.75),
        (losses.mixed.at_probability(0.5, alpha=2, beta=3), 2 * math.log(2) + 1.5),
        (losses.mixed.at_probability(0.5, focus=0.25), math.log(2) + 1.0),
        (losses.mixed.at_probability(0.25, focus=0.5), 0.75),
        (losses.log_bonus.at_probability(0.75), -math.log(4)),
        (losses.log_bonus(50.0), math.log(1e-5)),
        (losses.conservative_bonus.at_probability(0.5), -math.log(2)),
        (losses.conservative_bonus.at_probability(0.875), -0.5 - math.log(4)),
        (losses.aggressive_bonus.at_probability(0.25), 0.0),
        (losses.aggressive_bonus.at_probability(0.75), -math.log(2)),
        (losses.start_then_end_bonus.at_probability(0.875), -0.5 - math.log(2)),
        (losses.power_bonus.at_probability(0.5, gamma=3), -0.125),
        (losses.power_bonus.at_probability(0.5, gamma=2, bonus_start=0.25), -0.1875),
        (losses.power_bonus.at_probability(0.2, gamma=2, bonus_start=0.25), 0.0),
        (losses.cosine_bonus.at_probability(0.5), -1.0),
        (losses.cosine_bonus.at_probability(1.0), -2.0),
        (losses.encouraging_normal.at_probability(0.75), math.log(4 / 3) - math.log(4)),
        (losses.encouraging_conservative.at_probability(0.875, rho=2), -1 - math.log(14)),
        (losses.focal.at_probability(0.5, gamma=2), math.log(2) / 4),
        (losses.focal.at_probability(0.75, gamma=0.5), math.log(4 / 3) / 2),
        (losses.halted_focal.at_probability(0.25), 9 / 16 * math.log(4)),
        (losses.halted_focal.at_probability(0.75), math.log(4 / 3) - 0.75 * math.log(2)),
        (losses.generalized_cross_entropy.at_probability(0.25, q=0.5), 1.0),
        (losses.truncated_generalized_cross_entropy.at_probability(0.1, q=0.5, k=0.25), 1.0),
        (losses.tamed_cross_entropy.at_probability(math.exp(-3), alpha=0.5), 2.0),
        (losses.tamed_cross_entropy.at_probability(math.exp(-3), alpha=2.0), 0.75),
        (losses.tamed_cross_entropy.at_probability(math.exp(-3), alpha=1.0), math.log(4)),
        (losses.squared_error.at_probability(0.25), 0.5625),
        (losses.squared_error.at_probability(0.25, mirror=True), 0.5),
        (losses.absolute_error.at_probability(0.25), 0.75),
        (losses.exponential.at_probability(0.25), 3.0),
        (losses.hinge(-1.5), 2.5),
        (losses.hinge(1.5), 0.0),
        (losses.squared_hinge(-1.5), 6.25),
    ],
)
def test_hand_values(value: float, expected: float) -> None:
    """Oracle: worked out on paper from the printed formula."""
    close(value, expected, rtol=1e-14)


def test_losses_take_arrays_of_any_shape() -> None:
    """Oracle: the scalar call, element by element."""
    odds = random_logits(2, 3)
    found = losses.halted_focal(odds, gamma=1.5)
    close(found, np.array([[losses.halted_focal(a, gamma=1.5) for a in row] for row in odds]))


# ---------------------------------------------------------------- identities


def test_normal_encouraging_without_clamp_is_minus_log_odds() -> None:
    """Oracle: ZH 8 and 9, −a = −z_y + logsumexp of the others."""
    close(losses.encouraging_normal(ODDS, eps=0), -np.array(ODDS), rtol=1e-14, atol=1e-15)
    close(losses.encouraging_conservative(ODDS, log_end=1, eps=0), -np.array(ODDS), atol=1e-15)
    z = random_logits(6, 4)
    energies = [-row[2] + np.log(np.exp(row[[0, 1, 3]]).sum()) for row in z]
    odds = logodds.target_log_odds(z, np.full(6, 2))
    close(losses.encouraging_normal(odds, eps=0), np.array(energies), rtol=1e-12)


def test_where_the_two_papers_meet() -> None:
    """Oracle: encouraging(log_end=0) + 1 = CE + (1 − p) = mixed(focus=0)."""
    meeting = losses.cross_entropy(ODDS) + losses.expectation(ODDS)
    close(losses.encouraging_conservative(ODDS, log_end=0.0) + 1, meeting)
    close(losses.mixed(ODDS, focus=0.0), meeting)


def test_special_cases_are_simpler_losses() -> None:
    """Oracle: the identities of the family, each side computed by its own formula."""
    ce, miss = losses.cross_entropy(ODDS), losses.expectation(ODDS)
    close(losses.focal(ODDS, gamma=0.0), ce)
    close(losses.halted_focal(ODDS, gamma=0.0), ce)
    close(losses.halted_focal(ODDS, threshold=1.0), losses.focal(ODDS))
    close(losses.mixed(ODDS, beta=0.0), ce)
    close(losses.mixed(ODDS, focus=0.5), miss)
    close(losses.generalized_cross_entropy(ODDS, q=0.0), ce)
    close(losses.generalized_cross_entropy(ODDS, q=1e-9), ce, rtol=1e-7)
    close(losses.generalized_cross_entropy(ODDS, q=1.0), miss)
    close(
        losses.truncated_generalized_cross_entropy(ODDS, k=0.0),
        losses.generalized_cross_entropy(ODDS),
    )
    close(losses.tamed_cross_entropy(ODDS, alpha=0.0), ce)
    close(losses.tamed_cross_entropy(ODDS, alpha=1 + 1e-9), np.log1p(ce), rtol=1e-8)
    close(losses.start_then_end_bonus(ODDS, bonus_start=0.0), losses.conservative_bonus(ODDS))
    close(losses.start_then_end_bonus(ODDS, log_end=1.0), losses.aggressive_bonus(ODDS))
    close(losses.power_bonus(ODDS, gamma=1.0) + 1, miss, atol=1e-15)
    close(losses.cosine_bonus(ODDS), np.cos(np.pi / (1 + np.exp(-np.array(ODDS)))) - 1)
    close(losses.squared_error(ODDS, mirror=True), 2 * miss - 1)


def test_two_class_softmax_is_sigmoid_of_the_difference() -> None:
    """Oracle: a = z_y − z_other, exactly."""
    z = random_logits(8, 2)
    close(logodds.target_log_odds(z, [0] * 8), z[:, 0] - z[:, 1], rtol=1e-15)


def test_halted_focal_as_printed_jumps() -> None:
    """Oracle: ZH 12 with its own b, which is off by twice the shift; ours is continuous at φ."""
    gamma, phi = 2.0, 0.5
    printed_b = (1 - (1 - phi) ** gamma) * math.log(phi)
    printed_above = -(math.log(phi) + printed_b)
    close(printed_above - losses.focal.at_probability(phi, gamma=gamma), -2 * printed_b)
    above = losses.halted_focal(1e-13, gamma=gamma, threshold=phi)
    close(above, losses.focal.at_probability(phi, gamma=gamma), rtol=1e-11)


def test_published_start_with_end_jumps_and_ours_does_not() -> None:
    """Oracle: the official code's order of operations loses log(1 − s) at p = LE."""
    a = math.log(3)  # p = 0.75 = LE
    jump = losses.start_then_end_bonus_as_published(a + 1e-12)
    jump -= losses.start_then_end_bonus_as_published(a - 1e-12)
    close(jump, math.log(0.5), rtol=1e-9)


def test_mixed_gradient_peaks_at_the_focus() -> None:
    """Oracle: BA 13's gradient, and its peak found on a fine grid."""
    grid = np.linspace(0.001, 0.999, 999)
    for focus in (0.1, 0.3, 0.45, 0.5):
        alpha, beta = (0.0, 1.0) if focus == 0.5 else (1.0, 1 / (1 - 2 * focus))
        slopes = [volume.slope_at_probability(losses.mixed, p, focus=focus) for p in grid]
        close(slopes, -(beta * grid**2 + grid * (alpha - beta) - alpha), rtol=1e-10)
        assert abs(grid[int(np.argmax(slopes))] - focus) < 0.0011


def test_expectation_has_the_gradient_of_dynamic_fine_tuning() -> None:
    """Oracle: autograd of −sg(p) log p equals autograd of 1 − p equals ψ'(a)(e_y − q)."""
    z = torch.tensor(random_logits(1, 5), requires_grad=True)
    p = torch.softmax(z, dim=1)[0, 2]
    (dynamic,) = torch.autograd.grad(-p.detach() * p.log(), z, retain_graph=True)
    (plain,) = torch.autograd.grad(1 - p, z)
    row = z.detach().numpy()[0]
    slope = derivatives.complex_step(losses.expectation, logodds.row_log_odds(row, 2))
    close(dynamic.numpy()[0], logodds.loss_gradient(row, 2, slope), rtol=1e-11)
    close(plain.numpy()[0], logodds.loss_gradient(row, 2, slope), rtol=1e-11)


# ---------------------------------------------------------------- losses of a row


def test_brier_and_its_mirror() -> None:
    """Oracles: squared distance to the one-hot by torch; with the mirror, 4(1 − p) − K."""
    for row in random_logits(5, 4):
        p = torch.softmax(torch.tensor(row), dim=0)
        one_hot = F.one_hot(torch.tensor(1), 4)
        close(rowwise.brier(row, 1), ((one_hot - p) ** 2).sum().item(), rtol=1e-12)
        close(rowwise.brier(row, 1, mirror=True), 4 * (1 - p[1].item()) - 4, rtol=1e-11)
        absolute = (one_hot - p).abs().sum().item()  # MAE on softmax is twice 1 − p
        close(2 * losses.expectation(logodds.row_log_odds(row, 1)), absolute, rtol=1e-12)


def test_sigmoid_squared_error_and_its_mirror() -> None:
    """Oracle: written out with torch.sigmoid; with the mirror, 2 Σ|y − σ(z)| − K."""
    row = random_logits(4)
    s, y = torch.sigmoid(torch.tensor(row)), F.one_hot(torch.tensor(1), 4)
    close(rowwise.sigmoid_squared_error(row, 1), ((y - s) ** 2).sum().item(), rtol=1e-12)
    mirrored = 2 * (y - s).abs().sum().item() - 4
    close(rowwise.sigmoid_squared_error(row, 1, mirror=True), mirrored, rtol=1e-12)


def test_complement_entropy() -> None:
    """Oracles: uniform others give −log(K−1); the printed BA 6 with the sign of a minimum."""
    close(rowwise.complement_entropy_row([3.0, 1.0, 1.0, 1.0], 0), -math.log(3))
    assert rowwise.complement_entropy_row([1.0, 2.0], 0) == 0
    assert rowwise.complement_entropy_row([1.0, 2.0, -INF], 0) == 0
    z, y = random_logits(6, 5), [0, 1, 2, 3, 4, 0]
    total = 0.0
    for row, label in zip(z, y, strict=True):
        p = torch.softmax(torch.tensor(row), dim=0)
        for j in range(5):
            if j != label:
                q = (p[j] / (1 - p[label])).item()
                total -= q * math.log(q)  # BA 6
    close(rowwise.complement_objective(z, y), -total / 6 / 4, rtol=1e-10)


def test_maximum_probability_cross_entropy() -> None:
    """Oracle: p = (.2, .3, .5): −(.5 − .2) log .2; nothing when the target leads or ties."""
    row = np.log([2.0, 3.0, 5.0])
    close(rowwise.maximum_probability_cross_entropy(row, 0), -0.3 * math.log(0.2))
    assert rowwise.maximum_probability_cross_entropy(row, 2) == 0
    assert rowwise.maximum_probability_cross_entropy([1.0, 1.0, 0.0], 1) == 0


@pytest.mark.parametrize("classes, dimensions", [(2, 1), (3, 2), (4, 7), (10, 9), (10, 64)])
def test_class_centres_are_a_simplex(classes: int, dimensions: int) -> None:
    """Oracle: the defining property, one norm and pairwise cosine −1/(K − 1)."""
    centres = rowwise.class_centres(classes, dimensions, norm=3.0)
    expected = np.full((classes, classes), -9 / (classes - 1))
    np.fill_diagonal(expected, 9.0)
    assert centres.shape == (classes, dimensions)
    close(centres @ centres.T, expected, rtol=1e-12)


def test_max_mahalanobis_centre() -> None:
    """Oracle: ½ (3² + 4²) by hand."""
    assert rowwise.max_mahalanobis_centre([4.0, 4.0], 1, [[0.0, 0.0], [1.0, 0.0]]) == 12.5


# ---------------------------------------------------------------- margins and weights


@pytest.mark.parametrize("margin", [1, 2, 3, 4])
def test_large_margin_angle(margin: int) -> None:
    """Oracles: cos θ at m = 1; never above cos θ; continuous and falling from 1 to −(2m − 1)."""
    grid = np.linspace(0, math.pi, 2001)
    found = np.array([margins.large_margin_angle(t, margin) for t in grid])
    if margin == 1:
        close(found, np.cos(grid))
    assert (np.diff(found) <= 1e-15).all()
    assert np.abs(np.diff(found)).max() < 1.1 * margin * math.pi / 2000
    assert (found <= np.cos(grid) + 1e-15).all()
    close(found[[0, -1]], np.array([1.0, 1.0 - 2 * margin]))


def test_large_margin_logits() -> None:
    """Oracles: m = 1 or λ → ∞ is the plain product; m = 2 by hand, 2cos² − 1 and −(2cos²−1) − 2."""
    x, w = random_logits(4, 3), random_logits(5, 3, seed=1)
    y = [0, 1, 2, 3]
    close(margins.large_margin_logits(x, w, y, margin=1), x @ w.T, rtol=1e-12)
    annealed = margins.large_margin_logits(x, w, y, margin=4, annealing=1e12)
    close(annealed, x @ w.T, rtol=1e-9)
    acute = margins.large_margin_logits([[2.0, 0.0]], [[3.0, 4.0]], [0], margin=2)
    close(acute, np.array([[10 * (2 * 0.36 - 1)]]), rtol=1e-14)  # cos θ = 0.6, k = 0
    obtuse = margins.large_margin_logits([[2.0, 0.0]], [[-3.0, 4.0]], [0], 2, annealing=1.0)
    close(obtuse, np.array([[(-6 + 10 * (0.28 - 2)) / 2]]), rtol=1e-14)  # k = 1


def test_additive_margin_logits() -> None:
    """Oracle: cosines 0.6 and 0.8, s = 10, m = 0.1, by hand."""
    found = margins.additive_margin_logits(
        [[2.0, 0.0]], [[3.0, 4.0], [8.0, 6.0]], [1], margin=0.1, scale=10.0
    )
    close(found, np.array([[6.0, 7.0]]))


def test_ldam() -> None:
    """Oracle: counts 1, 16, 81 give margins in the ratio 1 : 1/2 : 1/3, the rarest 0.5."""
    close(margins.ldam_margins([81, 16, 1]), np.array([1 / 6, 1 / 4, 1 / 2]))
    found = margins.ldam_logits([[0.1, 0.2, 0.3]], [1], [81, 16, 1], scale=10.0)
    close(found, np.array([[1.0, -0.5, 3.0]]))


def test_logit_adjustment_is_balanced_softmax() -> None:
    """Oracle: CE becomes −log(π_y e^{z_y} / Σ π_j e^{z_j}); a uniform π changes nothing."""
    z, pi = random_logits(3, 4), np.array([0.4, 0.3, 0.2, 0.1])
    odds = logodds.target_log_odds(margins.adjusted_logits(z, 5 * pi), [2, 0, 1])
    weighed = pi * np.exp(z)
    expected = -np.log(weighed[[0, 1, 2], [2, 0, 1]] / weighed.sum(axis=1))
    close(losses.cross_entropy(odds), expected, rtol=1e-12)
    close(margins.adjusted_logits([[1.0, 1.0]], [1, 3], tau=2.0), 1 + 2 * np.log([[0.25, 0.75]]))
    even = logodds.all_log_odds(margins.adjusted_logits(z, np.ones(4), tau=3.0))
    close(even, logodds.all_log_odds(z), rtol=1e-13)


def test_class_weights() -> None:
    """Oracles: 1/n by hand; β = 0 gives ones, β → 1 gives 1/n, and β = 1/2 by hand."""
    close(margins.inverse_frequency_weights([1, 2, 4]), np.array([12, 6, 3]) / 7)
    close(margins.effective_number_weights([5, 50, 500], beta=0.0), np.ones(3))
    close(
        margins.effective_number_weights([5, 50, 500], beta=1 - 1e-12),
        margins.inverse_frequency_weights([5, 50, 500]),
        rtol=1e-9,
    )
    # (1 − ½)/(1 − ½ⁿ) for n = 1, 2: 1 and 2/3
    close(margins.effective_number_weights([1, 2], beta=0.5), np.array([6 / 5, 4 / 5]))


# ---------------------------------------------------------------- PyTorch's semantics

SHAPES: list[tuple[int, ...]] = [(3,), (4, 3), (2, 3, 2), (2, 3, 2, 1)]
REDUCTIONS = ["none", "mean", "sum"]


def position_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return () if len(shape) == 1 else (shape[0], *shape[2:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2, 1.0])
def test_cross_entropy_is_pytorch(
    shape: tuple[int, ...], reduce: str, weighted: bool, smoothing: float
) -> None:
    """Oracle: F.cross_entropy in float64, index and probability targets, ignored positions too.

    Breaks if a weight, a mean's divisor, the smoothing or an ignored position is handled otherwise.
    """
    for seed in range(3):
        rng = np.random.default_rng(seed)
        z = rng.normal(0, 3, shape)
        weight = rng.uniform(0.2, 2, 3) if weighted else None
        options: dict[str, Any] = {"reduction": reduce, "label_smoothing": smoothing}
        indices = np.asarray(rng.integers(0, 3, position_shape(shape)))
        gaps = np.asarray(np.where(rng.uniform(size=indices.shape) < 0.4, -100, indices))
        soft = rng.dirichlet(np.ones(3), position_shape(shape))
        soft = soft if len(shape) == 1 else np.moveaxis(soft, -1, 1)
        for target, ignore in ((indices, -100), (indices, 1), (gaps, -100), (soft, -100)):
            expected = F.cross_entropy(
                torch.tensor(z),
                torch.tensor(np.array(target)),
                weight=None if weight is None else torch.tensor(weight),
                ignore_index=ignore,
                **options,
            )
            found = reduction.classification_loss(
                losses.cross_entropy, z, target, weight, ignore, **options
            )
            close(found, expected.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("reduce", REDUCTIONS)
def test_empty_batch_and_nothing_left_are_pytorch(reduce: str) -> None:
    """Oracle: F.cross_entropy, NaN for a mean over nothing; 0 on request."""
    empty, ignored = np.empty((0, 3)), random_logits(2, 3)
    for z, target in (
        (empty, np.empty(0, dtype=int)),
        (empty, np.empty((0, 3))),
        (ignored, np.array([-100, -100])),
        (np.full((2, 3), NAN), np.array([-100, -100])),
    ):
        expected = F.cross_entropy(torch.tensor(z), torch.tensor(target), reduction=reduce)
        found = reduction.classification_loss(losses.cross_entropy, z, target, reduction=reduce)
        close(found, expected.numpy())
    zero = reduction.classification_loss(
        losses.cross_entropy, ignored, np.array([-100, -100]), all_ignored=0.0
    )
    assert zero == 0


def test_other_losses_reduce_the_same_way() -> None:
    """Oracle: by hand, Σ_k t_k w_k ψ(a_k), for a ψ that is not cross-entropy."""
    z, w, eps = random_logits(2, 3), np.array([0.5, 1.0, 2.0]), 0.3
    each = losses.focal(logodds.all_log_odds(z))
    smooth = eps / 3 * (each @ w)
    hard = np.array([2.0 * each[0, 2], 0.5 * each[1, 0]])
    expected = ((1 - eps) * hard + smooth).sum() / 2.5
    found = reduction.classification_loss(losses.focal, z, [2, 0], w, label_smoothing=eps)
    close(found, expected)


@pytest.mark.parametrize("reduce", REDUCTIONS)
@pytest.mark.parametrize("shape", [(), (3,), (4, 3), (2, 2, 3)], ids=str)
def test_binary_cross_entropy_is_pytorch(reduce: str, shape: tuple[int, ...]) -> None:
    """Oracle: F.binary_cross_entropy_with_logits, hard and soft targets, both weights."""
    rng = np.random.default_rng(5)
    z, soft = np.asarray(rng.normal(0, 4, shape)), np.asarray(rng.uniform(size=shape))
    per_class = (rng.uniform(0.5, 3, shape[-1:]), None)
    for target, weight, pos_weight in itertools.product((soft, soft.round()), per_class, per_class):
        expected = F.binary_cross_entropy_with_logits(
            torch.tensor(z),
            torch.tensor(target),
            weight=None if weight is None else torch.tensor(weight),
            pos_weight=None if pos_weight is None else torch.tensor(pos_weight),
            reduction=reduce,
        )
        found = reduction.binary_loss(losses.cross_entropy, z, target, weight, pos_weight, reduce)
        close(found, expected.numpy(), rtol=1e-12)


def test_one_vs_rest_is_pytorch() -> None:
    """Oracle: multilabel_soft_margin_loss, which averages over the classes what we sum."""
    z, y = random_logits(5, 4), [0, 1, 2, 3, 1]
    one_hot = F.one_hot(torch.tensor(y), 4)
    expected = 4 * F.multilabel_soft_margin_loss(torch.tensor(z), one_hot, reduction="none")
    found = reduction.one_vs_rest_losses(losses.cross_entropy, z, y)
    close(found, expected.numpy(), rtol=1e-12)


def test_sigmoid_focal_loss_is_torchvision() -> None:
    """Oracle: torchvision.ops.sigmoid_focal_loss, its published formula written out."""
    z, alpha, gamma = torch.tensor(random_logits(4, 3)), 0.25, 2.0
    t = torch.tensor(np.random.default_rng(1).integers(0, 2, (4, 3)).astype(float))
    p = torch.sigmoid(z)
    ce = F.binary_cross_entropy_with_logits(z, t, reduction="none")
    p_t = p * t + (1 - p) * (1 - t)
    alpha_t = alpha * t + (1 - alpha) * (1 - t)
    expected = (alpha_t * ce * (1 - p_t) ** gamma).numpy()
    # α for ones and 1 − α for zeros is a weight 1 − α and a pos_weight α/(1 − α)
    found = reduction.binary_loss(
        losses.focal, z.numpy(), t.numpy(), 1 - alpha, alpha / (1 - alpha), "none"
    )
    close(found, expected, rtol=1e-12)


# ---------------------------------------------------------------- derivatives and volume


def test_numerical_derivatives() -> None:
    """Oracle: derivatives known in closed form, at points of very different slope."""
    for x in (-2.0, 0.1, 3.0):
        close(
            derivatives.complex_step(lambda v: np.sin(v) * np.exp(v), x),
            math.exp(x) * (math.sin(x) + math.cos(x)),
        )
        close(derivatives.derivative(math.exp, x), math.exp(x), rtol=1e-10)
        close(derivatives.second_derivative(np.exp, x), math.exp(x), rtol=1e-10)
    table = np.array([[1.0, 2.0], [3.0, 4.0]])
    close(derivatives.gradient(lambda v: (v**3).sum(), table), 3 * table**2, rtol=1e-10)
    close(
        derivatives.jacobian(lambda v: [v[0] * v[1], v[1]], [2.0, 5.0]),
        np.array([[5.0, 2.0], [0.0, 1.0]]),
        rtol=1e-10,
        atol=1e-11,
    )


@every_loss
def test_two_routes_to_the_slope(
    loss: losses.PrintedLoss, values: dict[str, Any], breaks: tuple[float, ...]
) -> None:
    """Oracles: |dψ/da| by complex step and by real differences equal |dL/dp| p (1 − p)."""
    kinks = [math.log(p) - math.log1p(-p) for p in breaks]
    for a in (-2.3, -0.6, 0.3, 1.35, 2.2):
        if all(abs(a - kink) > 0.02 for kink in kinks):
            slope = derivatives.complex_step(lambda v: loss(v, **values), a)
            p = 1 / (1 + math.exp(-a))
            close(volume.slope_at_probability(loss, p, **values), abs(slope), rtol=1e-11)
            numeric = derivatives.derivative(lambda v: loss(v, **values), a, reach=0.02)
            close(numeric, slope, rtol=1e-8, atol=1e-9)


CLOSED_FORMS: list[tuple[losses.PrintedLoss, dict[str, Any], tuple[float, ...], float]] = [
    (losses.cross_entropy, {}, (), 1 / 2),
    (losses.expectation, {}, (), 1 / 6),
    (losses.mixed, {"alpha": 2.0, "beta": 3.0}, (), volume.mixed_volume(2.0, 3.0)),
    (losses.mixed, {"focus": 0.0}, (), 2 / 3),
    (losses.encouraging_normal, {"eps": 0.0}, (), 1.0),
    (losses.encouraging_normal, {"eps": 0.01}, (0.99,), volume.normal_volume(0.01)),
    (losses.encouraging_conservative, {}, (0.75,), volume.conservative_volume()),
    (losses.encouraging_conservative, {"log_end": 0.0}, (), 2 / 3),
    (losses.encouraging_aggressive, {"eps": 0.0}, (0.5,), 7 / 8),
    (
        losses.encouraging_aggressive,
        {"eps": 0.01, "rho": 0.5},
        (0.5, 0.99),
        volume.aggressive_volume(0.5, 0.01, 0.5),
    ),
    (losses.encouraging_start_then_end, {}, (0.5, 0.75), volume.start_then_end_volume(0.5, 0.75)),
    (losses.power_bonus, {"gamma": 2.0}, (), 1 / 6),
    (
        losses.power_bonus,
        {"gamma": 3.0, "bonus_start": 0.4},
        (0.4,),
        volume.power_bonus_volume(3.0, 0.4),
    ),
    (losses.cosine_bonus, {}, (), volume.cosine_bonus_volume()),
    (losses.focal, {"gamma": 2.0}, (), 31 / 72),
    (losses.focal, {"gamma": 0.5}, (), volume.focal_volume(0.5)),
    (losses.halted_focal, {"gamma": 2.0, "threshold": 1.0}, (), volume.focal_volume(2.0)),
    (losses.generalized_cross_entropy, {}, (), volume.generalized_cross_entropy_volume(0.7)),
    (
        losses.truncated_generalized_cross_entropy,
        {"q": 0.7, "k": 0.3},
        (0.3,),
        volume.generalized_cross_entropy_volume(0.7, 0.3),
    ),
    (losses.tamed_cross_entropy, {"alpha": 1.0}, (), volume.tamed_volume(1)),
    (losses.tamed_cross_entropy, {"alpha": 2.0}, (), volume.tamed_volume(2)),
    (losses.squared_error, {}, (), volume.squared_error_volume()),
    (losses.squared_error, {"mirror": True}, (), volume.squared_error_volume(mirror=True)),
    (losses.absolute_error, {}, (), 1 / 6),
    (losses.hinge, {}, (volume.hinge_volume(),), volume.hinge_volume()),
    (losses.squared_hinge, {}, (volume.hinge_volume(),), volume.squared_hinge_volume()),
]


@pytest.mark.parametrize(
    "loss, values, breaks, expected",
    CLOSED_FORMS,
    ids=[f"{loss.__name__}-{values}" for loss, values, _, _ in CLOSED_FORMS],
)
def test_gradient_volume_has_its_closed_form(
    loss: losses.PrintedLoss, values: dict[str, Any], breaks: tuple[float, ...], expected: float
) -> None:
    """Oracles against each other: quadrature of the slope, and the integral done on paper."""
    close(volume.gradient_volume(loss, breaks, **values), expected, rtol=1e-8)


def test_closed_forms_at_known_points() -> None:
    """Oracle: special cases of the closed forms that are simpler losses."""
    close(volume.mixed_volume(1, 0), 0.5)
    close(volume.focal_volume(0.0), 0.5)
    close(volume.focal_volume(2.0), 31 / 72)
    close(volume.tamed_volume(0), 0.5)
    close(volume.generalized_cross_entropy_volume(0.0), 0.5)
    close(volume.generalized_cross_entropy_volume(1.0), 1 / 6)
    close(volume.conservative_volume(1.0), 1.0)
    close(volume.start_then_end_volume(0.0, 0.75), volume.conservative_volume(0.75))
    close(volume.normal_volume(0.0), 1.0)
    assert volume.exponential_volume() == INF
