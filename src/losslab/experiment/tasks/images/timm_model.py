"""Any model of timm as a task's model: ``timm:NAME``, freshly initialised."""

from __future__ import annotations

from types import ModuleType

from torch import nn

from losslab.errors import InputError, nearest
from losslab.experiment.tasks.images.torchvision_parts import supply_operators
from losslab.experiment.tasks.needed import needed

PREFIX = "timm:"


def timm_model(model: str, num_classes: int, size: int, channels: int = 3) -> nn.Module:
    """The network of ``timm:NAME`` for square images.

    Args:
        model: As the user wrote it, with the prefix.
        num_classes: Number of logits.
        size: Side of the images; told to those networks that are made for one size.
        channels: Channels of the images.

    Raises:
        InputError: If timm cannot be imported or has no such model, or the model takes no such
            images.
    """
    timm, name = _timm(), model.removeprefix(PREFIX)
    if not timm.is_model(name):
        raise InputError(
            f"timm has no model {name!r}.{nearest(name, timm.list_models())} "
            "timm.list_models() lists them."
        )
    wanted = {"pretrained": False, "num_classes": num_classes, "in_chans": channels}
    try:
        return timm.create_model(name, img_size=size, **wanted)
    except TypeError:  # a network for images of any size is not told theirs
        pass
    except Exception as error:
        raise _unfit(name, size, channels, error) from None
    try:
        return timm.create_model(name, **wanted)
    except Exception as error:
        raise _unfit(name, size, channels, error) from None


def _unfit(name: str, size: int, channels: int, error: Exception) -> InputError:
    return InputError(
        f"timm's {name} cannot be made for images of {channels} × {size} × {size} ({error}). "
        "Choose another model or image size."
    )


def _timm() -> ModuleType:
    with needed("timm", "losslab[vision]"):
        supply_operators()  # timm imports torchvision
        import timm
    return timm
