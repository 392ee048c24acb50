"""The detection tasks: the made set, COCO's files, the models, and a run that learns."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Subset

import losslab
from losslab.errors import InputError
from losslab.experiment.comparison_recipe import read_comparison
from losslab.experiment.labels import label_counts
from losslab.experiment.launch import Training
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.detection import boxes as ours
from losslab.experiment.tasks.detection import coco
from losslab.experiment.tasks.detection import retinanet as nets
from losslab.experiment.tasks.detection.boxes import anchors, decoded
from losslab.experiment.tasks.detection.coco import Files, read_coco
from losslab.experiment.tasks.detection.detection_reading import AnchorReading
from losslab.experiment.tasks.detection.shapes import NAMES, make_shapes
from losslab.experiment.tasks.images.torchvision_parts import torchvision
from losslab.experiment.train import train

pytestmark = pytest.mark.usefixtures("one_thread")
SIDES = {"train": (40, 30), "val": (24, 48)}  # width, height of the made images


@pytest.fixture(autouse=True)
def pycocotools():
    pytest.importorskip("pycocotools")


def annotations(kind: str, count: int) -> dict:
    """Each image has one object of category 3 or 7; image 1 has a crowd too, and one no object."""
    width, height = SIDES[kind]
    rows = [
        {"id": 10 + k, "image_id": k, "category_id": (3, 7)[k % 2], "iscrowd": 0,
         "bbox": [2.0, 4.0, 10.0 + k, 16.0], "area": 1.0}
        for k in range(1, count)
    ]  # fmt: skip
    crowd = {"id": 90, "image_id": 1, "category_id": 7, "iscrowd": 1, "bbox": [0, 0, 9, 9]}
    flat = {"id": 91, "image_id": 1, "category_id": 7, "iscrowd": 0, "bbox": [5, 5, 0, 3]}
    return {
        "images": [
            {"id": k, "file_name": f"{k:03}.png", "width": width, "height": height}
            for k in reversed(range(1, count + 1))
        ],
        "annotations": [*rows, crowd, flat],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
    }


def make_coco(root, train: int = 8, test: int = 4):
    """A folder in COCO's form, every pixel the number of its image."""
    (root / "annotations").mkdir(parents=True)
    for kind, count in (("train", train), ("val", test)):
        content = json.dumps(annotations(kind, count))
        (root / f"annotations/instances_{kind}2017.json").write_text(content)
        (root / f"{kind}2017").mkdir()
        width, height = SIDES[kind]
        for k in range(1, count + 1):
            pixels = np.full((height, width, 3), k, np.uint8)
            Image.fromarray(pixels).save(root / f"{kind}2017/{k:03}.png")
    return root


def coco_task(root, **changes):
    settings = {"data_dir": root, "model": "small", "image_size": 64, "validation_fraction": 0.25}
    return build_task("coco", TaskOptions(**(settings | changes)))


def measured_on_few(name, **options):
    """The task with 20 images to measure logits on; average precision is of all."""
    task = build_task(name, TaskOptions(**options))
    few = {split: Subset(getattr(task, split), range(20)) for split in ("validation", "test")}
    return replace(task, **few)


