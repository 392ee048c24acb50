"""A folder of images by class: layouts, pixels, splits and every refusal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task

COLOURS = {"blue": (0, 0, 255), "green": (0, 200, 0), "red": (250, 10, 20)}


def write_classes(folder: Path, each: int, size: int = 12, classes=COLOURS) -> Path:
    """Images of one colour a class."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            image = Image.new("RGB", (size, size), COLOURS[name])
            image.save(folder / name / f"{number:03d}.png")
    return folder


def write_numbered(folder: Path) -> None:
    """Ten images a class, no two alike."""
    for name in COLOURS:
        (folder / name).mkdir()
        for number in range(10):
            colour = (2 * number**2, 9 * number, 20 * len(name))
            Image.new("RGB", (8, 8), colour).save(folder / name / f"{number}.png")


def build(folder: Path, **options):
    return build_task(str(folder), TaskOptions(**options))


def refused(folder: Path, *texts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        build(folder, **options)
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_in_one_folder(tmp_path):
    """Oracle: the colour of each class. Breaks if targets and images fall out of step."""
    task = build(write_classes(tmp_path / "flags", 10))
    assert task.name == "flags" and task.class_names == ("blue", "green", "red")
    assert [len(getattr(task, s)) for s in ("train", "validation", "test")] == [18, 6, 6]
    for split in (task.train, task.validation, task.test):
        inputs, targets = split.tensors
        assert inputs.dtype == torch.uint8 and inputs.shape[1:] == (3, 32, 32)
        for image, target in zip(inputs, targets, strict=True):
            expected = torch.tensor(COLOURS[task.class_names[target]], dtype=torch.uint8)
            assert torch.equal(image, expected[:, None, None].expand(3, 32, 32))


def test_given_splits_with_and_without_validation(tmp_path):
    """Oracle: counts of files. With no val folder a fifth of train is held out, test untouched."""
    write_classes(tmp_path / "train", 10)
    write_classes(tmp_path / "test", 4)
    task = build(tmp_path)
    assert [len(getattr(task, s)) for s in ("train", "validation", "test")] == [24, 6, 12]
    write_classes(tmp_path / "val", 3)
    task = build(tmp_path, train_size=15)
    assert [len(getattr(task, s)) for s in ("train", "validation", "test")] == [15, 9, 12]
    refused(tmp_path, "validation_fraction has no use", validation_fraction=0.1)


def test_pixels_of_other_kinds(tmp_path):
    """Oracle: values by hand: grey, palette, transparent, 16-bit (upper 8 bits), turned by EXIF."""
    write_classes(tmp_path, 6, size=32)
    Image.new("L", (32, 32), 77).save(tmp_path / "red" / "000.png")
    Image.new("RGBA", (32, 32), (1, 2, 3, 4)).save(tmp_path / "red" / "001.png")
    deep = np.full((32, 32), 0x1234, dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "red" / "002.png")
    palette = Image.new("RGB", (32, 32), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(tmp_path / "red" / "003.png", transparency=bytes([0]))
    half = Image.new("RGB", (32, 32), (0, 0, 0))
    half.paste((255, 255, 255), (0, 0, 32, 16))  # top half white, to be shown turned by 180°
    exif = Image.Exif()
    exif[0x0112] = 3
    half.save(tmp_path / "red" / "004.png", exif=exif)
    task = build(tmp_path)
    seen = torch.cat([split.tensors[0] for split in (task.train, task.validation, task.test)])
    firsts = {tuple(image[:, 0, 0].tolist()) for image in seen}
    expected = {(77,) * 3, (1, 2, 3), (0x12,) * 3, (9, 8, 7), (0, 0, 0), *COLOURS.values()}
    assert firsts == expected
    turned = next(image for image in seen if not image[:, 0, 0].any())
    assert bool((turned[:, 20:] == 255).all())


def test_size_option_and_models(tmp_path):
    """Oracle: shape of inputs and logits."""
    write_classes(tmp_path, 5)
    for model in ("cnn", "mlp", "linear"):
        task = build(tmp_path, model=model, image_size=16)
        assert task.train.tensors[0].shape[1:] == (3, 16, 16)
        assert task.model()(task.train.tensors[0][:2]).shape == (2, 3)


def test_standardisation_uses_training_images_only(tmp_path):
    """Oracle: numpy over the training images, for each channel; the images all differ."""
    write_numbered(tmp_path)
    task = build(tmp_path)
    pixels = task.train.tensors[0].numpy().astype(np.float64)
    layer = task.model()[0]
    np.testing.assert_allclose(layer.mean.flatten(), pixels.mean(axis=(0, 2, 3)), rtol=1e-6)
    np.testing.assert_allclose(layer.std.flatten(), pixels.std(axis=(0, 2, 3)), rtol=1e-5)


def test_augmentation_is_paired(tmp_path):
    """Oracle: equal generators give equal images, and images do change."""
    task = build(write_classes(tmp_path, 10))
    gradient = torch.arange(4 * 3 * 32 * 32, dtype=torch.int64).remainder(251).to(torch.uint8)
    batch = gradient.reshape(4, 3, 32, 32)
    one, two = (task.augment(batch, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(one, two) and not torch.equal(one, batch)


def test_split_seed(tmp_path):
    """Oracle: fingerprints over images that all differ."""
    write_numbered(tmp_path)
    one, again, other = (build(tmp_path, split_seed=s).description["sha256"] for s in (0, 0, 1))
    assert one == again != other


def test_damaged_image_is_named(tmp_path):
    """Oracle: the file cut in half; a text file named .png."""
    write_classes(tmp_path, 5)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    path = tmp_path / "green" / "002.png"
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    refused(tmp_path, str(path), "cannot be read as an image", "replace or remove it")
    path.write_text("no image")
    refused(tmp_path, str(path), "cannot be read as an image")


def test_floating_point_image_is_refused(tmp_path):
    """Oracle: a float TIFF, whose range nobody knows. Converting would clip it silently."""
    write_classes(tmp_path, 5)
    path = tmp_path / "red" / "x.tiff"
    Image.fromarray(np.full((8, 8), 0.5, dtype=np.float32)).save(path)
    refused(tmp_path, str(path), "floating-point numbers of unknown range")


def test_layouts_that_cannot_be_learned_from(tmp_path):
    """Oracle: one thing wrong with the folders at a time."""
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(empty, "at least two sub-folders", "got 0")
    (empty / "only").mkdir()
    refused(empty, "got 1 (only)")
    (empty / "none").mkdir()
    refused(empty, f"{empty / 'none'}: expected at least 3 images (one a split); got 0")
    rare = write_classes(tmp_path / "rare", 5)
    for number in range(3):
        (rare / "green" / f"{number:03d}.png").unlink()
    refused(rare, f"{rare / 'green'}: expected at least 3 images (one a split); got 2")
    split = tmp_path / "split"
    write_classes(split / "train", 5)
    refused(split, "has a train folder but no test folder")
    write_classes(split / "test", 2)
    (split / "test" / "purple").mkdir()
    refused(split, "class 'purple' is not among the training classes (blue, green, red)")
    refused(split, "takes no target", target="x")


def test_empty_training_class(tmp_path):
    """Oracle: a class folder without images in train, with val and test complete."""
    for part in ("train", "val", "test"):
        write_classes(tmp_path / part, 2)
    for path in (tmp_path / "train" / "red").iterdir():
        path.unlink()
    refused(tmp_path, "expected at least 1 image (to learn the class from); got 0")


def test_other_files_are_passed_over_with_a_note(tmp_path):
    """Oracle: two files that are no images; hidden folders are no classes."""
    write_classes(tmp_path, 5)
    (tmp_path / "red" / "notes.txt").write_text("x")
    (tmp_path / "blue" / ".hidden.png").write_text("x")
    (tmp_path / ".cache").mkdir()
    task = build(tmp_path)
    assert task.description["notes"] == ["2 files passed over: not an image by its ending"]
    assert task.num_classes == 3
