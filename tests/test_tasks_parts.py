"""What the tasks are made of: splits, recipes, small models, augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions
from losslab.experiment.tasks.images.augment import crop_and_flip, flip_and_shift
from losslab.experiment.tasks.models import channel_statistics, cnn, liu2016, mlp, standardized
from losslab.experiment.tasks.recipe import WARM_UP, Recipe, sgd, step_down, warm_up_then_cosine
from losslab.experiment.tasks.split import keep, stratified_split

# ---------------------------------------------------------------- splits


def test_stratified_split_covers_everything_once_and_keeps_proportions():
    """Oracle: set algebra, and shares counted by hand (20 % of 100, 50, 10)."""
    targets = np.repeat([0, 1, 2], [100, 50, 10])
    train, test, validation = stratified_split(targets, (0.2, 0.3), seed=0)
    together = np.concatenate([train, test, validation])
    assert sorted(together) == list(range(160))
    assert np.bincount(targets[test]).tolist() == [20, 10, 2]
    assert np.bincount(targets[validation]).tolist() == [30, 15, 3]


@pytest.mark.parametrize("count", [3, 4, 5])
def test_a_rare_class_is_in_every_split(count):
    """Oracle: presence. Breaks with plain rounding, which gives a class of 3 no test example."""
    targets = np.repeat([0, 1], [90, count])
    for part in stratified_split(targets, (0.1, 0.5), seed=1):
        assert set(targets[part]) == {0, 1}


def test_a_class_too_rare_for_the_splits():
    """Oracle: two examples cannot be in three splits."""
    with pytest.raises(InputError, match="class 1 has 2 examples; 3 splits need at least 3"):
        stratified_split(np.array([0, 0, 0, 1, 1]), (0.2, 0.2), seed=0)


def test_split_depends_on_seed_and_not_on_validation_fraction_for_test():
    """Oracle: equality. The test split must not move when the validation share does."""
    targets = np.repeat([0, 1], 50)
    first = stratified_split(targets, (0.2, 0.2), seed=0)
    again = stratified_split(targets, (0.2, 0.2), seed=0)
    other = stratified_split(targets, (0.2, 0.2), seed=1)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[1], other[1])
    assert np.array_equal(first[1], stratified_split(targets, (0.2, 0.4), seed=0)[1])


@pytest.mark.parametrize("size", [3, 4, 17, 60, 99, 100])
def test_keep_hits_the_size_and_loses_no_class(size):
    """Oracle: counts. Breaks if rounding loses a rare class or misses the total."""
    targets = np.repeat([0, 1, 2], [90, 8, 2])
    kept = keep(targets, size, seed=0)
    assert len(kept) == len(set(kept)) == size
    counts = np.bincount(targets[kept], minlength=3)
    assert counts.min() >= 1
    if size == 100:
        assert counts.tolist() == [90, 8, 2]
    if size == 60:
        assert counts.tolist() == [54, 5, 1]  # 54, 4.8, 1.2 by largest remainder


# ---------------------------------------------------------------- recipe, models, augmentation


def test_schedule_rises_then_falls_and_scales_with_the_rate():
    """Oracle: the formula by hand at chosen steps; twice the rate gives twice every value."""

    def rates(lr, total=100):
        optimizer = sgd(nn.Linear(1, 1).parameters(), lr=lr, weight_decay=0.0)
        scheduler = warm_up_then_cosine(optimizer, total)
        seen = []
        for _ in range(total):
            seen.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return np.array(seen)

    seen = rates(0.4)
    assert WARM_UP == 0.1 and seen[0] == pytest.approx(0.04)
    assert seen[50] == pytest.approx(0.4 * 0.5)
    assert seen.argmax() in (8, 9) and np.all(np.diff(seen[9:]) < 0) and 0 < seen[-1] < 2e-4
    np.testing.assert_allclose(rates(0.8), 2 * seen, rtol=1e-12)


@pytest.mark.parametrize("total", [1, 2, 5])
def test_schedule_of_few_steps(total):
    """Oracle: positive rates. Breaks on a division by zero in a short run."""
    optimizer = sgd(nn.Linear(1, 1).parameters(), lr=1.0, weight_decay=0.0)
    scheduler = warm_up_then_cosine(optimizer, total)
    for _ in range(total):
        assert 0 < optimizer.param_groups[0]["lr"] <= 1
        optimizer.step()
        scheduler.step()


def test_recipe_takes_options():
    """Oracle: the changed fields; the others stay."""
    recipe = Recipe(epochs=3, batch_size=4, lr=0.1, weight_decay=0.5)
    changed = recipe.changed_by(TaskOptions(epochs=7, lr=0.2))
    assert (changed.epochs, changed.batch_size, changed.lr, changed.weight_decay) == (
        7,
        4,
        0.2,
        0.5,
    )
    optimizer = changed.task_fields()["optimizer"](nn.Linear(1, 1).parameters())
    assert isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["lr"] == 0.2


def stepped(total, **settings) -> list[float]:
    """The rates of a run whose optimiser has rate 1."""
    optimizer = sgd(nn.Linear(1, 1).parameters(), lr=1.0, weight_decay=0.0)
    scheduler = step_down(optimizer, total, **settings)
    rates = []
    for _ in range(total):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_step_down_falls_at_shares_of_the_training():
    """Oracle: the rates of 12 and of 6 steps by hand. Breaks on an off-by-one at a milestone."""
    shares = (1 / 3, 5 / 6)
    assert stepped(12, milestones=shares) == pytest.approx([1] * 4 + [0.1] * 6 + [0.01] * 2)
    assert stepped(6, milestones=shares) == pytest.approx([1] * 2 + [0.1] * 3 + [0.01])
    assert stepped(3, milestones=()) == [1, 1, 1]


def test_step_down_warms_up_in_a_straight_line():
    """Oracle: a quarter of 16 steps by hand; the milestone stays where it is."""
    rates = stepped(16, milestones=(0.5,), warm_up=0.25)
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1] + [0.1] * 8)


def test_recipe_decides_schedule_and_momentum():
    """Oracle: the name that the description will show, and the optimiser's own settings."""
    plain = Recipe(epochs=3, batch_size=4, lr=0.1)
    assert plain.task_fields()["lr_scheduler"] is warm_up_then_cosine
    stepping = plain.changed_by(TaskOptions(milestones=[0.5]))
    assert stepping.milestones == (0.5,)
    assert stepping.task_fields()["lr_scheduler"].func is step_down
    assert plain.changed_by(TaskOptions(milestones=())).milestones == ()
    old = Recipe(epochs=3, batch_size=4, lr=0.1, nesterov=False).task_fields()["optimizer"]
    defaults = old(nn.Linear(1, 1).parameters()).defaults
    assert (defaults["nesterov"], defaults["momentum"], defaults["weight_decay"]) == (False, 0.9, 0)


