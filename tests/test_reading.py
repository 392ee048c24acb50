"""Tasks whose inputs are no single tensor, or whose model answers more than one row an example."""

from __future__ import annotations

import math
import warnings
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

import losslab
from losslab import metrics
from losslab.analysis.analyse import request
from losslab.errors import InputError
from losslab.experiment.batched import Member, why_not
from losslab.experiment.batches import Batches, own_randomness
from losslab.experiment.checkpoint import Checkpoint
from losslab.experiment.findings import load_findings, load_model
from losslab.experiment.launch import Training
from losslab.experiment.plan import Comparison, yardsticks
from losslab.experiment.records import load_all
from losslab.experiment.runner import run
from losslab.experiment.summary import summarize_folder
from losslab.experiment.task import Task
from losslab.experiment.train import Stopped, train
from losslab.inputs import length, moved, taken
from losslab.reading import Reading, TokenReading

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS, LENGTH = 7, 5


def sentences(count: int, seed: int) -> TensorDataset:
    """Each word is followed by the next number; some ends are padding, which is ignored."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(0, WORDS, (count, 1), generator=generator)
    words = (first + torch.arange(LENGTH + 1)) % WORDS
    target = words[:, 1:].clone()
    for row, end in enumerate(torch.randint(2, LENGTH + 1, (count,), generator=generator)):
        target[row, end:] = -100
    return TensorDataset(words[:, :-1].contiguous(), target)


def tokens_task(**changes) -> Task:
    settings = {
        "name": "tokens",
        "train": sentences(33, 1),
        "validation": sentences(12, 2),
        "test": sentences(15, 3),
        "num_classes": WORDS,
        "model": lambda: nn.Sequential(nn.Embedding(WORDS, 6), nn.Linear(6, WORDS)),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.9),
        "epochs": 3,
        "batch_size": 8,
        "reading": TokenReading(),
    }
    return Task(**(settings | changes))


class Listed(torch.utils.data.Dataset):
    """The rows of a `TensorDataset` as examples of a form of their own."""

    def __init__(self, data: TensorDataset, form) -> None:
        self.rows = [form(*pair) for pair in data]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return self.rows[index]


def test_tokens_are_learned_by_the_mean_over_the_batchs_tokens():
    """Oracle: the loop by hand with PyTorch's cross_entropy and its ignore_index, on the batches
    that the run drew. A mean over sentences, or padding that counts, changes the weights."""
    seen = []

    class Noting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Embedding(WORDS, 6), nn.Linear(6, WORDS))
            self.initial = {k: v.clone() for k, v in self.body.state_dict().items()}

        def forward(self, inputs):
            if self.training:
                seen.append(inputs.clone())
            return self.body(inputs)

    task = tokens_task(model=Noting)
    result = train(task, losslab.loss("cross_entropy"), seed=4)
    model = nn.Sequential(nn.Embedding(WORDS, 6), nn.Linear(6, WORDS))
    model.load_state_dict(result.model.initial)
    optimizer = task.optimizer(model.parameters())
    with own_randomness(torch.device("cpu")) as reseed:
        batches = Batches(task, 4, torch.device("cpu"), reseed)
        drawn = [batch for _ in range(task.epochs) for batch in batches]
    for inputs, target in drawn:
        optimizer.zero_grad()
        logits = model(inputs).transpose(1, 2)
        nn.functional.cross_entropy(logits, target, ignore_index=-100).backward()
        optimizer.step()
    assert all(torch.equal(mine, batch[0]) for mine, batch in zip(seen, drawn, strict=True))
    for mine, hand in zip(result.model.body.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, hand, rtol=1e-5, atol=1e-6)


def test_tokens_are_measured_without_padding():
    """Oracle: the metrics of the flat logits. Padding that counts changes every number."""
    task = tokens_task()
    result = train(task, losslab.loss("encouraging"), seed=1)
    inputs, target = task.test.tensors
    with torch.no_grad():
        logits = result.model(inputs)
    kept = target != -100
    expected = metrics.evaluate(logits[kept], target[kept])
    found = result.results["last"]["test"]
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert len(result.examples["log_odds"]) == int(kept.sum())


def test_a_batch_without_a_row_is_measured_as_nothing():
    """Oracle: the data without its sentences of padding, which fill a batch. Metrics of no row
    would be refused."""
    data = sentences(12, 2)
    words, target = (torch.cat([part, part[:8]]) for part in data.tensors)
    target[-8:] = -100
    full = Listed(TensorDataset(words, target), lambda *pair: pair)  # the last 4 fill a batch
    padded = train(tokens_task(validation=full), losslab.loss("cross_entropy"), seed=1)
    plain = train(tokens_task(validation=data), losslab.loss("cross_entropy"), seed=1)
    found, expected = (run.results["last"]["validation"] for run in (padded, plain))
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spec", ["cross_entropy", "encouraging", "mixed(focus=0.3)"])
def test_tokens_in_pieces_have_the_gradient_of_the_batch(spec):
    """Oracle: the run without pieces. Weights by sentences in place of tokens would differ."""
    whole = train(tokens_task(), losslab.loss(spec), seed=2)
    pieces = train(tokens_task(), losslab.loss(spec), seed=2, training=Training(accumulate=3))
    for one, other in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_a_readings_own_normalisation_holds_in_pieces_too():
    """Oracle: the run without pieces, of a loss divided by the labels above 2. Without `size` the
    pieces would be weighted by their rows."""

    class Positives(TokenReading):
        def size(self, target):
            return float((target > 2).sum())

        def loss(self, criterion, output, target):
            labels = self.labels(target)
            total = criterion(self.logits(output, target), labels) * len(labels)
            return total / (target > 2).sum()

    task = tokens_task(reading=Positives())
    whole = train(task, losslab.loss("focal"), seed=2)
    pieces = train(task, losslab.loss("focal"), seed=2, training=Training(accumulate=2))
    plain = train(tokens_task(), losslab.loss("focal"), seed=2)
    for one, other in zip(whole.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(next(whole.model.parameters()), next(plain.model.parameters()))


class Summing(nn.Module):
    """Takes a mapping of word numbers and lengths."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(WORDS, 6), nn.Linear(6, 2)

    def forward(self, inputs):
        keep = torch.arange(inputs["words"].shape[1]) < inputs["length"][:, None]
        return self.head((self.words(inputs["words"]) * keep[..., None]).sum(1))


