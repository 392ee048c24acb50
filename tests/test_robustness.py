"""Accuracy under attack, and the signs of gradient masking: raised where made, and only there."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from scipy.stats import binomtest
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from losslab.analysis import masking
from losslab.analysis import robustness as module
from losslab.analysis.attacks import Attack
from losslab.analysis.masking import Run, flags, mcnemar
from losslab.analysis.robustness import robustness
from losslab.errors import InputError

SUSPECTED = "gradient masking suspected: "


pytestmark = pytest.mark.usefixtures("one_thread")


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return logits * self.factor


@cache
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    pixels = torch.tensor(data.images / 16, dtype=torch.float32)[:, None]
    return pixels, torch.tensor(data.target)


@cache
def trained(seed: int) -> nn.Module:
    """An honest small network, right about nine of ten digits that it has not seen."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    inputs, target = (part[:1200] for part in digits())
    for step in range(150):
        rows = torch.arange(step * 100, step * 100 + 100) % 1200
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[rows]), target[rows]).backward()
        optimizer.step()
    return model


def unseen(most: int = 597) -> tuple[torch.Tensor, torch.Tensor]:
    inputs, target = digits()
    return inputs[1200 : 1200 + most], target[1200 : 1200 + most]


FEW = {"epsilons": [0.05, 0.1, 0.3], "epsilons_l2": [0.5, 1.5], "examples": 200, "steps": 20}


# ---- the model masked on purpose, and the honest one -----------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_an_honest_model_raises_no_flag(seed):
    """Oracle: an ordinarily trained network. Break: a threshold that chance or one start passes."""
    found = robustness(trained(seed), unseen(), **FEW, seed=seed)
    assert found.flags == ()
    assert found.values["accuracy.clean"] > 0.88
    assert found.values["worst.linf.0.1"] > 0.2 > 0.05 > found.values["worst.linf.0.3"]
    assert found.values["zero_gradient.cross_entropy"] == 0


def test_logits_times_a_thousand_mask_cross_entropy_and_are_found_out():
    """Oracle: the same network without the factor, which decides as it does everywhere.

    Break: an attack on the log-odds that saturates; a flag that is not raised; a headline number
    from the attack that failed.
    """
    honest = robustness(trained(0), unseen(), **FEW)
    masked = robustness(nn.Sequential(trained(0), Times(1000.0)), unseen(), **FEW)
    assert masked.values["accuracy.clean"] == honest.values["accuracy.clean"]
    for name in ("pgd_linf.{}.0.3", "pgd_l2.{}.1.5", "pgd_linf.{}.huge"):
        usual, odds = (f"accuracy.{name.format(o)}" for o in ("cross_entropy", "log_odds"))
        assert masked.values[usual] > 0.8 and masked.values[odds] < 0.2
        assert masked.values[odds] == pytest.approx(honest.values[odds], abs=0.011)
    for name, value in honest.values.items():
        if name.startswith("worst"):
            assert masked.values[name] == pytest.approx(value, abs=0.011)
    assert masked.values["zero_gradient.cross_entropy"] > 0.8
    assert masked.values["zero_gradient.log_odds"] == 0
    assert all(flag.startswith(SUSPECTED) for flag in masked.flags)
    said = "\n".join(masked.flags)
    for part in (
        r"\w+ at ε = [\d.]+ leaves \d+\.\d % right on cross_entropy, but \d+\.\d % on log_odds"
        r".* so in \d+ of \d+ "
        r"comparisons: fgsm on cross_entropy \(ε [\d.–]+\), pgd_l2 on cross_entropy \(ε [\d.–]+\), "
        r"pgd_linf on cross_entropy \(ε ",
        r"the gradient of cross_entropy is exactly zero at \d+\.\d % of",
        r"pgd_linf on cross_entropy leaves \d+\.\d % right at ε = 1, "
        r"pgd_l2 on cross_entropy leaves \d+\.\d % right at ε = 8,",
    ):
        assert re.search(part, said), part
    assert "on log_odds leaves" not in said
    for kind in ("right on cross_entropy, but", "exactly zero", "may become any other"):
        assert sum(kind in flag for flag in masked.flags) == 1


