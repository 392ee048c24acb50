"""The benchmark: its clock, its memory, its numbers, what it skips, what it shows.

No test says how long anything takes.
"""

import doctest
import gc
import importlib
import io
import json
import os
import random
import signal
import threading
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

import losslab
from losslab import bench
from losslab.bench import clock, contestants, fitting, machine, measure, memory, step
from losslab.bench.cases import Case, parse_linear, parse_size
from losslab.bench.document import document
from losslab.bench.result import Column, Measured, Result, Settings
from losslab.errors import InputError
from losslab.logodds import select
from losslab.report.bench_figure import bench_figure
from losslab.report.bench_table import duration, print_bench, ratio_text
from losslab.report.style import look
from oracles import losses as printed
from oracles.logodds import all_log_odds

CPU = torch.device("cpu")
ENVIRONMENT = {
    "losslab": "0.1.0",
    "torch": "2.13.0",
    "python": "3.11.9",
    "cpu": "A Processor",
    "cores": 2,
    "threads": 1,
    "device": "cpu",
    "capability": "AVX2",
    "load_average": 0.1,
    "LOSSLAB_BACKEND": None,
}


pytestmark = pytest.mark.usefixtures("one_thread")  # the command line sets their number


@pytest.fixture
def losslab_command(command):
    """Run ``losslab bench …``."""
    return partial(command, "bench")


class FakeTime:
    """A clock that only work moves."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def work(self, seconds, log=None, name=None):
        def call():
            self.now += seconds
            if log is not None:
                log.append(name)

        return call


# --- the clock and the statistics -----------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 4, 7, 31, 100])
def test_spread_is_numpys(count):
    """Oracle: numpy.percentile. Another definition of a quartile fails."""
    values = np.random.default_rng(count).lognormal(size=count)
    expected = np.percentile(values, [50, 25, 75])
    assert clock.spread(list(values)) == pytest.approx(tuple(expected), rel=1e-12)


def test_spread_of_one_round_is_that_round():
    assert clock.spread([0.25]) == (0.25, 0.25, 0.25)


def test_ratios_pair_the_rounds():
    """A machine ten times slower in round two leaves each ratio as it is; unpaired ones differ."""
    assert clock.ratios([2.0, 20.0, 3.0], [4.0, 40.0, 1.0]) == [0.5, 0.5, 3.0]


@pytest.mark.parametrize("seconds", [1e-7, 3e-6, 9e-5, 4.9e-3, 5e-3, 2.0])
def test_calls_last_long_enough(monkeypatch, seconds):
    """By a clock of our own: the calls take 5 ms together, and not much longer than needed."""
    fake = FakeTime(monkeypatch)
    calls = clock.calls_for(fake.work(seconds), CPU)
    assert 5e-3 * (1 - 1e-9) <= calls * seconds <= max(1.5 * 5e-3, 2 * seconds)


def test_calls_are_bounded(monkeypatch):
    """A call that takes no time at all does not loop for ever."""
    assert clock.calls_for(FakeTime(monkeypatch).work(0.0), CPU) == 100_000


def test_a_round_times_everyone_once_in_changing_order(monkeypatch):
    """Oracle: a clock that work alone moves. Break: dividing by the wrong count, results in the
    order of the shuffle instead of the turns', always the same order."""
    fake, log, around = FakeTime(monkeypatch), [], []
    turns = [
        clock.Turn(fake.work(cost, log, name), calls, lambda: around.append(1) or nullcontext())
        for name, cost, calls in (("a", 0.001, 5), ("b", 0.002, 1), ("c", 0.25, 2))
    ]
    rng, orders = random.Random(0), set()
    for _ in range(12):
        log.clear()
        seconds = clock.one_round(turns, CPU, rng)
        assert seconds == pytest.approx([0.001, 0.002, 0.25], rel=1e-9)
        assert sorted(log) == list("aaaaabcc")
        orders.add("".join(dict.fromkeys(log)))
    assert len(orders) > 2
    assert len(around) == 36


def test_no_garbage_collection_while_timing():
    """It is off inside, and as before afterwards."""
    seen = []
    turn = clock.Turn(lambda: seen.append(gc.isenabled()), 1, nullcontext)
    clock.one_round([turn], CPU, random.Random(0))
    assert seen == [False]
    assert gc.isenabled()


def test_cuda_is_timed_by_its_events(monkeypatch):
    """Events count milliseconds: 84 of them are 0.084 s, once the last kernel is done."""
    log = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("wait")

        def elapsed_time(self, end):
            return 84.0

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("idle"))
    call = lambda: log.append("call")  # noqa: E731
    assert clock.seconds_of(call, 2, torch.device("cuda")) == pytest.approx(0.084)
    assert log == ["idle", "record", "call", "call", "record", "wait"]


# --- memory ---------------------------------------------------------------------------------------