def bags(count: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(0, WORDS, (count, LENGTH), generator=generator)
    return TensorDataset(words, (words[:, 0] > 2).long())


def bag(words, target):
    size = 1 + int(words[1]) % LENGTH
    return {"words": words[:size], "length": size}, target


def collate_bags(examples):
    longest = max(inputs["length"] for inputs, _ in examples)
    words = torch.zeros(len(examples), longest, dtype=torch.int64)
    for row, (inputs, _) in enumerate(examples):
        words[row, : inputs["length"]] = inputs["words"]
    sizes = torch.tensor([inputs["length"] for inputs, _ in examples])
    return {"words": words, "length": sizes}, torch.stack([y for _, y in examples])


def bags_task(**changes) -> Task:
    splits = {name: Listed(bags(n, n), bag) for name, n in (("train", 30), ("test", 14))}
    settings = {
        "name": "bags",
        **splits,
        "validation": splits["test"],
        "num_classes": 2,
        "model": Summing,
        "optimizer": lambda p: torch.optim.Adam(p, lr=0.02),
        "epochs": 3,
        "batch_size": 6,
        "collate": collate_bags,
    }
    return Task(**(settings | changes))


def test_structured_inputs_are_learned_and_measured():
    """Oracle: the same examples as one padded tensor with a model that knows the lengths."""
    result = train(bags_task(), losslab.loss("cross_entropy"), seed=3)
    inputs, target = collate_bags(bags_task().test.rows)
    with torch.no_grad():
        expected = metrics.evaluate(result.model(inputs), target)
    assert result.results["last"]["test"] == pytest.approx(expected, rel=1e-6)
    pieces = train(
        bags_task(), losslab.loss("cross_entropy"), seed=3, training=Training(accumulate=3)
    )
    for one, other in zip(result.model.parameters(), pieces.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_yardsticks_count_tokens():
    """Oracle: counting by numpy. Padding among the labels, or sentences for tokens, fail."""
    task = tokens_task()
    train_labels, test_labels = (
        split.tensors[1][split.tensors[1] >= 0].numpy() for split in (task.train, task.test)
    )
    commonest = np.bincount(train_labels).argmax()
    found = yardsticks(task)
    assert found["chance"]["class"] == commonest
    assert found["chance"]["accuracy"] == pytest.approx((test_labels == commonest).mean())
    assert found["resolution"]["accuracy"] == pytest.approx(1 / len(test_labels))
    listed = yardsticks(bags_task())
    target = np.array([int(y) for _, y in bags_task().test.rows])
    guess = np.bincount([int(y) for _, y in bags_task().train.rows]).argmax()
    balanced = sklearn.metrics.balanced_accuracy_score(target, np.full_like(target, guess))
    assert listed["chance"]["balanced_accuracy"] == pytest.approx(balanced)


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 10**6))
def test_more_metrics(classes, rows, seed):
    """Oracle: scikit-learn. A transposed table or another average would differ."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=generator)
    target = torch.randint(0, classes, (rows,), generator=generator)
    kept = metrics.examples(logits, target)
    y, guess = target.numpy(), logits.argmax(1).numpy()
    found = {name: metric.measured(kept) for name, metric in metrics.MORE.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of single labels
        matthews = sklearn.metrics.matthews_corrcoef(y, guess)
        one = sklearn.metrics.f1_score(y, guess, labels=[1], average=None, zero_division=0)[0]
        macro = sklearn.metrics.f1_score(y, guess, average="macro", zero_division=0)
    assert found["matthews"] == pytest.approx(matthews)
    assert found["f1"] == pytest.approx(one)
    assert found["f1_macro"] == pytest.approx(macro)


def test_a_row_without_a_prediction_counts_against_the_metrics():
    """A NaN row as a class of its own: F1 by hand from 1 hit, 1 miss, 1 row of nothing."""
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0], [math.nan, 0.0]])
    kept = metrics.examples(logits, torch.tensor([1, 1, 1]))
    assert metrics.MORE["f1"].measured(kept) == pytest.approx(2 * 1 / (3 + 1))


def test_tasks_metrics_are_recorded_with_the_models_own_scores():
    """Oracle: the metric by hand, and what the function returned. A score of another split or of
    another epoch's model fails."""
    asked = []

    def scores(model, split):
        asked.append((split, model.training, torch.is_grad_enabled()))
        return {"weights": sum(p.abs().sum().item() for p in model.parameters())}

    own = metrics.Metric("weights", "Sum of weights", None, "", 1.0)
    more = (metrics.MORE["f1_macro"], own)
    result = train(
        tokens_task(metrics=more, model_scores=scores), losslab.loss("cross_entropy"), seed=0
    )
    assert asked == [("validation", False, False), ("test", False, False)]
    total = sum(p.abs().sum().item() for p in result.model.parameters())
    last = result.results["last"]["test"]
    assert last["weights"] == pytest.approx(total)
    assert "weights" not in result.results["best_on_test"]["test"]
    inputs, target = tokens_task().test.tensors
    guess = result.model(inputs).argmax(2)[target >= 0]
    expected = sklearn.metrics.f1_score(target[target >= 0], guess, average="macro")
    assert last["f1_macro"] == pytest.approx(expected)


