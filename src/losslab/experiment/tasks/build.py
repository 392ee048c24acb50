"""From what a user wrote after ``--task`` to the task."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from losslab.errors import InputError, nearest
from losslab.experiment.task import Task
from losslab.experiment.tasks.options import TaskOptions, refuse_unused

_BUILT_IN = {
    "digits": "scikit-learn's 1,797 digits of 8×8 pixels, embedded; a run in a third of a second",
    "mnist": "70,000 handwritten digits of 28×28 pixels, read from data_dir; a small CNN",
    "fashion-mnist": "70,000 images of clothing of 28×28 pixels, read from data_dir; a small CNN",
    "cifar10": "60,000 photos of 32×32 pixels, read from data_dir; a small CNN or the ResNets",
    "cifar100": "the like in 100 classes in place of 10; the same models",
    "cinic10": "270,000 photos of 32×32 pixels in CIFAR-10's classes; the same models",
    "imagenet": "1.3 million photos in 1,000 classes, read from data_dir as needed; ResNets",
    "tiny-imagenet": "110,000 photos of 64×64 pixels in 200 classes, read as needed; the same",
    "inaturalist2018": "440,000 photos of 8,142 species, most of them rare, from data_dir; ResNets",
    "reviews": "22,641 reviews of clothing, rated 1 to 5, read from data_dir; LSTMs",
    "glue-cola": "GLUE: is a sentence grammatical? read from data_dir; a pretrained encoder",
    "glue-sst2": "GLUE: does a sentence praise a film? the same models",
    "glue-mrpc": "GLUE: do two sentences say the same? the same models",
    "glue-rte": "GLUE: does one sentence follow from another? the same models",
    "glue-wnli": "GLUE: the like, of sentences with pronouns; the same models",
    "proteins": "1,113 proteins as graphs, enzymes or not, read from data_dir; GCN with SAGPooling",
    "nci1": "4,110 chemical compounds as graphs, active or not, read from data_dir; the same model",
    "multi30k-de-en": "29,000 descriptions of photos to translate, from data_dir; a Transformer",
    "multi30k-fr-en": "the like from French",
    "iwslt14-de-en": "160,000 sentences of talks to translate, read from data_dir; a Transformer",
    "iwslt17-fr-en": "230,000 of the like, from French",
    "shapes": "made pictures of discs, squares and triangles to find; a small RetinaNet",
    "coco": "120,000 photos with objects of 80 classes to find, read from data_dir; RetinaNet",
    "lm": "a language model on texts of your own, a file or folder given as data_dir",
    "lm-multi30k": "the like on Multi30k's English sentences",
}
_PHOTOS = ("cifar10", "cifar100", "cinic10")
_PATHS = {
    "FILE.csv": "a table (.csv, .tsv, .parquet, .csv.gz) with the column to predict as target",
    "FILE.csv --text COLUMN": "the same, predicted from the texts of one column; LSTMs",
    "FOLDER": "images by class: FOLDER/CLASS/* or FOLDER/train/CLASS/* and FOLDER/test/CLASS/*",
    "FOLDER of graphs": "files in the form of the TU collection: FOLDER/NAME_A.txt and the like",
    "FILE.py[:FUNCTION]": "your own data, model and optimiser: a function that returns a Task",
}


def task_names() -> dict[str, str]:
    """What can be given as a task, each with one line about it: names first, then kinds of path."""
    return {**_BUILT_IN, **_PATHS}


def model_names() -> dict[str, tuple[str, ...]]:
    """What each task offers as its model, its default first; tasks as `task_names` names them.

    A user's own Python file brings its model along and is not among them.
    """
    from losslab.experiment.tasks import digits
    from losslab.experiment.tasks.detection import detection
    from losslab.experiment.tasks.graph import graphs
    from losslab.experiment.tasks.images import cifar, imagenet, images, inaturalist, mnist
    from losslab.experiment.tasks.tables import table
    from losslab.experiment.tasks.text import glue, lm, reviews, translation

    offered: dict[str, Iterable[str]] = {
        "digits": digits.RECIPES,
        "mnist": mnist.RECIPES,
        "fashion-mnist": mnist.RECIPES,
        "cifar10": cifar.RECIPES,
        "cifar100": cifar.RECIPES,
        "cinic10": cifar.RECIPES,
        **dict.fromkeys(imagenet.RECIPES, imagenet.MODELS),
        inaturalist.NAME: inaturalist.MODELS,
        "reviews": reviews.RECIPES,
        **dict.fromkeys(glue.TASKS, glue.MODELS),
        **dict.fromkeys(graphs.NAMES, graphs.RECIPES),
        **translation.MODELS,
        **detection.RECIPES,
        **dict.fromkeys(lm.TASKS, lm.MODELS),
        "FILE.csv": table.RECIPES,
        "FILE.csv --text COLUMN": reviews.RECIPES,
        "FOLDER": images.RECIPES,
        "FOLDER of graphs": graphs.RECIPES,
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
    if options.imbalance is None and options.class_counts is None:
        return task
    from losslab.experiment.tasks.long_tail import long_tailed, thinned

    if options.class_counts is not None:
        return thinned(task, options.class_counts, options.split_seed)
    assert options.imbalance is not None
    return long_tailed(task, options.imbalance, options.split_seed)


def _build(name_or_path: str, options: TaskOptions) -> Task:
    from losslab.experiment.tasks.python_file import build_from_file, is_python_file
    from losslab.experiment.tasks.tables.table_file import is_table

    if options.text is not None and not is_table(name_or_path):
        refuse_unused(name_or_path, options, {"text": "it is no table"})
    if name_or_path not in _PHOTOS:
        only = f"only {', '.join(_PHOTOS)} do"
        refuse_unused(name_or_path, options, {"augment": only, "dropout": only})
    if name_or_path in _BUILT_IN:
        return _build_named(name_or_path, options)
    path = Path(name_or_path).expanduser()
    if is_python_file(name_or_path):
        return build_from_file(str(path), options)
    if is_table(name_or_path):
        if options.text is not None:
            from losslab.experiment.tasks.text.reviews import build_text_table

            return build_text_table(path, options)
        from losslab.experiment.tasks.tables.table import build_table

        return build_table(path, options)
    if path.is_dir():
        from losslab.experiment.tasks.graph.graphs import build_graph_folder, holds_graphs

        if holds_graphs(path):
            return build_graph_folder(path, options)
        from losslab.experiment.tasks.images.images import build_images

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
        from losslab.experiment.tasks.images.cifar import build_cifar

        return build_cifar(name, options)
    if name in ("imagenet", "tiny-imagenet"):
        from losslab.experiment.tasks.images.imagenet import build_imagenet

        return build_imagenet(name, options)
    if name == "inaturalist2018":
        from losslab.experiment.tasks.images.inaturalist import build_inaturalist

        return build_inaturalist(options)
    if name == "cinic10":
        from losslab.experiment.tasks.images.cinic import build_cinic

        return build_cinic(options)
    if name == "reviews":
        from losslab.experiment.tasks.text.reviews import build_reviews

        return build_reviews(options)
    if name.startswith("glue-"):
        from losslab.experiment.tasks.text.glue import build_glue

        return build_glue(name, options)
    if name in ("proteins", "nci1"):
        from losslab.experiment.tasks.graph.graphs import build_graphs

        return build_graphs(name, options)
    if name in ("shapes", "coco"):
        from losslab.experiment.tasks.detection.detection import build_coco, build_shapes

        return build_shapes(options) if name == "shapes" else build_coco(options)
    if name in ("lm", "lm-multi30k"):
        from losslab.experiment.tasks.text.lm import build_lm

        return build_lm(name, options)
    if name.startswith(("multi30k-", "iwslt1")):
        from losslab.experiment.tasks.text.translation import build_translation

        return build_translation(name, options)
    from losslab.experiment.tasks.images.mnist import build_mnist

    return build_mnist(name, options)
