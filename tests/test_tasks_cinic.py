"""`cinic10`: made folders and archives in the set's own layout, and every refusal."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.images.cifar import CLASS_NAMES

NAMES = CLASS_NAMES["cifar10"]
EACH = {"train": 4, "valid": 3, "test": 2}  # images of a class


def files() -> dict[str, bytes]:
    """Path in the archive -> PNG. The first pixel holds split, class and number of the image."""
    generator = np.random.default_rng(0)
    made = {}
    for place, (split, count) in enumerate(EACH.items()):
        for label, name in enumerate(NAMES):
            for number in range(count):
                pixels = generator.integers(0, 256, (32, 32, 3)).astype(np.uint8)
                pixels[0, 0] = place, label, number
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "PNG")
                made[f"{split}/{name}/n{number:03d}.png"] = stream.getvalue()
    return made


def put(folder: Path, made: dict[str, bytes]) -> Path:
    for name, content in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def pack(path: Path, made: dict[str, bytes], top: str = "") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in sorted(made.items(), reverse=True):
            member = tarfile.TarInfo(f"{top}{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def build(folder: Path, **options):
    return build_task("cinic10", TaskOptions(data_dir=folder, **options))


def refused(folder: Path, *texts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        build(folder, **options)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_reads_the_folders_splits(tmp_path):
    """Oracle: split, class and number in every image's first pixel, in the order of the names."""
    task = build(put(tmp_path / "CINIC-10", files()).parent)
    for place, split in enumerate((task.train, task.validation, task.test)):
        inputs, targets = split.tensors
        each = list(EACH.values())[place]
        assert inputs.shape == (10 * each, 3, 32, 32) and inputs.dtype == torch.uint8
        assert (inputs[:, 0, 0, 0] == place).all()
        assert torch.equal(inputs[:, 1, 0, 0].long(), targets)
    task = build(tmp_path, train_size=40)  # all of them, so in the order they were read
    assert task.train.tensors[1].tolist() == [label for label in range(10) for _ in range(4)]
    assert task.train.tensors[0][:, 2, 0, 0].tolist() == list(range(4)) * 10
    assert task.class_names == NAMES
    assert task.description["notes"] == ["not the official cinic10: 40 train, 30 valid, 20 test "
                                         "images"]  # fmt: skip


@pytest.mark.parametrize("top", ["", "CINIC-10/", "./"])
def test_archives_make_the_folders_task(tmp_path, top):
    """Oracle: the description of the folder, fingerprint included; the archive is in another order
    and holds files of other kinds.
    """
    made = files()
    folder = build(put(tmp_path / "a", made))
    (tmp_path / "b").mkdir()
    pack(tmp_path / "b" / "CINIC-10.tar.gz", {**made, "imagenet-contributors.csv": b"x"}, top)
    assert build(tmp_path / "b").description == folder.description


def test_train_and_valid_together(tmp_path):
    """Oracle: the first pixels of training and validation images are those of both, each once; the
    share held out is of both; the test split stays.
    """
    task = build(put(tmp_path, files()), validation_fraction=0.2)
    seen = [split.tensors[0][:, :, 0, 0] for split in (task.train, task.validation)]
    assert [len(part) for part in seen] == [60, 10] or [len(part) for part in seen] == [50, 20]
    both = sorted(map(tuple, torch.cat(seen).tolist()))
    expected = [(p, c, n) for p, each in enumerate((4, 3)) for c in range(10) for n in range(each)]
    assert both == sorted(expected)
    plain = build(tmp_path)
    assert torch.equal(task.test.tensors[0], plain.test.tensors[0])
    assert task.description["split"] != plain.description["split"]


def test_schedule_of_the_paper(tmp_path):
    """Oracle: Battash et al.: 0.1, a tenth of it from epochs 30 and 60 of 90 on; decay 1e-4."""
    task = build(put(tmp_path, files()), model="resnet20", augment=("crop-flip", "rotation"))
    optimizer = task.optimizer(task.model().parameters())
    scheduler = task.lr_scheduler(optimizer, 90)
    rates = []
    for _ in range(task.epochs):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1] * 30 + [0.01] * 30 + [0.001] * 30)
    assert optimizer.defaults["weight_decay"] == 1e-4
    assert task.description["augment"] == "in_turn(changes=('crop-flip', 'rotation'))"
    assert build(tmp_path).epochs == 5  # the CNN's own


def test_grey_images_become_rgb(tmp_path):
    """Oracle: a grey PNG, as the set has some, gives three equal channels."""
    made = files()
    stream = io.BytesIO()
    Image.fromarray(np.full((32, 32), 77, np.uint8)).save(stream, "PNG")
    made["test/airplane/n000.png"] = stream.getvalue()
    inputs = build(put(tmp_path, made)).test.tensors[0]
    assert (inputs[0] == 77).all()


def test_what_is_missing_or_damaged(tmp_path):
    """Oracle: the place named, and what to do; nothing is read by halves."""
    refused(tmp_path, "cinic10 is read from CINIC-10.tar.gz", "https://", str(tmp_path))
    made = files()
    lacking = {name: content for name, content in made.items() if "valid/ship" not in name}
    refused(put(tmp_path / "lacking", lacking), "in valid; none of ship", "the whole of")
    cut = {**made, "train/cat/n001.png": made["train/cat/n001.png"][:300]}
    refused(put(tmp_path / "cut", cut), "train/cat/n001.png", "cannot be read as an image")
    stream = io.BytesIO()
    Image.new("RGB", (64, 48)).save(stream, "PNG")
    other = {**made, "test/dog/n001.png": stream.getvalue()}
    refused(put(tmp_path / "other", other), "test/dog/n001.png", "32×32 pixels; got 64×48")
    (tmp_path / "half").mkdir()
    path = pack(tmp_path / "half" / "CINIC-10.tar.gz", made)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(tmp_path / "half", str(path), "Download it again")
    path.write_bytes(b"<html>not found</html>")
    refused(tmp_path / "half", str(path), "Download it again")