def test_a_model_without_any_gradient_is_found_out_by_a_search():
    """Oracle: rounded inputs have gradient 0, and the network behind is easily fooled.

    Break: a check that trusts the log-odds where they have no gradient either.
    """
    pytest.importorskip("pyautoattack")

    class Rounds(nn.Module):
        def forward(self, x):
            return (x * 16).round() / 16

    found = robustness(nn.Sequential(Rounds(), trained(0)), unseen(), **FEW, attacks=["pgd_linf"])
    assert (
        found.values["zero_gradient.log_odds"] == found.values["zero_gradient.cross_entropy"] == 1
    )
    (spot,) = found.details["spot_checks"]
    assert spot["epsilon"] == 0.3 and spot["fooled"] > 0.5 * spot["tried"] > 50
    assert found.values["worst.linf.0.3"] == pytest.approx(
        found.values["accuracy.pgd_linf.log_odds.0.3"] - spot["share"], abs=0.05
    )
    said = "\n".join(found.flags)
    assert re.search(r"a search without gradients fools \d+\.\d % of .* at ε = 0\.3 in linf", said)
    assert "pgd_linf on log_odds leaves" in said and "right at ε = 1," in said


def test_without_the_library_the_search_is_said_not_to_have_run(monkeypatch):
    """Break: silence, which would read as a check that was passed."""
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    found = robustness(trained(0), unseen(), attacks="fgsm", epsilons=[0.02], examples=50)
    assert found.details["spot_checks"] == []
    assert found.details["not_run"] == {
        "square_linf": "needs pyautoattack: pip install 'losslab[attacks]'"
    }
    found = robustness(trained(0), unseen(), attacks="fgsm", epsilons=[0.9], examples=50)
    assert found.details["not_run"]["square_linf"].startswith("not needed: at ε = 0.9 ")
    with pytest.raises(InputError, match="autoattack_linf cannot: needs pyautoattack"):
        robustness(trained(0), unseen(), attacks=["autoattack_linf"])


# ---- numbers that are known ------------------------------------------------------------------


def line() -> nn.Module:
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, -2.0, 0.5, 0.1], [0.0, 0.0, 0.0, 0.0]]))
        layer.bias.copy_(torch.tensor([0.5, 0.0]))
    return layer


def test_curves_of_a_linear_model_are_the_distances_from_its_line():
    """Oracle: |w·x + b| / ‖w‖ in the dual norm. Break: a wrong example, ε, norm, or a share of the
    right ones instead of all."""
    torch.manual_seed(0)
    inputs = torch.randn(300, 4)
    target = (torch.rand(300) < 0.8).long() ^ (line()(inputs).argmax(1))
    radii = [0.1, 0.3, 0.9]
    options = {"epsilons": radii, "epsilons_l2": radii, "box": None}
    step = {"box": None, "step_size": 0.9}
    attacks = {
        "fgsm": Attack(1.0, steps=1, random_start=False),
        "pgd_linf": Attack(1.0, **step),
        "pgd_l2": Attack(1.0, norm="l2", **step),
    }
    found = robustness(line(), (inputs, target), attacks=attacks, examples=300, **options)
    gap = line()(inputs)[:, 0].detach()
    right = (gap < 0).long() == target
    assert 30 < right.sum() < 270
    assert found.values["accuracy.clean"] == right.double().mean()
    weight = line().weight[0]
    steepness = {
        "fgsm": weight.abs().sum(),
        "pgd_linf": weight.abs().sum(),
        "pgd_l2": weight.norm(),
    }
    for label, steep in steepness.items():
        for radius in radii:
            truth = (right & (gap.abs() / steep > radius)).double().mean()
            for objective in ("cross_entropy", "log_odds"):
                assert found.values[f"accuracy.{label}.{objective}.{radius:g}"] == truth
            norm = "l2" if label == "pgd_l2" else "linf"
            assert found.values[f"worst.{norm}.{radius:g}"] == truth
    for name in ("pgd_linf", "pgd_l2"):
        assert found.values[f"accuracy.{name}.log_odds.huge"] == 0
    assert found.flags == ()