@pytest.mark.parametrize("size", [8, 28, 32, 33])
def test_models_give_logits(size):
    """Oracle: output shape; the standardising layer equals (x - mean) / std in float64."""
    images = torch.randint(256, (5, 3, size, size), dtype=torch.uint8)
    for body in (cnn(3, size, 7, (4, 8, 8)), mlp(3 * size * size, 7, (5,))):
        assert standardized([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], body)(images).shape == (5, 7)
    layer = standardized([1.0, 2.0, 3.0], [4.0, 5.0, 6.0], nn.Identity())
    mean, std = np.array([1, 2, 3]), np.array([4, 5, 6])
    expected = (images.numpy() - mean[:, None, None]) / std[:, None, None]
    np.testing.assert_allclose(layer(images).numpy(), expected, rtol=1e-6)


def test_flip_and_shift_against_a_loop():
    """Oracle: the same draws applied image by image with explicit indices."""
    images = torch.arange(6 * 2 * 5 * 7).reshape(6, 2, 5, 7).to(torch.uint8)
    got = flip_and_shift(images, torch.Generator().manual_seed(3), reach=2)
    generator = torch.Generator().manual_seed(3)
    shifts = torch.randint(-2, 3, (2, 6, 1), generator=generator)[:, :, 0].tolist()
    mirrored = (torch.rand((6, 1), generator=generator) < 0.5)[:, 0].tolist()
    assert len(set(mirrored)) == 2 and len(set(shifts[0])) > 1
    for n in range(6):
        for y in range(5):
            for x in range(7):
                row = min(max(y + shifts[0][n], 0), 4)
                column = min(max(x + shifts[1][n], 0), 6)
                column = 6 - column if mirrored[n] else column
                assert torch.equal(got[n, :, y, x], images[n, :, row, column])
    assert got.dtype == torch.uint8 and got.shape == images.shape