def test_peak_of_known_allocations():
    """Oracle: the sizes asked for. What was freed before does not count, what was held at once
    adds up."""

    def held_at_once():
        first, second = torch.empty(1000), torch.empty(500)
        del first, second
        torch.empty(100)

    def one_after_another():
        for _ in range(5):
            torch.empty(1000, dtype=torch.float64)

    assert memory.peak_bytes(held_at_once, CPU) == 6000
    assert memory.peak_bytes(one_after_another, CPU) == 8000
    assert memory.peak_bytes(lambda: None, CPU) == 0


def test_peak_on_cuda_is_above_what_was_there(monkeypatch):
    """Oracle: by hand, 700 bytes at most of which 200 were there before."""
    log = []
    answers = {"memory_allocated": 200, "max_memory_allocated": 700}
    for name in ("synchronize", "reset_peak_memory_stats", *answers):
        value = answers.get(name)
        fake = lambda *_, name=name, value=value: log.append(name) or value  # noqa: E731
        monkeypatch.setattr(torch.cuda, name, fake)
    device = torch.device("cuda")
    assert memory.peak_bytes(lambda: log.append("action"), device) == 500
    assert log.index("reset_peak_memory_stats") < log.index("action")
    assert log[-2:] == ["synchronize", "max_memory_allocated"]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, None),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    5000 kB\n"}, 5_120_000),
        ({"proc/meminfo": "nonsense"}, None),
        (
            {
                "proc/meminfo": "MemAvailable: 5000 kB\n",
                "sys/fs/cgroup/memory.max": "1000000\n",
                "sys/fs/cgroup/memory.current": "400000\n",
                "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 100000\n",
            },
            700_000,
        ),
        (
            {
                "proc/meminfo": "MemAvailable: 5000 kB\n",
                "sys/fs/cgroup/memory.max": "max\n",
                "sys/fs/cgroup/memory.current": "400000\n",
                "sys/fs/cgroup/memory.stat": "inactive_file 0\n",
            },
            5_120_000,
        ),
        (
            {
                "sys/fs/cgroup/memory/memory.limit_in_bytes": "900\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000\n",
                "sys/fs/cgroup/memory/memory.stat": "cache 7\n",
            },
            0,
        ),
    ],
    ids=["nothing", "machine", "garbage", "container", "unlimited", "older kernel"],
)
def test_free_memory(tmp_path, files, expected):
    """Oracle: by hand. A container's limit counts where it is the smaller."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory.available_bytes(CPU, tmp_path) == expected


@pytest.mark.parametrize("rows", [1, 2, 3, 999, 10_000_000])
def test_prediction_of_a_straight_line(rows):
    """Exact for what needs a fixed part and a part a row, and it is tried on short batches only."""
    tried = []

    def peak_at(n):
        tried.append(n)
        return 1_000_000 + 400 * n

    assert memory.predicted_peak(peak_at, rows, 100) == 1_000_000 + 400 * rows
    assert max(tried) <= min(rows, 200)


@pytest.mark.parametrize("features", [None, 16])
def test_prediction_holds_for_the_real_thing(features):
    """Oracle: the peak measured at the full size. Break: weights counted for every row."""
    case = Case(6000, 1000, features=features)
    for one in contestants.contestants(case, ["focal"], ["published"]):
        if one.unavailable is None:
            inputs = case.inputs(CPU)
            real = memory.peak_bytes(step.step_of(one.steps, inputs, True), CPU)
            guess = fitting._predicted(one.steps, case, CPU, True, 10**9)
            assert guess > 0.97 * real
            if features is None or one.role != "loss":  # in chunks it needs less than predicted
                assert guess == pytest.approx(real, rel=0.03)


# --- contestants ----------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_published_is_the_papers_loss(smoothing):
    """Oracle: the printed conservative form with its clamp, in float64, on log-odds by hand."""
    logits = 3 * torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    target = torch.arange(40) % 6
    each = printed.encouraging_conservative(all_log_odds(logits.numpy()))
    hard = each[np.arange(40), target.numpy()]
    expected = np.mean((1 - smoothing) * hard + smoothing * each.mean(1))
    (forward,) = contestants.contestants(Case(40, 6), (), ["published"], (), smoothing)[1].steps
    assert forward(logits, target).item() == pytest.approx(expected, rel=1e-10)


def test_who_is_measured():
    """Labels and roles; the baseline is first, a loss named twice is measured once."""
    rows = contestants.contestants(Case(4, 3), ["focal", "own_psi", "focal"], ["published"])
    assert [(row.label, row.role) for row in rows] == [
        ("F.cross_entropy", "baseline"),
        ("focal", "loss"),
        ("OddsLoss, your own ψ", "loss"),
        ("encouraging, published", "rival"),
    ]
    linear = Case(4, 3, features=2)
    rows = contestants.contestants(linear, ["focal"], ["published", "linear_cross_entropy"])
    assert [row.label for row in rows] == [
        "F.linear + F.cross_entropy",
        "linear_loss, focal",
        "encouraging, published",
        "F.linear_cross_entropy, chunked",
    ]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("features", [None, 5])
def test_everyone_computes_what_its_label_says(smoothing, features):
    """Oracle: PyTorch's cross-entropy of the same logits. A rival that forgets label smoothing, or
    a linear layer that is left out, fails."""
    case = Case(30, 7, "float64", features)
    inputs = case.inputs(CPU)
    logits = inputs.leaves[0] if features is None else F.linear(*inputs.leaves)
    expected = F.cross_entropy(logits, inputs.target, label_smoothing=smoothing)
    names = ["linear_cross_entropy"] if features else []
    rows = contestants.contestants(case, ["cross_entropy"], names, (), smoothing)
    assert len(rows) == (3 if features else 2)
    for row in rows:
        if row.unavailable is None:
            (forward,) = row.steps
            torch.testing.assert_close(forward(*inputs.leaves, inputs.target), expected)


def test_linear_loss_gets_hidden_weight_target_and_module(monkeypatch):
    """The call is losslab.linear_loss(hidden, weight, target, loss); without it, it says so."""
    seen = []

    def linear_loss(hidden, weight, target, loss):
        seen.append((hidden.shape, weight.shape, target.shape, loss.spec))
        return loss(F.linear(hidden, weight), target)

    settings = Settings((Case(6, 4, features=3),), ("focal",), repeats=3)
    monkeypatch.setattr(losslab, "linear_loss", linear_loss, raising=False)
    (case,) = document(measure.run(settings))["cases"]
    assert set(seen) == {((6, 3), (4, 3), (6,), "focal")}
    assert case["results"][1]["ratio"] is not None
    monkeypatch.delattr(losslab, "linear_loss")
    found = document(measure.run(settings))
    assert "has no linear_loss" in found["cautions"][-1]["text"]


def test_compiled_rival_is_compiled_for_its_shape(monkeypatch):
    """Each case compiles anew (a limit on compilations would silently fall back to eager), and its
    memory is predicted by the eager baseline."""
    log = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: log.append("reset"))
    monkeypatch.setattr(torch, "compile", lambda f, **options: log.append(options) or f)
    for size in (3, 4):
        rows = contestants.contestants(Case(size, 3), [], ["compiled"])
    assert log == ["reset", {"dynamic": False}] * 2
    assert rows[1].label == "torch.compile(baseline)"
    assert rows[1].like == rows[0].steps


def test_chunked_rival_refuses_what_it_would_do_without_chunks():
    """PyTorch warns and makes the logits where it has no chunked form: not what the label says."""
    case = Case(4, 3, features=2)
    (row,) = contestants.contestants(case, [], ["linear_cross_entropy"], (), 0.1)[1:]
    assert "label smoothing" in row.unavailable


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float64"])
def test_inputs(name):
    """The same each time, in the dtype asked for, requiring gradients; logits about N(0, 1)."""
    case = Case(300, 40, name, features=50)
    first, again = case.inputs(CPU), case.inputs(CPU)
    hidden, weight = first.leaves
    assert hidden.dtype == weight.dtype == getattr(torch, name)
    assert all(leaf.is_leaf and leaf.requires_grad for leaf in first.leaves)
    assert all(map(torch.equal, (*first.leaves, first.target), (*again.leaves, again.target)))
    assert case.input_bytes == sum(x.numel() * x.element_size() for x in first.leaves)
    assert F.linear(hidden, weight).float().std().item() == pytest.approx(1, abs=0.1)
    assert first.target.min() >= 0 and first.target.max() < 40


def test_step_makes_fresh_gradients_or_none():
    """Oracle: one backward by hand. Accumulating over calls fails; forward alone leaves none, and
    both steps of an alternating loss are made."""
    case = Case(5, 4, "float64")
    inputs, other = case.inputs(CPU), case.inputs(CPU)
    made = []

    def steps():
        for factor in (1.0, 2.0):
            yield lambda x, t, f=factor: made.append(f) or f * F.cross_entropy(x, t)

    both = tuple(steps())
    action = step.step_of(both, inputs, True)
    action()
    action()
    assert made == [1.0, 2.0, 1.0, 2.0]
    both[1](*other.leaves, other.target).backward()
    torch.testing.assert_close(inputs.leaves[0].grad, other.leaves[0].grad)
    inputs.forget_gradients()
    step.step_of(both, inputs, False)()
    assert inputs.leaves[0].grad is None
    alternating = contestants.contestants(case, ["complement_objective(cross_entropy)"], [])[1]
    assert len(alternating.steps) == 2


# --- a run ----------------------------------------------------------------------------------------


def test_run_measures_everyone_in_every_round():
    """As many rounds as asked for, the same for all, and events that count them."""
    events = []
    settings = Settings((Case(8, 5), Case(6, 3)), ("focal",), ("published",), repeats=4)
    result = measure.run(settings, events.append)
    assert not result.interrupted
    assert [c.rounds for c in result.columns] == [4, 4]
    for column in result.columns:
        assert [len(row.seconds) for row in column.rows] == [4, 4, 4]
        assert all(value > 0 for row in column.rows for value in row.seconds)
    done = [(e.number, e.total, e.done, e.of) for e in events if isinstance(e, measure.RoundDone)]
    assert done == [(case, 2, i, 4) for case in (1, 2) for i in (1, 2, 3, 4)]


def test_time_budget(monkeypatch):
    """By a clock of our own, rounds of a second: 30 s for two cases give each about half, a budget
    that is spent still gives five rounds, and a large one ends at 101."""
    now = [0.0]
    monkeypatch.setattr(measure.time, "monotonic", lambda: now[0])

    def slow_round(turns, device, rng):
        now[0] += 1.0
        return [1.0] * len(turns)

    monkeypatch.setattr(measure, "one_round", slow_round)
    two = (Case(8, 5), Case(6, 3))
    for seconds, expected in ((30, [15, 15]), (0.5, [5, 5]), (1000, [101, 101])):
        result = measure.run(Settings(two, (), seconds=seconds))
        assert [column.rounds for column in result.columns] == expected


def test_ctrl_c_keeps_whole_rounds():
    """A real SIGINT in the third round of the second case: both cases stay, with equal numbers of
    rounds for everyone."""

    def watch(event):
        if isinstance(event, measure.RoundDone) and (event.number, event.done) == (2, 3):
            os.kill(os.getpid(), signal.SIGINT)

    settings = Settings((Case(8, 5), Case(6, 3), Case(4, 3)), ("focal",), repeats=5)
    result = measure.run(settings, watch)
    assert result.interrupted
    assert [column.rounds for column in result.columns] == [5, 3]
    assert [len(row.seconds) for row in result.columns[1].rows] == [3, 3]


def test_failure_of_one_leaves_the_others():
    """Counts of two classes on five: a reason, no numbers, and the others measured."""
    bad = "logit_adjustment(cross_entropy, counts=[3, 4])"
    result = measure.run(Settings((Case(8, 5),), (bad, "focal"), repeats=3))
    baseline, failed, sound = document(result)["cases"][0]["results"]
    assert "2 classes" in failed["failed"]
    assert failed["ratio"] is None and failed["memory"] is None
    assert baseline["ratio"]["median"] == 1
    assert sound["ratio"]["median"] > 0


def test_a_bug_keeps_its_traceback(monkeypatch):
    """Only what a user can meet (input, memory, missing kernels) becomes a line."""

    def broken(*_):
        raise TypeError("a bug")

    monkeypatch.setattr(contestants.F, "cross_entropy", broken)
    with pytest.raises(TypeError, match="a bug"):
        measure.run(Settings((Case(8, 5),), (), repeats=3))


def test_backends_beside_one_another(monkeypatch):
    """Each row is prepared and timed on its own backend, and afterwards all is as before.
    Oracle: what the selector itself says is asked for, at every call."""
    monkeypatch.delenv("LOSSLAB_BACKEND", raising=False)
    seen = []

    def spy(name):
        def loss(x, t):
            asked = "eager" if "'eager' was asked" in select.backend_report() else "auto"
            seen.append((name, asked))
            return F.cross_entropy(x, t)

        return contestants.Contestant(name, "loss", (loss,), backend=name)

    field = [contestants.contestants(Case(8, 5), (), ())[0], spy("eager"), spy("auto")]
    monkeypatch.setattr(measure, "contestants", lambda *_: field)
    measure.run(Settings((Case(8, 5),), repeats=3))
    assert set(seen) == {("eager", "eager"), ("auto", "auto")}
    with step.using("eager"):
        assert "'eager' was asked" in select.backend_report()
    assert "automatic" in select.backend_report()


def test_several_backends_are_in_the_labels():
    """One backend needs no name in every row; what was asked for is in the document."""
    case = Case(8, 5)
    rows = contestants.contestants(case, ["focal"], ["published"], ("eager", "auto"))
    labels = ["F.cross_entropy", "focal, eager", "focal, auto", "encouraging, published"]
    assert [row.label for row in rows] == labels
    assert [row.backend for row in rows] == [None, "eager", "auto", None]
    assert contestants.contestants(case, ["focal"], (), ("eager",))[1].label == "focal"
    result = measure.run(Settings((case,), ("focal",), backends=("eager",), repeats=3))
    found = document(result)["cases"][0]
    assert (found["backend"], found["results"][1]["backend"]) == ("eager", "eager")


# --- memory that is not there ---------------------------------------------------------------------


def limited(monkeypatch, free):
    monkeypatch.setattr(fitting, "available_bytes", lambda device: free)


def test_case_that_does_not_fit_is_skipped(monkeypatch):
    """Oracle: F.cross_entropy takes three times its logits, beside the logits: 4 × 16 MB of 20 MB.
    Nothing of that size is allocated."""
    limited(monkeypatch, 20_000_000)
    large, small = Case(4000, 1000), Case(8, 5)
    made = []
    real = Case.inputs

    def watching(case, device, rows=None):
        made.append(case.classes * (rows or case.rows))
        return real(case, device, rows)

    monkeypatch.setattr(Case, "inputs", watching)
    found = document(measure.run(Settings((large, small), ("focal",), repeats=3)))
    assert found["cases"][0]["skipped"] == "needs about 64 MB, of which 17 MB can be used"
    assert max(made) * 4 * 24 < 20_000_000  # what a loss of 24 times its logits would take
    assert len(made) == 3  # two short batches for the baseline, nothing for focal, the small case
    assert found["cases"][1]["rounds"] == 3
    (caution,) = [c for c in found["cautions"] if c["kind"] == "skipped"]
    assert caution["text"].startswith("4000×1000 float32: F.cross_entropy needs about 64 MB")


def test_compiled_memory_is_predicted_without_compiling(monkeypatch):
    """On short batches a compiler would settle for other shapes: its stand-in is tried."""
    limited(monkeypatch, 100_000_000)
    plain = (F.cross_entropy,)
    steps = (lambda *_: pytest.fail("tried"),)
    compiled = contestants.Contestant("compiled", "rival", steps, like=plain)
    rows = [Measured(contestants.Contestant("ce", "baseline", plain)), Measured(compiled)]
    fitting.refuse_what_does_not_fit(Column(Case(4000, 1000), rows, ""), CPU, True)
    assert [row.failed for row in rows] == [None, None]


def test_rival_that_does_not_fit_leaves_the_case(monkeypatch):
    """The published loss takes ten times its logits; the others are measured without it."""
    limited(monkeypatch, 100_000_000)
    settings = Settings((Case(4000, 1000),), ("focal",), ("published",), repeats=3)
    (case,) = document(measure.run(settings))["cases"]
    assert case["skipped"] is None
    assert [row["failed"] is None for row in case["results"]] == [True, True, False]


def test_linear_layer_that_does_not_fit_is_not_tried(monkeypatch):
    """Its weights are as large on one row."""
    limited(monkeypatch, 1_000_000)
    monkeypatch.setattr(Case, "inputs", lambda *_: pytest.fail("allocated"))
    result = measure.run(Settings((Case(2, 1000, features=1000),), (), repeats=3))
    assert result.columns[0].skipped.startswith("needs about 4.01 MB")


def test_unknown_memory_skips_nothing(monkeypatch):
    limited(monkeypatch, None)
    assert measure.run(Settings((Case(8, 5),), (), repeats=3)).columns[0].rounds == 3


# --- what is shown --------------------------------------------------------------------------------


def fake_result(environment=ENVIRONMENT, **changes):
    """Rounds by hand: a loss at 0.5, a rival at about 8, on two sizes and a linear layer."""
    settings = Settings((), ("focal",), ("published",), **changes)
    result = Result(settings, dict(environment), "2026-01-01T00:00:00+00:00")
    ce = np.array([1.0, 2.0, 1.1, 1.3, 1.2]) * 1e-3
    for case in (Case(256, 10), Case(4096, 1000), Case(1024, 32000, features=512)):
        rows = []
        for label, role, factor, peak in (
            ("F.cross_entropy", "baseline", 1.0, 3.0),
            ("focal", "loss", np.array([0.5, 0.5, 0.52, 0.48, 0.51]), 1.0),
            ("published [b]", "rival", np.array([8.0, 6.0, 12.0, 9.0, 7.0]), 10.25),
        ):
            row = Measured(contestants.Contestant(label, role, ()))
            row.seconds = list(ce * factor)
            row.peak = round(peak * case.logits_bytes)
            row.gradient_bytes = case.logits_bytes // 2
            rows.append(row)
        result.columns.append(Column(case, rows, "native"))
    return result


def table_of(found, width=100, encoding="utf-8", **options):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    print_bench(found, Console(file=stream, width=width, highlight=False, **options))
    stream.seek(0)
    return stream.read()


def test_document_numbers():
    """Oracle: numpy on the rounds, by hand on the bytes: a linear layer's own gradients, which all
    must hold, are left out of its units, the logits' are not."""
    found = json.loads(json.dumps(document(fake_result(), "losslab bench"), allow_nan=False))
    dense, _, linear = found["cases"]
    rounds = np.array(dense["results"][2]["seconds"]) / np.array(dense["results"][0]["seconds"])
    shown = [dense["results"][2]["ratio"][key] for key in ("median", "low", "high")]
    assert shown == pytest.approx(list(np.percentile(rounds, [50, 25, 75])))
    assert dense["results"][0]["time"]["median"] == pytest.approx(1.2e-3)
    assert dense["results"][1]["memory"]["in_logits"] == 1.0
    assert linear["results"][1]["memory"]["in_logits"] == 0.5
    assert linear["results"][1]["memory"]["peak_bytes"] == 1024 * 32000 * 4
    assert found["command"] == "losslab bench"
    assert found["settings"]["losses"] == ["focal"]