def test_the_librarys_attacks_have_curves_too(monkeypatch):
    """Oracle: the distance from the line. Break: their units, and what is wrong without an attack
    not counted as fooled."""
    pytest.importorskip("pyautoattack")
    monkeypatch.setattr(module, "QUERIES", 300)
    torch.manual_seed(0)
    inputs, target = torch.randn(24, 4), torch.arange(24) % 2
    gap = line()(inputs)[:, 0].detach()
    distance, right = gap.abs() / line().weight[0].abs().sum(), (gap < 0).long() == target
    assert (distance - 0.2).abs().min() > 1e-3 and distance.max() < 3
    truth = (right & (distance > 0.2)).double().mean()
    assert 0 < truth < right.double().mean() < 1
    options = {"box": None, "attacks": ["square_linf"], "epsilons": [0.2]}
    found = robustness(line(), (inputs, target), **options)
    assert found.values == {
        "accuracy.clean": right.double().mean(),
        "accuracy.square_linf.0.2": truth,
        "worst.linf.0.2": truth,
        "zero_gradient.cross_entropy": 0,
        "zero_gradient.log_odds": 0,
    }
    assert found.flags == () and found.details["spot_checks"] == []
    options |= {"attacks": ["autoattack_linf", "square_linf"], "epsilons": [3.0]}
    found = robustness(line(), (inputs, target), **options)
    assert (
        found.values["accuracy.autoattack_linf.3"] == 0
        and found.values["accuracy.clean"] == right.double().mean()
    )


def test_the_worst_case_remembers_smaller_radii_and_all_attacks():
    """Oracle: by hand. Break: a minimum of accuracies, where examples differ."""
    from losslab.analysis.robustness import _worst

    def run(attack, epsilon, broken, norm="linf"):
        return Run(attack, norm, "log_odds", epsilon, 9, torch.tensor(broken, dtype=torch.bool))

    runs = [
        run("b", 0.2, [0, 0, 1, 0]),
        run("a", 0.1, [1, 0, 0, 0]),
        run("a", 0.2, [0, 1, 0, 0]),
        run("c", 0.05, [1, 1, 1, 1], norm="l2"),
    ]
    worst = _worst(runs, "linf")
    assert {e: b.int().tolist() for e, b in worst.items()} == {0.1: [1, 0, 0, 0], 0.2: [1, 1, 1, 0]}


def test_the_same_call_gives_the_same_numbers_and_leaves_the_model_alone(monkeypatch):
    """Oracle: the first call. Break: global generators used or left changed."""
    monkeypatch.setattr(module, "QUERIES", 50)
    model, few = trained(1), FEW | {"examples": 60, "epsilons": [0.1], "epsilons_l2": [0.5]}
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    first = robustness(model, unseen(), **few)
    assert torch.equal(state, torch.get_rng_state()) and model.training
    torch.rand(3)
    second = robustness(model, unseen(), **few)
    other = robustness(model, unseen(), **few, seed=1)
    assert first == second and first.values != other.values
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert json.loads(json.dumps(first.details, allow_nan=False)) == first.details


def test_data_in_any_form_and_order_are_the_same_examples(monkeypatch):
    """Oracle: the two tensors. Break: the first 100 of data in order of class, a 10th of them."""
    monkeypatch.setattr(module, "QUERIES", 5)
    inputs, target = unseen()
    order = target.argsort()
    inputs, target = inputs[order], target[order]
    few = {"attacks": ["fgsm"], "epsilons": [0.05], "examples": 100}
    found = [
        robustness(trained(0), data, **few)
        for data in ((inputs, target), TensorDataset(inputs, target))
    ]
    assert found[0] == found[1]
    loader = robustness(trained(0), DataLoader(TensorDataset(inputs, target), 64), **few)
    first = robustness(trained(0), (inputs[:100], target[:100]), **few)
    assert loader.values == first.values != found[0].values
    grey = (inputs * 255).round().byte()
    by_hand = robustness(trained(0), (grey / 255, target), **few)
    as_bytes = robustness(nn.Sequential(Times(1 / 255), trained(0)), (grey, target), **few)
    assert as_bytes.details["box"] == [0, 255]
    assert as_bytes.values == pytest.approx(by_hand.values, abs=0.011)


def test_a_model_that_is_always_wrong_has_nothing_to_attack():
    """Oracle: 0. Break: a division by no example; a zero gradient of nothing."""
    inputs = unseen(30)[0]
    wrong = (trained(0)(inputs).argmax(1) + 1) % 10
    found = robustness(trained(0), (inputs, wrong), **FEW)
    assert set(found.values.values()) == {0.0} and found.flags == ()
    assert "zero_gradient.log_odds" not in found.values


# ---- each sign by itself ---------------------------------------------------------------------


