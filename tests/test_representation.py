"""Features measured by an output layer learned anew, and by logistic regression."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from losslab import metrics
from losslab.analysis import representation
from losslab.analysis.features import features_of, output_layer
from losslab.analysis.representation import linear_probe, retrain_output_layer
from losslab.errors import InputError

FEATURES, CLASSES = 4, 3


pytestmark = pytest.mark.usefixtures("one_thread")


def data(rows: int, seed: int, noise: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % CLASSES
    return torch.eye(CLASSES, FEATURES)[target] * 2 + noise * torch.randn(
        rows, FEATURES, generator=generator
    ), target


TRAIN, TEST = data(60, 1), data(90, 2)


def body() -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Linear(FEATURES, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.5)]


class Dictionary(nn.Module):
    """Returns a mapping; the last of its layers is as wide as the logits and does not make them."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(CLASSES, CLASSES)
        self.first = nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        return {"logits": self.head(input=self.first(inputs).relu())}


def test_the_new_layer_is_the_best_linear_classifier():
    """Oracle: scikit-learn's optimum of the same convex objective (weights and bias decayed).

    Break: other features than those under the layer, weight decay or loss off by a factor, the
    old layer's weights left in place.
    """
    decay = 0.01
    model = nn.Sequential(nn.Identity(), nn.Linear(FEATURES, CLASSES))
    found = retrain_output_layer(
        *(model, TRAIN, TEST),
        epochs=600, lr=0.2, batch_size=60, weight_decay=decay, decay_every=400,
    )  # fmt: skip
    padded = [np.c_[x.numpy(), np.ones(len(x))].astype(float) for x, _ in (TRAIN, TEST)]
    # its penalty is |w|²/2 beside C times the sum over the examples
    best = LogisticRegression(C=1 / (decay * 60), fit_intercept=False, tol=1e-9, max_iter=5000)
    best.fit(padded[0], TRAIN[1].numpy())
    logits = torch.from_numpy(best.decision_function(padded[1]))
    assert found.values["nll"] == pytest.approx(metrics.nll(logits, TEST[1]).item(), rel=1e-4)
    assert found.values["accuracy"] == metrics.accuracy(logits, TEST[1]).item()
    assert found.values["train_accuracy"] == best.score(padded[0], TRAIN[1].numpy())
    before = metrics.accuracy(model(TEST[0]).detach(), TEST[1]).item()
    assert found.values["accuracy_before"] == before and found.flags == ()


