"""Several comparisons taken together: the numbers of their records, and what cannot be joined."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from losslab.cli.app import app
from losslab.errors import InputError
from losslab.experiment import records
from losslab.experiment.across import summarize_across
from losslab.experiment.across_folders import summarize_folders
from losslab.experiment.runner import run
from losslab.metrics import MORE, Metric
from test_runner import blobs, comparison, make_task

pytestmark = pytest.mark.usefixtures("one_thread")
LABELS = ["ce", "el", "mix"]


def folder_of(place, name: str, seed: int, **changes):
    """A comparison of three losses on blobs of its own."""
    task = make_task(name=name, train=blobs(48, seed), test=blobs(30, seed + 50))
    run(comparison(place / name, **{"task": task, "seeds": range(3), **changes}))
    return place / name


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("across")
    return [folder_of(place, name, seed) for seed, name in enumerate(("one", "two", "three"))]


def scores(folder, metric="accuracy"):
    """(seeds, losses) from the records."""
    found = {(r["seed"], r["loss"]["label"]): r for r in records.load_all(folder)}
    return [
        [found[seed, label]["results"]["last"]["test"][metric] for label in LABELS]
        for seed in range(3)
    ]


def test_the_numbers_are_those_of_the_records(folders):
    """Oracle: `summarize_across` on the table read off the records. Break: a task's seeds or
    losses out of order, or a smaller-is-better metric taken for the other kind."""
    found = summarize_folders(folders)
    expected = summarize_across(
        [scores(folder) for folder in folders], LABELS, "ce", 0.005,
        datasets=["one", "two", "three"], unit="points", scale=100.0,
    )  # fmt: skip
    assert found["models"]["all"]["across"] == expected
    assert found["metric"] == "accuracy" and found["runs"]["finished"] == 27

    nll = summarize_folders(folders, "nll", margin=0.2)["models"]["all"]["across"]
    expected = summarize_across(
        -np.array([scores(folder, "nll") for folder in folders]), LABELS, "ce", 0.2,
        datasets=["one", "two", "three"],
    )  # fmt: skip
    assert nll == expected and nll["profile"]["kind"] == "cost"


def test_each_task_by_its_own_metric(folders, tmp_path):
    """Oracle: the table of Matthews correlations beside accuracies, as GLUE has them."""
    task = make_task(name="cola", metrics=(MORE["matthews"],))
    run(comparison(tmp_path / "cola", task=task, seeds=range(3), metric="matthews"))
    found = summarize_folders([folders[0], tmp_path / "cola"])
    table = [scores(folders[0]), scores(tmp_path / "cola", "matthews")]
    across = found["models"]["all"]["across"]
    for k, label in enumerate(LABELS):
        assert across["table"][label]["mean"] == pytest.approx(np.mean(table, axis=(0, 1))[k])
    assert found["models"]["all"]["judged"] == {"one": "Accuracy", "cola": "Matthews correlation"}
    one = summarize_folders([folders[0], tmp_path / "cola"], "accuracy")
    assert one["metric"] == "accuracy"


def test_other_seeds_and_lacking_runs(folders, tmp_path):
    """Oracle: the means over the seeds there are; a loss that one folder lacks is left out."""
    losses = [("ce", "cross_entropy"), ("el", "encouraging")]
    two = folder_of(tmp_path, "few", 9, seeds=[4, 5], losses=losses)
    across = summarize_folders([folders[0], two])["models"]["all"]["across"]
    assert across["methods"] == ["ce", "el"] and across["seeds"] is None
    assert "different numbers of seeds" in across["notes"][0]
    mean = np.mean(scores(folders[0]), axis=0)[:2]
    own = [r["results"]["last"]["test"]["accuracy"] for r in records.load_all(two)]
    expected = (mean[1] - mean[0] + (own[1] + own[3] - own[0] - own[2]) / 2) / 2
    assert across["table"]["el"]["improvement"] == pytest.approx(expected)

    for record in list((two / "runs").glob("*.json")):
        if json.loads(record.read_text())["loss"]["label"] == "el":
            record.unlink()
    found = summarize_folders([*folders[:2], two])["models"]["all"]
    assert found["missing"] == ["few"] and found["across"]["datasets"] == ["one", "two"]
    with pytest.raises(InputError, match=r"got one; lacking: few"):
        summarize_folders([folders[0], two])


def test_diverged_runs_are_told(folders, tmp_path):
    """Oracle: by hand, one run broken. Break: a loss whose worst runs are left out without a word,
    or counted as the commonest class without one."""
    task = make_task(name="cola", metrics=(MORE["matthews"],))
    run(comparison(tmp_path / "cola", task=task, seeds=range(3)))
    broken = next(
        path
        for path in (tmp_path / "cola" / "runs").glob("*.json")
        if (record := json.loads(path.read_text()))["loss"]["label"] == "el" and record["seed"] == 1
    )
    record = json.loads(broken.read_text())
    record |= {"status": "diverged", "results": dict.fromkeys(records.SELECTIONS)}
    broken.write_text(json.dumps(record))
    both = [folders[0], tmp_path / "cola"]
    counted = summarize_folders(both)["models"]["all"]
    assert counted["diverged"] == {"el": 1} and counted["across"]["seeds"] == 3
    left_out = summarize_folders(both, "nll")["models"]["all"]
    assert left_out["diverged"] == {} and left_out["across"]["seeds"] is None
    assert any("left out: el on cola (1)" in note for note in left_out["across"]["notes"])


def test_what_cannot_be_joined(folders, tmp_path):
    """Break: a comparison counted twice, or accuracies added to losses."""
    with pytest.raises(InputError, match=r"one \(one\) twice"):
        summarize_folders([folders[0], folders[0]])
    with pytest.raises(InputError, match="two or more folders"):
        summarize_folders(folders[:1])
    with pytest.raises(InputError, match=r"no metric 'acuracy'.*Did you mean 'accuracy'"):
        summarize_folders(folders, "acuracy")
    with pytest.raises(InputError, match="no metric 'margin' that is judged"):
        summarize_folders(folders, "margin")
    with pytest.raises(InputError, match="folder of a comparison"):
        summarize_folders([folders[0], tmp_path])
    base = comparison(tmp_path / "nll", task=make_task(name="other"), seeds=[0], metric="nll")
    run(base)
    with pytest.raises(InputError, match=r"can be put together.*one accuracy, other nll"):
        summarize_folders([folders[0], tmp_path / "nll"])
    odd = replace(base, out=tmp_path / "odd", losses=[("a", "cross_entropy"), ("b", "focal")])
    run(odd)
    with pytest.raises(InputError, match=r"under the same label in all comparisons.*a, b"):
        summarize_folders([folders[0], tmp_path / "odd"])


def test_scores_of_a_hundred_are_not_added_to_shares(folders, tmp_path):
    """Break: BLEU, in percent, beside accuracies: a mean difference a hundred times too large."""
    bleu = Metric("bleu", "BLEU", unit="", margin=0.3)
    scores_of = lambda model, split: {"bleu": 20 + 30 * model.weight[0, 0].item()}  # noqa: E731
    task = make_task(
        name="de-en", metrics=(bleu,), model_scores=scores_of, model=lambda: nn.Linear(4, 3)
    )
    made = comparison(tmp_path / "de-en", task=task, seeds=range(3), metric="bleu")
    run(made)
    run(replace(made, out=tmp_path / "fr-en", task=replace(task, name="fr-en")))
    with pytest.raises(InputError, match=r"between −1 and 1, but de-en has bleu up to"):
        summarize_folders([folders[0], tmp_path / "de-en"])
    both = summarize_folders([tmp_path / "de-en", tmp_path / "fr-en"])
    assert both["metric"] == "bleu"


def test_the_command_prints_and_draws(folders, tmp_path):
    """Break: a page without its profile, or a model that there is none of."""
    where = [str(folder) for folder in folders]
    done = CliRunner().invoke(app, ["across", *where, "--out", str(tmp_path / "all")])
    assert done.exit_code == 0, done.output
    assert "Over 3 tasks" in done.output and "Model all" not in done.output
    page = (tmp_path / "all" / "report.html").read_text()
    assert "How close to the best" in page and "Over 3 tasks" in page
    names = {path.name for path in (tmp_path / "all" / "figures" / "all").iterdir()}
    assert {"profile.png", "profile.svg", "improvements.png", "ranks-conover.svg"} <= names
    json_ = CliRunner().invoke(app, ["across", *where, "--out", str(tmp_path / "b"), "--json"])
    assert json.loads(json_.stdout) == json.loads((tmp_path / "all/summary.json").read_text())
