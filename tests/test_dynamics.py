"""What becomes of examples over the epochs: hand-counted cases, and how a run is followed."""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

import losslab
from losslab import metrics
from losslab.analysis.dynamics import cohorts, dynamics, events, generalisation, transitions
from losslab.errors import InputError
from losslab.experiment.batched import Member, train_together, why_not
from losslab.experiment.checkpoint import Checkpoint
from losslab.experiment.records import canonical_json
from losslab.experiment.task import Task
from losslab.experiment.train import Stopped, train
from losslab.report.analyses.words import title

pytestmark = pytest.mark.usefixtures("one_thread")

FEATURES, CLASSES = 5, 3
R, W = True, False
# Six examples, four epochs; a log-odds of −1 is p = 0.27 and −2 is p = 0.12.
LOG_ODDS = [
    [+1.0, -1.0, -2.0, -2.0, -1.0, -9.0],
    [+2.0, -1.0, -2.0, -1.0, +1.0, -9.0],
    [-1.0, +1.0, -2.0, +1.0, -2.0, -9.0],
    [+3.0, +2.0, -2.0, -1.0, +2.0, -9.0],
]
CORRECT = [
    [R, W, W, W, W, W],
    [R, W, W, W, R, W],
    [W, R, W, R, W, W],
    [R, R, W, W, R, W],
]


def wilson(right: int, n: int) -> tuple[float, float]:
    """Wilson's interval as its paper prints it."""
    z = 1.959963984540054
    share = right / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return middle - half, middle + half


def test_cohorts_counted_by_hand():
    """Oracle: the table above. Break: an epoch counted from 0, p compared as log-odds, the right
    ones among the cohorts of the wrong."""
    found = cohorts(LOG_ODDS, CORRECT, epoch=2)
    assert (found["right"].examples, found["right"].right) == (2, 2)  # 0 and 4
    assert (found["wrong_above"].examples, found["wrong_above"].right) == (2, 1)  # 1 and 3
    assert (found["wrong_below"].examples, found["wrong_below"].right) == (2, 0)  # 2 and 5
    for cohort in found.values():
        low, high = wilson(cohort.right, cohort.examples)
        assert (cohort.low, cohort.high) == pytest.approx((low, high), abs=1e-12)
    later = cohorts(LOG_ODDS, CORRECT, epoch=3)
    assert later["wrong_above"].examples == 1 and later["wrong_above"].share == 1
    assert later["wrong_below"].examples == 3 and later["wrong_below"].right == 1
    none_below = cohorts(LOG_ODDS, CORRECT, epoch=2, threshold=1e-6)
    assert none_below["wrong_below"].share is None and none_below["wrong_above"].examples == 4


def test_the_threshold_is_of_p():
    """Oracle: p = 0.2 is a = log(0.2/0.8). Break: p at the threshold counted below it."""
    at = math.log(0.2 / 0.8)
    log_odds = [[at, at - 1e-9, at + 1e-9], [0.0, 0.0, 0.0]]
    found = cohorts(log_odds, [[W] * 3, [W] * 3], epoch=1)
    assert found["wrong_above"].examples == 2 and found["wrong_below"].examples == 1


def test_transitions_counted_by_hand():
    """Oracle: the table above; rows are where examples were after epoch 2."""
    assert transitions(LOG_ODDS, CORRECT, epoch=2) == [[2, 0, 0], [1, 1, 0], [0, 0, 2]]
    assert transitions(LOG_ODDS, CORRECT, epoch=3) == [[1, 1, 0], [1, 0, 0], [1, 0, 2]]


def test_events_counted_by_hand():
    """Oracle: the table above."""
    found = events(CORRECT)
    assert found.learned.tolist() == [1, 2, 2]
    assert found.forgotten.tolist() == [0, 2, 1]
    assert found.forgettings.tolist() == [1, 0, 0, 1, 1, 0]
    assert found.ever_right.tolist() == [R, R, W, R, R, W]


