"""Rotation, Random Erasing, colour jitter: each against a definition of its own, and as options."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import nn

from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.images.augment import (
    CHANGES,
    chosen,
    crop_and_flip,
    erase,
    in_turn,
    jitter,
    rotate,
)
from losslab.experiment.tasks.models import with_dropout


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 64, side: int = 32, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=generator(seed)).byte()


@pytest.mark.parametrize("name", CHANGES)
def test_changes_keep_shape_and_kind_and_draw_alike(name):
    """Oracle: the same generator gives the same images, and as many draws whatever the pixels."""
    change, first, second = CHANGES[name], generator(), generator()
    out = change(images(), first)
    assert out.shape == (64, 3, 32, 32) and out.dtype == torch.uint8
    assert not torch.equal(out, images())
    change(torch.zeros_like(images()), second)
    assert torch.equal(first.get_state(), second.get_state())
    assert torch.equal(out, change(images(), generator()))


def test_rotation_against_pillow():
    """Oracle: Pillow's rotation by the angles drawn, in whose middle at most a few pixels in a
    hundred differ (each rounds a place half way between two pixels its own way). Breaks on the
    wrong way round, degrees for radians, or angles beyond 15.
    """
    angles = (torch.rand(16, generator=generator()) * 2 - 1) * 15
    assert angles.abs().max() > 12
    turned = rotate(images(16, 33), generator())
    for before, after, angle in zip(images(16, 33), turned, angles.tolist(), strict=True):
        picture = Image.fromarray(before.permute(1, 2, 0).numpy())
        ways = [np.asarray(picture.rotate(sign * angle)).transpose(2, 0, 1) for sign in (1, -1)]
        same = [(way == after.numpy()).all(0).mean() for way in ways]
        assert max(same) > 0.95, same
    corner = rotate(torch.full((64, 1, 32, 32), 200.0), generator())[:, 0, 0, 0]
    assert (corner == 0).float().mean() > 0.5  # black comes in at the corners


def test_erasing_makes_rectangles_of_the_papers_sizes():
    """Oracle: of images of one colour, what changed: half of them, a full rectangle of 2 to 40 % of
    the area, height over width in 0.3 to 3.3 (a pixel of rounding), noise of mean 127.5 inside.
    """
    plain = torch.full((2000, 3, 32, 32), 300.0)
    out = erase(plain, generator())
    changed = (out != plain).all(1)
    touched = changed.flatten(1).any(1)
    assert touched.float().mean().item() == pytest.approx(0.5, abs=0.04)
    assert torch.equal(changed, (out != plain).any(1))
    ratios, shares = [], []
    for mask in changed[touched]:
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None])
        for line in (rows, columns):
            places = line.nonzero()[:, 0]
            assert len(places) == places[-1] - places[0] + 1
        tall, wide = int(rows.sum()), int(columns.sum())
        shares.append(tall * wide / 1024)
        assert (tall + 0.5) / (wide - 0.5) >= 0.3 and (tall - 0.5) / (wide + 0.5) <= 1 / 0.3
        ratios.append(tall / wide)
    assert 0.015 < min(shares) < 0.03 and 0.37 < max(shares) < 0.43
    assert min(ratios) < 0.4 and max(ratios) > 2.5
    noise = out[changed[:, None].expand_as(out)]
    assert noise.min() == 0 and noise.max() == 255
    assert noise.mean().item() == pytest.approx(127.5, abs=0.5)


def test_jitter_against_pillow():
    """Oracle: Pillow's enhancers of brightness, contrast and colour in turn with the factors drawn;
    they round to whole numbers in between, so by up to three levels off. Breaks on factors mixed
    up or a grey that is the plain mean.
    """
    batch = images(8)
    factors = 1 + 0.4 * (2 * torch.rand((3, 8, 1, 1, 1), generator=generator()) - 1)
    out = jitter(batch, generator()).int()
    for k in range(8):
        picture = Image.fromarray(batch[k].permute(1, 2, 0).numpy())
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind, factor in zip(kinds, factors[:, k].flatten().tolist(), strict=True):
            picture = kind(picture).enhance(factor)
        theirs = torch.from_numpy(np.array(picture)).permute(2, 0, 1).int()
        assert (out[k] - theirs).abs().max() <= 3


def test_changes_come_in_the_order_asked_for():
    """Oracle: one call after the other with one generator."""
    names = ("rotation", "crop-flip", "erasing")
    by_hand, source = images(), generator()
    for change in (rotate, crop_and_flip, erase):
        by_hand = change(by_hand, source)
    assert torch.equal(in_turn(images(), generator(), changes=names), by_hand)
    assert torch.equal(chosen(names, crop_and_flip)(images(), generator()), by_hand)


def test_which_changes():
    """Oracle: the default where nothing was said, none where none was named, else an error."""
    assert chosen(None, crop_and_flip) is crop_and_flip and chosen((), crop_and_flip) is None
    with pytest.raises(InputError, match=r"no 'eraser'\. Did you mean 'erasing'"):
        chosen(["eraser"], crop_and_flip)


def test_dropout_is_before_the_last_layer():
    """Oracle: the layers by hand."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Linear(4, 2))
    kinds = [type(layer).__name__ for layer in with_dropout(layers, 0.2)]
    assert kinds == ["Flatten", "Linear", "Dropout", "Linear"]
    assert with_dropout(layers, 0.2)[2].p == 0.2


@pytest.mark.parametrize(
    "options, message",
    [
        ({"augment": ("erasing",)}, "digits.*takes no augment .only cifar10"),
        ({"dropout": 0.1}, "digits.*takes no dropout"),
        ({"dropout": 1.0}, "dropout must be between 0 and 1"),
        ({"dropout": math.nan}, "dropout must be between 0 and 1"),
        ({"augment": "erasing"}, "augment must be a list of names"),
    ],
)
def test_options_that_cannot_be_heeded(options, message):
    """Oracle: a message that names the option."""
    with pytest.raises(InputError, match=message):
        build_task("digits", TaskOptions(**options))