def test_shapes_fill_their_boxes():
    """Oracle: the corners of the boxes, which only squares reach, and the sides, which all do: the
    pixels along a side differ from the noise around it. Boxes off by a pixel fail."""
    images, objects = make_shapes(60, 64, seed=1)
    assert images.shape == (60, 3, 64, 64) and images.dtype == torch.uint8
    seen = set()
    for image, found in zip(images.float(), objects, strict=True):
        assert 1 <= len(found.labels) <= 4 and not found.crowd.any()
        for box, label in zip(found.boxes.int().tolist(), found.labels.tolist(), strict=True):
            seen.add(NAMES[label])
            left, top, right, bottom = box
            inside = image[:, top:bottom, left:right]
            middle = inside[:, inside.shape[1] // 2, inside.shape[2] // 2]
            like = ((inside - middle[:, None, None]).abs() < 60).all(dim=0)
            assert like.any(0).float().mean() > 0.9 and like.any(1).float().mean() > 0.8
            share = {"disc": math.pi / 4, "square": 1.0, "triangle": 0.5}[NAMES[label]]
            assert float(like.float().mean()) == pytest.approx(share, abs=0.17)
    assert seen == set(NAMES)
    again, _ = make_shapes(10, 64, seed=1)
    assert torch.equal(again, images[:10])
    assert not torch.equal(make_shapes(10, 64, seed=2)[0], again)


def test_the_made_task_says_what_it_is():
    """By hand: split sizes, the anchors of three levels, and a fingerprint of the pictures."""
    task = build_task("shapes", TaskOptions(train_size=20))
    other = build_task("shapes", TaskOptions(train_size=20, split_seed=1))
    assert task.description["sizes"] == {"train": 20, "validation": 100, "test": 200}
    places = (8 * 8 + 4 * 4 + 2 * 2) * 9
    assert task.description["anchors"] == {"strides": [8, 16, 32], "scale": 1.5, "count": places}
    assert task.train.tensors[1].shape == (20, places, 5)
    assert task.description["sha256"] != other.description["sha256"]
    assert task.class_names == NAMES
    counts = (task.train.tensors[1][..., 0] == 1).sum()
    assert task.description["class_counts"]["train"][1] == counts
    with pytest.raises(InputError, match="multiple of 32; got 48"):
        build_task("shapes", TaskOptions(image_size=48))
    with pytest.raises(InputError, match="takes no imbalance"):
        build_task("shapes", TaskOptions(imbalance=10))


def test_the_small_model_answers_every_anchor_in_its_place():
    """Oracle: the centres of the anchors themselves, which a head that says row, column and number
    of its cell's anchor must match. Answers flattened in another order fail."""
    head = nn.Conv2d(2, nets.PER_CELL * 3, 1)
    weight = torch.tensor([[1.0, 0], [0, 1], [0, 0]]).repeat(nets.PER_CELL, 1)
    bias = torch.zeros(nets.PER_CELL, 3)
    bias[:, 2] = torch.arange(nets.PER_CELL)
    head.load_state_dict({"weight": weight[:, :, None, None], "bias": bias.flatten()})
    levels = [
        torch.stack(torch.meshgrid(*[torch.arange(0.0, 64, stride)] * 2, indexing="ij"))[None]
        for stride in nets.SMALL_STRIDES
    ]
    (answers,) = nets._by_anchor(head, levels)
    places = anchors(64, nets.SMALL_STRIDES, nets.SMALL_SCALE)
    torch.testing.assert_close(answers[:, :2], ((places[:, :2] + places[:, 2:]) / 2).flip(1))
    numbers = torch.arange(len(places)) % nets.PER_CELL
    assert answers[:, 2].tolist() == numbers.tolist()
    scores, offsets = nets.SmallRetinaNet(5)(torch.rand(2, 3, 64, 64))
    assert scores.shape == (2, len(places), 5) and offsets.shape == (2, len(places), 4)


def test_an_untrained_model_expects_nothing():
    """Oracle: Lin et al.'s prior of 0.01. Without it the background comes first."""
    model = nets.SmallRetinaNet(3).eval()
    with torch.no_grad():
        scores, _ = model(torch.rand(2, 3, 64, 64))
    assert float(scores.sigmoid().mean()) == pytest.approx(0.01, rel=0.3)


def test_a_made_run_learns_to_find():
    """Oracle: an untrained model's AP, which is 0. A loss of the wrong sign, boxes decoded from
    other anchors, or labels beside their boxes leave it there."""
    task = measured_on_few("shapes", train_size=200, epochs=4, batch_size=10)
    assert task.model_scores(task.model().eval(), "test")["ap50"] < 0.01
    result = train(task, losslab.loss("halted_focal"), seed=0)
    last = result.results["last"]["test"]
    assert last["ap50"] > 0.1 and last["ap50"] >= last["ap"] >= 0
    assert set(result.results["last"]["validation"]) >= {"ap", "ap50", "ap75", "accuracy"}
    places = sum(int((y[:, 0] >= 0).sum()) for _, y in task.test)
    assert len(result.examples["correct"]) == places


def test_pieces_have_the_gradient_of_the_batch():
    """Oracle: the run without pieces, in float64 and with batch norm as it is in use, since its
    statistics are of a piece. Pieces weighted by images in place of positives fail."""

    def frozen(make):
        def build():
            torch.manual_seed(0)
            model = make().double()
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.train = lambda mode=True, layer=layer: layer
                    layer.training = False
            return model

        return build

    task = measured_on_few("shapes", train_size=16, epochs=1, batch_size=8)
    task = replace(task, model=frozen(task.model), model_scores=None, metrics=())
    loss = losslab.loss("focal")
    whole, pieces = (
        train(task, loss, seed=1, training=Training(accumulate=parts)).model for parts in (1, 3)
    )
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_coco_is_read_and_scaled(tmp_path):
    """By hand: COCO's numbers to ours in order, boxes and pixels scaled together, the rest black,
    the crowd no example, the flat box dropped, training images with nothing in them left out."""
    task = coco_task(make_coco(tmp_path / "coco"))
    assert task.class_names == ("dog", "cat")
    assert task.description["sizes"] == {"train": 5, "validation": 2, "test": 4}
    assert "not the official coco: 8 training and 4 test images" in task.description["notes"]
    image, target = task.test[1]  # number 2, 24×48 pixels
    assert image.shape == (3, 64, 64)
    assert image[:, :, :32].unique().tolist() == [2] and image[:, :, 32:].unique().tolist() == [0]
    objects = task.test.objects(1)
    expected = torch.tensor([[2.0, 4, 14, 20]]) * 64 / 48
    torch.testing.assert_close(objects.boxes, expected)
    assert objects.labels.tolist() == [0]
    assert set(target[:, 0].tolist()) == {-2.0, -1.0, 0.0}
    first = task.test.objects(0)
    assert first.crowd.tolist() == [False, True] and first.labels.tolist() == [1, 1]
    nothing = task.test.objects(3)
    assert nothing.boxes.shape == (0, 4)
    assert all(len(task.train.objects(k).labels) for k in range(5))


def test_coco_is_mirrored_with_its_boxes(tmp_path):
    """Oracle: the same image read without mirroring, its columns and its boxes turned round. Boxes
    that stay, or labels that move, fail."""
    make_coco(tmp_path)
    for file in (tmp_path / "train2017").iterdir():
        slope = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None] * 5, (30, 40, 3))
        Image.fromarray(np.ascontiguousarray(slope)).save(file)
    plain, kept, turned = coco_task(tmp_path).train, 0, 0
    for seed in range(12):
        torch.manual_seed(seed)
        image, target = plain[0]
        whole, objects = plain.image(0), plain.objects(0)
        best = target[:, 0] == objects.labels[0]
        boxes = decoded(target[best][:, 1:], plain.anchors[best])
        if torch.equal(image, whole):
            kept += 1
            expected = objects.boxes[:1]
        else:
            turned += 1
            assert torch.equal(image, whole.flip(-1))
            x1, y1, x2, y2 = objects.boxes[0].tolist()
            expected = torch.tensor([[64 - x2, y1, 64 - x1, y2]])
        torch.testing.assert_close(boxes, expected.expand_as(boxes), atol=1e-3, rtol=1e-4)
    assert kept and turned


