"""The classifier for scikit-learn: its own checks of estimators, and what the loss decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris, make_classification
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch.nn import functional as F

import losslab
from losslab.errors import InputError
from losslab.integrations.sklearn import LossClassifier

pytestmark = pytest.mark.usefixtures("one_thread")
X, Y = load_iris(return_X_y=True)


@parametrize_with_checks([LossClassifier("encouraging", max_iter=40, learning_rate_init=0.01)])
def test_scikit_learns_own_checks(estimator, check):
    """Oracle: `sklearn.utils.estimator_checks`, all of them."""
    check(estimator)


@pytest.mark.parametrize("spec", ["cross_entropy", "encouraging", "mixed(focus=0.3)"])
@pytest.mark.parametrize("alpha", [0.0, 900.0, 2000.0])  # half of one, twice the other turn signs
def test_a_first_step_is_the_losss(spec, alpha):
    """Oracle: Adam's first step by hand, on all rows at once: rate × sign of the gradient, to which
    the penalty adds α w / rows. Break: another loss, classes in another order, half a penalty."""
    settings = {"hidden_layer_sizes": (), "batch_size": len(X), "alpha": alpha, "random_state": 3}
    names = np.array(["z", "a", "m"])[Y]  # sorted: a, m, z
    made = LossClassifier(spec, max_iter=1, learning_rate_init=0.01, **settings).fit(X, names)
    again = LossClassifier(spec, max_iter=1, learning_rate_init=1e-12, **settings).fit(X, names)
    start, inputs = again.network_[0], torch.tensor(X)
    target = torch.tensor(np.searchsorted(["a", "m", "z"], names))
    weight = start.weight.detach().clone().requires_grad_()
    losslab.loss(spec)(F.linear(inputs, weight, start.bias.detach()), target).backward()
    gradient = weight.grad + alpha / len(X) * weight.detach()
    moved = made.network_[0].weight.detach() - start.weight.detach()
    assert moved == pytest.approx(-0.01 * gradient.sign(), abs=1e-4)
    assert list(made.classes_) == ["a", "m", "z"]


def test_probabilities_and_decisions_agree():
    """Oracle: softmax and the sigmoid of the two-class decision."""
    made = LossClassifier("focal", max_iter=30, random_state=0).fit(X, Y)
    logits = made.decision_function(X)
    assert logits.shape == (150, 3)
    assert made.predict_proba(X) == pytest.approx(
        np.exp(logits) / np.exp(logits).sum(1, keepdims=True), rel=1e-5
    )
    assert (made.predict(X) == logits.argmax(1)).all()
    two = LossClassifier("focal", max_iter=30, random_state=0).fit(X[:100], Y[:100])
    decided = two.decision_function(X[:100])
    assert decided.shape == (100,)
    assert two.predict_proba(X[:100])[:, 1] == pytest.approx(1 / (1 + np.exp(-decided)), rel=1e-5)


def test_searches_and_pipelines_choose_a_loss():
    """Break: a loss that a search cannot set, or that clones lose."""
    model = make_pipeline(
        StandardScaler(), LossClassifier(max_iter=60, learning_rate_init=0.01, random_state=0)
    )
    losses = ["cross_entropy", "encouraging(log_end=1)", lambda a: torch.relu(1 - a).square()]
    search = GridSearchCV(model, {"lossclassifier__loss": losses}, cv=3, error_score="raise")
    search.fit(X, Y)
    scores = search.cv_results_["mean_test_score"]
    assert search.best_score_ == scores.max() > 0.9 and len(scores) == 3
    assert clone(search.best_estimator_)[-1].loss == search.best_params_["lossclassifier__loss"]


def test_seeds_classes_and_schedules():
    """Oracle: the same seed twice; the weights that scikit-learn computes; a schedule that ends
    elsewhere than it began."""

    def fit(**changes):
        settings = {"max_iter": 15, "random_state": 0, **changes}
        return LossClassifier(**settings).fit(X[:110], Y[:110])

    assert fit().loss_curve_ == fit().loss_curve_ != fit(random_state=1).loss_curve_
    weights = {0: 110 / 150, 1: 110 / 150, 2: 110 / 30}
    balanced, by_hand = fit(class_weight="balanced"), fit(class_weight=weights)
    assert balanced.loss_curve_ == pytest.approx(by_hand.loss_curve_)
    assert balanced.loss_curve_ != fit().loss_curve_
    moving = fit(loss="mixed(focus=phases(0, 0.5))")
    still = fit(loss="mixed(focus=0)")
    assert moving.loss_curve_[:7] == pytest.approx(still.loss_curve_[:7])
    assert moving.loss_curve_[9] != pytest.approx(still.loss_curve_[9], rel=1e-3)
    smooth = fit(label_smoothing=0.2)
    assert smooth.predict_proba(X).max() < fit().predict_proba(X).max()


def test_the_callers_random_numbers_stay():
    """Break: a fit that moves torch's global generator."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    LossClassifier(max_iter=2, random_state=0).fit(X, Y)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_iter": 0}, "max_iter to be a whole number of at least 1, but got 0"),
        ({"max_iter": "3"}, "max_iter to be a whole number"),
        ({"learning_rate_init": 0.0}, "learning_rate_init to be above 0"),
        ({"alpha": -1.0}, "alpha to be at least 0"),
        ({"batch_size": 0}, "batch_size to be 'auto' or a whole number"),
        ({"batch_size": "big"}, "batch_size to be 'auto' or a whole number"),
        ({"hidden_layer_sizes": (0,)}, "hidden_layer_sizes to be"),
        ({"hidden_layer_sizes": "10"}, "hidden_layer_sizes to be"),
        ({"loss": "focl"}, "focl"),
        ({"loss": losslab.FocalLoss(gamma=1.0)}, r"such as 'focal\(gamma=1.*got FocalLoss"),
        ({"loss": 3}, "Expected loss to be a spec"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(InputError, match=message):
        LossClassifier(**settings).fit(X, Y)


@pytest.mark.parametrize(
    "spec", ["encouraging", "reweighted(focal, counts=[3, 1, 2])", "cross_entropy + expectation"]
)
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_weights_of_examples(spec, class_weight):
    """Oracle: the same examples written down as often as they weigh. Break: a mean over the number
    of examples, a penalty that forgets the weights, classes balanced by examples; and the weights
    1, which must change nothing."""
    if spec.startswith("reweighted") and class_weight:
        pytest.skip("one or the other")
    often = np.random.default_rng(0).integers(0, 4, len(X))
    settings = {"max_iter": 5, "batch_size": 1000, "alpha": 50.0, "random_state": 0}

    def fit(inputs, target, weight=None):
        made = LossClassifier(spec, class_weight=class_weight, **settings)
        return made.fit(inputs, target, weight)

    weighted, repeated = fit(X, Y, often), fit(X.repeat(often, 0), Y.repeat(often))
    assert weighted.loss_curve_ == pytest.approx(repeated.loss_curve_, rel=1e-5)
    assert weighted.predict_proba(X) == pytest.approx(repeated.predict_proba(X), abs=1e-6)
    assert fit(X, Y, np.ones(len(X))).loss_curve_ == pytest.approx(fit(X, Y).loss_curve_, rel=1e-6)
    assert weighted.loss_curve_ != pytest.approx(fit(X, Y).loss_curve_, rel=1e-3)


def test_batches_without_weight_are_left_out():
    """Break: a mean over nothing, which makes every weight of the network NaN."""
    weight = np.zeros(len(X))
    weight[::50] = 1
    made = LossClassifier(max_iter=3, batch_size=10, random_state=0).fit(X, Y, weight)
    assert np.isfinite(made.predict_proba(X)).all() and np.isfinite(made.loss_curve_).all()
    with pytest.raises(ValueError, match=r"sample_weight|Sample weights"):
        LossClassifier().fit(X, Y, np.zeros(len(X)))


def test_the_networks_precision_is_the_columns():
    """Break: columns rounded in silence; a float32 network that cannot read float64 columns."""
    made = LossClassifier(max_iter=1, hidden_layer_sizes=5).fit(X.astype(np.float32), Y)
    assert {p.dtype for p in made.network_.parameters()} == {torch.float32}
    assert len(made.network_) == 3 and made.predict_proba(X).dtype == np.float32
    assert {p.dtype for p in LossClassifier(max_iter=1).fit(X, Y).network_.parameters()} == {
        torch.float64
    }


def test_a_module_of_ones_own_through_skorch():
    """Oracle: skorch with PyTorch's cross_entropy, whose run ours must repeat. Break: a module that
    skorch cannot make from its class; logits passed off as probabilities."""
    skorch = pytest.importorskip("skorch")
    inputs, target = make_classification(200, 8, random_state=0)
    inputs = inputs.astype(np.float32)

    def fit(criterion, **changes):
        torch.manual_seed(0)
        net = skorch.NeuralNetClassifier(
            torch.nn.Linear, module__in_features=8, module__out_features=2, criterion=criterion,
            max_epochs=3, lr=0.1, train_split=None, verbose=0,
            **{"predict_nonlinearity": torch.nn.Softmax(dim=-1), **changes},
        )  # fmt: skip
        return net.fit(inputs, target)

    ours, theirs = fit(losslab.CrossEntropyLoss), fit(torch.nn.CrossEntropyLoss)
    assert ours.history[:, "train_loss"] == pytest.approx(theirs.history[:, "train_loss"])
    expected = fit(torch.nn.CrossEntropyLoss, predict_nonlinearity="auto").predict_proba(inputs)
    assert ours.predict_proba(inputs) == pytest.approx(expected, abs=1e-6)
    other = fit(losslab.EncouragingLoss, criterion__log_end=1.0)
    assert other.history[-1, "train_loss"] != pytest.approx(theirs.history[-1, "train_loss"])
    assert other.score(inputs, target) > 0.8
