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
        data_dir: Folder with the data files (``mnist``, ``fashion-mnist``, ``cifar10``,
            ``cifar100``).
        target: Name of the column to predict (tables).
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
        imbalance: Thin the training examples out to a long tail whose largest class has this many
            times the examples of its smallest.
        image_size: Side of the square that images are resized to (a folder of images).

    Raises:
        InputError: If a value is outside its range.
    """

    data_dir: str | Path | None = None
    target: str | None = None
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
        fraction = self.validation_fraction
        if fraction is not None and not 0 < fraction <= 0.5:
            raise InputError(f"validation_fraction must be in (0, 0.5]; got {fraction!r}.")

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


def choose_model(task: str, options: TaskOptions, offered: tuple[str, ...]) -> str:
    """The model asked for, or the first one offered."""
    name = options.model if options.model is not None else offered[0]
    if name not in offered:
        raise InputError(
            f"task {task!r} has no model {name!r}.{nearest(name, offered)} "
            f"Models: {', '.join(offered)}."
        )
    return name
