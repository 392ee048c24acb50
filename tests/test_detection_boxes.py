"""Anchors, matching, encoding and suppression of boxes; a detector's loss; average precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import losslab
from losslab.errors import InputError
from losslab.experiment.shares import shares
from losslab.experiment.tasks.detection.average_precision import (
    AveragePrecision,
    Found,
    average_precision,
    detections,
)
from losslab.experiment.tasks.detection.boxes import (
    BACKGROUND,
    IGNORED,
    Objects,
    anchor_targets,
    anchors,
    decoded,
    encoded,
    matched,
    overlaps,
    suppressed,
)
from losslab.experiment.tasks.detection.detection_reading import AnchorReading

pytestmark = pytest.mark.usefixtures("one_thread")


def some_boxes(count: int, seed: int, size: float = 100.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * size * 0.7
    return torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 25], dim=1)


def overlap_by_hand(one, other) -> float:
    width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return width * height / (sum(areas) - width * height)


def test_anchors_are_retinanets():
    """By hand from Lin et al.: 9 in a cell, areas 32², (32·2^⅓)², (32·2^⅔)² at stride 8, doubling
    from level to level, ratios 1:2, 1:1, 2:1. A swapped ratio or a wrong octave fails."""
    grid = anchors(256, (8, 16), 4)
    assert grid.shape == ((32 * 32 + 16 * 16) * 9, 4)
    first = grid[:9]
    assert first[3].tolist() == [-16, -16, 16, 16] and first[4].tolist() == [-20, -20, 20, 20]
    width, height = (first[:, 2:] - first[:, :2]).T
    assert (height / width).tolist() == pytest.approx([0.5] * 3 + [1] * 3 + [2] * 3, rel=0.05)
    assert (width * height)[:3].tolist() == pytest.approx([32**2, 40**2, 50**2], rel=0.05)
    assert (grid[9 : 2 * 9] - first).tolist() == [[8, 0, 8, 0]] * 9  # columns first
    coarse = grid[32 * 32 * 9 :]
    assert coarse[3].tolist() == [-32, -32, 32, 32]


def test_boxes_come_back_from_their_encoding():
    """Oracle: the box itself, in float64; and a doubled, shifted box by hand."""
    boxes, places = some_boxes(40, 1).double(), some_boxes(40, 2).double()
    torch.testing.assert_close(decoded(encoded(boxes, places), places), boxes)
    anchor = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    box = torch.tensor([[5.0, 0.0, 25.0, 40.0]])
    expected = [[1.0, 0.5, math.log(2), math.log(2)]]
    torch.testing.assert_close(encoded(box, anchor), torch.tensor(expected))


def test_overlaps_are_those_of_every_pair():
    """Oracle: the formula pair by pair."""
    left, right = some_boxes(7, 3), some_boxes(9, 4)
    expected = [[overlap_by_hand(a.tolist(), b.tolist()) for b in right] for a in left]
    torch.testing.assert_close(overlaps(left, right), torch.tensor(expected))


@given(st.integers(1, 5), st.integers(0, 10**6))
def test_anchors_stand_for_what_torchvision_says(count, seed):
    """Oracle: torchvision's Matcher(0.5, 0.4, allow_low_quality_matches), by its words, pair by
    pair. Without the last rule small objects have no anchor; with ties left out some lose theirs.
    """
    boxes, places = some_boxes(count, seed, 60), anchors(64, (8, 16), 1.5)
    shared = overlaps(boxes, places).tolist()
    found = matched(boxes, places).tolist()
    best = [max(row) for row in shared]
    for place in range(len(places)):
        column = [row[place] for row in shared]
        number = column.index(max(column))
        if any(column[k] == best[k] for k in range(count)) or max(column) >= 0.5:
            expected = number
        else:
            expected = BACKGROUND if max(column) < 0.4 else IGNORED
        assert found[place] == expected


def test_a_box_outside_of_the_image_has_no_anchor():
    """Oracle: the other box alone. Break: an overlap of 0 that is the greatest of a faulty box, so
    that every anchor stood for an object."""
    places = anchors(64, (8, 16), 1.5)
    inside, outside = [10.0, 10, 30, 30], [-50.0, -50, -40, -40]
    both = matched(torch.tensor([inside, outside]), places)
    assert torch.equal(both, matched(torch.tensor([inside]), places))


def test_targets_of_an_image():
    """By hand: one object exactly on an anchor; and an image without any."""
    places = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 22], [30, 30, 40, 40]])
    target = anchor_targets(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([2]), places)
    assert target.tolist() == [[2, 0, 0, 0, 0], [IGNORED, 0, 0, 0, 0], [BACKGROUND, 0, 0, 0, 0]]
    nothing = anchor_targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), places)
    assert nothing[:, 0].tolist() == [BACKGROUND] * 3


@given(st.integers(1, 30), st.integers(0, 10**6))
def test_suppression_keeps_what_brute_force_keeps(count, seed):
    """Oracle: the definition, box by box. A wrong order or a threshold on all boxes fails."""
    boxes = some_boxes(count, seed, 40)
    scores = torch.rand(count, generator=torch.Generator().manual_seed(seed))
    kept: list[int] = []
    for number in sorted(range(count), key=lambda k: -float(scores[k])):
        if all(overlap_by_hand(boxes[number].tolist(), boxes[k].tolist()) <= 0.5 for k in kept):
            kept.append(number)
    assert suppressed(boxes, scores, 0.5).tolist() == kept


def test_answers_become_boxes():
    """By hand: of two anchors on one object the better stays, another class beside it stays too, a
    score under 0.05 does not, and a box ends at the image's edge."""
    places = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [40, 40, 60, 60], [0, 0, 9, 9]])
    scores = torch.full((4, 2), -9.0)
    scores[0, 0], scores[1, 0], scores[1, 1], scores[2, 1], scores[3, 1] = 2.0, 3.0, 1.0, 0.0, -3.0
    offsets = torch.zeros(4, 4)
    offsets[2, 2] = math.log(3)  # from 30 to 70, in an image of 64
    found = detections(scores, offsets, places, 64)
    assert found.labels.tolist() == [0, 1, 1]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 1.0, 0.0]).sigmoid())
    expected = torch.tensor([[1.0, 0, 21, 20], [1, 0, 21, 20], [20, 40, 64, 60]])
    torch.testing.assert_close(found.boxes, expected)


