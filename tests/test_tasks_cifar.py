"""`cifar10` and `cifar100`: made-up files in every form, every refusal, the real set where present.

The writers follow the published formats (https://www.cs.toronto.edu/~kriz/cifar.html), not the
readers. Every made image carries its label in its first pixel, so that images and labels cannot
fall out of step unseen.
"""

from __future__ import annotations

import codecs
import hashlib
import io
import json
import os
import pickle
import struct
import sys
import tarfile
import warnings
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from losslab import loss
from losslab.errors import InputError
from losslab.experiment.batches import Batches
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.build import model_names, task_names
from losslab.experiment.tasks.images.cifar import CLASS_NAMES, OFFICIAL_SHA256, RECIPES
from losslab.experiment.tasks.images.cifar_files import OFFICIAL, read_cifar
from losslab.experiment.train import train

DATA = Path(os.environ.get("LOSSLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
TRAIN, TEST = 100, 30


def made(count: int, seed: int, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, 3, 32, 32) and labels; the first red pixel is the label."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 3, 32, 32)).astype(np.uint8)
    labels = np.arange(count) * 7 % classes
    images[:, 0, 0, 0] = labels
    return images, labels


def python_2(batch: dict[str, object]) -> bytes:
    """The opcodes that Python 2 wrote for a batch: text and pixels as byte strings, protocol 2."""
    images, labels = batch["data"], batch["labels"]
    raw = images.tobytes()
    numbers = b"".join(b"J" + struct.pack("<i", label) for label in labels)
    shape = b"".join(b"J" + struct.pack("<i", size) for size in images.shape)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x05cnumpy\nndarray\nq\x06K\x00\x85U\x01b\x87R"
        b"(K\x01" + shape + b"\x86cnumpy\ndtype\nq\x07U\x02u1K\x00K\x01\x87R"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )
    title = b"U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03"
    return b"\x80\x02}q\x01(" + title + b"U\x06labels](" + numbers + b"eU\x04data" + array + b"u."


def python_3(protocol: int, label_key: str = "labels"):
    def write(batch: dict[str, object]) -> bytes:
        fields = {"data": batch["data"], label_key: batch["labels"], "filenames": ["a.png"]}
        if "coarse_labels" in batch:
            fields["coarse_labels"] = batch["coarse_labels"]
        return pickle.dumps(fields, protocol)

    return write


def batch_of(images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    return {"data": images.reshape(len(images), -1), "labels": labels.tolist()}


def python_files(write=python_2) -> dict[str, bytes]:
    """The six files of the python version of CIFAR-10."""
    images, labels = made(TRAIN, seed=0)
    files = {
        f"data_batch_{k + 1}": write(batch_of(images[part], labels[part]))
        for k, part in enumerate(np.array_split(np.arange(TRAIN), 5))
    }
    return files | {"test_batch": write(batch_of(*made(TEST, seed=1)))}


def records(images: np.ndarray, *label_columns: np.ndarray) -> bytes:
    columns = [column.astype(np.uint8)[:, None] for column in label_columns]
    return np.hstack([*columns, images.reshape(len(images), -1)]).tobytes()


def binary_files() -> dict[str, bytes]:
    """The six files of the binary version of CIFAR-10."""
    images, labels = made(TRAIN, seed=0)
    files = {
        f"data_batch_{k + 1}.bin": records(images[part], labels[part])
        for k, part in enumerate(np.array_split(np.arange(TRAIN), 5))
    }
    return files | {"test_batch.bin": records(*made(TEST, seed=1))}


def put(folder: Path, files: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def pack(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        top = tarfile.TarInfo(folder)
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        for name, content in {"readme.html": b"<html>", **files}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def put_sprites(folder: Path) -> Path:
    """Sprites of 3 rows × 4 columns; the last one of each split is short, its rest is noise."""
    folder.mkdir(parents=True, exist_ok=True)
    meta: dict[str, object] = {"sprites": []}
    for split, count, seed in (("train", TRAIN, 0), ("test", TEST, 1)):
        images, labels = made(count, seed)
        order = np.argsort(labels, kind="stable")
        images, labels = images[order].transpose(0, 2, 3, 1), labels[order]
        np.save(folder / f"{split}_labels.npy", labels.astype(np.uint8))
        meta[f"{split}_sha256_uint8_NHWC"] = hashlib.sha256(images.tobytes()).hexdigest()
        for number in range(-(-count // 12)):
            tiles = np.random.default_rng(9).integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
            held = images[12 * number : 12 * number + 12]
            tiles[: len(held)] = held
            sheet = np.zeros((96, 128, 3), np.uint8)
            for k in range(12):
                y, x = 32 * (k // 4), 32 * (k % 4)
                sheet[y : y + 32, x : x + 32] = tiles[k]
            name = f"{split}_{number:02d}.webp"
            Image.fromarray(sheet).save(folder / name, lossless=True)
            meta["sprites"].append(name)
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "classes.json").write_text(json.dumps(CLASS_NAMES["cifar10"]))
    return folder


FORMS = {
    "python 2": lambda root: put(root / "cifar-10-batches-py", python_files()),
    "protocol 2": lambda root: put(root / "cifar10", python_files(python_3(2))),
    "protocol 4": lambda root: put(root, python_files(python_3(4))),
    "protocol 5": lambda root: put(root, python_files(python_3(5))),
    "python archive": lambda root: pack(
        root / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files()
    ),
    "binary": lambda root: put(root / "cifar-10" / "cifar-10-batches-bin", binary_files()),
    "binary archive": lambda root: pack(
        root / "cifar10" / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files()
    ),
    "sprites": lambda root: put_sprites(root / "cifar10"),
    "sprites here": put_sprites,
}


def build(folder: Path | None, name: str = "cifar10", **options):
    return build_task(name, TaskOptions(data_dir=folder, **options))


def refused(folder: Path | None, *texts: str, name: str = "cifar10", **options) -> None:
    with pytest.raises(InputError) as caught:
        build(folder, name, **options)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def rows(*parts: torch.Tensor | np.ndarray) -> list[bytes]:
    return sorted(bytes(row) for part in parts for row in np.asarray(part).reshape(len(part), -1))


# ---------------------------------------------------------------- reading


def test_python_2_writer_writes_what_numpy_reads():
    """Oracle of the oracle: pickle and numpy themselves read the hand-written opcodes."""
    images, labels = made(4, seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy 2 renamed the module that the opcodes name
        read = pickle.loads(python_2(batch_of(images, labels)), encoding="latin1")
    assert np.array_equal(read["data"].reshape(images.shape), images)
    assert read["labels"] == labels.tolist() and read["batch_label"].startswith("training")


@pytest.mark.parametrize("form", FORMS)
def test_reads_what_was_written(tmp_path, form):
    """Oracle: the arrays written, the label in the first pixel, the counts. One form after another.

    Breaks on mixed-up planes, tiles read column by column, filler read as images, or images and
    labels out of step.
    """
    FORMS[form](tmp_path)
    task = build(tmp_path)
    assert [len(getattr(task, s)) for s in ("train", "validation", "test")] == [90, 10, 30]
    for split in (task.train, task.validation, task.test):
        inputs, targets = split.tensors
        assert inputs.dtype == torch.uint8 and inputs.shape[1:] == (3, 32, 32)
        assert torch.equal(inputs[:, 0, 0, 0].long(), targets)
    assert rows(task.train.tensors[0], task.validation.tensors[0]) == rows(made(TRAIN, seed=0)[0])
    assert rows(task.test.tensors[0]) == rows(made(TEST, seed=1)[0])


def test_all_forms_make_the_same_task(tmp_path):
    """Oracle: equality of the whole description, fingerprint included. Breaks if order matters."""
    described = []
    for number, write in enumerate(FORMS.values()):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number))
        described.append(build(tmp_path / str(number)).description)
    assert all(description == described[0] for description in described[1:])


def test_order_is_that_of_the_hashes(tmp_path):
    """Oracle: hashlib over the published record, label byte and planes. Mixes the classes."""
    put_sprites(tmp_path)
    train, _ = read_cifar("cifar10", tmp_path, CLASS_NAMES["cifar10"])
    images, labels = made(TRAIN, seed=0)
    expected = sorted(
        hashlib.sha256(records(images[k : k + 1], labels[k : k + 1])).digest() for k in range(TRAIN)
    )
    got = [
        hashlib.sha256(bytes([label]) + bytes(image.reshape(-1).numpy())).digest()
        for image, label in zip(train.images, train.labels.tolist(), strict=True)
    ]
    assert got == expected
    assert train.sha256 == hashlib.sha256(b"".join(expected)).hexdigest()
    assert len(set(train.labels[:10].tolist())) > 3


def hundred(folder: Path, form: str) -> Path:
    """CIFAR-100 with three training examples and one test example a class; coarse = fine // 5."""
    (images, fine), (test_images, test_fine) = made(300, 0, 100), made(100, 1, 100)
    if form == "binary":
        files = {
            "train.bin": records(images, fine // 5, fine),
            "test.bin": records(test_images, test_fine // 5, test_fine),
        }
        return put(folder / "cifar-100-binary", files)
    write = python_3(2, "fine_labels")
    files = {
        "train": write(batch_of(images, fine) | {"coarse_labels": (fine // 5).tolist()}),
        "test": write(batch_of(test_images, test_fine) | {"coarse_labels": [0] * 100}),
    }
    return pack(folder / "cifar-100-python.tar.gz", "cifar-100-python", files)


def test_cifar100_reads_fine_labels(tmp_path):
    """Oracle: the label in the first pixel is the fine one; both versions give the same task."""
    tasks = []
    for form in ("binary", "python"):
        hundred(tmp_path / form, form)
        tasks.append(build(tmp_path / form, "cifar100"))
    for task in tasks:
        inputs, targets = task.test.tensors
        assert torch.equal(inputs[:, 0, 0, 0].long(), targets) and task.num_classes == 100
        assert sorted(targets.tolist()) == list(range(100))
        assert task.class_names[:2] == ("apple", "aquarium_fish") and task.class_names[99] == "worm"
    assert tasks[0].description == tasks[1].description


def test_sprites_win_over_other_forms_and_the_own_sub_folder_over_the_root(tmp_path):
    """Oracle: a broken file in each place that must not be looked at."""
    put_sprites(tmp_path / "cifar10")
    put(tmp_path / "cifar10" / "cifar-10-batches-py", {"data_batch_1": b"broken"})
    put(tmp_path, {"data_batch_1.bin": b"broken", "meta.json": b"broken"})
    assert len(build(tmp_path).test) == TEST


# ---------------------------------------------------------------- the task


def test_split_size_and_standardisation(tmp_path):
    """Oracle: numpy over the kept training images; the test split does not move with the seed."""
    put_sprites(tmp_path)
    task = build(tmp_path, train_size=50, split_seed=3, validation_fraction=0.2, epochs=2)
    inputs = task.train.tensors[0].numpy().astype(np.float64)
    assert (len(task.train), len(task.validation), task.epochs) == (50, 20, 2)
    assert np.bincount(task.train.tensors[1]).tolist() == [5] * 10
    layer = task.model()[0]
    np.testing.assert_allclose(layer.mean[:, 0, 0], inputs.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(layer.std[:, 0, 0], inputs.std(axis=(0, 2, 3)), rtol=1e-6)
    assert torch.equal(task.test.tensors[0], build(tmp_path).test.tensors[0])
    assert task.description["notes"] == [
        "not the official cifar10: 100 training and 30 test examples"
    ]


@pytest.mark.parametrize("model", list(RECIPES))
def test_every_model_gives_logits(tmp_path, model):
    """Oracle: the shape, and the name in the description. The recipe is the model's own."""
    put_sprites(tmp_path)
    task = build(tmp_path, model=model)  # tries its model on two images
    assert task.description["model"]["name"] == model
    assert (task.epochs, task.batch_size) == (RECIPES[model].epochs, RECIPES[model].batch_size)
    assert task.augment is not None and task.augment.__name__ == "crop_and_flip"


def test_augmentation_is_paired_between_runs(tmp_path):
    """Oracle: two runs of a seed see equal batches, another seed others, neither the raw images."""
    put_sprites(tmp_path)
    task = build(tmp_path)

    def first(seed: int) -> torch.Tensor:
        return next(iter(Batches(task, seed, torch.device("cpu"), lambda *_: None)))[0]

    assert torch.equal(first(0), first(0)) and not torch.equal(first(0), first(1))
    raw = set(rows(task.train.tensors[0]))
    assert sum(row in raw for row in rows(first(0))) < 5


def test_defaults_are_the_papers_schedule(tmp_path):
    """Oracle: MultiStepLR with the paper's epochs, 90 of them, and again at a ninth of that."""
    put_sprites(tmp_path)
    for epochs in (90, 9):
        task = build(tmp_path, model="resnet20", epochs=epochs)
        ours = task.optimizer(task.model().parameters())
        theirs = task.optimizer(task.model().parameters())
        steps = 10
        scheduler = task.lr_scheduler(ours, steps * epochs)
        milestones = [epochs * step // 90 for step in (30, 60, 80)]
        multi = torch.optim.lr_scheduler.MultiStepLR(theirs, milestones, gamma=0.1)
        for _ in range(epochs):
            for _ in range(steps):
                rates = [o.param_groups[0]["lr"] for o in (ours, theirs)]
                assert rates[0] == pytest.approx(rates[1], rel=1e-12)
                ours.step()
                scheduler.step()
            theirs.step()
            multi.step()
        assert ours.defaults["nesterov"] and ours.defaults["weight_decay"] == 1e-4


def test_milestones_of_the_other_paper(tmp_path):
    """Oracle: the rates of Battash et al. by hand; in the description, so that runs differ."""
    put_sprites(tmp_path)
    task = build(tmp_path, model="resnet32", epochs=240, milestones=(1 / 2, 2 / 3, 5 / 6))
    optimizer = task.optimizer(task.model().parameters())
    scheduler = task.lr_scheduler(optimizer, 240)
    rates = []
    for _ in range(240):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    falls = [e for e in range(1, 240) if rates[e] < rates[e - 1]]
    assert falls == [120, 160, 200]
    assert "0.8333" in task.description["lr_scheduler"]


def test_unknown_model_and_options_that_cannot_be_heeded(tmp_path):
    """Oracle: the usual error, with the nearest name and all names."""
    put_sprites(tmp_path)
    refused(tmp_path, "has no model 'resnet21'", "Did you mean 'resnet", "cnn", model="resnet21")
    refused(tmp_path, "task 'cifar10' takes no target", target="x")
    refused(tmp_path, "task 'cifar10' takes no image_size", image_size=64)


def test_model_names_are_what_the_tasks_offer(tmp_path):
    """Oracle: the list in the refusal of an unknown model, and the list of tasks."""
    put_sprites(tmp_path)
    refused(tmp_path, f"Models: {', '.join(model_names()['cifar10'])}.", model="?")
    assert [*model_names(), "FILE.py[:FUNCTION]"] == list(task_names())


def test_a_residual_network_trains_in_pairs(tmp_path):
    """Oracle: the same run twice gives the same weights to the bit, and finite ones."""
    put_sprites(tmp_path)
    task = build(tmp_path, model="resnet20", epochs=1, train_size=40)
    results = [train(task, loss("cross_entropy"), seed=0) for _ in range(2)]
    first, second = ([*result.model.parameters()] for result in results)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.isfinite(a).all() for a in first)


# ---------------------------------------------------------------- pickles that want to do something


class Trap:
    """Makes a folder when a plain unpickler meets it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("field", ["data", "labels", "filenames"])
def test_a_pickle_runs_nothing(tmp_path, protocol, field):
    """Oracle: the folder that the pickle wants to make is not made; a plain load does make it."""
    files = python_files()
    batch = {"data": made(20, 0)[0].reshape(20, -1), "labels": [0] * 20, "filenames": []}
    content = pickle.dumps({**batch, field: Trap(tmp_path / "made")}, protocol)
    put(tmp_path, {**files, "data_batch_3": content})
    refused(tmp_path, "data_batch_3", "asks for posix.mkdir", "nothing of it was run")
    assert not (tmp_path / "made").exists()
    pickle.loads(content)
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x00\x85R.",
        b"(S'1'\nibuiltins\neval\n.",
        b"cnumpy\nload\n.",
        b"c__main__\n__builtins__\n.",
        b"cnumpy.core.multiarray\nscalar\n.",
    ],
)
def test_every_way_to_name_a_function_is_refused(tmp_path, content):
    """Oracle: GLOBAL, STACK_GLOBAL and INST with names that are not on the list of stand-ins."""
    put(tmp_path, {**python_files(), "data_batch_1": content})
    refused(tmp_path, "asks for", "nothing of it was run")


@pytest.mark.parametrize(
    "state", [b"}S'__new__'\nNs", b"N}S'given'\nNs\x86"], ids=["dictionary", "slots"]
)
def test_a_pickle_cannot_change_the_stand_ins(tmp_path, state):
    """Oracle: BUILD on a stand-in's class is refused, and good files are read afterwards."""
    put(tmp_path, {**python_files(), "data_batch_1": b"\x80\x02c_codecs\nencode\n" + state + b"b."})
    refused(tmp_path, "data_batch_1: expected a pickled batch")
    put(tmp_path, python_files(python_3(2)))
    assert len(build(tmp_path).test) == TEST


# ---------------------------------------------------------------- what is missing or damaged


def test_no_folder(tmp_path):
    """Oracle: none given, a missing one, an empty one; the message says what and where from."""
    refused(None, "cifar-10-python.tar.gz", "cifar-10-binary.tar.gz", "--data-dir", "https://")
    refused(tmp_path / "nowhere", "nowhere is not a folder")
    refused(tmp_path, "none found. Looked in", str(tmp_path / "cifar10"))
    refused(tmp_path, "cifar-100-python.tar.gz", name="cifar100")


@pytest.mark.parametrize("version", [0, 1], ids=["python", "binary"])
def test_one_file_missing(tmp_path, version):
    """Oracle: each file taken away in turn is named, from a folder and from an archive."""
    files = (python_files, binary_files)[version]()
    archive = OFFICIAL["cifar10"][version].archive
    for number, name in enumerate(files):
        rest = {key: value for key, value in files.items() if key != name}
        put(tmp_path / f"folder{number}", rest)
        refused(tmp_path / f"folder{number}", f"{name} missing", "whole of", archive)
    pack(tmp_path / "packed" / archive, "top", rest)
    refused(tmp_path / "packed", f"{name} missing", str(tmp_path / "packed" / archive))


@pytest.mark.parametrize(
    "how",
    [
        lambda content: content[: len(content) // 2],
        lambda content: content[:3],
        lambda content: b"",
        lambda content: b"<html>not found</html>",
        lambda content: content[:5000] + bytes([content[5000] ^ 0xFF]) + content[5001:],
    ],
    ids=["half", "header only", "empty", "web page", "flipped byte"],
)
@pytest.mark.parametrize("form", ["python archive", "binary archive"])
def test_damaged_archive(tmp_path, form, how):
    """Oracle: each damage is refused with the archive's name and what to do, never read half."""
    path = FORMS[form](tmp_path)
    path.write_bytes(how(path.read_bytes()))
    refused(tmp_path, path.name, "Download it again")


@pytest.mark.parametrize(
    "file, how, text",
    [
        ("test_batch", lambda c: c[: len(c) // 2], "damaged, cut short or another file"),
        ("test_batch", lambda c: b"", "damaged, cut short or another file"),
        ("test_batch", lambda c: b"<html>", "damaged, cut short or another file"),
        ("test_batch", lambda c: pickle.dumps([1]), "expected a pickled dictionary; got list"),
        ("test_batch", lambda c: pickle.dumps({"fine_labels": [], "data": 0}), "another set's"),
        ("test_batch", lambda c: pickle.dumps({"labels": ["a"], "data": 0}), "whole numbers"),
        ("test_batch", lambda c: pickle.dumps({"labels": [1], "data": 0}), "unsigned bytes"),
    ],
)
def test_damaged_pickle(tmp_path, file, how, text):
    """Oracle: one thing wrong with the file, said of this file."""
    files = python_files()
    put(tmp_path, {**files, file: how(files[file])})
    refused(tmp_path, f"{tmp_path / file}: ", text)


@pytest.mark.parametrize(
    "array, labels, text",
    [
        (np.zeros((2, 3072), np.int16), [0, 1], "unsigned bytes in two dimensions"),
        (np.zeros((2, 3072), object), [0, 1], "unsigned bytes in two dimensions"),
        (np.zeros((2, 3, 1024), np.uint8), [0, 1], "unsigned bytes in two dimensions"),
        (np.asfortranarray(np.zeros((2, 3072), np.uint8)), [0, 1], "unsigned bytes in two"),
        (np.zeros((2, 784), np.uint8), [0, 1], "got 2 × 784 values and 2 labels"),
        (np.zeros((2, 3072), np.uint8), [0, 1, 2], "got 2 × 3072 values and 3 labels"),
        (np.zeros((2, 3072), np.uint8), [0, 10], "expected 0..9; got 10 at example"),
        (np.zeros((2, 3072), np.uint8), [0, -1], "expected 0..9; got -1 at example"),
    ],
)
@pytest.mark.parametrize("protocol", [2, 5])
def test_array_of_another_kind(tmp_path, array, labels, text, protocol):
    """Oracle: dtype, shape, order or label outside of what the format has, said exactly."""
    content = python_3(protocol)({"data": array, "labels": labels})
    put(tmp_path, {**python_files(), "data_batch_2": content})
    refused(tmp_path, text)


class _Given:
    """Pickles as ``function(*arguments)``, then a state."""

    def __init__(self, function, *arguments, state=None):
        self.made = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.made


@pytest.mark.parametrize(
    "shape, raw",
    [
        ((2, 3072), _Given(codecs.encode, "\u0200" * 6144, "latin1")),
        ((2, 3072), _Given(codecs.encode, (), "latin1")),
        ((-2, -3072), bytes(6144)),
        ((2.0, 3072.0), bytes(6144)),
    ],
    ids=["text beyond latin1", "no text", "negative", "fractions"],
)
def test_array_of_parts_that_do_not_fit(tmp_path, shape, raw):
    """Oracle: a pickle whose opcodes are right and whose array is not. Break: a traceback."""
    reconstruct = np.zeros(1).__reduce__()[0]
    state = (1, shape, np.dtype("u1"), False, raw)
    array = _Given(reconstruct, np.ndarray, (0,), b"b", state=state)
    content = pickle.dumps({"data": array, "labels": [0, 1]}, 2)
    put(tmp_path, {**python_files(), "data_batch_2": content})
    refused(tmp_path, "data_batch_2: ", "damaged")


def test_array_that_promises_more_than_it_holds(tmp_path):
    """Oracle: a byte taken out of the pixels of hand-written opcodes."""
    content = python_2(batch_of(*made(4, 0)))
    shorter = content.replace(struct.pack("<i", 4 * 3072), struct.pack("<i", 4 * 3072 - 1), 1)
    cut = shorter[:-5] + shorter[-4:]
    put(tmp_path, {**python_files(), "test_batch": cut})
    refused(tmp_path, "promises 4 × 3072 values, but holds 12287")


@pytest.mark.parametrize(
    "how, text",
    [
        (lambda c: c[:-1], "19 records and 3072 bytes"),
        (lambda c: c + b"x", "20 records and 1 bytes"),
        (lambda c: b"", "got 0 bytes"),
        (lambda c: b"\x0a" + c[1:], "expected 0..9; got 10 at example"),
    ],
)
def test_damaged_binary(tmp_path, how, text):
    """Oracle: 20 records of 3073 bytes, one thing wrong with them."""
    files = binary_files()
    name = "data_batch_4.bin"
    put(tmp_path, {**files, name: how(files[name])})
    refused(tmp_path, text, str(tmp_path))


def test_binary_of_the_other_set(tmp_path):
    """Oracle: CIFAR-10's records under CIFAR-100's names are 3073 bytes long, not 3074."""
    put(tmp_path, {"train.bin": records(*made(50, 0)), "test.bin": records(*made(50, 0))})
    refused(tmp_path, "train.bin: expected records of 3074 bytes", name="cifar100")


@pytest.mark.parametrize(
    "name, content, text",
    [
        ("meta.json", b"{", "meta.json: not valid JSON"),
        ("meta.json", b"[]", "meta.json: expected 'sprites'"),
        ("meta.json", b'{"sprites": [1]}', "meta.json: expected 'sprites'"),
        ("classes.json", b'["cat", "dog"]', "expected the classes airplane, automobile, bird"),
        ("train_labels.npy", b"\x93NUMPY", "train_labels.npy: cannot be read"),
        ("train_labels.npy", b"", "train_labels.npy: cannot be read"),
        ("train_labels.npy", b"PK\x03\x04", "train_labels.npy: cannot be read"),
        ("train_labels.npy", b"PK\x05\x06" + bytes(18), "train_labels.npy: cannot be read"),
        ("test_01.webp", b"RIFF", "test_01.webp: cannot be read as an image"),
    ],
)
def test_damaged_sprites(tmp_path, name, content, text):
    """Oracle: one file broken in one way, named."""
    put(put_sprites(tmp_path), {name: content})
    refused(tmp_path, text)


@pytest.mark.parametrize("name", ["classes.json", "test_labels.npy", "train_03.webp"])
def test_sprite_file_missing(tmp_path, name):
    """Oracle: the file taken away is named."""
    (put_sprites(tmp_path) / name).unlink()
    refused(tmp_path, name)


def test_labels_of_sprites_are_not_unpickled(tmp_path):
    """Oracle: a .npy of objects, which numpy would unpickle, makes no folder."""
    put_sprites(tmp_path)
    np.save(tmp_path / "train_labels.npy", np.array([Trap(tmp_path / "made")], dtype=object))
    refused(tmp_path, "train_labels.npy: cannot be read")
    assert not (tmp_path / "made").exists()


def test_labels_of_sprites_of_another_kind(tmp_path):
    """Oracle: fractions, a table, more labels than tiles, a label too large."""
    put_sprites(tmp_path)
    for labels, text in (
        (np.zeros(TRAIN), "one whole number an image; got float64"),
        (np.zeros((TRAIN, 1), int), "of shape (100, 1)"),
        (np.zeros(200, int), "expected 200 train images"),
        (np.full(TRAIN, 10), "expected 0..9; got 10 at example 0"),
    ):
        np.save(tmp_path / "train_labels.npy", labels)
        refused(tmp_path, text)


def test_changed_pixel_of_a_sprite(tmp_path):
    """Oracle: one pixel of one tile differs by 1 from what meta.json has the sha256 of."""
    path = put_sprites(tmp_path) / "train_02.webp"
    with Image.open(path) as image:
        pixels = np.array(image.convert("RGB"))
    pixels[40, 50, 1] ^= 1
    Image.fromarray(pixels).save(path, lossless=True)
    refused(tmp_path, "the pixels of the train sprites do not have the sha256", "copy the folder")


def test_sprite_that_is_no_grid(tmp_path):
    """Oracle: 100 pixels are no whole number of tiles."""
    put_sprites(tmp_path)
    Image.new("RGB", (128, 100)).save(tmp_path / "train_00.webp", lossless=True)
    refused(
        tmp_path, "train_00.webp: expected whole tiles of 32×32 pixels; got an image of 128×100"
    )


# ---------------------------------------------------------------- real data


def test_real_cifar10():
    """Oracle: published counts, and the published mean and deviation of the training pixels.

    Breaks if an example is lost, channels are mixed up, or the content is not the known one.
    """
    if not (DATA / "cifar10").is_dir():
        pytest.skip(f"no real data: {DATA / 'cifar10'} (set LOSSLAB_DATA)")
    train, test = read_cifar("cifar10", DATA, CLASS_NAMES["cifar10"])
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    values = np.arange(256) / 255
    for channel, mean, std in ((0, 0.4914, 0.2470), (1, 0.4822, 0.2435), (2, 0.4465, 0.2616)):
        shares = np.bincount(train.images[:, channel].numpy().ravel(), minlength=256)
        shares = shares / shares.sum()
        assert (shares * values).sum() == pytest.approx(mean, abs=5e-5)
        assert (shares * (values - mean) ** 2).sum() ** 0.5 == pytest.approx(std, abs=5e-5)
    assert {"training": train.sha256, "test": test.sha256} == OFFICIAL_SHA256["cifar10"]


# ---------------------------------------------------------------- regularisation, and timm


def test_augmentation_and_dropout_as_options(tmp_path):
    """Oracle: the layers and the words of the description; other runs than without them."""
    put_sprites(tmp_path)
    plain = build(tmp_path, model="resnet9").description
    task = build(tmp_path, model="resnet9", augment=("crop-flip", "erasing"), dropout=0.2)
    assert task.description["augment"] == "in_turn(changes=('crop-flip', 'erasing'))"
    assert "Dropout(p=0.2" in task.description["model"]["layers"]
    assert task.description["sha256"] == plain["sha256"] and "Dropout" not in str(plain)
    assert build(tmp_path, augment=()).augment is None
    refused(tmp_path, "dropout of its own", model="efficientnet-b0", dropout=0.2)


def test_a_model_of_timm(tmp_path, monkeypatch):
    """Oracle: a stand-in for timm; its network, behind the standardisation, by the ResNets' recipe.
    Breaks if the prefix is not let through, or told to tasks that know nothing of it.
    """
    stub = ModuleType("timm")
    stub.is_model = lambda name: name == "tiny"
    stub.create_model = lambda name, **_: torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(3072, 10)
    )
    monkeypatch.setitem(sys.modules, "timm", stub)
    put_sprites(tmp_path)
    task = build(tmp_path, model="timm:tiny")
    assert task.description["model"]["name"] == "timm:tiny" and task.epochs == 90
    assert task.description["model"]["parameters"] == 30_730
    with pytest.raises(InputError, match="has no model 'timm:tiny'"):
        build_task("digits", TaskOptions(model="timm:tiny"))