def test_cautions():
    """A load above the cores and quartiles 20 % apart are told of; a quiet run is not."""
    assert [c["text"] for c in document(fake_result())["cautions"] if "busy" in c["text"]] == []
    found = document(fake_result({**ENVIRONMENT, "load_average": 2.5}))["cautions"]
    busy, wide = (caution["text"] for caution in found)
    assert "load 2.50 on 2 cores" in busy
    assert wide.startswith("3 of 6 ratios spread widely")
    assert "published [b]" in wide
    unknown = {**ENVIRONMENT, "load_average": None}
    assert len(document(fake_result(unknown))["cautions"]) == 1


def test_table():
    """Every label, size, ratio with quartiles, time and memory, of each kind of case."""
    text = table_of(document(fake_result()))
    for expected in (
        "A Processor (AVX2), 1 thread on 2 cores, torch 2.13.0, losslab 0.1.0",
        "Forward + backward, float32, losslab's backend native, at rows×classes",
        "at rows×features→classes",
        "4096×1000",
        "1024×512→32000",
        "5 rounds",
        "0.50–0.51",
        "7.00–9.00",
        "1.20 ms",
        "612 µs",
        "10.25  105 kB",
        "3.00 49.2 MB",
        "published [b]",
    ):
        assert expected in text
    assert "\x1b" not in text