def batch_of_answers(images: int = 3, places: int = 30, classes: int = 4):
    generator = torch.Generator().manual_seed(5)
    scores = 3 * torch.randn(images, places, classes, generator=generator, dtype=torch.float64)
    offsets = torch.randn(images, places, 4, generator=generator, dtype=torch.float64)
    target = torch.randn(images, places, 5, generator=generator, dtype=torch.float64)
    target[..., 0] = torch.randint(-2, classes, (images, places), generator=generator)
    target[0, :, 0] = BACKGROUND  # an image without an object
    return scores, offsets, target


def torchvisions_focal(scores, target, alpha, gamma):
    """The formula of torchvision's sigmoid_focal_loss, summed, over anchors not ignored."""
    used = target[..., 0] != IGNORED
    classes = torch.arange(scores.shape[-1])
    t = (target[..., 0, None] == classes).double()[used]
    z = scores[used]
    p = torch.sigmoid(z)
    entropy = -(t * p.log() + (1 - t) * (1 - p).log())
    right = p * t + (1 - p) * (1 - t)
    return ((alpha * t + (1 - alpha) * (1 - t)) * entropy * (1 - right) ** gamma).sum()


def test_focal_loss_is_torchvisions_by_positives():
    """Oracle: torchvision's formula and the smooth L1 of Detectron2 written out, in float64, value
    and gradient, over the anchors that stand for objects. Ignored anchors that count, a mean over
    anchors, or alpha on the wrong side fail."""
    scores, offsets, target = batch_of_answers()
    mine = [part.clone().requires_grad_() for part in (scores, offsets)]
    AnchorReading().loss(losslab.loss("focal(gamma=2)"), tuple(mine), target).backward()
    found = AnchorReading().loss(losslab.loss("focal(gamma=2)"), (scores, offsets), target)

    hand = [part.clone().requires_grad_() for part in (scores, offsets)]
    here = target[..., 0] >= 0
    apart = (hand[1] - target[..., 1:])[here].abs()
    distance = torch.where(apart < 0.1, 5 * apart**2, apart - 0.05).sum()
    expected = (torchvisions_focal(hand[0], target, 0.25, 2.0) + distance) / here.sum()
    expected.backward()
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)
    for one, other in zip(mine, hand, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_halted_focal_loss_has_cross_entropys_slope_where_it_is_sure():
    """Oracle: the gradients as formulas: focal's where the right answer has p ≤ 0.5, and −(1 − p)
    beyond. A threshold on the score's and not the answer's probability fails."""
    scores, offsets, target = batch_of_answers()
    scores.requires_grad_()
    reading = AnchorReading(alpha=0.5)
    reading.loss(losslab.loss("halted_focal"), (scores, offsets), target).backward()
    z = scores.detach().clone().requires_grad_()
    (torchvisions_focal(z, target, 0.5, 2.0)).backward()
    sign = torch.where(target[..., 0, None] == torch.arange(4), 1.0, -1.0)
    p = torch.sigmoid(sign * z.detach())
    used = (target[..., 0] != IGNORED)[..., None]
    sure = torch.where(used, -0.5 * sign * (1 - p), 0.0)
    expected = torch.where(p > 0.5, sure, z.grad) / (target[..., 0] >= 0).sum()
    torch.testing.assert_close(scores.grad, expected, rtol=1e-9, atol=1e-12)


def test_the_loss_of_parts_adds_up():
    """Oracle: the whole batch's. Weights by anchors, or an image without objects that divides by
    nothing, fail."""
    scores, offsets, target = batch_of_answers(5)
    reading, loss = AnchorReading(), losslab.loss("cross_entropy")
    parts = shares(target, loss, reading, ranks=1, rank=0, pieces=2)
    total = sum(
        weight * reading.loss(loss, (scores[rows], offsets[rows]), target[rows])
        for rows, weight in parts
    )
    torch.testing.assert_close(total, reading.loss(loss, (scores, offsets), target))
    nothing = torch.full((2, 30, 5), float(BACKGROUND), dtype=torch.float64)
    alone = reading.loss(loss, (scores[:2], offsets[:2]), nothing)
    no = nn.functional.softplus(scores[:2]).sum() * 0.75
    torch.testing.assert_close(alone, no)


def test_rows_to_measure_are_the_anchors_of_objects():
    """By hand; a number that is not finite anywhere makes them so, and a wrong shape is told."""
    scores, offsets, target = batch_of_answers()
    reading = AnchorReading()
    here = target[..., 0] >= 0
    assert reading.labels(target).tolist() == target[..., 0][here].tolist()
    torch.testing.assert_close(reading.logits((scores, offsets), target), scores[here])
    offsets[0, 0, 0] = math.nan  # of an anchor that stands for nothing
    assert not reading.logits((scores, offsets), target).isfinite().any()
    with pytest.raises(InputError, match=r"\(3, 30, classes\).*one row an anchor"):
        reading.logits((scores[:, :-1], offsets), target)


def objects(boxes, labels, crowd=()) -> Objects:
    flags = torch.tensor([k in crowd for k in range(len(labels))])
    return Objects(torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(labels), flags)


def found(boxes, scores, labels) -> Found:
    return Found(
        torch.tensor(boxes).reshape(-1, 4).float(), torch.tensor(scores), torch.tensor(labels)
    )


def test_average_precision_by_hand():
    """By hand: all found is 1; none, or of another class, 0; one of two objects, 51 of the 101
    recall points of COCO's curve; a better-scored miss halves the precision; an overlap of 0.6
    counts at 0.50 alone of the three, and at three of the ten; a crowd is no miss."""
    pytest.importorskip("pycocotools")
    square = [10, 10, 20, 20]
    truth = [objects([square, [40, 40, 60, 50]], [0, 1]), objects([], [])]
    nothing = found([], [], torch.zeros(0, dtype=torch.int64).tolist())

    def ap(first, second=nothing, of=truth):
        return average_precision(of, [first, second], num_classes=3)

    every = found([[40, 40, 60, 50], square], [0.9, 0.3], [1, 0])
    assert ap(every) == pytest.approx({"ap": 1, "ap50": 1, "ap75": 1})
    assert ap(nothing) == {"ap": 0, "ap50": 0, "ap75": 0}
    assert ap(found([square], [0.9], [1]))["ap50"] == 0
    two = [objects([square, [40, 40, 60, 50]], [0, 0]), objects([], [])]
    assert ap(found([square], [0.9], [0]), of=two)["ap"] == pytest.approx(51 / 101)
    one = [objects([square], [0]), objects([], [])]
    behind = ap(found([square], [0.5], [0]), found([[0, 0, 5, 5]], [0.9], [0]), of=one)
    assert behind == pytest.approx({"ap": 0.5, "ap50": 0.5, "ap75": 0.5})
    loose = ap(found([[10, 10, 20, 26]], [0.9], [0]), of=one)  # IoU 100 / 160
    assert loose == pytest.approx({"ap": 0.3, "ap50": 1, "ap75": 0})
    crowded = [objects([square, [40, 40, 60, 60]], [0, 0], crowd={1}), objects([], [])]
    inside = found([[45, 45, 50, 50], square], [0.9, 0.5], [0, 0])
    assert ap(inside, of=crowded)["ap"] == pytest.approx(1)


def test_average_precision_needs_an_object():
    """A split without one, or with crowds alone, would give −1; it is told before training."""
    crowd = objects([[1, 1, 5, 5]], [0], crowd={0})
    with pytest.raises(InputError, match="test split: expected at least one object"):
        AveragePrecision({"test": ([], [objects([], []), crowd])}, torch.zeros(1, 4), 64, 2, 8)
