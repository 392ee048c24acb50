"""CIFAR-10 and CIFAR-100 from their files, with a small CNN and the ResNets of the papers.

The CNN is for two cores. Its rate was chosen for plain cross_entropy on the 5,000 validation images
of CIFAR-10 (``split_seed=0``), one seed, 5 epochs, last epoch; the test images had no say. On
10,000 training images rates 0.01, 0.02, 0.05, 0.1 and 0.2 reach 62.3, 61.1, 57.1, 53.9 and 41.6 %;
on 20,000 images 0.01, 0.02 and 0.05 reach 68.6, 70.3 and 70.8 % (standard error of each 0.7). 0.02
is near the best of both and leaves a control at a larger rate some room. Weight decay and batch
size are those of MNIST's CNN, and CIFAR-100's CNN takes the same recipe; neither was tuned.
``epochs`` and all training images push accuracy.

``resnet9`` is a quarter as wide as David Page's and takes his settings (batches of 512 at rate
0.4, here 128 at 0.1; weight decay 5e-4), with a warm-up and a half cosine in place of his straight
lines. An epoch of 45,000 images takes about 90 seconds of one core, without measuring. Nothing was
tuned.

``resnet18-cosine`` is ``resnet18`` as pytorch-cifar trains it: 200 epochs, half a cosine, weight
decay 5e-4, plain momentum (its rate does not rise first, as ours does for a tenth of the steps).

The other networks are for a GPU, or for patience; nothing of them was tuned here. All take SGD with
Nesterov momentum 0.9, weight decay 1e-4, rate 0.1 and the schedule of Zhao et al. (2022): 90
epochs, a tenth of the rate from epochs 30, 60 and 80 on. Battash et al. train 240 epochs with steps
at 120, 160 and 200: ``epochs=240, milestones=(1/2, 2/3, 5/6)``. Batches are of 128 as in He et al.
(2016), and of 256 for ResNet-50 as in Zhao et al.; Battash et al. do not say. ResNet-110 warms up
for its first epoch, because 0.1 is too much for it at the start (He et al.). What cannot be
compared: the CIFAR figures of Zhao et al. are of torchvision's ResNet-50 for ImageNet, on images
enlarged to 224 pixels by random crops of random size. Here images stay at 32 pixels, padded,
cropped and mirrored, as in Battash et al. and in pytorch-cifar.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import assemble
from losslab.experiment.tasks.images.augment import chosen, crop_and_flip
from losslab.experiment.tasks.images.cifar_files import SIDE, Examples, read_cifar
from losslab.experiment.tasks.images.residual import (
    aggregated_resnet,
    broad_resnet,
    preact_resnet,
    quick_resnet,
    thin_resnet,
)
from losslab.experiment.tasks.images.slim import efficientnet_b0, shufflenet_v2
from losslab.experiment.tasks.images.timm_model import PREFIX, timm_model
from losslab.experiment.tasks.models import channel_statistics, cnn, standardized, with_dropout
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.recipe import Recipe
from losslab.experiment.tasks.split import keep, stratified_split

VALIDATION_FRACTION = 1 / 10  # 5,000 of the 50,000 official training examples
EPOCHS, STEPS = 90, (30, 60, 80)  # Zhao et al.
_RESNET = Recipe(
    epochs=EPOCHS,
    batch_size=128,
    lr=0.1,
    weight_decay=1e-4,
    milestones=tuple(step / EPOCHS for step in STEPS),
)
RECIPES = {
    "cnn": Recipe(epochs=5, batch_size=128, lr=0.02, weight_decay=5e-4),
    "resnet9": Recipe(epochs=15, batch_size=128, lr=0.1, weight_decay=5e-4),
    "resnet20": _RESNET,
    "resnet32": _RESNET,
    "resnet44": _RESNET,
    "resnet110": replace(_RESNET, warm_up=1 / EPOCHS),
    "resnet18": _RESNET,
    "preact-resnet18": _RESNET,
    "resnet18-cosine": Recipe(
        epochs=200, batch_size=128, lr=0.1, weight_decay=5e-4, nesterov=False
    ),
    "resnet34": _RESNET,
    "resnet50": replace(_RESNET, batch_size=256),
    "resnext29": _RESNET,
    "shufflenet-v2": _RESNET,
    "efficientnet-b0": replace(_RESNET, batch_size=256),
}
_TEN = "airplane automobile bird cat deer dog frog horse ship truck"
_HUNDRED = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CLASS_NAMES = {"cifar10": tuple(_TEN.split()), "cifar100": tuple(_HUNDRED.split())}
OFFICIAL_SIZES = {"training": 50_000, "test": 10_000}
# Of all records of a split, whatever their order; see `cifar_files`. CIFAR-100's are not known.
OFFICIAL_SHA256 = {
    "cifar10": {
        "training": "55a61f79a40ece2ceda9fb5f9f7078f6ea2fc4952489cef56682bcf92cfcc260",
        "test": "325704b01eb92e1e2a6215ae6a916bb7db7de054af0c496be1c7be2e0fcfbf5f",
    },
}


def build_cifar(name: str, options: TaskOptions) -> Task:
    """``cifar10`` or ``cifar100``: official test set, validation out of the training set."""
    refuse_unused(
        name,
        options,
        {"target": "its labels are known", "image_size": "its images are 32×32"},
    )
    model = choose_model(name, options, tuple(RECIPES), timm=True)
    class_names = CLASS_NAMES[name]
    official, test = read_cifar(name, options.data_dir, class_names)
    labels = official.labels.numpy()
    fraction = options.validation_fraction or VALIDATION_FRACTION
    rest, validation = stratified_split(labels, (fraction,), options.split_seed)
    train = rest[keep(labels[rest], options.train_size, options.split_seed)]
    means, deviations = channel_statistics(official.images[train])
    return assemble(
        name=name,
        splits=[
            (official.images[train], official.labels[train]),
            (official.images[validation], official.labels[validation]),
            (test.images, test.labels),
        ],
        class_names=class_names,
        model_name=model,
        model=maker(model, len(class_names), means, deviations, options),
        recipe=recipe_of(model).changed_by(options),
        augment=chosen(options.augment, crop_and_flip),
        facts={
            "source": f"{name} files (python, binary or sprites)",
            "split": {
                "rule": "official test set; validation stratified from the training set",
                "seed": options.split_seed,
            },
            "preprocessing": [
                "kept as uint8, in the order of the sha256 of label and pixels",
                f"first layer: (pixel - {three(means)}) / {three(deviations)}, mean and "
                "deviation of the training pixels of each channel",
            ],
            "notes": _notes(name, {"training": official, "test": test}),
        },
    )


def recipe_of(model: str) -> Recipe:
    """How one of the `RECIPES`' models, or one of timm, is trained."""
    return RECIPES.get(model, _RESNET)