def test_the_mean_of_the_last_weights_is_measured_and_kept(tmp_path):
    """Oracle: runs of every length with one schedule, averaged by hand; and an interrupted run ends
    with the same bits. The last weights in place of their mean fail."""
    weights = []

    class Noting(nn.Sequential):
        def eval(self):
            weights.append([p.detach().clone() for p in self.parameters()])
            return super().eval()

    def model():
        return Noting(nn.Embedding(WORDS, 6), nn.Linear(6, WORDS))

    plain = train(tokens_task(epochs=4, model=model), losslab.loss("cross_entropy"), seed=5)
    of_epochs = {tuple(p[0].flatten().tolist()): p for p in weights}
    last = list(of_epochs.values())[-3:]
    averaged = train(tokens_task(epochs=4, average=3), losslab.loss("cross_entropy"), seed=5)
    for number, found in enumerate(averaged.model.parameters()):
        mean = torch.stack([parts[number] for parts in last]).mean(0)
        torch.testing.assert_close(found.detach(), mean, rtol=1e-5, atol=1e-7)
    inputs, target = tokens_task().test.tensors
    with torch.no_grad():
        logits = averaged.model(inputs)
    expected = metrics.evaluate(logits[target >= 0], target[target >= 0])
    assert averaged.results["last"]["test"] == pytest.approx(expected, rel=1e-6)
    assert plain.results["last"] != averaged.results["last"]

    place, calls = Checkpoint(tmp_path / "run.ckpt", every=0.0), iter(range(1000))
    task = tokens_task(epochs=4, average=3)
    with pytest.raises(Stopped):
        train(
            task,
            losslab.loss("cross_entropy"),
            seed=5,
            checkpoint=place,
            stop=lambda: next(calls) == 14,
        )
    resumed = train(task, losslab.loss("cross_entropy"), seed=5, checkpoint=place)
    for one, other in zip(averaged.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_kept_numbers_are_the_metrics_of_all_rows_at_once():
    """Oracle: the metrics on the whole. A number that hangs on its batch fails."""
    logits, target = torch.randn(50, 4, dtype=torch.float64), torch.arange(50) % 4
    parts = [metrics.examples(z, y) for z, y in zip(logits.split(7), target.split(7), strict=True)]
    assert metrics.evaluate_examples(metrics.joined(parts)) == metrics.evaluate(logits, target)
    assert metrics.evaluate(logits, target)["nll"] == pytest.approx(
        nn.functional.cross_entropy(logits, target).item()
    )


Pair = namedtuple("Pair", "left right")


def test_structures_are_gone_through():
    """By hand: every kind of structure, and what is refused."""
    tensor = torch.arange(6).view(3, 2)
    value = {"a": (tensor, [tensor]), "b": Pair(tensor, tensor)}
    found = taken(value, slice(1, 3))
    assert found["a"][0].tolist() == [[2, 3], [4, 5]] == found["b"].right.tolist()
    assert isinstance(found["b"], Pair) and length(value) == 3
    assert moved({"a": "text", "b": tensor}, "meta")["b"].device.type == "meta"
    with pytest.raises(InputError, match="made of tensors"):
        taken({"a": "text"}, slice(0, 1))


def test_what_tasks_refuse():
    """Messages name what was expected, what came, and what to do."""
    floats = type("Floats", (TokenReading,), {"labels": lambda self, target: target.float()})
    with pytest.raises(InputError, match=r"reading must make labels .* got float32"):
        tokens_task(reading=floats())
    with pytest.raises(InputError, match=r"targets must be class numbers.*got int64 of shape"):
        tokens_task(reading=Reading())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"average": 4}, "average must be a whole number of last epochs, from 1 to epochs"),
        ({"average": 2, "patience": 1}, "average and patience exclude each other"),
        ({"metrics": (metrics.Metric("accuracy", "A"),)}, "names of their own"),
        ({"metrics": (metrics.Metric("bleu", "BLEU"),)}, "expected model_scores together"),
        ({"model_scores": lambda model, split: {}}, "expected model_scores together"),
        ({"train": TensorDataset(torch.zeros(2, 2).long(), torch.full((2, 2), 9))}, "lie in 0..6"),
    ],
)
def test_a_task_that_cannot_be_is_refused(changes, message):
    with pytest.raises(InputError, match=message):
        tokens_task(**changes)


