"""Any loss as the objective of LightGBM and XGBoost, against their own log losses and by hand."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits

import losslab
from losslab.errors import InputError
from losslab.integrations.boosting import BoostingObjective

lightgbm = pytest.importorskip("lightgbm")
xgboost = pytest.importorskip("xgboost")
LOSSES = ["cross_entropy", "encouraging(log_end=1)", "focal(gamma=2)", "expectation",
          "mixed(focus=0.3)", "one_vs_rest(focal)", "0.5*cross_entropy + expectation"]  # fmt: skip
CANCER, DIGITS = load_breast_cancer(return_X_y=True), load_digits(return_X_y=True)


@pytest.fixture(autouse=True)
def quiet():
    """LightGBM says that a custom objective leaves raw scores."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Cannot compute class probabilities")
        warnings.filterwarnings("ignore", "X does not have valid feature names")
        yield


def by_differences(spec, z, y, k, step=1e-5):
    """First and second derivative by z_k of each row's loss, by central differences."""

    def value(shift):
        moved = z.copy()
        moved[:, k] += shift
        rows = losslab.loss(spec, reduction="none")(torch.from_numpy(moved), torch.from_numpy(y))
        return rows.numpy()

    up, here, down = value(step), value(0.0), value(-step)
    return (up - down) / (2 * step), (up - 2 * here + down) / step**2


@pytest.mark.parametrize("spec", LOSSES)
def test_derivatives_of_several_classes(spec):
    """Oracle: central differences of the loss's value. Break: a term of ψ″ or of q that is lost."""
    draws = np.random.default_rng(0)
    z, y = draws.normal(size=(40, 4)), draws.integers(0, 4, 40)
    gradient, hessian = BoostingObjective(spec, 4, exact=True, least=1e-12)(y, z)
    for k in range(4):
        first, second = by_differences(spec, z, y, k)
        assert gradient[:, k] == pytest.approx(first, abs=1e-8)
        assert hessian[:, k] == pytest.approx(np.maximum(second, 1e-12), abs=5e-5)


@pytest.mark.parametrize("spec", LOSSES)
def test_derivatives_of_one_score(spec):
    """Oracle: the two-class logits (0, f) by central differences."""
    draws = np.random.default_rng(1)
    f, y = draws.normal(size=50), draws.integers(0, 2, 50)
    gradient, hessian = BoostingObjective(spec, 2, exact=True, least=1e-12)(y, f)
    first, second = by_differences(spec, np.stack([np.zeros(50), f], 1), y, 1)
    assert gradient == pytest.approx(first, abs=1e-8)
    assert hessian == pytest.approx(np.maximum(second, 1e-12), abs=5e-5)


@pytest.mark.parametrize("spec", LOSSES)
def test_no_leaf_steps_further_than_cross_entropys(spec):
    """Oracle: |g|/h of cross-entropy at the same scores. Break: a straight loss, whose h of 0
    throws its leaves to infinity."""
    draws = np.random.default_rng(2)
    for classes, shape in ((4, (60, 4)), (2, (60,))):
        z, y = 4 * draws.normal(size=shape), draws.integers(0, classes, 60)
        g, h = BoostingObjective(spec, classes, least=1e-300)(y, z)
        own, curve = BoostingObjective("cross_entropy", classes, exact=True, least=1e-300)(y, z)
        assert (np.abs(g) / h <= np.abs(own) / curve * (1 + 1e-9)).all()
        exact = BoostingObjective(spec, classes, exact=True, least=1e-300)(y, z)
        assert (g == exact[0]).all() and (h >= exact[1]).all()


def test_log_loss_by_hand():
    """Oracle: p − y and p (1 − p); weights multiply both."""
    z, y = np.array([[1.0, 2.0, 0.5], [0.0, -3.0, 4.0]]), np.array([2, 0])
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    gradient, hessian = BoostingObjective("cross_entropy", 3)(y, z, [2.0, 0.5])
    weight = np.array([[2.0], [0.5]])
    assert gradient == pytest.approx(weight * (p - np.eye(3)[y]))
    assert hessian == pytest.approx(weight * p * (1 - p))


def test_two_classes_are_the_libraries_own():
    """Oracle: LightGBM's binary and XGBoost's binary:logistic, to the bit of float32."""
    X, y = CANCER
    objective = BoostingObjective("cross_entropy", 2)
    settings = {"n_estimators": 30, "verbose": -1, "n_jobs": 1}
    ours = lightgbm.LGBMClassifier(objective=objective, **settings).fit(X, y)
    own = lightgbm.LGBMClassifier(boost_from_average=False, **settings).fit(X, y)
    raw = ours.predict(X, raw_score=True)
    assert raw == pytest.approx(own.predict(X, raw_score=True), abs=1e-12)
    assert objective.probabilities(raw) == pytest.approx(own.predict_proba(X), abs=1e-9)

    settings = {"n_estimators": 30, "n_jobs": 1}
    ours = xgboost.XGBClassifier(objective=objective, **settings).fit(X, y)
    own = xgboost.XGBClassifier(base_score=0.5, **settings).fit(X, y)
    raw = ours.predict(X, output_margin=True)
    assert raw == pytest.approx(own.predict(X, output_margin=True), abs=1e-5)


class Scaled(BoostingObjective):
    """As the libraries do, times a factor."""

    factor = 1.0

    def __call__(self, *arguments):
        gradient, hessian = super().__call__(*arguments)
        return gradient, self.factor * hessian


