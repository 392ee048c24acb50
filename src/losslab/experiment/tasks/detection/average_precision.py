"""From a detector's answers to boxes, and to average precision as COCO defines it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.experiment.tasks.detection.boxes import Objects, decoded, suppressed
from losslab.experiment.tasks.needed import needed
from losslab.metrics import Metric

METRICS = (
    Metric("ap", "AP (IoU 0.50 to 0.95)"),
    Metric("ap50", "AP at IoU 0.50"),
    Metric("ap75", "AP at IoU 0.75"),
)
SCORE, CANDIDATES, OVERLAP, MOST = 0.05, 1000, 0.5, 100  # as RetinaNet has them


@dataclass(frozen=True)
class Found:
    """What a detector says of one image: boxes ``(D, 4)``, scores and labels ``(D,)``."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor


def detections(scores: Tensor, offsets: Tensor, places: Tensor, size: int) -> Found:
    """The boxes of one image, from its logits ``(A, K)`` and offsets ``(A, 4)``, best first.

    Of the pairs of anchor and class with a probability above 0.05 the 1000 best; of these none that
    overlaps a better one of its class by more than half; of these the 100 best. RetinaNet takes the
    1000 best of each level.
    """
    chances = scores.sigmoid().flatten()
    likely = (chances > SCORE).nonzero()[:, 0]
    best = chances[likely].topk(min(CANDIDATES, len(likely)))
    anchor = likely[best.indices] // scores.shape[1]
    label = likely[best.indices] % scores.shape[1]
    boxes = decoded(offsets[anchor], places[anchor]).clamp(0, size)
    apart = boxes + (label * 2.0 * size)[:, None]  # boxes of two classes never meet
    kept = suppressed(apart, best.values, OVERLAP)[:MOST]
    return Found(boxes[kept], best.values[kept], label[kept])


class AveragePrecision:
    """``(model, split)`` -> AP, AP50 and AP75 on its images.

    Args:
        splits: For each, its images ``(3, size, size)`` by number, and what is in them.
        places: The anchors.
        size: Side of an image.
        num_classes: Classes.
        batch_size: Images that the model is given together.
    """

    def __init__(
        self,
        splits: Mapping[str, tuple[Any, Sequence[Objects]]],
        places: Tensor,
        size: int,
        num_classes: int,
        batch_size: int,
    ) -> None:
        self.splits, self.places, self.size = splits, places, size
        self.num_classes, self.batch_size = num_classes, batch_size
        for split, (_, truth) in splits.items():
            if all(bool(objects.crowd.all()) for objects in truth):
                raise InputError(
                    f"{split} split: expected at least one object to find; its {len(truth)} "
                    "images have none. Add images, or hold out more."
                )

    def __call__(self, model: nn.Module, split: str) -> dict[str, float]:
        images, truth = self.splits[split]
        return average_precision(truth, self.found(model, images, len(truth)), self.num_classes)

    def found(self, model: nn.Module, images: Any, count: int) -> list[Found]:
        """What the model finds in each of the images."""
        device = next(model.parameters()).device
        places = self.places.to(device)
        found: list[Found] = []
        for start in range(0, count, self.batch_size):
            numbers = range(start, min(start + self.batch_size, count))
            batch = torch.stack([images[number] for number in numbers]).to(device)
            found += [
                detections(scores, offsets, places, self.size)
                for scores, offsets in zip(*model(batch), strict=True)
            ]
        return found


def average_precision(
    truth: Sequence[Objects], found: Sequence[Found], num_classes: int
) -> dict[str, float]:
    """COCO's AP, AP50 and AP75 by pycocotools, over the classes that occur.

    Overlaps do not change where all boxes of an image are stretched, so it is no matter that the
    boxes are those of images brought to one size.
    """
    api, evaluation = _pycocotools()
    with contextlib.redirect_stdout(io.StringIO()):  # it talks
        coco = api()
        coco.dataset = _as_coco(truth, num_classes)
        coco.createIndex()
        answers = _rows(found)
        if not answers:  # it takes no empty list
            return dict.fromkeys((metric.name for metric in METRICS), 0.0)
        judged = evaluation(coco, coco.loadRes(answers), "bbox")
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    return {metric.name: float(judged.stats[k]) for k, metric in enumerate(METRICS)}


def _as_coco(truth: Sequence[Objects], num_classes: int) -> dict[str, Any]:
    """As the annotation file has it; numbers begin at 1, since pycocotools takes 0 for none."""
    annotations = [
        {"image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3],
         "iscrowd": int(crowd)}
        for image, objects in enumerate(truth, start=1)
        for box, label, crowd in zip(
            _corner_and_sides(objects.boxes), objects.labels.tolist(), objects.crowd.tolist(),
            strict=True,
        )
    ]  # fmt: skip
    return {
        "info": {},
        "images": [{"id": image} for image in range(1, len(truth) + 1)],
        "categories": [{"id": label} for label in range(num_classes)],
        "annotations": [{"id": k, **row} for k, row in enumerate(annotations, start=1)],
    }


def _rows(found: Sequence[Found]) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": label, "bbox": box, "score": score}
        for image, one in enumerate(found, start=1)
        for box, score, label in zip(
            _corner_and_sides(one.boxes), one.scores.tolist(), one.labels.tolist(), strict=True
        )
    ]


def _corner_and_sides(boxes: Tensor) -> list[list[float]]:
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).double().tolist()


def _pycocotools() -> tuple[Any, Any]:
    with needed("pycocotools", "losslab[detection]"):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    return COCO, COCOeval


def check_installed() -> None:
    """Raise `InputError` where AP could not be measured, before hours of training."""
    _pycocotools()
