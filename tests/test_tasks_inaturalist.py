"""`inaturalist2018` from made folders in the competition's form."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from losslab import loss
from losslab.errors import InputError
from losslab.experiment.labels import label_counts
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.train import train
from test_tasks_imagenet import jpeg, levels

COUNTS = {3: 120, 0: 21, 7: 4}  # training images by category; the numbers have gaps


def lists() -> dict[str, dict]:
    """Category k's images have the grey level 20 + 20 k, plus 60 in the validation list."""
    categories = [{"id": k, "name": f"species {k}", "supercategory": "Made"} for k in COUNTS]
    made = {}
    for name, counts in (("train2018", COUNTS), ("val2018", dict.fromkeys(COUNTS, 2))):
        images, annotations = [], []
        for k, count in counts.items():
            for number in range(count):
                key = 1000 * k + number + (500 if name == "val2018" else 0)
                file = f"train_val2018/Made/{k}/{name}_{number}.jpg"
                images.append({"id": key, "file_name": file, "width": 40, "height": 30})
                annotations.append({"id": key, "image_id": key, "category_id": k})
        made[name] = {"images": images, "annotations": annotations[::-1], "categories": categories}
    return made


def put(folder: Path, made: dict[str, dict]) -> Path:
    for name, content in made.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
        for image in content["images"]:
            path = folder / image["file_name"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(jpeg(20 + 20 * int(path.parent.name) + 60 * (name == "val2018")))
    return folder


def build(folder: Path, **options):
    options = {"model": "resnet18", "image_size": 32, "validation_fraction": 0.25, **options}
    return build_task("inaturalist2018", TaskOptions(data_dir=folder, **options))


def test_it_reads_the_lists(tmp_path):
    """Oracle: each image's grey level says its category and split; the order of the categories'
    numbers. Break: annotations taken by place, or categories numbered as they come."""
    task = build(put(tmp_path, lists()))
    assert task.class_names == ("species 0", "species 3", "species 7")
    grey = {0: 20, 1: 80, 2: 160}
    for split, extra, sizes in (
        ("train", 0, (16, 90, 3)),
        ("validation", 0, (5, 30, 1)),
        ("test", 60, (2, 2, 2)),
    ):
        seen = levels(getattr(task, split))
        assert all(abs(level - grey[label] - extra) <= 2 for level, label in seen)
        assert label_counts(task, split).tolist() == list(sizes)
    assert len({*task.train.files, *task.validation.files}) == sum(COUNTS.values())
    assert task.train[0][0].shape == (3, 32, 32)
    assert task.description["notes"] == [
        "not the official inaturalist2018: 145 training and 6 test images"
    ]
    assert [m.title for m in task.metrics] == [
        "Accuracy, classes of more than 100",
        "Accuracy, classes of 20 to 100",
        "Accuracy, classes of fewer than 20",
    ]


def test_the_published_schedule(tmp_path):
    """Oracle: Kang et al.'s configuration for iNaturalist 2018, and the 200 epochs."""
    task = build_task("inaturalist2018", TaskOptions(data_dir=put(tmp_path, lists())))
    optimizer = task.optimizer([torch.nn.Parameter(torch.zeros(1))])
    group = optimizer.param_groups[0]
    assert (task.epochs, task.batch_size) == (200, 512)
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.2, 0.9, 1e-4)
    assert not group["nesterov"]
    assert task.description["model"]["name"] == "resnet50"
    scheduler, rates = task.lr_scheduler(optimizer, 200), []
    for _ in range(200):
        rates.append(group["lr"])
        optimizer.step()
        scheduler.step()
    cosine = [0.1 * (1 + math.cos(math.pi * k / 200)) for k in range(200)]
    rise = [min(1, (k + 1) / 20) for k in range(200)]  # theirs has none
    assert rates == pytest.approx([a * b for a, b in zip(cosine, rise, strict=True)])
    seen = task.description["preprocessing"]
    assert "256" in seen[1] and "224" in seen[1] and "224" in seen[0]


def test_a_run(tmp_path):
    """Oracle: the run ends and measures the groups; re-weighting knows the counts."""
    task = build(put(tmp_path, lists()), train_size=12, epochs=1, batch_size=6)
    counts = label_counts(task, "train").tolist()
    result = train(task, loss(f"reweighted(encouraging, counts={counts})"), 0)
    assert result.status == "finished"
    found = result.results["last"]["test"]
    groups = [found[f"accuracy_{name}"] for name in ("many", "medium", "few")]
    assert found["accuracy"] == pytest.approx(sum(groups) / 3)


def without(kind: str):
    def change(folder: Path, made: dict[str, dict]) -> None:
        if kind == "an image":
            (folder / made["train2018"]["images"][5]["file_name"]).unlink()
        elif kind == "its end":
            path = folder / "train2018.json"
            path.write_bytes(path.read_bytes()[:500])
        elif kind == "a list":
            (folder / "val2018.json").unlink()
        else:
            content = made["train2018"]
            if kind == "an annotation":
                content["annotations"].pop()
            elif kind == "a key":
                del content["categories"]
            elif kind == "a category":
                content["categories"] = content["categories"][:2]
            else:
                content["images"] = [i for i in content["images"] if "/7/" not in i["file_name"]]
            (folder / "train2018.json").write_text(json.dumps(content))

    return change


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("an image", r"expected all 145 images of train2018\.json; 1 are missing or empty.*\.jpg"),
        ("its end", "half downloaded"),
        ("a list", r"not found\. Looked in"),
        ("an annotation", "in another form"),
        ("a key", "in another form"),
        ("a category", "they differ"),
        ("a species", "of which 1 have fewer"),
    ],
)
def test_what_is_missing_is_told(tmp_path, kind, message):
    """Break: a set quietly smaller than it should be, or a traceback of json."""
    made = lists()
    without(kind)(put(tmp_path, made), made)
    with pytest.raises(InputError, match=message):
        build(tmp_path)


@pytest.mark.parametrize("option", [{"imbalance": 10.0}, {"target": "x"}, {"dropout": 0.1}])
def test_options_that_say_nothing_here(tmp_path, option):
    with pytest.raises(InputError, match=next(iter(option))):
        build(put(tmp_path, lists()), **option)
