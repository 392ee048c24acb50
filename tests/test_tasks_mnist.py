"""`mnist` and `fashion-mnist`: made-up idx files, every refusal, and the real files where present.

The idx writer follows the published format (http://yann.lecun.com/exdb/mnist/), not the reader.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task

DATA = Path(os.environ.get("LOSSLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))


def idx_bytes(values: np.ndarray) -> bytes:
    """Magic number, big-endian sizes, values in C order."""
    sizes = b"".join(struct.pack(">I", size) for size in values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.astype(np.uint8).tobytes()


def images_and_labels(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 28, 28)), np.arange(count) % 10


def write_set(folder: Path, compressed: bool = True, train: int = 120, test: int = 30) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for part, count, seed in (("train", train, 0), ("t10k", test, 1)):
        images, labels = images_and_labels(count, seed)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(values)
            name = f"{part}-{kind}-ubyte"
            if compressed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def build(folder: Path | None, name: str = "mnist", **options):
    return build_task(name, TaskOptions(data_dir=folder, **options))


def refused(folder: Path | None, *texts: str, name: str = "mnist", **options) -> None:
    with pytest.raises(InputError) as caught:
        build(folder, name, **options)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("sub", ["", "mnist", "MNIST/raw"])
def test_reads_what_was_written(tmp_path, compressed, sub):
    """Oracle: the arrays written. Breaks on a wrong offset, byte order, or transposed images."""
    write_set(tmp_path / sub, compressed)
    task = build(tmp_path)
    images, labels = images_and_labels(30, seed=1)
    inputs, targets = task.test.tensors
    assert inputs.dtype == torch.uint8 and inputs.shape == (30, 1, 28, 28)
    assert np.array_equal(inputs[:, 0].numpy(), images) and targets.tolist() == labels.tolist()
    assert len(task.train) == 110 and len(task.validation) == 10  # one twelfth of 12 a class
    together = torch.cat([task.train.tensors[0], task.validation.tensors[0]])
    written, _ = images_and_labels(120, seed=0)
    assert sorted(map(bytes, together.numpy())) == sorted(map(bytes, written.astype(np.uint8)))


def test_files_named_with_a_dot(tmp_path):
    """Oracle: the other common spelling, train-images.idx3-ubyte, gives the same tensors."""
    expected = build(write_set(tmp_path / "a", compressed=False)).description["sha256"]
    write_set(tmp_path / "b", compressed=False)
    for path in list((tmp_path / "b").iterdir()):
        path.rename(path.with_name(path.name.replace("-idx", ".idx")))
    assert build(tmp_path / "b").description["sha256"] == expected


@pytest.mark.parametrize("sub", ["fashion_mnist", "fashion-mnist", "FashionMNIST/raw"])
def test_the_own_sub_folder_wins(tmp_path, sub):
    """Oracle: different pixels in the folder itself and in the sub-folder of the set's name."""
    write_set(tmp_path, train=100)
    write_set(tmp_path / sub, train=150)
    assert sum(build(tmp_path, "fashion-mnist").description["class_counts"]["train"]) > 100
    assert build(tmp_path, "fashion-mnist").class_names[9] == "Ankle boot"


def test_standardisation_uses_training_pixels_only(tmp_path):
    """Oracle: numpy's mean and deviation of the training images; leakage would move them."""
    write_set(tmp_path)
    task = build(tmp_path)
    pixels = task.train.tensors[0].numpy().astype(np.float64)
    layer = task.model()[0]
    assert float(layer.mean) == pytest.approx(pixels.mean(), rel=1e-6)
    assert float(layer.std) == pytest.approx(pixels.std(), rel=1e-6)


@pytest.mark.parametrize("model", ["cnn", "mlp", "linear", "liu2016"])
def test_models_and_options(tmp_path, model):
    """Oracle: logits of the right shape and the options seen in the task."""
    task = build(write_set(tmp_path), model=model, train_size=50, epochs=2, validation_fraction=0.5)
    assert task.model()(task.train.tensors[0][:3]).shape == (3, 10)
    assert (len(task.train), len(task.validation), task.epochs) == (50, 60, 2)
    assert task.description["model"]["name"] == model


def test_recipe_of_the_paper(tmp_path):
    """Oracle: Zhao et al.'s loop: 0.1 up to epoch 50, 0.01 up to 64, then 0.001, of 100 epochs.

    And their optimiser: plain momentum 0.9, no weight decay, batches of 256.
    """
    task = build(write_set(tmp_path), model="liu2016")
    assert (task.epochs, task.batch_size, task.augment) == (100, 256, None)
    optimizer = task.optimizer(task.model().parameters())
    settings = optimizer.defaults
    assert (settings["momentum"], settings["nesterov"], settings["weight_decay"]) == (0.9, False, 0)
    scheduler = task.lr_scheduler(optimizer, 100 * 3)
    for epoch in range(1, 101):
        rate = 0.1 if epoch <= 50 else 0.01 if epoch < 65 else 0.001
        for _ in range(3):
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate)
            optimizer.step()
            scheduler.step()


def test_split_seed_moves_validation_and_not_test(tmp_path):
    """Oracle: equality of tensors."""
    write_set(tmp_path)
    one, again, other = (build(tmp_path, split_seed=seed) for seed in (0, 0, 1))
    assert one.description["sha256"] == again.description["sha256"]
    assert not torch.equal(one.validation.tensors[0], other.validation.tensors[0])
    assert torch.equal(one.test.tensors[0], other.test.tensors[0])


