"""``losslab runs`` as a person meets it, and what it hands to TensorBoard and MLflow."""

import csv
import io
import itertools
import json
import random
import re
import sys
import types
from collections import Counter
from typing import ClassVar

import pandas as pd
import pytest

from losslab.cli.runs import sparkline
from losslab.experiment import loggers
from losslab.experiment.store import Store

RESULTS = [
    f"{selection}.{split}.{metric}"
    for selection in ("last", "validation_selected", "best_on_test")
    for split in ("validation", "test")
    for metric in ("accuracy", "nll")
]


@pytest.fixture
def losslab(command, monkeypatch):
    """Run a command on a terminal 100 wide."""
    monkeypatch.setenv("COLUMNS", "100")
    return command


def made_run(number, dataset, loss, lr, seed):
    rng = random.Random(number)
    diverged = loss == "focal" and lr == 0.1
    results = {name: None if diverged else rng.random() for name in RESULTS}
    return {
        "run_id": f"{number % 2}{number:015x}",
        "study": "small",
        "dataset": dataset,
        "model": "linear",
        "loss": loss,
        "spec": {"ce": "cross_entropy", "el [½]": "encouraging(log_end=0.5)"}.get(loss, loss),
        "lr": lr,
        "seed": seed,
        "status": "diverged" if diverged else "finished",
        "reason": "the loss was not finite" if diverged else None,
        "seconds": 1.5,
        "finished": f"2026-11-22T03:00:{number:02}.250+00:00",
        "epochs": 4,
        **results,
        "last.epoch": None if diverged else 4,
        "validation_selected.epoch": None if diverged else 3,
    }


CURVES = {
    "epoch": [1, 2, 3, 4],
    "lr": [0.1, 0.1, 0.05, 0.05],
    "train_loss": [1.5, 1.0, None, 0.25],
    "test": {"accuracy": [0.25, 0.5, 0.75, 1.0], "nll": [1.0, 0.5, 0.5, 0.75]},
}
RUNS = [
    made_run(number, *choices)
    for number, choices in enumerate(
        (dataset, loss, lr, seed)
        for dataset in ("iris", "wine")
        for loss in ("ce", "el [½]", "focal")
        for lr in (0.01, 0.1)
        for seed in (0, 1)
    )
]


@pytest.fixture
def study(tmp_path):
    """24 runs: two data sets, three losses, two rates, two seeds; focal at 0.1 diverged."""
    with Store(tmp_path / "study") as store:
        for run in RUNS:
            store.append([run], [{"run_id": run["run_id"], "curves": CURVES}])
    return tmp_path / "study"


def test_counts(losslab, study):
    """Oracle: the runs counted here. Every group has its line, and the last line sums up."""
    status, out, err = losslab("runs", "study")
    assert (status, err) == (0, "")
    lines = out.splitlines()
    assert lines[0].split() == ["data", "set", "model", "loss", "finished", "diverged"]
    counted = Counter((r["dataset"], r["loss"], r["status"]) for r in RUNS)
    for dataset in ("iris", "wine"):
        for loss in ("ce", "el [½]", "focal"):
            numbers = [counted[dataset, loss, status] for status in ("finished", "diverged")]
            wanted = [dataset, "linear", *loss.split(), *map(str, numbers)]
            assert wanted in [line.split() for line in lines]
    assert lines[-1] == "24 runs, 4 diverged; 2 data sets, 1 model, 3 losses; 36.0 s of training"
    assert losslab("runs", "list", "study") == (0, out, "")


def test_filters(losslab, study):
    """Several values of an option let either through; several options must all fit."""

    def listed(*options):
        return json.loads(losslab("runs", "study", "--json", *options)[1])

    assert listed() == RUNS  # to the last digit
    assert listed("--dataset", "iris", "--loss", "ce", "--loss", "focal") == [
        r for r in RUNS if r["dataset"] == "iris" and r["loss"] in ("ce", "focal")
    ]
    assert listed("--status", "diverged") == [r for r in RUNS if r["status"] == "diverged"]
    assert listed("--loss", "ce", "--status", "diverged") == []
    assert losslab("runs", "study", "--loss", "ce", "--status", "diverged")[1] == (
        "No finished runs.\n"
    )
    out = losslab("runs", "study", "--dataset", "wine", "--model", "linear")[1]
    assert "12 runs, 2 diverged; 1 data set" in out


