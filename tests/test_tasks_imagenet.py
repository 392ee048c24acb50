"""`imagenet` and `tiny-imagenet` from made folders and zip files; the views against torchvision."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from losslab import loss
from losslab.errors import InputError
from losslab.experiment.batches import Batches, own_randomness
from losslab.experiment.labels import label_counts
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.images.imagenet import make_model
from losslab.experiment.tasks.images.large_images import MiddleView, RandomView, crop_box
from losslab.experiment.train import train

WNIDS = ("n02", "n01", "n03")  # the list's order is not the alphabet's


def jpeg(level: int, width: int = 40, height: int = 30) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), (level, level, level)).save(stream, "JPEG")
    return stream.getvalue()


def imagenet_files() -> dict[str, bytes]:
    """Class k's images have the grey level 20 k, plus 100 in val."""
    return {
        f"{split}/n{k}/image{number}.JPEG": jpeg(20 * k + 100 * (split == "val"))
        for split, each in (("train", 6), ("val", 2))
        for k in (1, 2, 3)
        for number in range(each)
    }


def tiny_files() -> dict[str, bytes]:
    """Class n0k's images have the grey level 20 k, plus 100 in val."""
    made = {
        f"train/{wnid}/images/{wnid}_{number}.JPEG": jpeg(20 * int(wnid[-1]), 64, 64)
        for wnid in WNIDS
        for number in range(6)
    }
    made |= {f"train/{wnid}/{wnid}_boxes.txt": b"0\t0\t1\t1\n" for wnid in WNIDS}
    made |= {f"val/images/val_{k}.JPEG": jpeg(120 + 20 * (k % 3), 64, 64) for k in range(6)}
    made["val/val_annotations.txt"] = "".join(
        f"val_{k}.JPEG\tn0{k % 3 + 1}\t0\t0\t63\t63\n" for k in range(6)
    ).encode()
    made["wnids.txt"] = "\n".join(WNIDS).encode() + b"\n"
    made["test/images/test_0.JPEG"] = jpeg(0)
    return made


def put(folder: Path, made: dict[str, bytes]) -> Path:
    for name, content in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def zipped(folder: Path, made: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / "tiny-imagenet-200.zip", "w") as archive:
        for name, content in made.items():
            archive.writestr(f"tiny-imagenet-200/{name}", content)
    return folder


def build(folder: Path, name: str = "imagenet", **options):
    options = {"model": "resnet18", "validation_fraction": 0.34, **options}
    return build_task(name, TaskOptions(data_dir=folder, **options))