def test_table_says_what_was_measured():
    found = document(fake_result(backward=False, label_smoothing=0.1))
    assert "Forward alone, float32, label smoothing 0.1" in table_of(found)


def test_narrow_table_puts_sizes_below_one_another():
    """At 40 columns nothing is cut and each size is there."""
    text = table_of(document(fake_result()), width=40)
    assert max(map(len, text.splitlines())) <= 40
    for expected in ("256×10", "4096×1000", "1024×512→32000", "7.00–9.00", "10.25  168 MB"):
        assert expected in text


def test_table_in_ascii():
    """A terminal without Unicode gets symbols it can show."""
    text = table_of(document(fake_result()), encoding="ascii")
    assert "4096x1000" in text and "7.00-9.00" in text and "612 us" in text and "->32000" in text


def test_table_colours_by_quartiles():
    """Green where three quarters of the rounds were faster, yellow where slower, none between."""
    found = document(fake_result())
    found["cases"] = found["cases"][:1]
    focal, rival = found["cases"][0]["results"][1:]
    text = table_of(found, force_terminal=True, color_system="standard")
    assert "\x1b[32m0.50" in text and "\x1b[33m8.00" in text and "\x1b[2m7.00–9.00" in text
    rival["ratio"]["low"], focal["ratio"]["high"] = 0.9, 1.1
    text = table_of(found, force_terminal=True, color_system="standard")
    assert "\x1b[33m8.00" not in text and "\x1b[32m0.50" not in text