def test_the_recipe_is_the_papers():
    """Oracle: SGD with momentum, decay and rates in steps, in numpy, from the same start.

    Break: a rate that decays an epoch early, momentum or decay left out, a loss of another weight.
    """
    model = nn.Sequential(nn.Identity(), nn.Linear(FEATURES, CLASSES))
    found = retrain_output_layer(model, TRAIN, TEST, batch_size=60, seed=5)
    assert found.details["lr"] == pytest.approx(
        [0.1] * 5 + [0.01] * 5 + [0.001] * 5 + [0.0001] * 5, rel=1e-12
    )
    start = representation._fresh(FEATURES, CLASSES, True, torch.Generator().manual_seed(5))
    weight, bias = (p.detach().double().numpy() for p in start.parameters())
    assert np.abs(weight).max() <= FEATURES**-0.5 and np.abs(weight).std() > 0
    inputs, truth = TRAIN[0].double().numpy(), np.eye(CLASSES)[TRAIN[1].numpy()]
    speed = [np.zeros_like(weight), np.zeros_like(bias)]
    losses = []
    for epoch in range(20):
        z = inputs @ weight.T + bias
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        losses.append(-np.log((p * truth).sum(1)).mean())
        slopes = [(p - truth).T @ inputs / 60, (p - truth).mean(0)]
        for k, (value, slope) in enumerate(zip((weight, bias), slopes, strict=True)):
            speed[k] = 0.9 * speed[k] + slope + 1e-4 * value
        weight = weight - 0.1 * 0.1 ** (epoch // 5) * speed[0]
        bias = bias - 0.1 * 0.1 ** (epoch // 5) * speed[1]
    assert found.details["train_loss"] == pytest.approx(losses, rel=1e-5)
    final = TEST[0].double().numpy() @ weight.T + bias
    nll = metrics.nll(torch.from_numpy(final), TEST[1]).item()
    assert found.values["nll"] == pytest.approx(nll, rel=1e-5)


def test_the_model_is_left_as_it_was_and_measured_in_evaluation_mode():
    """Oracle: copies of everything, and the features computed here with batch statistics frozen."""
    model = nn.Sequential(*body(), nn.Linear(7, CLASSES)).train()
    model[1].running_mean.normal_()
    model[0].eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    random = torch.get_rng_state()
    retrain_output_layer(model, TRAIN, TEST, epochs=2)
    linear_probe(model, TRAIN, TEST)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks for m in model.modules())
    features, logits, target = features_of(model, "4", TEST, "cpu", incoming=True)
    frozen = copy.deepcopy(model).eval()
    torch.testing.assert_close(features, frozen[:4](TEST[0]).detach(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(logits, frozen(TEST[0]).detach(), rtol=1e-6, atol=1e-6)
    assert torch.equal(target, TEST[1])


def test_models_with_the_same_features_get_the_same_layer():
    """Oracle: two models that differ in nothing but the layer to be replaced. Break: a start or an
    order drawn from the caller's generators, or from the old layer."""
    one, other = (nn.Sequential(*body(), nn.Linear(7, CLASSES)) for _ in range(2))
    nn.init.normal_(other[4].weight, std=5)
    found = [retrain_output_layer(m, TRAIN, TEST, batch_size=7) for m in (one, other)]
    assert found[0].values["accuracy_before"] != found[1].values["accuracy_before"]
    assert found[0].values["nll"] == found[1].values["nll"]
    assert found[0].details == found[1].details
    again = retrain_output_layer(one, TRAIN, TEST, batch_size=7, seed=1)
    assert again.values["nll"] != found[0].values["nll"]


def test_another_criterion_trains_the_layer():
    """Oracle: the recipe with a loss of another size takes other steps."""
    model = nn.Sequential(nn.Identity(), nn.Linear(FEATURES, CLASSES))
    usual = retrain_output_layer(model, TRAIN, TEST, epochs=3)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.3)
    other = retrain_output_layer(model, TRAIN, TEST, epochs=3, criterion=smooth)
    assert usual.values["nll"] != other.values["nll"]


def test_the_output_layer_is_found_by_what_it_returns():
    """Oracle: models built here. Break: the last nn.Linear of the right width taken on trust."""
    assert output_layer(nn.Sequential(*body(), nn.Linear(7, CLASSES)), TRAIN) == "4"
    model = Dictionary()
    assert output_layer(model, TRAIN) == "head"
    assert retrain_output_layer(model, TRAIN, TEST, epochs=1).details["layer"] == "head"
    assert output_layer(nn.Linear(FEATURES, CLASSES), TRAIN) == ""


class Changed(nn.Module):
    """Its layers' outputs are no logits."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.layer = way, nn.Linear(FEATURES, CLASSES)

    def forward(self, inputs):
        if self.way == "tempered":
            return self.layer(inputs) / 2
        if self.way == "tempered in place":
            return self.layer(inputs).div_(2)
        if self.way == "twice":
            return self.layer(inputs) + self.layer(-inputs)
        return nn.functional.linear(inputs, self.layer.weight)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Changed("tempered"), "'layer' returns something else than the logits"),
        (Changed("tempered in place"), "its output is changed on the way"),
        (Changed("twice"), "used 2 times"),
        (Changed("by hand"), "used 0 times"),
    ],
)
def test_a_layer_that_does_not_make_the_logits_is_refused(model, told):
    """Break: a retrained layer that the model would not have used."""
    with pytest.raises(InputError, match=told):
        retrain_output_layer(model, TRAIN, TEST)
    with pytest.raises(InputError, match=told):
        output_layer(model, TRAIN, "layer")


def test_mistakes_are_told():
    """Oracle: the messages."""
    model = nn.Sequential(*body(), nn.Linear(7, CLASSES))
    cases = {
        r"one of the model's nn.Linear layers \('0', '4'\), but got '2'": {"layer": "2"},
        "'0' returns 7 numbers, not 3": {"layer": "0"},
        "epochs to be a whole number": {"epochs": 0},
        "lr to be a finite number": {"lr": 0.0},
    }
    for told, options in cases.items():
        with pytest.raises(InputError, match=told):
            retrain_output_layer(model, TRAIN, TEST, **options)
    with pytest.raises(InputError, match=r"the model has no nn\.Linear"):
        retrain_output_layer(nn.Identity(), TRAIN, TEST)
    with pytest.raises(InputError, match="every target in"):
        retrain_output_layer(model, (TRAIN[0], TRAIN[1] + 1), TEST)
    with pytest.raises(InputError, match=r"layer to be one of '0', .*but got 'nine'"):
        linear_probe(model, TRAIN, TEST, layer="nine")
    with pytest.raises(InputError, match="two classes"):
        linear_probe(model, (TRAIN[0], TRAIN[1] * 0), TEST)
    with pytest.raises(InputError, match="at least one example"):
        retrain_output_layer(model, (TRAIN[0][:0], TRAIN[1][:0]), TEST)
    recurrent = nn.Sequential(nn.LSTM(FEATURES, 4), Last(), nn.Linear(4, CLASSES))
    with pytest.raises(InputError, match=r"'0' to return one tensor.*returns tuple"):
        linear_probe(recurrent, TRAIN, TEST, layer="0")


class Last(nn.Module):
    def forward(self, output):
        return output[0]


def test_a_layer_that_diverges_is_flagged():
    """Break: a NaN among the values, or an accuracy of a layer that has no sense."""
    x, y = TRAIN
    model = nn.Sequential(nn.Identity(), nn.Linear(FEATURES, CLASSES))
    found = retrain_output_layer(model, (x * 1e20, y), (x, y), lr=1e20, epochs=2)
    assert set(found.values) == {"accuracy_before"}
    assert "diverged" in found.flags[0] and None in found.details["train_loss"]


@pytest.mark.parametrize("layer", ["2", None])
def test_a_probe_is_scikit_learns(layer):
    """Oracle: scikit-learn's pipeline on features computed here. Break: features of another layer,
    training-mode statistics, a scale of the test data's own."""
    model = nn.Sequential(*body(), nn.Linear(7, CLASSES))
    model(TRAIN[0] * 3)  # moves the batch statistics
    frozen = copy.deepcopy(model).eval()[:3]
    inputs, test_inputs = (frozen(x).detach().double().numpy() for x, _ in (TRAIN, TEST))
    oracle = make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=1000))
    oracle.fit(inputs, TRAIN[1].numpy())
    found = linear_probe(model, TRAIN, TEST, layer=layer, C=0.3)
    assert found.values == {
        "accuracy": oracle.score(test_inputs, TEST[1].numpy()),
        "train_accuracy": oracle.score(inputs, TRAIN[1].numpy()),
    }
    assert found.details["converged"] and found.flags == ()
    assert (found.details["C"], found.details["features"]) == (0.3, 7)
    assert found.details["layer"] == ("4" if layer is None else "2")


