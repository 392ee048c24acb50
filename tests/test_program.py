"""A ψ run natively must be the ψ that was written, whatever it depends on."""

import math

import pytest
import torch
import torch.nn.functional as F

import losslab
from losslab.logodds import native
from losslab.losses import program
from losslab.losses.program import NativeOdds, native_odds, program_of

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
A = torch.tensor([-200.0, -31.0, -4.2, -1.0, -0.3, 0.1, 0.4, 1.0, 2.7, 9.0, 40.0, 200.0])


def value_and_slope(psi, a=A):
    leaf = a.clone().requires_grad_()
    value = psi(leaf)
    return value.detach(), torch.autograd.grad(value.sum(), leaf)[0]


KNOWN = {
    "hinge": lambda a: torch.relu(1 - a),
    "squared hinge": lambda a: torch.relu(1 - a).square(),
    "power": lambda a: torch.sigmoid(-a).pow(1.5),
    "constants on either side": lambda a: 2 / (3 + torch.exp(-a.clamp(-5, 5))) - 0.5 * a,
    "smooth hinge": lambda a: torch.where(a > 1, 0.0, torch.where(a < 0, 0.5 - a, (1 - a) / 2)),
    "logsigmoid twice": lambda a: -F.logsigmoid(F.logsigmoid(-a)),
    "logarithms": lambda a: torch.log1p(torch.exp(-a.clamp(min=-20))) - F.logsigmoid(a / 3),
    "methods": lambda a: (-a).clamp(max=9).exp().log1p() * a.sigmoid() ** 2,
    "as people write it": lambda a: F.softplus(-a) - 0.3 * F.relu(torch.clamp(a, max=2)) ** 2,
    "waves": lambda a: torch.sin(a) * torch.cos(0.5 * a) + torch.expm1(a.clamp(max=2)),
    "identity": lambda a: a,
    "minimum": lambda a: torch.minimum(torch.sigmoid(a), torch.sigmoid(-a)),
    "many values at once": lambda a: sum((a * k for k in range(1, 20)), 0 * a),
}  # fmt: skip