def test_columns_of_different_rows():
    """A row that one size lacks is a dash there; an unmeasured case has no column."""
    found = document(fake_result())
    del found["cases"][0]["results"][1]
    found["cases"][1]["rounds"] = 0
    text = table_of(found)
    assert "4096×1000" not in text.split("warning")[0]
    assert "focal" not in text.split("→")[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (8.42e-7, "0.84 µs"),
        (84.2e-6, "84.2 µs"),
        (0.0123, "12.3 ms"),
        (0.9996, "1.00 s"),
        (12.5, "12.5 s"),
    ],
)
def test_durations(seconds, text):
    """Oracle: by hand; nothing is shown as 1000 ms."""
    assert duration(seconds) == text


def test_ratios_and_bytes_as_text():
    assert [ratio_text(x) for x in (0.504, 9.994, 9.996, 123.4)] == ["0.50", "9.99", "10.0", "123"]
    sizes = (17, 999_600, 16_384_000, 4.2e9, 5.1e12)
    assert [memory.in_bytes(x) for x in sizes] == [
        "17 bytes",
        "1 MB",
        "16.4 MB",
        "4.2 GB",
        "5100 GB",
    ]


def test_figure_draws_what_the_document_says():
    """Oracle: the document. A mark at each median, whiskers at the quartiles, a line at 1, a log
    scale, the memory beside it; it saves without a warning."""
    found = document(fake_result())
    figure = bench_figure(found)
    times, peaks = figure.axes
    assert times.get_xscale() == "log"
    rows = [row for case in found["cases"] for row in case["results"]]
    marks = [line.get_xdata()[0] for line in times.lines if line.get_label() == "mark"]
    assert marks == pytest.approx([row["ratio"]["median"] for row in rows])
    whiskers = [bar[2][0].get_segments()[0][:, 0] for bar in times.containers]
    wanted = [[r["ratio"]["low"], r["ratio"]["high"]] for r in rows if r["role"] != "baseline"]
    assert np.array(whiskers) == pytest.approx(np.array(wanted))
    (one,) = [line for line in times.lines if line.get_label() == "one"]
    assert list(one.get_xdata()) == [1.0, 1.0]
    low, high = times.get_xlim()
    assert low < 0.48 and high > 9
    memory_marks = [line.get_xdata()[0] for line in peaks.lines if line.get_label() == "mark"]
    assert memory_marks == pytest.approx([row["memory"]["in_logits"] for row in rows])
    heights = [line.get_ydata()[0] for line in times.lines if line.get_label() == "mark"]
    assert len(set(heights)) == len(heights)
    written = {text.get_text() for text in times.texts}
    assert {"256×10, float32, 5 rounds", "8.00 · 11.7 ms", "0.50 · 612 µs"} <= written
    with look():
        figure.savefig(io.BytesIO(), format="png")