def test_a_probe_tells_features_from_noise():
    """Oracle: features that hold the class, and others that hold nothing, in one model."""

    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.known, self.noise = nn.Identity(), nn.Identity()
            self.head = nn.Linear(2 * FEATURES, CLASSES)

        def forward(self, inputs):
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(inputs.shape, generator=generator)
            return self.head(torch.cat([self.known(inputs), self.noise(noise)], 1))

    train, test = data(300, 3, 0.3), data(300, 4, 0.3)
    model = Split()
    assert linear_probe(model, train, test, layer="known").values["accuracy"] > 0.95
    # the same noise comes with train and test rows: only rows of equal classes could tell
    shuffled = test[1][torch.randperm(300, generator=torch.Generator().manual_seed(1))]
    noise = linear_probe(model, train, (test[0], shuffled), layer="noise").values["accuracy"]
    assert abs(noise - 1 / CLASSES) < 4 * (1 / CLASSES * 2 / 3 / 300) ** 0.5


def test_a_probe_that_has_not_converged_is_flagged():
    """Break: scikit-learn's warning swallowed, or left to the user's terminal."""
    model = nn.Sequential(*body(), nn.Linear(7, CLASSES))
    found = linear_probe(model, TRAIN, TEST, max_iter=1, C=1e4)
    assert not found.details["converged"] and "not converged in 1" in found.flags[0]


def test_constant_features_are_counted():
    """Oracle: dead units built here."""
    model = nn.Sequential(nn.Linear(FEATURES, 6), nn.ReLU(), nn.Linear(6, CLASSES))
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0, -1
        model[0].bias[2:] = 10
    assert linear_probe(model, TRAIN, TEST).details["constant_features"] == 2


def test_balanced_batches_make_classes_alike():
    """Oracle: counting what the new layer is given; and the classifier that class weights make
    (cRT is in expectation the loss weighted by 1/n_k). Break: examples in proportion, or once
    each."""
    target = torch.cat([torch.zeros(900), torch.ones(90), torch.full((10,), 2)]).long()
    seen = []

    class Counting(nn.CrossEntropyLoss):
        def forward(self, logits, goal):
            seen.append(torch.bincount(goal, minlength=3))
            return super().forward(logits, goal)

    inputs = nn.functional.one_hot(target, 3).float() + 0.3 * torch.randn(1000, 3)
    model = nn.Sequential(nn.Identity(), nn.Linear(3, 3))
    given = model, (inputs, target), (inputs, target)
    found = retrain_output_layer(*given, epochs=5, balanced=True, criterion=Counting())
    drawn = torch.stack(seen).sum(0)
    assert drawn.sum() == 5000
    assert (drawn / 5000 - 1 / 3).abs().max() < 5 * math.sqrt(2 / 9 / 5000)
    rest = {"accuracy_many", "accuracy_medium", "accuracy_few", "balanced_accuracy"}
    assert rest <= found.values.keys() and found.details["recipe"]["balanced"]
    groups = [found.values[f"accuracy_{name}"] for name in ("many", "medium", "few")]
    assert found.values["balanced_accuracy"] == pytest.approx(sum(groups) / 3)
    seen.clear()
    plain = retrain_output_layer(*given, epochs=2, criterion=Counting())
    assert torch.stack(seen).sum(0).tolist() == [1800, 180, 20]
    assert "balanced_accuracy" not in plain.values