def refused(folder: Path, *texts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        build(folder, **options)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def levels(split) -> list[tuple[int, int]]:
    """Grey level and class of every image as it comes out; a JPEG is off by a level or two."""
    return sorted((round(float(x.float().mean()) / 20) * 20, label) for x, label in split)


def test_imagenet_reads_its_folders(tmp_path):
    """Oracle: the grey level of each image, which says class and split; sizes; 224 pixels."""
    task = build(put(tmp_path / "ImageNet", imagenet_files()).parent)
    assert levels(task.test) == [(120, 0)] * 2 + [(140, 1)] * 2 + [(160, 2)] * 2
    both = levels(task.train) + levels(task.validation)
    assert sorted(both) == [(20 * k, k - 1) for k in (1, 2, 3) for _ in range(6)]
    assert len(task.validation) == 6 and task.test.targets == [0, 0, 1, 1, 2, 2]
    image, _ = task.train[0]
    assert image.shape == (3, 224, 224) and image.dtype == torch.uint8
    words = task.description
    assert words["sha256"] and words["sizes"] == {"train": 12, "validation": 6, "test": 6}
    assert words["notes"] == ["not the official imagenet: 18 training and 6 test images"]
    assert "224×224" in words["preprocessing"][0] and "256" in words["preprocessing"][1]


@pytest.mark.parametrize("form", [put, zipped])
def test_tiny_imagenet_has_the_classes_of_its_list(tmp_path, form):
    """Oracle: as above; class numbers are places in wnids.txt, not in the alphabet, and those of
    the validation images come from val_annotations.txt. The unlabelled test images are not used.
    """
    task = build(form(tmp_path, tiny_files()), "tiny-imagenet")
    place = {wnid: number for number, wnid in enumerate(WNIDS)}
    expected = [(100 + 20 * k, place[f"n0{k}"]) for k in (1, 2, 3) for _ in range(2)]
    assert levels(task.test) == sorted(expected)
    both = levels(task.train) + levels(task.validation)
    assert sorted(both) == sorted((20 * k, place[f"n0{k}"]) for k in (1, 2, 3) for _ in range(6))
    assert task.class_names == WNIDS and task.train[0][0].shape == (3, 64, 64)


def test_fingerprint_follows_the_files(tmp_path):
    """Oracle: equal files give equal fingerprints, another size, name or split another one."""
    first = build(put(tmp_path / "a", imagenet_files())).description["sha256"]
    assert build(put(tmp_path / "b", imagenet_files())).description["sha256"] == first
    assert build(tmp_path / "b", split_seed=1).description["sha256"] != first
    (tmp_path / "b" / "train/n1/image0.JPEG").write_bytes(jpeg(20, 400, 300))
    assert build(tmp_path / "b").description["sha256"] != first


@pytest.mark.parametrize(
    ("options", "expected"),
    [({"class_counts": [4, 2, 1]}, [4, 2, 1]), ({"imbalance": 4.0}, [4, 2, 1])],
)
def test_files_make_a_long_tail(tmp_path, options, expected):
    """Oracle: counting the images that come out, and the whole task. Break: images that lose their
    class, test images that go, or a fingerprint that stays."""
    whole = build(put(tmp_path, imagenet_files()))
    task = build(tmp_path, **options)
    classes = [label for _, label in task.train]
    assert [classes.count(k) for k in range(3)] == expected
    assert {(name, size) for name, size in task.train.files} < set(whole.train.files)
    assert all(abs(level - 20 * (label + 1)) < 5 for level, label in levels(task.train))
    assert task.test.files == whole.test.files and task.validation.files == whole.validation.files
    assert task.description["class_sizes"] == label_counts(task, "train").tolist() == expected
    prints = {
        t.description["sha256"] for t in (whole, task, build(tmp_path, split_seed=1, **options))
    }
    assert len(prints) == 3 and str(task.train.view) == str(whole.train.view)
    assert task.metrics[-1].name == "accuracy_few"


def test_schedules_of_the_papers(tmp_path):
    """Oracle: epochs, batch, and the epochs at which the rate falls to a tenth."""
    put(tmp_path / "imagenet", imagenet_files())
    put(tmp_path / "tiny-imagenet-200", tiny_files())
    for name, epochs, batch, falls in (
        ("imagenet", 90, 256, [30, 60]),
        ("tiny-imagenet", 200, 128, [100, 150]),
    ):
        task = build(tmp_path, name)
        assert (task.epochs, task.batch_size) == (epochs, batch)
        optimizer = task.optimizer(task.model().parameters())
        scheduler = task.lr_scheduler(optimizer, epochs)
        rates = []
        for _ in range(epochs):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert [e for e in range(1, epochs) if rates[e] < rates[e - 1] / 5] == falls
        assert optimizer.defaults["nesterov"] is False
        assert optimizer.defaults["weight_decay"] == 1e-4


def test_what_is_missing_or_damaged(tmp_path):
    """Oracle: the file or folder named, and what to do."""
    refused(tmp_path, "train/CLASS/*.JPEG and val/CLASS/*.JPEG", str(tmp_path / "imagenet"))
    refused(tmp_path, "tiny-imagenet-200.zip", name="tiny-imagenet")
    made = imagenet_files()
    refused(put(tmp_path / "flat", {**made, "val/x.JPEG": jpeg(0)}), "side by side", ".sh")
    refused(put(tmp_path / "more", {**made, "val/n9/x.JPEG": jpeg(0)}), "class 'n9' is not among")
    few = {name: content for name, content in made.items() if "train/n2/" not in name}
    few["train/n2/image0.JPEG"] = jpeg(40)
    refused(put(tmp_path / "few", few), "two images each in train", "n2")
    name = "train/n2/image0.JPEG"
    put(tmp_path / "cut", {**made, name: made[name][:200]})
    task = build(tmp_path / "cut", validation_fraction=0.1)
    with pytest.raises(InputError, match=r"n2/image0.JPEG cannot be read as an image"):
        for split in (task.train, task.validation):
            list(split)
    (tmp_path / "cut" / name).unlink()
    with pytest.raises(InputError, match=r"n2/image0.JPEG cannot be read .*again"):
        for split in (task.train, task.validation):
            list(split)


def test_a_damaged_tiny_imagenet(tmp_path):
    """Oracle: the zip file cut short, a label that is no class, an image that is gone."""
    path = zipped(tmp_path / "a", tiny_files()) / "tiny-imagenet-200.zip"
    path.write_bytes(path.read_bytes()[:-100])
    refused(tmp_path / "a", str(path), "damaged or cut short", name="tiny-imagenet")
    made = tiny_files()
    wrong = {**made, "val/val_annotations.txt": made["val/val_annotations.txt"] + b"a.JPEG\tn01\n"}
    refused(zipped(tmp_path / "b", wrong), "lists 7 images", "holds 6", name="tiny-imagenet")
    wrong = {**made, "wnids.txt": b"n01\nn02\n"}
    refused(put(tmp_path / "c", wrong), "'n03' is not among", name="tiny-imagenet")
    wrong = {**made, "val/images/extra.JPEG": jpeg(0)}
    refused(put(tmp_path / "d", wrong), "extra.JPEG", "got None", name="tiny-imagenet")


# ---------------------------------------------------------------- the views


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return Image.fromarray(pixels)


def test_random_parts_are_of_the_published_sizes():
    """Oracle: of 3,000 boxes in a large image: within it, 8 to 100 % of the area, sides 3:4 to 4:3
    (up to rounding); all of an image that is too long has the greatest ratio, in its middle.
    """
    torch.manual_seed(0)
    boxes = np.array([crop_box(400, 300) for _ in range(3000)])
    left, top, width, height = boxes.T
    assert (left >= 0).all() and (left + width <= 400).all() and (top + height <= 300).all()
    share, ratio = width * height / 120_000, width / height
    assert 0.079 < share.min() < 0.1 and share.max() > 0.9
    assert ratio.min() > 0.74 and ratio.max() < 1.35
    assert left.min() == 0 and top.min() == 0 and (left + width).max() == 400
    assert crop_box(10_000, 3) == (4998, 0, 4, 3) and crop_box(3, 10_000) == (0, 4998, 3, 4)


def test_the_middle_by_hand():
    """Oracle: an image whose pixels are their own column: the columns left after the cut."""
    columns = np.broadcast_to(np.arange(96, dtype=np.uint8), (32, 96))
    seen = np.asarray(MiddleView(28, 32)(Image.fromarray(columns)))
    assert seen.shape == (28, 28) and seen[0].tolist() == list(range(34, 62))
    assert MiddleView(64, 64)(picture(128, 64)).size == (64, 64)


def transforms() -> ModuleType:
    try:
        from torchvision import transforms
    except Exception as error:  # one built for another torch raises RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    return transforms


@pytest.mark.parametrize("size", [(50, 40), (33, 70), (64, 64), (9, 80)])
def test_views_are_torchvisions(size):
    """Oracle: torchvision's transforms on the same image, after the same seed, to the pixel."""
    theirs = transforms()
    random = theirs.Compose([theirs.RandomResizedCrop(24), theirs.RandomHorizontalFlip()])
    middle = theirs.Compose([theirs.Resize(28), theirs.CenterCrop(24)])
    for seed in range(20):
        image = picture(*size, seed)
        for ours, other in ((RandomView(24), random), (MiddleView(24, 28), middle)):
            seen = []
            for view in (ours, other):
                torch.manual_seed(seed)
                seen.append(np.asarray(view(image)))
            assert np.array_equal(*seen)


def test_crops_are_paired_between_runs(tmp_path):
    """Oracle: the batches of two runs of a seed are equal, those of another seed are not."""
    made = {name: content for name, content in imagenet_files().items()}
    for number, name in enumerate(name for name in made if name.startswith("train")):
        stream = io.BytesIO()
        picture(40, 30, number).save(stream, "JPEG")
        made[name] = stream.getvalue()
    task = build(put(tmp_path, made), image_size=16, batch_size=4)

    def first(seed: int) -> torch.Tensor:
        with own_randomness(torch.device("cpu")) as reseed:
            return next(iter(Batches(task, seed, torch.device("cpu"), reseed)))[0]

    assert torch.equal(first(0), first(0)) and not torch.equal(first(0), first(1))


def test_a_run_from_a_zip_file(tmp_path):
    """Oracle: the run ends, finds more than chance on grey levels alone, and the data travel to
    another process (a zip file that is open does not).
    """
    task = build(zipped(tmp_path, tiny_files()), "tiny-imagenet", epochs=1, image_size=16)
    copy = pickle.loads(pickle.dumps(task.train))
    assert torch.equal(copy[0][0], task.train[0][0]) and copy.targets == task.train.targets
    result = train(task, loss("cross_entropy"), seed=0)
    assert result.status == "finished" and len(result.examples["correct"]) == 6


# ---------------------------------------------------------------- the networks


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "name, published",
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnext50", 25_028_904),
        ("resnext101", 88_791_336),
        ("shufflenet-v2", 2_278_604),
        ("efficientnet-b0", 5_288_548),
    ],
)
def test_networks_have_torchvisions_size(name, published):
    """Oracle: num_params of torchvision's weights for 1,000 classes."""
    with torch.device("meta"):  # counting needs no numbers
        assert parameters(make_model(name, 1000, 224)[1]) == published