def test_each(losslab, study):
    """One line a run, in the order of time, with all of its RUN_ID, and its accuracy in percent."""
    lines = losslab("runs", "--each", "study")[1].splitlines()[1:]
    assert [line.split()[0] for line in lines] == [r["run_id"] for r in RUNS]
    accuracy = RUNS[0]["validation_selected.test.accuracy"]
    assert lines[0].split()[1:] == [
        "iris",
        "linear",
        "ce",
        "0.01",
        "0",
        "finished",
        f"{100 * accuracy:.2f}",
    ]
    assert lines[10].split()[-2:] == ["diverged", "–"]


def test_show(losslab, study):
    """Oracle: the run and its curves, as made here."""
    run = RUNS[4]
    status, out, _ = losslab("runs", "show", "study", run["run_id"][:-1] + "4")
    assert status == 0
    lines = [line.strip() for line in out.splitlines()]
    assert lines[0] == f"{run['run_id']}, finished"
    assert "loss           el [½], encouraging(log_end=0.5)" in lines
    assert "epochs         4, in 1.5 s" in lines
    shown = {line.split("  ")[0]: line.split()[-5:] for line in lines}
    pair = [f"{100 * run[f'last.{split}.accuracy']:.2f}" for split in ("validation", "test")]
    assert " / ".join(pair) in out
    assert "Best on test" not in out  # these runs have none
    assert shown["curves over epochs 1 to 4"] == ["4", "first", "last", "least", "most"]
    assert shown["test.accuracy"] == ["▁▃▆█", "0.25", "1", "0.25", "1"]
    assert shown["test.nll"] == ["█▁▁▅", "1", "0.75", "0.5", "1"]
    assert re.search(r"train_loss +█▅ ▁ +1.5 +0.25 +0.25 +1.5\n", out)

    diverged = next(r for r in RUNS if r["status"] == "diverged")
    out = losslab("runs", "show", "study", diverged["run_id"])[1]
    assert f"{diverged['run_id']}, diverged: the loss was not finite" in out
    assert "validation / test" not in out

    everything = json.loads(losslab("runs", "show", "study", run["run_id"], "--json")[1])
    assert everything == {**run, "curves": CURVES}