def test_coco_is_counted_without_its_images(tmp_path, monkeypatch):
    """Oracle: the targets as they come with the images. Break: 118,000 photos decoded to plan."""
    task = coco_task(make_coco(tmp_path))
    targets = torch.stack([target for _, target in DataLoader(task.test, None)])
    expected = torch.bincount(task.reading.labels(targets).flatten(), minlength=task.num_classes)
    monkeypatch.setattr(coco.Pictures, "image", None)
    assert label_counts(task, "test").tolist() == expected.tolist()
    assert label_counts(task, "train").sum() > expected.sum() > 0


def test_coco_is_trained_on_and_measured(tmp_path):
    """Oracle: all runs of one seed are one; the scores are of the splits' own images."""
    make_coco(tmp_path)
    task = coco_task(tmp_path, epochs=1, batch_size=3)
    once, again = (train(task, losslab.loss("focal"), seed=0) for _ in range(2))
    assert once.results == again.results and once.status == "finished"
    assert 0 <= once.results["last"]["test"]["ap"] <= 1
    batch, target = next(iter(DataLoader(task.train, 2)))
    assert batch.shape[0] == target.shape[0] == 2


def test_coco_is_the_same_from_zip_files(tmp_path):
    """Oracle: the folder. Another order or another fingerprint fails."""
    plain = make_coco(tmp_path / "plain")
    packed = tmp_path / "packed"
    packed.mkdir()
    names = {"annotations": "annotations_trainval2017", "train2017": "", "val2017": ""}
    for folder, name in names.items():
        with zipfile.ZipFile(packed / f"{name or folder}.zip", "w") as archive:
            for file in sorted((plain / folder).iterdir()):
                archive.write(file, f"{folder}/{file.name}")
    one, other = coco_task(plain), coco_task(packed)
    assert one.description == other.description
    for k in range(4):
        assert torch.equal(one.test[k][0], other.test[k][0])
        assert torch.equal(one.test[k][1], other.test[k][1])


