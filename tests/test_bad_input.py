"""Bad input to every analysis and metric: a clear error or a stated rule, never a silent number."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.functional.classification import multiclass_calibration_error

from losslab import metrics
from losslab.analysis.analyse import ANALYSES, analyse, request
from losslab.analysis.finding import Finding
from losslab.analysis.subject import Subject
from losslab.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")

ASKED = {
    "margins": "margins",
    "energies": "energies",
    "gradients": "gradients",
    "calibration": "calibration",
    "generalisation": "generalisation",
    "ood": "ood",
    "robustness": "robustness(epsilons=0.1,epsilons_l2=0.3,examples=30,steps=3)",
    "representation": "representation(epochs=1)",
    "curvature": "curvature(examples=20,probes=4)",
}
every_analysis = pytest.mark.parametrize("name", ASKED)


def test_no_analysis_is_missing_here():
    """Oracle: the analyses that there are; dynamics asks no model, see test_dynamics."""
    assert {*ASKED, "dynamics"} == set(ANALYSES)


class Wrapped(nn.Module):
    """A model whose logits are handed out in another way."""

    def __init__(self, body: nn.Module, hand_out: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.hand_out = body, hand_out

    def forward(self, inputs: Tensor) -> Any:
        return self.hand_out(self.body(inputs))


def body() -> nn.Sequential:
    """With batch statistics and dropout, which evaluation mode does without."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(25, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5),
        nn.Linear(8, 3),
    )  # fmt: skip


def part(rows: int, seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(rows, 1, 5, 5, generator=generator)
    return inputs, torch.randint(classes, (rows,), generator=generator)


def subject(model: nn.Module, change: Callable = lambda x, y: (x, y)) -> Subject:
    splits = (change(*part(rows, seed)) for seed, rows in enumerate((40, 30, 30)))
    return Subject(model, nn.CrossEntropyLoss(), *splits)


@pytest.fixture(autouse=True)
def few_queries(monkeypatch):
    """Random search is as good here with less."""
    monkeypatch.setattr("losslab.analysis.robustness.QUERIES", 20)


def ask(name: str, about: Subject) -> Finding:
    return analyse(about, request(ASKED[name]))


# ---- what a model returns --------------------------------------------------------------------


@every_analysis
@pytest.mark.parametrize(
    ("hand_out", "told"),
    [
        (lambda z: (z, z), "it returns a tuple of 2; wrap it"),
        (lambda z: [z], "it returns a list of 1; wrap it"),
        (lambda z: {"out": z, "loss": None}, "it returns a dict with out, loss; wrap it"),
        (lambda z: SimpleNamespace(out=z), "it returns SimpleNamespace; wrap it"),
        (lambda z: {"logits": (z,)}, "it returns a tuple of 1; wrap it"),
        (lambda z: z[:, :, None], r"logits of shape \(\d+, classes\) for"),
        (lambda z: z[:-1], r"logits of shape \(\d+, classes\) for"),
        (lambda z: z.argmax(1), r"logits of shape \(\d+, classes\) for"),
        (lambda z: z.round().long(), r"logits of shape .* torch\.int64"),
    ],
    ids=["tuple", "list", "dict", "object", "logits in a tuple", "3d", "short", "classes", "int"],
)
def test_outputs_that_are_no_logits_are_refused(name, hand_out, told):
    """Oracle: the message. Break: the first of a tuple or the only value of a dict taken."""
    with pytest.raises(InputError, match=f"^{name}: Expected the model to return .*{told}"):
        ask(name, subject(Wrapped(body(), hand_out)))


@every_analysis
@pytest.mark.parametrize(
    "hand_out",
    [lambda z: {"loss": None, "logits": z}, lambda z: SimpleNamespace(loss=None, logits=z)],
    ids=["dict", "object"],
)
def test_logits_by_name_are_the_models_own(name, hand_out):
    """Oracle: the model that returns them bare. Break: another entry, or a graph that is cut."""
    bare = ask(name, subject(Wrapped(body(), lambda z: z)))
    assert ask(name, subject(Wrapped(body(), hand_out))) == bare


@every_analysis
def test_a_model_in_training_mode_is_measured_in_evaluation_mode_and_left_alone(name):
    """Oracle: the model in evaluation mode; copies. Break: dropout or batch statistics in a
    measurement, statistics that moved, modes lost, gradients left behind."""
    resting, training = body().eval(), body().train()
    training[2].eval()  # one of its own mode
    state = copy.deepcopy(training.state_dict())
    assert ask(name, subject(training)) == ask(name, subject(resting))
    assert [m.training for m in training] == [True, True, False, True, True, True]
    assert training.training and not any(m.training for m in resting.modules())
    assert all(torch.equal(v, state[k]) for k, v in training.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in training.parameters())


@every_analysis
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(name, bad):
    """Oracle: the message. Break: a NaN that counts as wrong, as robust or as out of distribution;
    a mean over the rest."""
    model = body()
    with torch.no_grad():
        model[-1].bias[1] = bad
    with pytest.raises(InputError) as caught:
        ask(name, subject(model))
    if name != "representation":  # which looks for the layer that makes the logits first
        assert "finite" in str(caught.value)


# ---- what the examples are -------------------------------------------------------------------


@every_analysis
@pytest.mark.parametrize("highest", [0, 1], ids=["a single class", "one class missing"])
def test_classes_that_do_not_occur(name, highest):
    """Oracle: the rule: what can be said is said of the classes that occur, and is finite; a probe
    of a single class is refused. Break: a NaN, a division by no example, a class less."""
    about = subject(body(), lambda x, y: (x, y.clamp(max=highest)))
    if name == "representation" and highest == 0:
        with pytest.raises(InputError, match=r"at least two classes .* all are of class 0"):
            ask(name, about)
        return
    found = ask(name, about)
    assert found.values and all(map(math.isfinite, found.values.values()))


@every_analysis
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x, y: (x, y + 1), r"target in \[0, 2\], but they lie in \[1, 3\]"),
        (lambda x, y: (x, y - 100), r"target in \[0, 2\].* leave out rows to be ignored"),
    ],
    ids=["too large", "ignored"],
)
def test_targets_that_are_no_classes_are_refused(name, change, told):
    """Oracle: the message. Break: an index error, or rows that are left out without a word. OOD
    detection asks for no targets."""
    if name == "ood":
        assert ask(name, subject(body(), change)) == ask(name, subject(body()))
        return
    with pytest.raises(InputError, match=told):
        ask(name, subject(body(), change))