def test_note_for_files_that_are_not_the_official_ones(tmp_path):
    """Oracle: 120 and 30 examples are not 60,000 and 10,000."""
    notes = build(write_set(tmp_path)).description["notes"]
    assert notes == ["not the official mnist: 120 training and 30 test examples"]


def test_no_folder(tmp_path):
    """Oracle: none given, a missing one, an empty one; the message says what and where from."""
    refused(None, "four idx files", "--data-dir", "https://")
    refused(tmp_path / "nowhere", "nowhere is not a folder")
    refused(tmp_path, "no training images found. Looked in", str(tmp_path / "mnist"))


@pytest.mark.parametrize(
    "file", ["train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]
)
def test_one_file_missing(tmp_path, file):
    """Oracle: the file taken away is named."""
    (write_set(tmp_path) / f"{file}.gz").unlink()
    refused(tmp_path, f"expected {file}.gz (or without .gz)", "it is missing")


def damage(path: Path, how) -> None:
    path.write_bytes(how(path.read_bytes()))


@pytest.mark.parametrize(
    "how",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:-4],
        lambda content: content[:3],
        lambda content: b"<html>not found</html>",
        lambda content: content[:40] + bytes([content[40] ^ 0xFF]) + content[41:],
        lambda content: content[:-8] + b"\0\0\0\0" + content[-4:],
    ],
    ids=["half", "trailer cut", "header only", "web page", "flipped byte", "wrong checksum"],
)
def test_damaged_gzip(tmp_path, how):
    """Oracle: each damage is refused with the file's name and what to do, never read half."""
    path = write_set(tmp_path) / "train-images-idx3-ubyte.gz"
    damage(path, how)
    refused(tmp_path, str(path), "damaged or cut short", "Download it again")


@pytest.mark.parametrize(
    "how, text",
    [
        (lambda c: c[:-1], "promises 94080 values (120 × 28 × 28), but it holds 94079"),
        (lambda c: c + b"x", "holds 94081. The file is damaged"),
        (lambda c: c[:10], "cut short inside its header"),
        (lambda c: b"", "got an empty file"),
        (lambda c: b"<html>", "starts with 00 00 08 03; got 3c 68 74 6d"),
        (lambda c: b"\0\0\x0d\x03" + c[4:], "starts with 00 00 08 03; got 00 00 0d 03"),
        (lambda c: idx_bytes(np.zeros((120, 784))), "got 00 00 08 02"),
        (lambda c: idx_bytes(np.zeros((0, 28, 28))), "holds no values (0 × 28 × 28)"),
        (lambda c: idx_bytes(np.zeros((120, 32, 32))), "images of 28×28 pixels; got 32×32"),
        (lambda c: idx_bytes(np.zeros((119, 28, 28))), "got 120 labels for 119 images"),
    ],
)
def test_damaged_plain_file(tmp_path, how, text):
    """Oracle: one thing wrong with the bytes, said exactly."""
    path = write_set(tmp_path, compressed=False) / "train-images-idx3-ubyte"
    damage(path, how)
    refused(tmp_path, text)


def test_label_out_of_range(tmp_path):
    """Oracle: label 12 at example 4 of the test labels."""
    labels = images_and_labels(30, 1)[1]
    labels[4] = 12
    folder = write_set(tmp_path, compressed=False)
    (folder / "t10k-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    refused(folder, "t10k labels: expected 0..9; got 12 at example 4")


def test_the_other_set_is_recognised(tmp_path, monkeypatch):
    """Oracle: a folder whose label counts are another set's. Breaks if names alone are trusted."""
    from losslab.experiment.tasks.images import mnist

    monkeypatch.setitem(mnist.TRAIN_COUNTS, "mnist", [12] * 10)
    refused(
        write_set(tmp_path),
        "expected fashion-mnist; these are the files of mnist",
        name="fashion-mnist",
    )


def real(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"no real data: {DATA / folder} (set LOSSLAB_DATA)")
    return DATA


MD5_OF_PIXELS = {  # of the uncompressed official files
    "mnist": "2646ac647ad5339dbf082846283269ea",
    "fashion-mnist": None,
}


@pytest.mark.parametrize(
    "name, folder, train_counts, test_counts",
    [
        (
            "mnist",
            "mnist",
            [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
            [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        ),
        ("fashion-mnist", "fashion_mnist", [6000] * 10, [1000] * 10),
    ],
)
def test_real_files(name, folder, train_counts, test_counts):
    """Oracle: the published label counts, and the md5 of MNIST's test images.

    Breaks if an example is lost between the splits or pixels are misread.
    """
    task = build(real(folder), name)
    counts = task.description["class_counts"]
    both = np.add(counts["train"], counts["validation"])
    assert both.tolist() == train_counts and counts["test"] == test_counts
    assert task.description["notes"] == []
    assert abs(len(task.validation) - 5000) <= 5
    if MD5_OF_PIXELS[name]:
        content = idx_bytes(task.test.tensors[0][:, 0].numpy())
        assert hashlib.md5(content).hexdigest() == MD5_OF_PIXELS[name]


def test_real_mnist_is_not_taken_for_fashion():
    """Oracle: MNIST's own folder given as the data folder of fashion-mnist."""
    refused(real("mnist") / "mnist", "these are the files of mnist", name="fashion-mnist")