def test_finding():
    """Oracle: the counts of the tests above, NLL by log(1 + e^−a), JSON's own strictness."""
    easier = {"log_odds": np.abs(LOG_ODDS), "correct": np.ones((4, 6), dtype=bool)}
    test = {"log_odds": torch.tensor(LOG_ODDS), "correct": torch.tensor(CORRECT)}
    found = dynamics({"train": easier, "test": test}, epoch=2)
    nll = {
        name: np.mean(np.log1p(np.exp(-np.asarray(arrays["log_odds"])[-1])))
        for name, arrays in (("train", easier), ("test", test))
    }
    assert found.values == pytest.approx(
        {
            "train.accuracy": 1, "train.right": 1, "train.learned": 0, "train.forgotten": 0,
            "train.never_right": 0,
            "test.accuracy": 3 / 6, "test.right": 1, "test.wrong_above": 1 / 2,
            "test.wrong_below": 0, "test.learned": 5 / 6, "test.forgotten": 3 / 6,
            "test.never_right": 2 / 6,
            "gap.accuracy": 3 / 6, "gap.nll": nll["test"] - nll["train"],
        },
        rel=1e-6,
    )  # fmt: skip
    split = found.details["splits"]["test"]
    assert (split["examples"], split["epochs"], split["epoch"]) == (6, 4, 2)
    assert split["accuracy"] == pytest.approx([1 / 6, 2 / 6, 2 / 6, 3 / 6])
    assert (split["never_right"], split["unforgettable"]) == (2, 1)
    assert split["examples_by_forgettings"] == [3, 3]
    assert split["cohorts"]["wrong_above"]["examples"] == 2
    (flag,) = found.flags
    assert flag.startswith("Cohorts of under 10 examples after epoch 2, whose shares say little: ")
    counts = [(name, split, one["examples"]) for split, of in found.details["splits"].items()
              for name, one in of["cohorts"].items()]  # fmt: skip
    for name, split, examples in counts:
        told = f"{title('dynamics', f'{split}.{name}')} {examples}"
        assert (told in flag) == (examples > 0)
    json.dumps(found.details, allow_nan=False)


def test_the_papers_epoch():
    """Oracle: 70 of 90. Break: another epoch, or the last itself, of which nothing can become."""
    log_odds, correct = np.zeros((90, 4)), np.ones((90, 4), dtype=bool)
    assert dynamics({"test": {"log_odds": log_odds, "correct": correct}}).details["splits"]["test"][
        "epoch"
    ] == 70  # fmt: skip
    for epochs, expected in ((2, 1), (3, 2), (9, 7), (1, None)):
        cut = {"log_odds": log_odds[:epochs], "correct": correct[:epochs]}
        found = dynamics({"test": cut})
        assert found.details["splits"]["test"]["epoch"] == expected
    assert set(found.values) == {"test.accuracy", "test.never_right"}  # of a single epoch


def test_the_papers_shares():
    """Oracle: the counts of Battash et al., "A Motivating Example": 95.58 (as they print it),
    38.46 and 3.35 %; 6482 of 6766 are 95.80 %."""
    sizes, rights = (6766, 611, 2623), (6482, 235, 88)
    log_odds = np.concatenate([np.full(n, a) for n, a in zip(sizes, (2, -1, -3), strict=True)])
    before = np.repeat([R, W, W], sizes)
    after = np.concatenate([np.arange(n) < k for n, k in zip(sizes, rights, strict=True)])
    found = cohorts([log_odds, log_odds], [before, after], epoch=1)
    shares = [round(100 * found[name].share, 2) for name in ("right", "wrong_above", "wrong_below")]
    assert shares == [95.80, 38.46, 3.35]


def test_mistakes_in_a_trace_are_told():
    """Oracle: the messages."""
    odds, hits = np.zeros((3, 2)), np.zeros((3, 2), dtype=bool)
    whole = {"log_odds": odds, "correct": hits}
    for told, trace, options in [
        ("at least one split", {}, {}),
        ("correct is missing", {"test": {"log_odds": odds}}, {}),
        (r"one shape .*\(3, 2\) and \(2, 2\)", {"test": whole | {"correct": hits[1:]}}, {}),
        ("true or false, but got float64", {"test": whole | {"correct": odds}}, {}),
        ("1 of 2 examples of test are NaN", {"test": whole | {"log_odds": odds * [1, np.nan]}}, {}),
        ("before the last of the trace's 3", {"test": whole}, {"epoch": 3}),
        ("before the last of the trace's 3", {"test": whole}, {"epoch": 0}),
        ("threshold to lie between 0 and 1", {"test": whole}, {"threshold": 1.0}),
        ("one shape", {"test": {"log_odds": odds[:, :0], "correct": hits[:, :0]}}, {}),
    ]:
        with pytest.raises(InputError, match=told):
            dynamics(trace, **options)