@every_analysis
@pytest.mark.parametrize("loader", [False, True])
def test_data_in_any_form_are_the_same(name, loader):
    """Oracle: two tensors. Break: a batch lost, an order that matters. Of a loader's examples
    robustness takes the first, here all."""

    def form(x: Tensor, y: Tensor) -> DataLoader | TensorDataset:
        return DataLoader(TensorDataset(x, y), 7) if loader else TensorDataset(x, y)

    given, truth = (ask(name, subject(body(), f)) for f in (form, lambda x, y: (x, y)))
    assert given.values == pytest.approx(truth.values, rel=1e-4, abs=1e-6)


@every_analysis
@pytest.mark.parametrize("lacking", ["inputs", "targets", "both"])
def test_no_examples_or_targets_too_few_are_refused(name, lacking):
    """Oracle: the message. Break: a mean of nothing, or inputs that lose their targets."""

    def change(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x[: 0 if lacking != "targets" else None], y[: 0 if lacking == "both" else -1]

    with pytest.raises(InputError, match=r"at least one.*, but got \d+ inputs and"):
        ask(name, subject(body(), change))


@every_analysis
def test_examples_that_are_no_pairs_are_refused(name):
    """Oracle: the message. Break: the second of three taken for the target."""
    about = subject(body(), lambda x, y: TensorDataset(x, y, y))
    with pytest.raises(InputError, match=r"\(input, target\) pairs, but a batch is a \w+ of 3"):
        ask(name, about)


@every_analysis
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_callers_gradient_mode_does_not_matter(name, mode):
    """Oracle: the same call outside. Break: under ``inference_mode`` no gradient is recorded, and
    a sound model looks masked, or flat."""
    outside = ask(name, subject(body()))
    about = subject(body())
    with mode():
        assert ask(name, about) == outside
        assert not torch.is_grad_enabled()


# ---- metrics of classes that do not occur -----------------------------------------------------


@pytest.mark.parametrize("present", [(2,), (0, 2)], ids=["a single class", "one class missing"])
def test_metrics_of_classes_that_do_not_occur(present):
    """Oracle: scikit-learn, torchmetrics and NumPy, told of all classes. Break: a mean over the
    classes where all count, or over all where those that occur count; a class less."""
    classes, rows = 4, 60
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    target = torch.tensor(present)[torch.arange(rows) % len(present)]
    p, y = logits.softmax(1).numpy(), target.numpy()
    hits, pairs = p.argmax(1) == y, list(zip(logits.numpy(), y, strict=True))
    found = metrics.evaluate(logits, target)
    truth = {
        "accuracy": accuracy_score(y, p.argmax(1)),
        "balanced_accuracy": np.mean([hits[y == c].mean() for c in present]),
        "nll": log_loss(y, p, labels=range(classes)),
        "brier": sum(brier_score_loss(y == c, p[:, c], pos_label=True) for c in range(classes)),
        "margin": np.mean([z[k] - np.delete(z, k).max() for z, k in pairs]),
        "energy": -np.mean(logits.numpy()[np.arange(rows), y]),
    }
    assert {name: found[name] for name in truth} == pytest.approx(truth, rel=1e-12)
    theirs = multiclass_calibration_error(logits.softmax(1), target, classes, n_bins=metrics.BINS)
    assert found["ece"] == pytest.approx(theirs.item(), rel=1e-5)
    parts = metrics.brier_decomposition(logits, target)
    shares = np.bincount(y, minlength=classes) / rows
    assert parts.uncertainty.item() == pytest.approx(sum(shares * (1 - shares)), abs=1e-15)
    total = parts.reliability - parts.resolution + parts.uncertainty
    total += parts.within_variance - parts.within_covariance
    assert total.item() == pytest.approx(truth["brier"], rel=1e-12)
    by_class = metrics.classwise_ece(logits, target, 1, per_class=True)  # one bin: mean p − share
    np.testing.assert_allclose(by_class, np.abs(p.mean(0) - shares), rtol=1e-12)
    energies = metrics.class_energies(logits, target)
    assert energies.table.isnan().all(1).tolist() == [c not in present for c in range(classes)]
    for spread in (*metrics.margins(logits, target), *metrics.conditional_energies(logits, target)):
        assert spread.examples == rows and math.isfinite(spread.mean)


def test_a_temperature_needs_no_more_than_one_class():
    """Oracle: by hand: confidence σ(4/T) in class 1 is right ¾ of the time, so 4/T = log 3; and
    all right, there is none."""
    logits = torch.tensor([[0.0, 4.0], [0.0, 4.0], [0.0, 4.0], [4.0, 0.0]])
    target = torch.ones(4, dtype=torch.int64)
    assert metrics.fit_temperature(logits, target) == pytest.approx(4 / math.log(3), rel=1e-12)
    with pytest.raises(InputError, match="best temperature is 0"):
        metrics.fit_temperature(logits[:3], target[:3])
