"""What the tasks are made of: splits, recipes, models, augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions
from losslab.experiment.tasks.augment import flip_and_shift
from losslab.experiment.tasks.models import cnn, mlp, standardized
from losslab.experiment.tasks.recipe import WARM_UP, Recipe, sgd, warm_up_then_cosine
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
