"""From what a user wrote after ``--task`` to the task."""

from __future__ import annotations

from pathlib import Path

from losslab.errors import InputError, nearest
from losslab.experiment.task import Task
from losslab.experiment.tasks.options import TaskOptions

_BUILT_IN = {
    "digits": "scikit-learn's 1,797 digits of 8×8 pixels, embedded; a run in a third of a second",
    "mnist": "70,000 handwritten digits of 28×28 pixels, read from data_dir; a small CNN",
    "fashion-mnist": "70,000 images of clothing of 28×28 pixels, read from data_dir; a small CNN",
    "cifar10": "60,000 photos of 32×32 pixels, read from data_dir; a small CNN or the ResNets",
    "cifar100": "the like in 100 classes in place of 10; the same models",
}
_PATHS = {
    "FILE.csv": "a table (.csv, .tsv, .parquet, .csv.gz) with the column to predict as target",
    "FOLDER": "images by class: FOLDER/CLASS/* or FOLDER/train/CLASS/* and FOLDER/test/CLASS/*",
    "FILE.py[:FUNCTION]": "your own data, model and optimiser: a function that returns a Task",
}


def task_names() -> dict[str, str]:
    """What can be given as a task, each with one line about it: names first, then kinds of path."""
    return {**_BUILT_IN, **_PATHS}


def model_names() -> dict[str, tuple[str, ...]]:
    """What each task offers as its model, its default first; tasks as `task_names` names them.

    A user's own Python file brings its model along and is not among them.
    """
    from losslab.experiment.tasks import cifar, digits, images, mnist, table

    offered = {
        "digits": digits.RECIPES,
        "mnist": mnist.RECIPES,
        "fashion-mnist": mnist.RECIPES,
        "cifar10": cifar.RECIPES,
        "cifar100": cifar.RECIPES,
        "FILE.csv": table.RECIPES,
        "FOLDER": images.RECIPES,
    }
    return {task: tuple(recipes) for task, recipes in offered.items()}


def build_task(name_or_path: str, options: TaskOptions | None = None) -> Task:
    """The task of a name (``digits``, ``mnist``, ``cifar10``, …) or a path.

    A path is a table, a Python file or a folder of images by its ending; see `task_names`. A name
    wins over a file or folder called the same; write ``./digits`` for that.

    Args:
        name_or_path: As written after ``--task``.
        options: Changes to the task's defaults.

    Raises:
        InputError: If there is no such task, or its data is missing, damaged or cannot be learned
            from.

    Example:
        >>> task = build_task("digits", TaskOptions(epochs=2))
        >>> task.num_classes, task.epochs, len(task.train)
        (10, 2, 1079)
    """
    options = options or TaskOptions()
    task = _build(name_or_path, options)
    if options.imbalance is None:
        return task
    from losslab.experiment.tasks.long_tail import long_tailed

    return long_tailed(task, options.imbalance, options.split_seed)


def _build(name_or_path: str, options: TaskOptions) -> Task:
    from losslab.experiment.tasks.python_file import build_from_file, is_python_file
    from losslab.experiment.tasks.table_file import is_table

    if name_or_path in _BUILT_IN:
        return _build_named(name_or_path, options)
    path = Path(name_or_path).expanduser()
    if is_python_file(name_or_path):
        return build_from_file(str(path), options)
    if is_table(name_or_path):
        from losslab.experiment.tasks.table import build_table

        return build_table(path, options)
    if path.is_dir():
        from losslab.experiment.tasks.images import build_images

        return build_images(path, options)
    what = (
        "a file of a kind that is not known" if path.is_file() else "no such task, file or folder"
    )
    listing = "; ".join(f"{name} ({about})" for name, about in task_names().items())
    raise InputError(
        f"task {name_or_path!r}: {what}.{nearest(name_or_path, _BUILT_IN)} "
        f"Expected one of: {listing}."
    )


def _build_named(name: str, options: TaskOptions) -> Task:
    if name == "digits":
        from losslab.experiment.tasks.digits import build_digits

        return build_digits(options)
    if name in ("cifar10", "cifar100"):
        from losslab.experiment.tasks.cifar import build_cifar

        return build_cifar(name, options)
    from losslab.experiment.tasks.mnist import build_mnist

    return build_mnist(name, options)