def run(attack, objective, epsilon, accuracy, *, steps=40, norm="linf", size=500, shift=0):
    """A run that leaves so many right: the first ones, from ``shift`` on."""
    right = (torch.arange(size) - shift) % size < round(accuracy * size)
    return Run(attack, norm, objective, epsilon, steps, ~right)


def raised(*runs, huge=(), zero=None, spots=()):
    return flags(runs, huge, zero or {}, spots)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (7, 0), (5, 3), (40, 60), (900, 700)])
def test_mcnemar_is_the_exact_sign_test(one, other):
    """Oracle: scipy's binomial test. Break: the wrong tail, or ties counted."""
    truth = binomtest(one, one + other, alternative="greater").pvalue if one + other else 1.0
    assert mcnemar(one, other) == pytest.approx(truth, rel=1e-9)


@pytest.mark.parametrize(("accuracy", "said"), [(0.5, True), (0.48, True), (0.485, False)])
def test_the_log_odds_must_find_clearly_more(accuracy, said):
    """Oracle: by hand; 10 of 500 are 2 %, and p = 2^-10 < 1 %. Break: a threshold moved."""
    usual = run("pgd", "cross_entropy", 0.1, 0.5 if accuracy < 0.5 else 0.9)
    found = raised(usual, run("pgd", "log_odds", 0.1, accuracy))
    assert bool(found) is said
    if accuracy == 0.48:
        assert found == (
            f"{SUSPECTED}pgd at ε = 0.1 leaves 50.0 % right on cross_entropy, but 48.0 % on "
            "log_odds (10 examples fooled by it alone, 0 by the other alone, p = 0.001)",
        )


def test_attacks_and_radii_of_a_kind_stand_in_one_sentence():
    """Oracle: by hand; the worst of three is pgd at 0.2, 4 pairs are compared. Break: a sentence
    an attack, or one that does not say of which attacks and radii it speaks."""
    points = (("pgd", 0.1, 0.4), ("pgd", 0.2, 0.3), ("fgsm", 0.1, 0.45), ("fgsm", 0.2, 0.5))
    usual = [run(name, "cross_entropy", e, 0.5) for name, e, _ in points]
    odds = [run(name, "log_odds", e, accuracy) for name, e, accuracy in points]
    kind = [flag for flag in raised(*usual, *odds) if "right on cross_entropy" in flag]
    (found,) = kind
    assert found.startswith(f"{SUSPECTED}pgd at ε = 0.2 leaves 50.0 % right on cross_entropy, but")
    assert found.endswith(
        "; so in 3 of 4 comparisons: fgsm on cross_entropy (ε 0.1), "
        "pgd on cross_entropy (ε 0.1–0.2)"
    )


def test_a_difference_that_chance_makes_is_no_sign():
    """Oracle: 70 against 60 examples, p = 0.2. Break: accuracies compared, not examples."""
    usual = run("pgd", "cross_entropy", 0.1, 0.52, shift=60)
    odds = run("pgd", "log_odds", 0.1, 0.50)
    alone = int((odds.broken & ~usual.broken).sum()), int((usual.broken & ~odds.broken).sum())
    assert alone == (70, 60) and mcnemar(*alone) > 0.1
    assert raised(usual, odds) == ()


def test_many_comparisons_need_a_smaller_p():
    """Oracle: p = 2^-7 is under 1 %, but not under 1 % / 2. Break: no correction."""
    few = {"size": 100}
    usual = [run("pgd", "cross_entropy", e, 0.5, **few) for e in (0.1, 0.2)]
    odds = [run("pgd", "log_odds", 0.1, 0.43, **few), run("pgd", "log_odds", 0.2, 0.5, **few)]
    assert len(raised(usual[0], odds[0])) == 1
    assert raised(*usual, *odds) == ()


def test_a_weaker_attack_must_not_be_stronger():
    """Oracle: by hand. Break: other norms, other ε or another objective compared."""
    strong = run("pgd_linf", "log_odds", 0.1, 0.5)
    (found,) = raised(run("square_linf", None, 0.1, 0.3, steps=0), strong)
    assert found.startswith(
        f"{SUSPECTED}at ε = 0.1 square_linf, a search without gradients, leaves"
    )
    assert "30.0 % right, but pgd_linf on log_odds 50.0 %" in found
    (found,) = raised(run("fgsm", "log_odds", 0.1, 0.3, steps=1), strong)
    assert "fgsm on log_odds, a single step, leaves 30.0 % right" in found
    for other in (
        run("square_l2", None, 0.1, 0.3, steps=0, norm="l2"),
        run("square_linf", None, 0.2, 0.3, steps=0),
        run("fgsm", "cross_entropy", 0.1, 0.3, steps=1),
        run("square_linf", None, 0.1, 0.6, steps=0),
        run("autoattack_linf", None, 0.1, 0.3, steps=0),  # it uses gradients as well
    ):
        assert raised(other, strong) == ()