@pytest.mark.parametrize("name", ["resnet18", "shufflenet-v2", "efficientnet-b0"])
def test_large_stems_shrink_an_image_by_32(name):
    """Oracle: 7×7 places are left of 224 pixels, of 64 with a small stem 8, 8 and 4."""
    for size, left in ((224, 7), (64, 4 if name == "efficientnet-b0" else 8)):
        model, seen = make_model(name, 10, size).eval(), []
        pooling = next(m for m in model[1] if isinstance(m, nn.AdaptiveAvgPool2d))
        pooling.register_forward_pre_hook(lambda _, x, seen=seen: seen.append(x[0].shape[2:]))
        with torch.no_grad():
            model(torch.zeros(1, 3, size, size, dtype=torch.uint8))
        assert seen == [(left, left)]


def test_values_are_torchvisions():
    """Oracle: torchvision's ResNeXt-50 with our weights."""
    transforms()
    from torchvision import models

    theirs, ours = models.resnext50_32x4d(num_classes=10), make_model("resnext50", 10, 224)[1]
    other = [m for m in theirs.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    mine = [m for m in ours.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    for one, two in zip(mine, other, strict=True):
        two.load_state_dict(one.state_dict())
    inputs = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for model in (ours, theirs):
            model.eval()
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-4, atol=1e-5)