def test_figure_of_nothing():
    result = fake_result()
    for column in result.columns:
        for row in column.rows:
            row.seconds = []
    with pytest.raises(InputError, match="nothing to draw"):
        bench_figure(document(result))


# --- the command line -----------------------------------------------------------------------------


def test_help_has_examples(losslab_command):
    status, out, _ = losslab_command("--help")
    assert status == 0
    assert "losslab bench --linear 1024x512x32000" in out
    for option in ("--loss", "--size", "--dtype", "--rival", "--threads", "--backend", "--json"):
        assert option in out


def test_bench_prints_a_table_and_leaves_a_folder(losslab_command, tmp_path):
    """The main job on small sizes: the table on stdout, JSON with every round, a picture; nothing
    on standard error when quiet."""
    status, out, err = losslab_command(
        "--size", "16x5", "--size", "32X4", "--loss", "focal", "--repeats", 3, "--threads", 1,
        "--out", "here/there", "--quiet",
    )  # fmt: skip
    assert (status, err) == (0, "")
    for expected in ("16×5", "32×4", "focal", "encouraging, published", "3 rounds"):
        assert expected in out
    assert "Written: here/there/bench.json, here/there/bench.png" in out
    found = json.loads((tmp_path / "here/there/bench.json").read_text())
    assert found["command"].startswith("losslab bench --size 16x5")
    assert [len(row["seconds"]) for case in found["cases"] for row in case["results"]] == [3] * 6
    assert found["environment"]["threads"] == 1
    assert found["environment"]["torch"] == torch.__version__
    assert "losslab backends" in found["environment"]["backend_report"]
    assert (tmp_path / "here/there/bench.png").read_bytes().startswith(b"\x89PNG")


