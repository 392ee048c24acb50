"""Fine-tuning a pretrained encoder on five GLUE tasks, as Battash et al. do (figure 2).

The paper states BERT, six epochs, learning rate 2e-5, length 64, the dev set as test set and four
seeds. The rest is that of the library it names (`transformers`, ``run_glue``): AdamW without weight
decay, a rate that falls in a straight line to 0, batches of 32; that example also clips gradients
at norm 1 and this does not. Any encoder can be taken; without ``--model`` it is a small one that
comes as a Python package, all-MiniLM-L6-v2 (22.7 million parameters, made for similarity of
sentences).
"""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import torch
from torch.utils.data import TensorDataset

from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import with_description
from losslab.experiment.tasks.options import TaskOptions, refuse_unused
from losslab.experiment.tasks.split import keep, stratified_split
from losslab.experiment.tasks.text.adam import AdamWRecipe
from losslab.experiment.tasks.text.encoder import describe_weights, fresh_encoder, tokens
from losslab.experiment.tasks.text.glue_files import FORMS, KNOWN_SHA256, Sentences, read_glue
from losslab.experiment.tasks.text.hugging_face import MINILM, Pretrained, pretrained
from losslab.metrics import MORE

LENGTH = 64
VALIDATION_FRACTION = 0.1
RECIPE = AdamWRecipe(epochs=6, batch_size=32, lr=2e-5)
METRICS = {"cola": (MORE["matthews"],), "mrpc": (MORE["f1"],)}
MODELS = (MINILM, "any on the Hugging Face hub, or the FOLDER of one")
TASKS = tuple(f"glue-{name}" for name in FORMS)


def build_glue(task: str, options: TaskOptions) -> Task:
    """``glue-cola``, …: the dev set is the test set, validation is cut out of the training set."""
    refuse_unused(
        task,
        options,
        {"target": "its labels are known", "image_size": "it has no images"},
    )
    name = task.removeprefix("glue-")
    form = FORMS[name]
    official, dev = read_glue(name, options.data_dir)
    labels = np.array(official.labels, dtype=np.int64)
    fraction = options.validation_fraction or VALIDATION_FRACTION
    rest, validation = stratified_split(labels, (fraction,), options.split_seed)
    train = rest[keep(labels[rest], options.train_size, options.split_seed)]
    model = pretrained(options.model)
    splits: list[TensorDataset] = []
    names: tuple[str, ...] = ()
    for sentences, rows in ((official, train), (official, validation), (dev, None)):
        chosen = range(len(sentences.labels)) if rows is None else rows
        inputs, names = _numbers(model, tuple(sentences.texts[row] for row in chosen))
        target = torch.tensor([sentences.labels[row] for row in chosen], dtype=torch.int64)
        order = inputs[:, names.index("attention_mask")].sum(1).argsort(stable=True)
        splits.append(TensorDataset(inputs[order], target[order]))
    classes = len(form.classes)
    made = Task(
        name=task,
        train=splits[0],
        validation=splits[1],
        test=splits[2],
        num_classes=classes,
        model=partial(fresh_encoder, model, classes, names),
        class_names=form.classes,
        metrics=METRICS.get(name, ()),
        **RECIPE.changed_by(options).task_fields(),
    )
    return with_description(
        made,
        {
            "source": f"GLUE {form.folder}",
            "split": {
                "rule": "dev set for testing; validation stratified from the training set",
                "seed": options.split_seed,
            },
            "preprocessing": [
                "examples in the order of their lengths, then of their texts",
                f"the model's own tokeniser, cut and padded to {LENGTH} tokens: {', '.join(names)}",
            ],
            "notes": _notes(name, official, dev),
            "model": {"name": model.name, **describe_weights(model, classes)},
        },
    )


@lru_cache(maxsize=8)
def _numbers(
    model: Pretrained, texts: tuple[tuple[str, ...], ...]
) -> tuple[torch.Tensor, tuple[str, ...]]:
    return tokens(model, texts, LENGTH)


def _notes(name: str, train: Sentences, dev: Sentences) -> list[str]:
    """What is not as in the official set."""
    folder, sizes = FORMS[name].folder, (len(train.labels), len(dev.labels))
    if sizes != FORMS[name].sizes:
        return [f"not the official {folder}: {sizes[0]} training and {sizes[1]} dev examples"]
    found = {"training": train.sha256, "dev": dev.sha256}
    return [
        f"the {split} examples of {folder} are not those of the copy known here"
        for (split, sha256), known in zip(found.items(), KNOWN_SHA256[name], strict=True)
        if sha256 != known
    ]