def test_a_run_id_by_its_beginning(losslab, study):
    """The beginning must be of one run; the whole is fine even if another begins with it."""
    with Store(study) as store:
        store.append([{**RUNS[0], "run_id": "abc"}, {**RUNS[0], "run_id": "abcd"}])
    assert losslab("runs", "show", "study", "abc")[1].startswith("abc, ")
    assert losslab("runs", "show", "study", "abcd")[1].startswith("abcd, ")
    status, out, err = losslab("runs", "show", "study", "0")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert "12 begin with '0'" in err
    assert RUNS[0]["run_id"] in err
    status, _, err = losslab("runs", "show", "study", "fff")
    assert status == 2
    assert "losslab runs study --each" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere"], "losslab study"),
        (["study", "--dataset", "irsi"], "Did you mean 'iris'?"),
        (["study", "--loss", "mse"], "ce; el [½]; focal"),
        (["study", "--status", "crashed"], "finished; diverged"),
        (["show", "study", ""], "the beginning of a RUN_ID, but got an empty text"),
        (["export", "study"], "--tensorboard DIR"),
        (["export", "study", "runs.xlsx"], ".csv or .parquet"),
        (["export", "study", "study/runs/x/../../details.csv/a.csv"], "another place"),
        (["export", "study", "--tensorboard", "full/logs"], "another folder"),
    ],
)
def test_mistakes_are_one_line(losslab, study, arguments, says):
    """Exit status 2 and one line that says what to do."""
    (study / "details.csv").write_text("a file")
    (study.parent / "full").write_text("a file")
    if "--tensorboard" in arguments:
        pytest.importorskip("tensorboard")
    status, out, err = losslab("runs", *arguments)
    assert (status, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1
    assert says in err


def test_a_damaged_line_is_an_error(losslab, study):
    path = sorted((study / "runs").glob("*.jsonl"))[0]
    path.write_bytes(path.read_bytes().replace(b'"run_id"', b'"', 1))
    status, _, err = losslab("runs", "study")
    assert status == 2
    assert f"{path.relative_to(study.parent)}, line 1 is damaged" in err
    assert "sed -i 1d" in err


def test_help_has_examples(losslab):
    for verb in ("list", "show", "export"):
        status, out, _ = losslab("runs", verb, "--help")
        assert status == 0
        assert f"losslab runs {verb} my-study" in out or "losslab runs my-study" in out
    assert "losslab runs FOLDER" in losslab("runs", "--help")[1]
    assert losslab("runs", "study", "--help")[1] == losslab("runs", "list", "--help")[1]


# --------------------------------------------------------------------------------------- export


def test_export_to_csv_and_parquet(losslab, study):
    """Oracle: the runs, number by number, read back by the csv module and by pandas."""
    status, out, _ = losslab("runs", "export", "study", "new/all.csv")
    assert (status, out) == (0, "24 runs written to new/all.csv\n")
    rows = list(csv.DictReader(io.StringIO((study.parent / "new" / "all.csv").read_text())))
    for row, run in zip(rows, RUNS, strict=True):
        assert row.keys() == run.keys()
        for key, value in run.items():
            assert row[key] == ("" if value is None else str(value))
    losslab("runs", "export", "study", "some.parquet", "--loss", "focal")
    table = pd.read_parquet("some.parquet")
    chosen = [r for r in RUNS if r["loss"] == "focal"]
    assert len(table) == len(chosen)
    for row, run in zip(table.to_dict("records"), chosen, strict=True):
        assert {k: None if pd.isna(v) else v for k, v in row.items()} == run
    assert table["lr"].dtype == "float64"
    assert table["last.epoch"].dtype == "Int64"


def test_export_writes_over_nothing_unless_forced(losslab, study):
    """Oracle: the file as it was. Break: a table of a user's own lost without a word."""
    there = study.parent / "mine.csv"
    there.write_text("my own", encoding="utf-8")
    status, _, err = losslab("runs", "export", "study", "mine.csv")
    assert status == 2 and "mine.csv exists already" in err and "--force" in err
    assert there.read_text(encoding="utf-8") == "my own"
    assert losslab("runs", "export", "study", "mine.csv", "--force")[0] == 0
    assert len(there.read_text(encoding="utf-8").splitlines()) == len(RUNS) + 1


def test_export_of_a_study_in_which_nothing_is_finished(losslab, study):
    (study.parent / "young" / "runs").mkdir(parents=True)
    assert losslab("runs", "young")[:2] == (0, "No finished runs.\n")
    assert losslab("runs", "export", "young", "a.parquet")[0] == 0
    assert len(pd.read_parquet("a.parquet")) == 0


def test_tensorboard(losslab, study):
    """Oracle: TensorBoard's own reader. Fails if a point or a result is lost, if a choice is not
    among the hyperparameters, or if a second export writes anything again."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    status, out, _ = losslab("runs", "export", "study", "--tensorboard", "logs", "--loss", "el [½]")
    assert (status, out) == (0, "8 new runs of 8 in logs: tensorboard --logdir logs\n")
    chosen = [r for r in RUNS if r["loss"] == "el [½]"]
    logs = study.parent / "logs"
    events = {path: path.stat().st_mtime_ns for path in logs.rglob("*tfevents*")}
    assert len(events) == 8
    for run in chosen:
        (path,) = (path for path in events if run["run_id"] in str(path))
        assert path.parent.parent == logs / run["dataset"] / "linear"
        reader = EventAccumulator(str(path.parent))
        reader.Reload()
        points = [(e.step, e.value) for e in reader.Scalars("curve/test/accuracy")]
        assert points == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
        points = [(e.step, e.value) for e in reader.Scalars("curve/train_loss")]
        assert points == [(1, 1.5), (2, 1.0), (4, 0.25)]
        ((step, value),) = [(e.step, e.value) for e in reader.Scalars("last.test.nll")]
        assert (step, value) == (4, pytest.approx(run["last.test.nll"], rel=1e-7))  # float32
        content = reader.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        choices = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
        assert choices["lr"].number_value == run["lr"]
        assert choices["spec"].string_value == "encouraging(log_end=0.5)"
    out = losslab("runs", "export", "study", "--tensorboard", "logs")[1]
    assert out.startswith("16 new runs of 24")
    assert {path: path.stat().st_mtime_ns for path in events} == events
    assert not list(logs.glob(".part-*"))


class FakeClient:
    """What `loggers` uses of MLflow's client, with MLflow's own limits, kept in memory."""

    experiments: ClassVar = {}
    uris: ClassVar = []
    numbers = itertools.count()

    def __init__(self, tracking_uri):
        self.uris.append(tracking_uri)

    def get_experiment_by_name(self, name):
        return types.SimpleNamespace(experiment_id=name) if name in self.experiments else None

    def create_experiment(self, name):
        self.experiments[name] = {}
        return name

    def search_runs(self, experiment_ids, max_results, page_token=None):
        (name,) = experiment_ids
        start = int(page_token or 0)
        runs = list(self.experiments[name].values())
        page = Page(runs[start : start + 5])  # small pages, so that there are several
        page.token = str(start + 5) if start + 5 < len(runs) else None
        return page

    def create_run(self, experiment_id, start_time, tags, run_name):
        runs = self.experiments[experiment_id]
        made = types.SimpleNamespace(
            info=types.SimpleNamespace(
                run_id=f"m{next(self.numbers)}",
                status="RUNNING",
                start_time=start_time,
                run_name=run_name,
            ),
            data=types.SimpleNamespace(tags=tags, metrics=[], params={}),
        )
        runs[made.info.run_id] = made
        return made

    def delete_run(self, run_id):
        for runs in self.experiments.values():
            runs.pop(run_id, None)

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(metrics) <= 1000
        data = self._run(run_id).data
        data.metrics += metrics
        data.params |= dict(params)

    def set_terminated(self, run_id, status, end_time):
        info = self._run(run_id).info
        info.status, info.end_time = status, end_time

    def _run(self, run_id):
        return next(runs[run_id] for runs in self.experiments.values() if run_id in runs)


class Page(list):
    token = None


@pytest.fixture
def mlflow(monkeypatch):
    """A module named mlflow, of the parts that `loggers` imports."""
    fake = types.ModuleType("mlflow")
    entities, exceptions = (
        types.ModuleType("mlflow.entities"),
        types.ModuleType("mlflow.exceptions"),
    )
    fake.MlflowClient = FakeClient
    entities.Metric = lambda key, value, timestamp, step: (key, value, timestamp, step)
    entities.Param = lambda key, value: (key, value)
    exceptions.MlflowException = type("MlflowException", (Exception,), {})
    for module in (fake, entities, exceptions):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(FakeClient, "experiments", {})
    monkeypatch.setattr(FakeClient, "uris", [])
    return fake


def test_mlflow(losslab, study, mlflow):
    """Oracle: the runs, and the calls that a client kept. A run that a kill left half-logged is
    made again; the others are left alone."""
    status, out, _ = losslab(
        "runs", "export", "study", "--mlflow", "http://here", "--dataset", "wine"
    )
    assert (status, out) == (0, "12 new runs of 12 logged at http://here\n")
    assert FakeClient.uris == ["http://here"]
    logged = {r.data.tags["losslab.run_id"]: r for r in FakeClient.experiments["small"].values()}
    for run in (r for r in RUNS if r["dataset"] == "wine"):
        there = logged.pop(run["run_id"])
        end = round(pd.Timestamp(run["finished"]).timestamp() * 1000)
        assert (there.info.start_time, there.info.end_time) == (end - 1500, end)
        assert there.info.status == ("FAILED" if run["status"] == "diverged" else "FINISHED")
        assert there.data.params == {
            key: str(run[key])
            for key in ("study", "dataset", "model", "loss", "spec", "lr", "seed", "epochs")
        }
        metrics = {(key, step): value for key, value, _, step in there.data.metrics}
        assert len(metrics) == len(there.data.metrics)
        for name in [*RESULTS, "last.epoch"]:
            assert metrics.get((name, 0)) == run[name]
        curve = [metrics.get(("curve.train_loss", step)) for step in (1, 2, 3, 4)]
        assert curve == CURVES["train_loss"]
    assert not logged

    half = list(FakeClient.experiments["small"].values())[3]
    half.info.status = "RUNNING"
    out = losslab("runs", "export", "study", "--mlflow", "http://here", "--dataset", "wine")[1]
    assert out.startswith("1 new run of 12")
    runs = FakeClient.experiments["small"].values()
    assert Counter(r.data.tags["losslab.run_id"] for r in runs) == {
        r["run_id"]: 1 for r in RUNS if r["dataset"] == "wine"
    }
    assert half not in runs


def test_many_points_go_to_mlflow_in_several_calls(mlflow):
    """MLflow takes 1000 metrics a call (the client above insists); none is lost or repeated."""
    curves = {"epoch": list(range(1500)), "lr": [0.1] * 1500, "train_loss": [1.0] * 1500}
    assert loggers.to_mlflow([RUNS[0]], lambda run_id: {"curves": curves}, "x") == 1
    (run,) = FakeClient.experiments["small"].values()
    assert len(run.data.metrics) == len(set(run.data.metrics)) == 3000 + len(RESULTS) + 2


def test_what_mlflow_says_is_passed_on(losslab, study, mlflow, monkeypatch):
    error = sys.modules["mlflow.exceptions"].MlflowException("no such server")

    def refuse(self, name):
        raise error

    monkeypatch.setattr(FakeClient, "get_experiment_by_name", refuse)
    status, _, err = losslab("runs", "export", "study", "--mlflow", "http://gone")
    assert status == 2
    assert "'http://gone'" in err
    assert "no such server" in err


@pytest.mark.parametrize(
    ("option", "module", "remedy"),
    [
        ("--tensorboard", "torch.utils.tensorboard", "pip install tensorboard"),
        ("--mlflow", "mlflow", "pip install mlflow"),
    ],
)
def test_what_is_not_installed_is_named(losslab, study, monkeypatch, option, module, remedy):
    """Oracle: Python's own way to forbid an import."""
    monkeypatch.setitem(sys.modules, module, None)
    status, _, err = losslab("runs", "export", "study", option, "there")
    assert status == 2
    assert remedy in err


# --------------------------------------------------------------------------------------- symbols


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], "▁▂▃▄▅▆▇█"),
        ([2.0, 2.0], "▁▁"),
        ([None, 1.0, None, 9.0], " ▁ █"),
        ([None, None], "  "),
        ([-1.7e308, 0.0, 1.7e308], "▁▅█"),  # their difference is not finite
        ([0.0, 5e-324], "▁▁"),  # the smallest number there is
        ([0.0, 1e-323], "▁█"),
        ([], ""),
    ],
)
def test_sparkline(values, line):
    """Oracle: by hand."""
    assert sparkline(values) == line


def test_a_long_sparkline_keeps_its_ends():
    """1000 points in 32 signs: the first and the last are there, and it only rises."""
    line = sparkline([float(n) for n in range(1000)])
    assert len(line) == 32
    assert (line[0], line[-1]) == ("▁", "█")
    assert list(line) == sorted(line)


def test_plainer_symbols_where_there_are_no_others(losslab, study, monkeypatch):
    """An ASCII terminal gets the curves in ASCII, and ? for what it has no sign for."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert losslab("runs", "show", "study", RUNS[4]["run_id"])[0] == 0
    stream.flush()
    text = stream.buffer.getvalue().decode("ascii")
    assert "_-*@" in text
    assert "el [?]" in text