def test_json_alone_on_stdout(losslab_command, tmp_path):
    """--json prints what bench.json holds, and only that."""
    status, out, err = losslab_command(
        "--size", "16x5", "--dtype", "bfloat16", "--dtype", "float64", "--loss", "own_psi",
        "--rival", "none", "--forward-only", "--repeats", 3, "--json", "--out", "f",
    )  # fmt: skip
    assert status == 0
    assert err.startswith("Written: ")
    found = json.loads(out)
    assert found == json.loads((tmp_path / "f/bench.json").read_text())
    assert [case["dtype"] for case in found["cases"]] == ["bfloat16", "float64"]
    assert [row["label"] for row in found["cases"][0]["results"]] == [
        "F.cross_entropy",
        "OddsLoss, your own ψ",
    ]
    assert found["settings"]["backward"] is False


def test_default_asks_for_what_the_help_says(losslab_command, monkeypatch):
    """Without options: four sizes, five losses, the published loss, a minute."""
    asked = []

    def fake_run(settings, watch):
        asked.append(settings)
        return fake_result()

    monkeypatch.setattr(bench, "run", fake_run)
    losslab_command()
    (settings,) = asked
    titles = " ".join(case.title for case in settings.cases)
    assert titles == "256×10 128×1000 4096×1000 1024×32000"
    losses = "cross_entropy encouraging mixed(focus=0.3) focal own_psi"
    assert settings.losses == tuple(losses.split())
    assert "published" in settings.rivals and "compiled" not in settings.rivals
    assert (settings.seconds, settings.repeats, settings.backward) == (60, None, True)


def test_linear_alone_measures_no_other_size(losslab_command):
    status, out, err = losslab_command(
        "--linear", "8x4x6", "--loss", "focal", "--repeats", 3, "--label-smoothing", 0
    )
    assert status in (0, 3)  # 3 until linear_loss is there
    assert "8×4→6" in out and "256×10" not in out
    assert "F.linear_cross_entropy, chunked" in out
    assert "case 1 of 1 (8×4→6 float32): 3 rounds" in err