def test_accuracy_must_not_rise_with_epsilon_but_a_single_step_may_overshoot():
    """Oracle: by hand. Break: neighbours compared alone, so that a slow rise passes."""
    curve = [(0.1, 0.5), (0.2, 0.505), (0.3, 0.515), (0.4, 0.525)]
    (found,) = raised(*(run("pgd", "log_odds", *point) for point in reversed(curve)))
    assert "pgd on log_odds leaves 50.0 % right at ε = 0.1, but 52.4 % at ε = 0.4" in found
    assert raised(*(run("fgsm", "log_odds", *point, steps=1) for point in curve)) == ()
    assert raised(*(run("pgd", "log_odds", e, 1 - a) for e, a in curve)) == ()


def test_shares_have_thresholds():
    """Oracle: the constants. Break: one that is compared the wrong way round."""
    assert raised(zero={"log_odds": 0.018}) == () and len(raised(zero={"log_odds": 0.02})) == 1
    huge = run("pgd", "log_odds", 1.0, masking.LEFT)
    assert raised(huge=[huge]) == ()
    assert len(raised(huge=[replace(huge, broken=run("", "", 1, 0.06).broken)])) == 1
    spot = {"norm": "l2", "epsilon": 3.0}
    assert raised(spots=[spot | {"share": masking.LEFT}]) == ()
    (found,) = raised(spots=[spot | {"share": 0.06}])
    assert found.startswith(
        f"{SUSPECTED}a search without gradients fools 6.0 % of the examples at ε = 3 in l2, which"
    )
    both = raised(spots=[spot | {"share": 0.06}, spot | {"norm": "linf", "share": 0.5}])
    assert len(both) == 1 and "6.0 % of the examples at ε = 3 in l2 and 50.0 %" in both[0]
    (told,) = raised(zero={"cross_entropy": 0.5, "log_odds": 0.25})
    assert "of cross_entropy is exactly zero at 50.0 % and that of log_odds at 25.0 % of" in told


# ---- bad input, and the docs -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attacks": ["pgd"]}, "attacks to be one of fgsm, pgd_linf.*Did you mean 'pgd_l"),
        ({"epsilons": [0.1, -1]}, "every one of epsilons to be a finite number above 0"),
        ({"examples": 0}, "examples to be a whole number of at least 1"),
        ({"steps": 2.5}, "steps to be a whole number"),
        ({"huge": 0}, "huge to be a finite number above 0"),
        ({"box": [0, 0.5]}, r"inside the box \[0, 0.5\], but 200 of 200"),
        ({"attacks": ["square_l2"], "box": None}, "square_l2 cannot: "),
    ],
)
def test_options_that_mean_nothing_are_refused(options, message):
    data = unseen()
    if options.get("box", 1) is None:
        pytest.importorskip("pyautoattack")
        data = data[0].flatten(1)[:, :4], data[1]
    with pytest.raises(InputError, match=message):
        robustness(trained(0), data, **(FEW | options))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((torch.rand(0, 1, 8, 8), torch.zeros(0).long()), "at least one, but got 0"),
        ((torch.rand(3, 1, 8, 8), torch.tensor([0, 10, 0])), "every target in"),
        ((torch.rand(3, 1, 8, 8), torch.zeros(2).long()), "3 inputs and 2 targets"),
        (
            (torch.zeros(3, 8, dtype=torch.int64), torch.zeros(3).long()),
            "float32, float64 or uint8",
        ),
    ],
)
def test_data_that_cannot_be_attacked_are_refused(data, message):
    with pytest.raises(InputError, match=message):
        robustness(trained(0), data, **FEW)


def test_the_code_in_the_docs_runs(monkeypatch):
    """A renamed function or argument in docs/robustness.md fails here."""
    monkeypatch.setattr(module, "QUERIES", 20)
    page = (Path(__file__).parent.parent / "docs" / "robustness.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.S | re.M)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, "docs/robustness.md", "exec"), names)