def test_models_that_answer_wrongly_are_refused():
    """The shape that came and the one expected are told."""
    with pytest.raises(InputError, match=r"\(examples, length, classes\)"):
        train(
            tokens_task(model=lambda: nn.Sequential(nn.Embedding(WORDS, WORDS), nn.Flatten())),
            losslab.loss("cross_entropy"),
            seed=0,
        )


def test_other_readings_are_not_stacked():
    """The many-runs engine knows rows of examples only, and says so."""
    members = [Member(losslab.loss("cross_entropy"), seed) for seed in range(4)]
    assert "one row of logits" in why_not(tokens_task(), members)
    assert why_not(
        tokens_task(
            reading=Reading(),
            train=bags(20, 1),
            validation=bags(9, 2),
            test=bags(9, 3),
            num_classes=2,
            average=2,
            model=lambda: nn.Sequential(nn.Flatten()),
        ),
        members,
    )


@pytest.mark.parametrize("selection", ["validation_selected", "best_on_test"])
def test_what_the_finished_model_alone_is_asked_has_no_other_epoch(tmp_path, selection):
    """Break: hours of training, and then no seed that has a BLEU at the epoch selected."""
    bleu = metrics.Metric("bleu", "BLEU", unit="")
    task = tokens_task(metrics=(bleu,), model_scores=lambda model, split: {"bleu": 1.0})
    losses = [("a", "cross_entropy"), ("b", "focal")]
    settings = {"out": tmp_path, "seeds": [0], "metric": "bleu"}
    Comparison(task, losses, **settings)
    with pytest.raises(InputError, match="selection 'last' with the metric 'bleu'"):
        Comparison(task, losses, **settings, selection=selection)