def maker(
    name: str,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    options: TaskOptions,
) -> Callable[[], nn.Module]:
    """`make_model` of these, with the dropout that was asked for."""
    if options.dropout is None:
        return partial(make_model, name, num_classes, mean, std)
    if name.startswith(PREFIX) or name == "efficientnet-b0":
        raise InputError(f"model {name!r} has a dropout of its own; leave dropout out.")
    return partial(make_model, name, num_classes, mean, std, dropout=options.dropout)


def make_model(
    name: str,
    num_classes: int,
    mean: Sequence[float],
    std: Sequence[float],
    dropout: float | None = None,
) -> nn.Module:
    """A fresh model of one of the `RECIPES`, or of timm, for 32×32 RGB images."""
    body = _body(name, num_classes)
    if dropout is not None:
        assert isinstance(body, nn.Sequential)
        body = with_dropout(body, dropout)
    return standardized(mean, std, body)


def _body(name: str, num_classes: int) -> nn.Module:
    if name.startswith(PREFIX):
        return timm_model(name, num_classes, SIDE)
    if name == "resnext29":
        return aggregated_resnet(2, 64, num_classes)
    if name == "shufflenet-v2":
        return shufflenet_v2(num_classes)
    if name == "efficientnet-b0":
        return efficientnet_b0(num_classes)
    if name == "cnn":
        return cnn(3, SIDE, num_classes, widths=(32, 64, 128))
    if name == "resnet9":
        return quick_resnet(16, num_classes)
    if name in ("resnet18", "resnet18-cosine"):
        return broad_resnet((2, 2, 2, 2), num_classes, bottleneck=False)
    if name == "preact-resnet18":
        return preact_resnet((2, 2, 2, 2), num_classes)
    if name in ("resnet34", "resnet50"):
        return broad_resnet((3, 4, 6, 3), num_classes, bottleneck=name == "resnet50")
    return thin_resnet(int(name.removeprefix("resnet")), num_classes)


def three(values: Sequence[float]) -> str:
    """The numbers of a colour, for descriptions."""
    return f"({', '.join(f'{value:.3f}' for value in values)})"


def _notes(name: str, splits: dict[str, Examples]) -> list[str]:
    """What is not as in the official set: sizes, class counts, or content where it is known."""
    sizes = {split: len(examples.labels) for split, examples in splits.items()}
    if sizes != OFFICIAL_SIZES:
        counts = " and ".join(f"{size} {split}" for split, size in sizes.items())
        return [f"not the official {name}: {counts} examples"]
    known = OFFICIAL_SHA256.get(name, {})
    return [
        f"not the official {name}: its {split} examples are other ones (changed, or damaged)"
        for split, examples in splits.items()
        if examples.sha256 != known.get(split, examples.sha256) or _uneven(name, examples.labels)
    ]


def _uneven(name: str, labels: Tensor) -> bool:
    """Whether the classes differ in size, as they do not in the official sets."""
    return bool(torch.bincount(labels, minlength=len(CLASS_NAMES[name])).unique().numel() > 1)
