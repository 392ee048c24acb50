"""Long tails: the published class sizes, accuracies by group, and losses that know the counts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import losslab
from losslab import metrics
from losslab.errors import InputError
from losslab.experiment.plan import Comparison, make_plan, with_counts
from losslab.experiment.task import tensors_of
from losslab.experiment.tasks.build import build_task
from losslab.experiment.tasks.long_tail import exponential_counts, thinned
from losslab.experiment.tasks.options import TaskOptions
from losslab.experiment.train import train
from losslab.metrics.shots import shot_metrics

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("largest", "classes", "ratio", "published"),
    [
        # The sizes that the code of Cao et al. (LDAM-DRW) makes of CIFAR-10.
        (5000, 10, 100, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        (5000, 10, 10, [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500]),
    ],
)
def test_published_sizes(largest, classes, ratio, published):
    """Oracle: the published sizes. An exponent over C in place of C − 1 fails."""
    assert exponential_counts(largest, classes, ratio) == published


def test_cifar100_lt_has_its_total():
    """Oracle: 10,847 images, as papers state of CIFAR-100-LT with ρ = 100."""
    assert sum(exponential_counts(500, 100, 100)) == 10_847


def digits(**options):
    return build_task("digits", TaskOptions(epochs=2, **options))


def test_the_tail_is_taken_out_of_the_training_split_alone():
    """Oracle: the whole task. Test examples that go, examples that are others, or another seed's
    choice without a change fail."""
    whole, tail = digits(), digits(imbalance=10)
    sizes = np.bincount(tensors_of(tail.train)[1])
    largest = int(np.bincount(tensors_of(whole.train)[1]).max())
    assert sizes.tolist() == [
        min(a, b)
        for a, b in zip(
            exponential_counts(largest, 10, 10),
            np.bincount(tensors_of(whole.train)[1]),
            strict=True,
        )
    ]
    rows = {(*x.flatten().tolist(), int(y)) for x, y in whole.train}
    assert {(*x.flatten().tolist(), int(y)) for x, y in tail.train} <= rows
    for split in ("validation", "test"):
        for one, other in zip(
            tensors_of(getattr(whole, split)), tensors_of(getattr(tail, split)), strict=True
        ):
            assert torch.equal(one, other)
    assert tail.description["class_counts"]["train"] == sizes.tolist()
    assert tail.description["sha256"] != whole.description["sha256"]
    assert tail.description["preprocessing"] == whole.description["preprocessing"]


def test_a_smaller_tail_is_part_of_a_larger_one_and_hangs_on_the_seed():
    """By hand: nested choices, another seed another choice."""
    data = TensorDataset(torch.arange(40.0)[:, None], torch.arange(40) % 2)
    task = losslab.experiment.Task(
        name="t", train=data, validation=data, test=data, num_classes=2,
        model=lambda: torch.nn.Linear(1, 2), optimizer=torch.optim.SGD, epochs=1, batch_size=4,
    )  # fmt: skip

    def chosen(counts, seed=0):
        return set(tensors_of(thinned(task, counts, seed).train)[0].flatten().tolist())

    assert chosen([20, 5]) < chosen([20, 9]) and len(chosen([20, 5])) == 25
    assert chosen([20, 5], seed=1) != chosen([20, 5])
    assert len(chosen([99, 5])) == 25  # a class has what it has


def test_a_list_of_counts_is_followed():
    """Oracle: the list. Break: classes in another order; a count that adds examples; a run that
    does not notice another list."""
    wanted = [30, 25, 20, 15, 12, 10, 8, 5, 2, 5000]
    task = digits(class_counts=wanted)
    found = torch.bincount(tensors_of(task.train)[1], minlength=10).tolist()
    assert found[:9] == wanted[:9] and 100 < found[9] < 200
    assert task.description["class_sizes"] == found
    assert task.description["sha256"] != digits(class_counts=wanted[::-1]).description["sha256"]
    assert {"accuracy_many", "accuracy_medium", "accuracy_few"} == {m.name for m in task.metrics}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_counts": [5, 5]}, "class_counts to be 10 numbers, one a class, but got 2: 5, 5"),
        ({"class_counts": [5] * 9 + [0]}, "whole numbers of at least 1"),
        ({"class_counts": "5"}, "must be a list of whole numbers"),
        ({"class_counts": 5}, "must be a list of whole numbers"),
        ({"class_counts": [5] * 10, "imbalance": 10.0}, "leave one out"),
    ],
)
def test_counts_that_cannot_be(options, message):
    """Break: a list that is cut or filled up in silence."""
    with pytest.raises(InputError, match=message):
        digits(**options)


@pytest.mark.parametrize("form", ["90,30,9,9,9,9,9,9,9,9", "90 30 9\n9 9 9 9 9 9, 9\n"])
def test_counts_on_the_command_line(form, tmp_path, command):
    """Oracle: the classes' numbers in the record. Break: a file that is not read, or a slip that
    ends in a traceback."""
    given = form
    if "\n" in form:
        given = str(tmp_path / "counts.txt")
        (tmp_path / "counts.txt").write_text(form)
    words = ["compare", "--task", "digits", "--epochs", "1", "--seeds", "3", "--quiet", "--out",
             str(tmp_path / "runs"), "--loss", "cross_entropy", "--loss", "focal"]  # fmt: skip
    status, _, err = command(*words, "--class-counts", given)
    assert status == 0, err
    stored = json.loads((tmp_path / "runs" / "comparison.json").read_text())["task"]
    assert stored["class_sizes"] == [90, 30] + [9] * 8
    status, _, err = command(*words, "--class-counts", "90;30")
    assert status == 2 and "--class-counts must be whole numbers" in err


def test_accuracies_by_group():
    """Oracle: means by hand over the classes' examples. A threshold on the wrong side (100 and 20
    are medium) fails."""
    rows = {m.name: m for m in shot_metrics([101, 100, 20, 19])}
    assert list(rows) == ["accuracy_many", "accuracy_medium", "accuracy_few"]
    target = torch.tensor([0, 0, 1, 1, 2, 2, 3])
    guess = torch.tensor([0, 1, 1, 1, 2, 1, 0])
    kept = metrics.examples(torch.eye(4)[guess], target)
    found = {name: row.measured(kept) for name, row in rows.items()}
    assert found == pytest.approx(
        {"accuracy_many": 1 / 2, "accuracy_medium": 3 / 4, "accuracy_few": 0.0}
    )
    assert [m.name for m in shot_metrics([500, 200])] == ["accuracy_many"]


def test_group_accuracies_are_recorded():
    """Oracle: the model asked by hand."""
    task = digits(imbalance=20)
    result = train(task, losslab.loss("encouraging"), seed=0)
    inputs, target = tensors_of(task.test)
    with torch.no_grad():
        hits = result.model(inputs).argmax(1) == target
    sizes = torch.bincount(tensors_of(task.train)[1], minlength=10)
    few = (sizes < 20)[target]
    recorded = result.results["last"]["test"]
    assert recorded["accuracy_few"] == pytest.approx(hits[few].double().mean().item())
    assert {m.name for m in task.metrics} <= recorded.keys()


@pytest.mark.parametrize("method", ["effective_number", "inverse_frequency"])
def test_reweighted_is_the_loss_with_deferred_weights(method):
    """Oracle: PyTorch's cross_entropy without and with class weights. Weights before the start, or
    not after it, or of another method fail."""
    counts, start = [90, 10, 30], 0.8
    loss = losslab.loss(
        f"reweighted(cross_entropy, counts={counts}, method={method}, beta=0.99, start={start})"
    )
    logits = torch.randn(12, 3, dtype=torch.float64, requires_grad=True)
    target = torch.arange(12) % 3
    weights = losslab.class_weights(counts, method, beta=0.99).double()
    loss.double()
    for progress, weight in ((0.0, None), (0.79, None), (0.8, weights), (1.0, weights)):
        loss.set_progress(progress)
        expected = torch.nn.functional.cross_entropy(logits, target, weight=weight)
        torch.testing.assert_close(loss(logits, target), expected)
        mine, its = (
            torch.autograd.grad(value, logits, retain_graph=True)[0]
            for value in (loss(logits, target), expected)
        )
        torch.testing.assert_close(mine, its)
    assert losslab.loss(loss.spec).spec == loss.spec


def test_reweighted_goes_into_sums_and_other_wrappers_and_leaves_the_loss_alone():
    """Oracle: the terms weighted by hand; the given loss keeps its own weights."""
    counts = [5, 1]
    weights = losslab.class_weights(counts, "effective_number")
    logits, target = torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 1, 0])
    whole = losslab.loss(f"reweighted(cross_entropy + 0.5*expectation, counts={counts})")
    parts = [losslab.loss(s, weight=weights) for s in ("cross_entropy", "expectation")]
    expected = parts[0](logits, target) + 0.5 * parts[1](logits, target)
    torch.testing.assert_close(whole(logits, target), expected)
    inner = losslab.CrossEntropyLoss()
    losslab.ReweightedLoss(inner, counts=counts)
    assert inner.weight is None
    both = losslab.loss(f"ldam(reweighted(focal, counts={counts}, start=0.5), counts={counts})")
    both.set_progress(0.5)
    torch.testing.assert_close(both.loss.loss.weight, weights)
    with pytest.raises(InputError, match="Put reweighted inside the other wrapper"):
        losslab.loss(f"reweighted(ldam(focal, counts={counts}), counts={counts})")


def test_counts_of_the_training_split_stand_for_themselves(tmp_path):
    """Oracle: counting. The records hold the numbers, so that other data are another run."""
    task = digits(imbalance=10)
    sizes = torch.bincount(tensors_of(task.train)[1]).tolist()
    spec = "logit_adjustment(cross_entropy, counts=train)"
    plan = make_plan(Comparison(task, [("CE", "cross_entropy"), ("LA", spec)], tmp_path, seeds=[0]))
    found = {arm["label"]: arm["spec"] for arm in plan.configuration["losses"]}
    assert found["LA"] == f"logit_adjustment(cross_entropy, counts={sizes}, tau=1)"
    assert with_counts("ldam(focal, counts = train)", [2, 1]) == "ldam(focal, counts=[2, 1])"


@pytest.mark.parametrize("imbalance", [1, 0.5, float("inf"), float("nan")])
def test_an_imbalance_that_is_none_is_refused(imbalance):
    with pytest.raises(InputError, match="imbalance must be a number above 1"):
        digits(imbalance=imbalance)


def test_a_class_without_examples_is_refused():
    with pytest.raises(InputError, match="Make imbalance smaller"):
        digits(imbalance=100_000)