def test_several_classes_are_the_libraries_own_but_for_their_factor():
    """Oracle: multiclass and multi:softprob, whose second derivatives are K/(K − 1) and 2 times
    the log loss's. Break: scores by class in the wrong order."""
    X, y = DIGITS
    data = lightgbm.Dataset(X, y, free_raw_data=False)
    settings = {"num_class": 10, "verbose": -1, "num_threads": 1, "boost_from_average": False}
    objective = Scaled("cross_entropy", 10)
    objective.factor = 10 / 9
    ours = lightgbm.train({"objective": objective.lightgbm, **settings}, data, 5)
    own = lightgbm.train({"objective": "multiclass", **settings}, data, 5)
    assert ours.predict(X, raw_score=True) == pytest.approx(
        own.predict(X, raw_score=True), abs=1e-6
    )

    objective.factor = 2.0
    data = xgboost.DMatrix(X, y)
    settings = {"num_class": 10, "base_score": 0.0, "nthread": 1, "disable_default_eval_metric": 1}
    ours = xgboost.train(settings, data, 5, obj=objective.xgboost)
    own = xgboost.train({**settings, "objective": "multi:softprob"}, data, 5)
    ours, own = (booster.predict(data, output_margin=True) for booster in (ours, own))
    assert ours == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize("loss", ["encouraging", lambda a: torch.relu(1 - a).square()])
def test_other_losses_learn_in_both(loss):
    """Oracle: labels that were never seen. Break: a booster that gets a negative Hessian."""
    X, y = DIGITS
    seen, unseen = slice(None, 1200), slice(1200, None)
    objective = BoostingObjective(loss, 10)
    settings = {"n_estimators": 20, "n_jobs": 1}
    first = lightgbm.LGBMClassifier(objective=objective, verbose=-1, **settings)
    raw = first.fit(X[seen], y[seen]).predict(X[unseen], raw_score=True)
    assert (raw.argmax(1) == y[unseen]).mean() > 0.8
    second = xgboost.XGBClassifier(objective=objective, max_depth=4, **settings)
    raw = second.fit(X[seen], y[seen]).predict(X[unseen], output_margin=True)
    assert (raw.argmax(1) == y[unseen]).mean() > 0.8


@pytest.mark.parametrize(("classes", "data"), [(2, CANCER), (10, DIGITS)])
def test_who_predicts_what(classes, data):
    """Oracle: the softmax of the raw scores. Break: what docs/integrations.md says of either
    library no longer true; probabilities put through a softmax again."""
    X, y = data
    objective = BoostingObjective("encouraging", classes)
    settings = {"n_estimators": 5, "n_jobs": 1}
    boosted = xgboost.XGBClassifier(objective=objective, max_depth=3, **settings).fit(X, y)
    p = objective.probabilities(boosted.predict(X, output_margin=True))
    assert boosted.predict_proba(X) == pytest.approx(p, abs=1e-6)
    assert (boosted.predict(X) == p.argmax(1)).all()
    trees = lightgbm.LGBMClassifier(objective=objective, verbose=-1, **settings).fit(X, y)
    raw = trees.predict(X, raw_score=True)
    assert trees.predict_proba(X) == pytest.approx(raw)
    assert objective.probabilities(raw).sum(axis=1) == pytest.approx(1)


def test_weights_of_a_data_set_are_heard():
    """Oracle: each row as often as its weight says."""
    X, y = CANCER
    weight = np.random.default_rng(0).integers(1, 4, len(y))
    objective = BoostingObjective("encouraging", 2)
    settings = {"verbose": -1, "num_threads": 1, "min_data_in_leaf": 1, "min_data_in_bin": 1,
                "min_sum_hessian_in_leaf": 1e-3, "enable_bundle": False,
                "bin_construct_cnt": len(y), "max_bin": 1000}  # fmt: skip
    data = lightgbm.Dataset(X, y, weight=weight)
    once = lightgbm.train({"objective": objective.lightgbm, **settings}, data, 5)
    many = lightgbm.Dataset(np.repeat(X, weight, 0), np.repeat(y, weight))
    often = lightgbm.train({"objective": objective.lightgbm, **settings}, many, 5)
    assert once.predict(X) == pytest.approx(often.predict(X), abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BoostingObjective("cross_entropy", 1), "num_classes to be a whole number"),
        (lambda: BoostingObjective("cross_entropy", 2, least=0), "least to be above 0"),
        (lambda: BoostingObjective("mixed(focus=phases(0, 0.5))", 3), "without a schedule"),
        (lambda: BoostingObjective("ldam(focal(gamma=ramp(0, 2)), counts=[2, 1])", 2), "schedule"),
        (
            lambda: BoostingObjective("reweighted(focal, counts=[2, 1], start=0.8)", 2),
            "without a schedule",
        ),
        (lambda: BoostingObjective("complement_objective(cross_entropy)", 3), "alternates steps"),
        (lambda: BoostingObjective(losslab.FocalLoss(), 3), "reduction='sum'"),
        (lambda: BoostingObjective("focal", 3)([0, 3], np.zeros((2, 3))), r"0 … 2.*\[0, 3\]"),
        (lambda: BoostingObjective("focal", 3)([0, 0.5], np.zeros((2, 3))), "whole numbers"),
        (lambda: BoostingObjective("focal", 3)([0, 1], np.zeros(2)), r"shape \(2, 3\)"),
        (lambda: BoostingObjective("focal", 2)([0, 1], np.zeros((2, 2))), r"shape \(2,\)"),
    ],
)
def test_bad_requests(make, message):
    """Break: a silent broadcast, or numbers of another loss."""
    with pytest.raises(InputError, match=message):
        make()