# ---- following a run -------------------------------------------------------------------------


def blobs(rows: int, seed: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(rows) % CLASSES
    centres = torch.eye(CLASSES, FEATURES)
    return TensorDataset(
        centres[target] + 1.5 * torch.randn(rows, FEATURES, generator=generator), target
    )


class Restless(nn.Module):
    """Draws from every global generator whenever it is called, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(FEATURES, 6), nn.BatchNorm1d(6), nn.ReLU())
        self.head = nn.Linear(6, CLASSES)

    def forward(self, inputs):
        jitter = torch.rand(()) + random.random() + np.random.rand()
        return self.head(nn.functional.dropout(self.body(inputs + jitter), 0.2, self.training))


class Jittered(Dataset):
    """Random transforms, drawn from every global generator."""

    def __init__(self, base: TensorDataset) -> None:
        self.base = base

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: int):
        inputs, target = self.base[index]
        return inputs + float(torch.rand(()) + random.random() + np.random.rand()), int(target)


def make_task(**changes) -> Task:
    fields = {
        "name": "blobs",
        "train": blobs(40, 1),
        "validation": blobs(24, 2),
        "test": blobs(30, 3),
        "num_classes": CLASSES,
        "model": lambda: nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, CLASSES)),
        "optimizer": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9),
        "epochs": 3,
        "batch_size": 16,
    }
    return Task(**(fields | changes))


def test_the_trace_is_of_every_epoch_and_example_in_order():
    """Oracle: the model applied here after each epoch, and the result's own examples at the last.

    Break: training mode, the order of the batches, another split, an epoch left out.
    """
    task, seen = make_task(), []
    model: list[nn.Module] = []

    def kept() -> nn.Module:
        model.append(nn.Sequential(nn.Linear(FEATURES, 8), nn.Dropout(), nn.Linear(8, CLASSES)))
        return model[0]

    def look(epoch) -> None:
        model[0].eval()
        with torch.no_grad():
            seen.append({n: model[0](getattr(task, n).tensors[0]) for n in ("train", "test")})

    task = make_task(model=kept)
    result = train(task, nn.CrossEntropyLoss(), 0, follow=("test", "train"), progress_callback=look)
    assert set(result.trace) == {"train", "test"}
    for name, trace in result.trace.items():
        target = getattr(task, name).tensors[1]
        assert trace["log_odds"].shape == trace["correct"].shape == (3, len(target))
        assert trace["log_odds"].dtype == torch.float32 and trace["correct"].dtype == torch.bool
        for epoch, logits in enumerate(seen):
            found = metrics.log_odds(logits[name], target).float()
            torch.testing.assert_close(trace["log_odds"][epoch], found, rtol=1e-5, atol=1e-6)
            assert torch.equal(trace["correct"][epoch], logits[name].argmax(1) == target)
    for kind in ("log_odds", "correct"):
        assert torch.equal(result.trace["test"][kind][-1], result.examples[kind])
    assert result.curves["test"]["accuracy"] == pytest.approx(
        result.trace["test"]["correct"].double().mean(1).tolist()
    )
    assert train(make_task(), nn.CrossEntropyLoss(), 0).trace is None


@pytest.mark.parametrize("data", ["tensors", "random"])
def test_following_changes_nothing(data):
    """Oracle: the run without. Break: random numbers that the measurement takes from the training,
    training examples among the results."""
    changes = {"model": Restless}
    if data == "random":
        changes["train"] = Jittered(blobs(40, 1))
    task, loss = make_task(**changes), nn.CrossEntropyLoss()
    plain, followed = train(task, loss, 1), train(task, loss, 1, follow=("train", "validation"))
    assert canonical_json(followed.recorded()) == canonical_json(plain.recorded())
    for name, value in plain.model.state_dict().items():
        assert torch.equal(followed.model.state_dict()[name], value)
    assert set(followed.trace) == {"train", "validation"}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(one[name][kind], other[name][kind]) for name in one for kind in one[name]
    )


def test_a_resumed_run_has_the_whole_trace(tmp_path):
    """Oracle: the run in one go, stopped after every step. Break: epochs before the interruption
    missing, or one of them twice."""
    task, loss, names = make_task(model=Restless), nn.CrossEntropyLoss(), ("train", "test")
    whole = train(task, loss, 2, follow=names)
    for stopped in range(1, 9):
        path = tmp_path / f"{stopped}.ckpt"
        questions = iter([False] * stopped + [True])
        with pytest.raises(Stopped):
            train(
                *(task, loss, 2), follow=names, checkpoint=Checkpoint(path, every=0),
                stop=lambda questions=questions: next(questions),
            )  # fmt: skip
        kept = Checkpoint(path, every=math.inf)
        going_on = train(task, loss, 2, follow=names, checkpoint=kept)
        assert same(going_on.trace, whole.trace), stopped
        with pytest.raises(InputError, match=r"its follow is \['train', 'test'\], not None"):
            train(task, loss, 2, checkpoint=kept)


def test_a_stack_of_runs_is_followed_like_each_alone():
    """Oracle: `train`. Break: another run's row, a run that left the stack early."""
    task = make_task(patience=1, epochs=6)
    members = [
        Member(losslab.loss(spec), seed)
        for seed in (0, 1)
        for spec in ("cross_entropy", "encouraging")
    ]
    assert why_not(task, members) is None
    together = train_together(task, members, follow=("train", "test"))
    for member, mine in zip(members, together, strict=True):
        alone = train(
            task, losslab.loss(member.criterion.spec), member.seed, follow=("train", "test")
        )
        assert mine.trace.keys() == alone.trace.keys()
        for name, trace in alone.trace.items():
            found = mine.trace[name]
            torch.testing.assert_close(found["log_odds"], trace["log_odds"], rtol=1e-3, atol=1e-4)
            assert torch.equal(found["correct"], trace["correct"])
    assert train_together(task, members)[0].trace is None
    assert len({len(run.curves["epoch"]) for run in together}) > 1  # some did leave early


def test_a_diverged_run_keeps_what_was_seen():
    """Oracle: its curves, which end with its last sound epoch."""

    class Breaks(nn.Module):
        steps_taken = 0

        def forward(self, logits, target):
            Breaks.steps_taken += 1
            worth = nn.functional.cross_entropy(logits, target)
            return worth * (math.nan if Breaks.steps_taken == 8 else 1.0)

    result = train(make_task(), Breaks(), 0, follow=("test",))
    assert result.status == "diverged" and result.curves["epoch"] == [1, 2]
    assert result.trace["test"]["log_odds"].shape == (2, 30)


def test_splits_that_do_not_exist_are_refused():
    """Oracle: the message; text is no list of names."""
    for follow in ("train", ("train", "dev")):
        with pytest.raises(InputError, match="Expected follow to be some of"):
            train(make_task(), nn.CrossEntropyLoss(), 0, follow=follow)


def test_gap_of_a_model():
    """Oracle: the metrics of the model's logits; zero between a set and itself."""
    task = make_task()
    result = train(task, nn.CrossEntropyLoss(), 0, follow=("train", "test"))
    train_data, test_data = task.train.tensors, task.test.tensors
    found = generalisation(result.model, train_data, test_data).values
    with torch.no_grad():
        outputs = [(result.model.eval()(x), y) for x, y in (train_data, test_data)]
    accuracy, nll = (
        [float(metric(*output)) for output in outputs] for metric in (metrics.accuracy, metrics.nll)
    )
    assert found == pytest.approx(
        {
            "train.accuracy": accuracy[0], "test.accuracy": accuracy[1],
            "train.nll": nll[0], "test.nll": nll[1],
            "gap.accuracy": accuracy[0] - accuracy[1], "gap.nll": nll[1] - nll[0],
        }
    )  # fmt: skip
    traced = dynamics(result.trace).values
    shared = {k: v for k, v in found.items() if k in traced}
    assert {k: traced[k] for k in shared} == pytest.approx(shared, rel=1e-5) and len(shared) == 4
    same_data = generalisation(result.model, test_data, test_data).values
    assert same_data["gap.accuracy"] == same_data["gap.nll"] == 0