@pytest.mark.parametrize("name", KNOWN)
def test_values_and_derived_slopes(name):
    """Oracle: PyTorch and its autograd. Break: a derivative rule, a register used too early, a
    constant on the wrong side."""
    psi = KNOWN[name]
    odds = native_odds(None, psi)
    assert odds is not None
    value, slope = value_and_slope(psi)
    near = {"rtol": 2e-5, "atol": 2e-6}
    torch.testing.assert_close(odds.value(A, "none"), value, **near)
    torch.testing.assert_close(odds.slope(A), slope, **near)
    torch.testing.assert_close(odds.value(A, "mean"), value.mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(odds.value(A, "sum"), value.sum(), rtol=1e-5, atol=1e-5)
    upstream = torch.randn(len(A), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(odds.upstream(A, upstream, "none"), slope * upstream, **near)


PARAMETER = torch.nn.Parameter(torch.tensor(1.5))
NOT_FOR_IT = {
    "another function": lambda a: torch.erf(-a),
    "a tensor of its own": lambda a: torch.relu(torch.tensor(1.0) - a),
    "a parameter that learns": lambda a: torch.relu(PARAMETER - a),
    "a look at the values": lambda a: a * 2 if bool((a > 0).all()) else -a,
    "the shape": lambda a: a / a.shape[0],
    "not elementwise": lambda a: a - a.mean(),
    "a branch on the type": lambda a: torch.sigmoid(-a) if isinstance(a, torch.Tensor) else -a,
    "randomness": lambda a: a * torch.rand_like(a),
    "no slope at all": lambda a: torch.full_like(a, 3.0),
    "a comparison without an instruction": lambda a: torch.where(a == 0, -a, -2 * a),
    "a detached factor": lambda a: -a * torch.sigmoid(a).detach(),
}


@pytest.mark.parametrize("name", NOT_FOR_IT)
def test_what_stays_in_pytorch(name):
    """Oracle: None, so that PyTorch runs it. Break: a program that computes something else, or
    that of another ψ with the same steps."""
    assert native_odds(None, lambda a: -a) is not None
    assert native_odds(None, NOT_FOR_IT[name]) is None


def test_a_psi_may_change_between_calls():
    """Oracle: autograd on the same ψ at that moment. Break: a program kept from an earlier call."""
    state = {"margin": 1.0}
    loss = losslab.OddsLoss(lambda a: torch.relu(state["margin"] - a))
    logits, target = torch.randn(6, 4, requires_grad=True), torch.randint(4, (6,))
    for margin in (1.0, 5.0, -2.0, 1.0):
        state["margin"] = margin
        assert isinstance(loss(logits, target).grad_fn.odds, NativeOdds)
        (ours,) = torch.autograd.grad(loss(logits, target), logits)
        plain = torch.relu(margin - losslab.target_log_odds(logits, target)).mean()
        torch.testing.assert_close(loss(logits, target), plain)
        torch.testing.assert_close(ours, torch.autograd.grad(plain, logits)[0])


def test_a_psi_that_depends_on_nothing_else_is_read_once(monkeypatch):
    """Oracle: how often it is traced, and its values. Break: the numbers of another ψ of the same
    code, or those of a global or a tensor as they were at first."""
    traced, steps_of = [], program.steps_of
    monkeypatch.setattr(program, "steps_of", lambda psi: traced.append(psi) or steps_of(psi))
    a = torch.linspace(-3, 3, 7)

    def values(psi, times=2):
        for _ in range(times):
            found = native_odds(None, psi).value(a, "none")
        return found

    def margin(m):
        return lambda a: torch.relu(m - a)

    for m in (1.0, 2.5, 1.0):
        assert torch.equal(values(margin(m)), torch.relu(m - a))
    assert len(traced) == 2
    held = torch.tensor(0.5)
    others = (
        lambda a: torch.relu(MARGIN["m"] - a),
        lambda a: torch.relu(held.item() - a),
        lambda a, m=2.0: torch.relu(m - a),
        lambda a: torch.relu(float(held) - a),
    )
    for psi in others:
        traced.clear()
        before = values(psi)
        MARGIN["m"] += 1
        held += 1
        assert len(traced) == 2
        changes = psi.__defaults__ is None
        assert torch.equal(values(psi), before) != changes
    MARGIN["m"] = 1.0


MARGIN = {"m": 1.0}


def test_what_a_psi_learns_gets_its_gradient():
    """Oracle: autograd by hand. Break: a parameter inside ψ taken for a number."""
    temperature = torch.nn.Parameter(torch.tensor(2.0))
    loss = losslab.OddsLoss(lambda a: F.softplus(-a / temperature))
    logits, target = torch.randn(6, 4), torch.randint(4, (6,))
    for smoothing in (0.0, 0.1):
        loss.label_smoothing = smoothing
        temperature.grad = None
        loss(logits.requires_grad_(), target).backward()
        every = losslab.all_log_odds(logits.detach()) / temperature
        share = F.one_hot(target, 4) * (1 - smoothing) + smoothing / 4
        expected = (share * F.softplus(-every)).sum(1).mean()
        (truth,) = torch.autograd.grad(expected, temperature)
        torch.testing.assert_close(temperature.grad, truth)


def test_the_store_of_programs_is_bounded():
    """Oracle: its size. Break: a ψ with a new number each step fills the memory."""
    for k in range(1100):
        native_odds(None, lambda a, k=k: a * (0.5 + k))
    assert len(program._known) <= 1024


def test_registers_run_out_without_harm():
    """Oracle: None. Break: a register that holds two values."""

    def greedy(a):
        values = [torch.sigmoid(a * k) for k in range(1, 40)]
        return sum(x * y for x, y in zip(values, reversed(values), strict=True))

    assert program_of(greedy) is None
    logits, target = torch.randn(3, 4), torch.randint(4, (3,))
    found = losslab.odds_loss(logits, target, greedy)
    torch.testing.assert_close(found, greedy(losslab.target_log_odds(logits, target)).mean())


def test_programs_are_checked_before_they_run():
    """Oracle: ValueError. Break: an index outside the registers or the instructions."""
    good = program_of(lambda a: -a)
    a, out = torch.zeros(3), torch.zeros(3)
    for wrong in (b"", good[:-1], b"\xff" * 32, good[:4] + b"\x40\0\0\0" + good[8:]):
        with pytest.raises(ValueError, match="not a program"):
            native.evaluate(wrong, a, out)


def test_large_batches_run_on_all_threads_alike():
    """Oracle: pieces. Break: rows lost between the threads' parts."""
    odds = native_odds(None, KNOWN["hinge"])
    a = torch.linspace(-3, 3, 300_001)
    torch.testing.assert_close(odds.value(a, "none"), torch.relu(1 - a))
    assert math.isclose(odds.value(a, "sum").item(), torch.relu(1 - a.double()).sum(), rel_tol=1e-6)