def test_crop_and_flip_against_a_loop():
    """Oracle: the same draws applied image by image: a black border, a crop, a mirror image."""
    images = torch.randint(1, 256, (9, 2, 5, 7), dtype=torch.uint8)
    got = crop_and_flip(images, torch.Generator().manual_seed(3), padding=2)
    generator = torch.Generator().manual_seed(3)
    corners = torch.randint(0, 5, (2, 9, 1), generator=generator)[:, :, 0].tolist()
    mirrored = (torch.rand((9, 1), generator=generator) < 0.5)[:, 0].tolist()
    assert len(set(mirrored)) == 2 and len(set(corners[0])) > 2
    for n in range(9):
        bordered = np.zeros((2, 9, 11), dtype=np.uint8)
        bordered[:, 2:7, 2:9] = images[n]
        y, x = corners[0][n], corners[1][n]
        crop = bordered[:, y : y + 5, x : x + 7]
        assert np.array_equal(got[n], crop[:, :, ::-1] if mirrored[n] else crop)
    assert got.dtype == torch.uint8 and got.shape == images.shape


def test_crop_reaches_every_place_and_no_other():
    """Oracle: a single white pixel in the middle lands on each of 9 × 9 places about equally often.

    2000 draws over 81 places are 24.7 each, deviation 4.9; half of them mirrored (deviation 22).
    """
    images = torch.zeros(2000, 1, 33, 33, dtype=torch.uint8)
    images[:, 0, 16, 16] = 255
    moved = crop_and_flip(images, torch.Generator().manual_seed(0))
    landed = (moved == 255).sum(dim=0)[0]
    places = landed[12:21, 12:21]
    assert int(landed.sum()) == 2000 == int(places.sum())
    assert int(places.min()) >= 7 and int(places.max()) <= 47
    images[:, 0, 16, 16], images[:, 0, 16, 20] = 0, 255
    right = crop_and_flip(images, torch.Generator().manual_seed(0), padding=0)[:, 0, 16, 20] == 255
    assert abs(int(right.sum()) - 1000) < 100


def test_channel_statistics_are_exact():
    """Oracle: numpy in float64; a channel of one value has deviation 1, so nothing divides by 0."""
    images = torch.randint(256, (20, 3, 6, 7), dtype=torch.uint8)
    images[:, 2] = 9
    means, deviations = channel_statistics(images)
    pixels = images.numpy().astype(np.float64)
    np.testing.assert_allclose(means, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(deviations[:2], pixels.std(axis=(0, 2, 3))[:2], rtol=1e-12)
    assert deviations[2] == 1.0


def test_cnn_of_liu_2016():
    """Oracle: Zhao et al.'s module list, counted by hand: layers, parameters, image sizes."""
    model = liu2016(10)
    kinds = [type(layer).__name__ for layer in model]
    group = ["Conv2d", "PReLU", "BatchNorm2d"]
    expected = ["BatchNorm2d", *group]
    for count in (3, 4, 3):
        expected += group * count + ["MaxPool2d"]
    assert kinds == [*expected, "Flatten", "Linear", "BatchNorm1d", "Linear"]
    convolutions = 640 + 10 * (64 * 64 * 9 + 64)
    others = 2 + 11 * (1 + 2 * 64) + (576 * 256 + 256) + 2 * 256 + 2560
    assert sum(p.numel() for p in model.parameters()) == convolutions + others == 522_125
    images = torch.randn(3, 1, 28, 28)
    sides = []
    for layer in model:
        images = layer(images)
        if isinstance(layer, nn.Conv2d | nn.MaxPool2d):
            sides.append(images.shape[-1])
    assert sides == [26, 26, 26, 26, 13, 13, 13, 13, 13, 6, 6, 6, 6, 3] and images.shape == (3, 10)