def test_a_comparison_is_judged_by_a_metric_of_the_task(tmp_path):
    """Oracle: the runs' own numbers. Another metric's differences, or a smaller-is-better one that
    is not turned round, fail."""
    rare = metrics.Metric("misses", "Misses", False, "", 2.0, lambda kept: (~kept["correct"]).sum())
    task = tokens_task(metrics=(metrics.MORE["f1_macro"], rare))
    comparison = Comparison(
        task,
        [("CE", "cross_entropy"), ("EL", "encouraging")],
        tmp_path,
        seeds=range(4),
        metric="misses",
    )
    summary = run(comparison)
    by_seed: dict[str, dict[int, float]] = {"CE": {}, "EL": {}}
    for record in load_all(tmp_path):
        score = record["results"]["last"]["test"]
        by_seed[record["loss"]["label"]][record["seed"]] = score["misses"]
    differences = [by_seed["CE"][seed] - by_seed["EL"][seed] for seed in range(4)]
    found = summary["comparisons"]["last"]["misses"]["EL"]
    assert found["mean"] == pytest.approx(np.mean(differences)) and found["n"] == 4
    assert summary["margins"]["misses"] == 2.0 and summary["margin"] == 2.0
    assert "f1_macro" in summary["comparisons"]["last"]
    assert summarize_folder(tmp_path)["comparisons"] == summary["comparisons"]
    with pytest.raises(InputError, match=r"metric to be one of .*misses, but got 'mises'"):
        Comparison(task, comparison.losses, tmp_path, seeds=[0], metric="mises")


def test_analyses_of_tokens(tmp_path):
    """Oracle: the metrics of the flat logits. Padding that counts, or sentences for tokens, fail;
    analyses that need one row an example are refused before the first run."""
    comparison = Comparison(
        tokens_task(),
        [("CE", "cross_entropy"), ("EL", "encouraging")],
        tmp_path,
        seeds=range(3),
        analyses=[request("margins"), request("dynamics"), request("gradients(split=train)")],
    )
    run(comparison)
    inputs, target = tokens_task().test.tensors
    for record in load_all(tmp_path):
        model, trace = load_model(tmp_path, record["run_id"], tokens_task())
        logits = model(inputs).detach()[target >= 0]
        found = load_findings(tmp_path, record["run_id"])
        margin = metrics.margin(logits, target[target >= 0]).mean().item()
        assert found["margins"]["values"]["logits.mean"] == pytest.approx(margin, rel=1e-5)
        assert trace["test"]["log_odds"].shape == (3, int((target >= 0).sum()))
    for name in ("generalisation", "robustness", "representation", "curvature", "ood"):
        with pytest.raises(InputError, match=f"{name}: expected a model that answers each example"):
            run(replace(comparison, analyses=[request(name)], out=tmp_path / name))


def test_analyses_of_structured_inputs(tmp_path):
    """Oracle: the model asked by hand on the collated examples."""
    comparison = Comparison(
        bags_task(),
        [("CE", "cross_entropy"), ("EL", "encouraging")],
        tmp_path,
        seeds=range(3),
        analyses=[request("margins"), request("generalisation")],
    )
    run(comparison)
    inputs, target = collate_bags(bags_task().test.rows)
    for record in load_all(tmp_path):
        model, _ = load_model(tmp_path, record["run_id"], bags_task())
        model.eval()
        expected = metrics.margin(model(inputs).detach(), target).mean().item()
        found = load_findings(tmp_path, record["run_id"])
        assert found["margins"]["values"]["logits.mean"] == pytest.approx(expected, rel=1e-5)
        accuracy = record["results"]["last"]["test"]["accuracy"]
        assert found["generalisation"]["values"]["test.accuracy"] == pytest.approx(accuracy)