def test_ctrl_c_prints_what_there_is(losslab_command, monkeypatch, tmp_path):
    """Exit status 130, the finished case in the table, and files that say it was interrupted."""
    real, rounds = measure.one_round, []

    def stopping(*arguments):
        rounds.append(1)
        if len(rounds) == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(measure, "one_round", stopping)
    status, out, err = losslab_command(
        "--size", "16x5", "--size", "7x3", "--loss", "focal", "--repeats", 3, "--out", "f"
    )
    assert status == 130
    assert "16×5" in out and "3 rounds" in out and "1 round" in out
    assert "so far" in err
    found = json.loads((tmp_path / "f/bench.json").read_text())
    assert found["interrupted"] is True
    assert [case["rounds"] for case in found["cases"]] == [3, 1]


def test_progress_draws_from_no_thread(losslab_command, monkeypatch):
    """On a terminal there is a line that tells of rounds, and no second thread while timing: it
    would take turns with what is measured."""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then takes standard error for a terminal
    monkeypatch.setenv("TERM", "xterm")
    before, seen, real = threading.active_count(), [], measure.one_round

    def watching(*arguments):
        seen.append(threading.active_count())
        return real(*arguments)

    monkeypatch.setattr(measure, "one_round", watching)
    status, _, err = losslab_command("--size", "16x5", "--loss", "focal", "--repeats", 3)
    assert status == 0
    assert seen == [before] * 3
    assert "case 1 of 1 (16×5 float32): warming up, focal" in err


def test_ctrl_c_at_once(losslab_command, monkeypatch, tmp_path):
    """Nothing measured yet: no table, no picture, no traceback."""
    monkeypatch.setattr(measure, "peak_bytes", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    status, out, err = losslab_command("--size", "16x5", "--out", "f")
    assert status == 130
    assert "Traceback" not in err and "16×5" not in out
    assert [path.name for path in (tmp_path / "f").iterdir()] == ["bench.json"]


def test_status_tells_of_what_was_skipped(losslab_command):
    """A loss that cannot do a size: a line, the rest of the table, status 3."""
    status, out, _ = losslab_command(
        "--size", "16x5", "--loss", "ldam(cross_entropy, counts=[3, 4])", "--repeats", 3
    )
    assert status == 3
    assert "skipped: ldam(cross_entropy" in out
    assert "encouraging, published" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size", "4096"], "ROWSxCLASSES such as 4096x1000; got '4096'"),
        (["--size", "0x10"], "got '0x10'"),
        (["--size", "-1x10"], "got '-1x10'"),
        (["--linear", "4x5"], "ROWSxFEATURESxCLASSES"),
        (["--dtype", "float8"], "--dtype must be one of float32"),
        (["--loss", "focl"], "Did you mean 'focal'"),
        (["--rival", "publishd"], "Did you mean 'published'"),
        (["--rival", "none", "--rival", "published"], "none alone"),
        (["--rival", "linear_cross_entropy"], "give --linear"),
        (["--repeats", "2"], "at least 3"),
        (["--seconds", "nan"], "must be positive"),
        (["--seconds", "0"], "must be positive"),
        (["--threads", "0"], "at least 1"),
        (["--device", "tpu"], "cpu, cuda or cuda:NUMBER"),
        (["--device", "cuda:77"], "cannot be used here"),
        (["--label-smoothing", "1.5"], "label_smoothing must be"),
        (["--backend", "nativ"], "Did you mean 'native'"),
        (["--out", "a-file"], "--out must be a folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes(losslab_command, monkeypatch, tmp_path, arguments, message):
    """One line on standard error, status 2, nothing measured."""
    (tmp_path / "a-file").write_text("")
    monkeypatch.setattr(measure, "one_round", lambda *_: pytest.fail("measured"))
    status, out, err = losslab_command(*arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_sizes_as_text():
    assert parse_size("4096×1000") == parse_size(" 4096X1000") == (4096, 1000)
    assert parse_linear("1024x512x32000") == (1024, 512, 32000)


def test_environment_variable_is_checked(monkeypatch):
    """LOSSLAB_BACKEND is a user's word like --backend."""
    monkeypatch.setenv("LOSSLAB_BACKEND", "nativ")
    with pytest.raises(InputError, match="nativ"):
        machine.check_backends(())


def test_load_average_may_be_unknown(monkeypatch):
    monkeypatch.setattr(machine.os, "getloadavg", lambda: (_ for _ in ()).throw(OSError()))
    assert machine.load_average() is None
    monkeypatch.setattr(machine, "os", SimpleNamespace())
    assert machine.load_average() is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu():
    """Peak of a known allocation, and a run from end to end."""
    device = torch.device("cuda")
    assert memory.peak_bytes(lambda: torch.empty(1 << 20, device=device), device) == 4 << 20
    result = measure.run(Settings((Case(64, 100),), ("focal",), device="cuda", repeats=3))
    assert [len(row.seconds) for row in result.columns[0].rows] == [3, 3]


@pytest.mark.parametrize("name", ["cases", "clock", "memory"])
def test_examples(name):
    """Oracle: the output printed in the docstring."""
    result = doctest.testmod(importlib.import_module(f"losslab.bench.{name}"))
    assert result.attempted and not result.failed