def test_damaged_coco_is_refused(tmp_path):
    """Each with the file and what to do: nothing there, an image missing, cut short, another's
    size, an archive half downloaded, annotations cut short, other classes."""
    with pytest.raises(InputError, match=r"instances_train2017\.json.*not found in"):
        coco_task(tmp_path)
    root = make_coco(tmp_path / "coco")
    image = root / "val2017/002.png"
    whole = image.read_bytes()
    image.write_bytes(whole[:60])
    with pytest.raises(InputError, match=r"002\.png: damaged or half downloaded.*Download"):
        coco_task(root).test.image(1)
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(image)
    with pytest.raises(InputError, match=r"002\.png: expected 24×48 pixels.*got 5×5"):
        coco_task(root).test.image(1)
    image.unlink()
    with pytest.raises(InputError, match=r"val2017: expected all 4 images.*1 are missing"):
        coco_task(root)
    image.write_bytes(whole)
    text = root / "annotations/instances_val2017.json"
    kept = text.read_text()
    text.write_text(kept[:200])
    with pytest.raises(InputError, match=r"instances_val2017\.json: expected COCO's annotations"):
        coco_task(root)
    text.write_text(kept.replace("dog", "cow"))
    with pytest.raises(InputError, match="not files of one set"):
        coco_task(root)
    text.write_text(kept)
    (root / "val2017.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match=r"val2017\.zip: expected a complete zip file"):
        Files(root / "val2017.zip")
    (root / "val2017").rename(root / "elsewhere")
    with pytest.raises(InputError, match=r"val2017\.zip: expected a complete zip file"):
        read_coco(root)


def test_the_recipe_is_the_papers():
    """Oracle: table 10 as printed, and the task of each size."""
    recipe = read_comparison("zh-t10")
    (claim,) = (claim for claim in recipe.claims if claim.value == "ap")
    assert claim.published == {"Focal": 0.3445, "Halted focal": 0.3460}
    assert recipe.task == "shapes"
    full = read_comparison("zh-t10", size="full")
    assert (full.task, full.options.model) == ("coco", "resnet50")


def test_resnet50_needs_its_weights(tmp_path):
    """The message names the file, where it was looked for and the address; another's is refused."""
    with pytest.raises(InputError, match=r"resnet50-0676ba61\.pth; looked in .*download\.pytorch"):
        coco_task(make_coco(tmp_path), model="resnet50", image_size=128)
    (tmp_path / nets.RESNET50).write_bytes(b"half")
    with pytest.raises(InputError, match="sha256 begins with 0676ba61"):
        coco_task(tmp_path, model="resnet50", image_size=128)


@pytest.fixture(scope="module")
def vision():
    try:
        return torchvision()
    except InputError as error:
        pytest.skip(str(error))


def test_torchvisions_network_starts_from_the_weights(vision, tmp_path):
    """Oracle: torchvision's ResNet-50 of the same weights, its second group; and one answer an
    anchor. Weights that are not read, or batch norms that are trained, fail."""
    torch.manual_seed(0)
    source = vision.models.resnet50(weights=None).eval()
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    model = nets.ResNet50RetinaNet(3, tmp_path / "weights.pth")
    images = torch.rand(1, 3, 128, 128)
    scores, offsets = model(images)
    places = anchors(128, nets.STRIDES, nets.SCALE)
    assert scores.shape == (1, len(places), 3) and offsets.shape == (1, len(places), 4)
    frozen = source.maxpool(source.relu(source.bn1(source.conv1(images))))
    with torch.no_grad():
        body = model.train().backbone.body
        mine = body.layer1(body.maxpool(body.relu(body.bn1(body.conv1(images)))))
        torch.testing.assert_close(mine, source.layer1(frozen), rtol=1e-4, atol=1e-5)
    trained = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert "layer1" not in trained and {"layer2", "layer4"} <= trained


def test_anchors_boxes_and_focal_loss_are_torchvisions(vision):
    """Oracle: torchvision's AnchorGenerator, Matcher, BoxCoder, sigmoid_focal_loss."""
    from torchvision.models.detection import _utils
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList

    sides = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128))
    generator = AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * 3)
    grids = [torch.zeros(1, 1, 256 // stride, 256 // stride) for stride in (8, 16, 32)]
    (theirs,) = generator(ImageList(torch.zeros(1, 3, 256, 256), [(256, 256)]), grids)
    places = anchors(256, (8, 16, 32), 4)
    assert torch.equal(places, theirs)
    corner = torch.rand(6, 2) * 150
    boxes = torch.cat([corner, corner + 5 + torch.rand(6, 2) * 90], dim=1)
    matcher = _utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    assert torch.equal(ours.matched(boxes, places), matcher(vision.ops.box_iou(boxes, places)))
    coder = _utils.BoxCoder((1.0, 1.0, 1.0, 1.0))
    offsets = coder.encode_single(boxes, places[:6])
    torch.testing.assert_close(ours.encoded(boxes, places[:6]), offsets)
    torch.testing.assert_close(
        ours.decoded(offsets * 3, places[:6]), coder.decode_single(offsets * 3, places[:6])
    )
    scores = torch.randn(2, 9, 4, dtype=torch.float64)
    target = torch.zeros(2, 9, 5, dtype=torch.float64)
    target[..., 0] = torch.randint(-1, 4, (2, 9))
    offsets = target[..., 1:]
    found = AnchorReading().loss(losslab.loss("focal"), (scores, offsets), target)
    answers = (target[..., 0, None] == torch.arange(4)).double()
    total = vision.ops.sigmoid_focal_loss(scores, answers, 0.25, 2.0, "sum")
    torch.testing.assert_close(found, total / max(1, int((target[..., 0] >= 0).sum())))
