"""What a user may change about a task."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from losslab.errors import InputError, nearest


@dataclass(frozen=True)
class TaskOptions:
    """Changes to a task; None means the task's own default.

    Args:
        data_dir: Folder with the data files, for tasks whose data do not come with losslab; of
            ``lm`` also a single file.
        target: Name of the column to predict (tables).
        text: Name of the column whose texts to predict it from (tables); None predicts it from all
            other columns.
        epochs: Passes over the training split.
        batch_size: Examples a step.
        lr: Learning rate at the start of the schedule.
        milestones: Shares of the training at which the learning rate falls to a tenth, such as
            ``(0.5, 0.75)``, in place of the model's own schedule; ``()`` keeps the rate constant.
        model: One of the task's models (``"linear"``, ``"mlp"``, ``"cnn"``, ``"resnet20"``, …);
            `losslab.experiment.tasks.build.model_names` lists them.
        split_seed: Decides which examples fall into which split, and which are kept by
            ``train_size``. Not the seed of a run: all runs of a comparison share one split.
        train_size: Keep only so many training examples, classes in proportion.
        validation_fraction: Share of the examples held out for validation (of the training examples
            where the source comes with a test set, of all examples where it does not).
        augment: Random changes to training images, in this order, in place of the task's own: some
            of `losslab.experiment.tasks.images.augment.CHANGES`; ``()`` for none (``cifar10``,
            ``cifar100``, ``cinic10``).
        dropout: Share of the last layer's inputs that are dropped in training (the same tasks).
        imbalance: Thin the training examples out to a long tail whose largest class has this many
            times the examples of its smallest.
        class_counts: Thin them out to so many of each class instead, in the order of the classes;
            a class that has fewer keeps what it has.
        image_size: Side of the square that images are resized to (a folder of images, ``shapes``,
            ``coco``).

    Raises:
        InputError: If a value is outside its range.
    """

    data_dir: str | Path | None = None
    target: str | None = None
    text: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    lr: float | None = None
    milestones: tuple[float, ...] | None = None
    model: str | None = None
    split_seed: int = 0
    train_size: int | None = None
    validation_fraction: float | None = None
    image_size: int | None = None
    imbalance: float | None = None
    class_counts: tuple[int, ...] | None = None
    augment: tuple[str, ...] | None = None
    dropout: float | None = None

    def __post_init__(self) -> None:
        for key, least in (("epochs", 1), ("batch_size", 1), ("train_size", 1), ("image_size", 8)):
            value = getattr(self, key)
            if value is not None and (not isinstance(value, int) or value < least):
                raise InputError(
                    f"{key} must be a whole number of at least {least}; got {value!r}."
                )
        if not isinstance(self.split_seed, int) or not 0 <= self.split_seed < 2**63:
            raise InputError(
                f"split_seed must be a whole number in [0, 2**63); got {self.split_seed!r}."
            )
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise InputError(f"lr must be a finite number above 0; got {self.lr!r}.")
        self._check_milestones()
        self._check_class_counts()
        fraction = self.validation_fraction
        if fraction is not None and not 0 < fraction <= 0.5:
            raise InputError(f"validation_fraction must be in (0, 0.5]; got {fraction!r}.")
        if self.dropout is not None and not 0 < self.dropout < 1:
            raise InputError(f"dropout must be between 0 and 1; got {self.dropout!r}.")
        if self.augment is not None:
            if isinstance(self.augment, str):
                raise InputError(
                    "augment must be a list of names, such as ('crop-flip', 'erasing'); "
                    f"got {self.augment!r}."
                )
            object.__setattr__(self, "augment", tuple(self.augment))

    def _check_class_counts(self) -> None:
        if self.class_counts is None:
            return
        if self.imbalance is not None:
            raise InputError(
                "imbalance and class_counts both say how many examples a class has; leave one out."
            )
        given = self.class_counts
        listed = isinstance(given, (list, tuple))
        if not listed or not all(type(n) is int and n >= 1 for n in given):
            raise InputError(
                "class_counts must be a list of whole numbers of at least 1, such as (500, 50, 5); "
                f"got {given!r}."
            )
        object.__setattr__(self, "class_counts", tuple(given))

    def _check_milestones(self) -> None:
        if self.milestones is None:
            return
        ends = (0.0, *self.milestones, 1.0)
        if not all(left < right for left, right in pairwise(ends)):
            raise InputError(
                "milestones must be ascending shares of the training between 0 and 1, such as "
                f"(0.5, 0.75); got {self.milestones!r}. Divide epochs by the number of epochs."
            )
        object.__setattr__(self, "milestones", tuple(self.milestones))


def refuse_unused(task: str, options: TaskOptions, unused: dict[str, str]) -> None:
    """Raise `InputError` if an option is set that the task cannot heed; ``unused`` says why not."""
    for key, reason in unused.items():
        if getattr(options, key) is not None:
            raise InputError(
                f"task {task!r} takes no {key} ({reason}); got {getattr(options, key)!r}. "
                "Leave it out."
            )


def choose_model(
    task: str, options: TaskOptions, offered: tuple[str, ...], *, timm: bool = False
) -> str:
    """The model asked for, or the first one offered; with ``timm`` also any ``timm:NAME``."""
    name = options.model if options.model is not None else offered[0]
    if name in offered or (timm and name.startswith("timm:")):
        return name
    raise InputError(
        f"task {task!r} has no model {name!r}.{nearest(name, offered)} "
        f"Models: {', '.join(offered)}.{' Or timm:NAME, any model of timm.' if timm else ''}"
    )
