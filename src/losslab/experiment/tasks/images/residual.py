"""Residual networks for images of 32×32 pixels.

Two families share the name ResNet. The *thin* ones are those that He et al. (2016, section 4.2)
made for CIFAR: 20, 32, 44, … 110 layers in three groups of 16, 32 and 64 channels. The *broad* ones
are their networks for ImageNet (18, 34, 50 layers in four groups of 64 to 512 channels) with a stem
that suits small images, one 3×3 convolution and no pooling, as Kuang Liu's pytorch-cifar spread it.
A thin ResNet-20 has 0.27 million parameters, a broad ResNet-18 has 11.17. Beside them stand
the *quick* one, nine layers that David Page made to be trained in a few epochs, and the
*aggregated* one, ResNeXt.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from losslab.errors import InputError

THIN_WIDTHS = (16, 32, 64)
BROAD_WIDTHS = (64, 128, 256, 512)


class Residual(nn.Module):
    """``relu(body(x) + shortcut(x))``."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.relu(self.body(inputs) + self.shortcut(inputs))


class Within(nn.Module):
    """``x + body(x)``."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs + self.body(inputs)


class PreActivated(nn.Module):
    """``body(x') + shortcut(x)`` with ``x' = relu(norm(x))``; a shortcut with weights takes x'."""

    def __init__(self, norm: nn.Module, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.norm, self.body, self.shortcut = norm, body, shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        active = torch.relu(self.norm(inputs))
        kept = inputs if isinstance(self.shortcut, nn.Identity) else self.shortcut(active)
        return self.body(active) + kept


class Thinned(nn.Module):
    """Every ``stride``-th pixel, and zeros in channels that are new: a shortcut without parameters.

    Option A of He et al. (2016).
    """

    def __init__(self, stride: int, new_channels: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, new_channels

    def forward(self, inputs: Tensor) -> Tensor:
        pixels = inputs[:, :, :: self.stride, :: self.stride]
        return pad(pixels, (0, 0, 0, 0, 0, self.new_channels))

    def extra_repr(self) -> str:
        return f"stride={self.stride}, new_channels={self.new_channels}"


def thin_resnet(depth: int, num_classes: int) -> nn.Sequential:
    """The ResNet of ``depth`` = 6n + 2 layers for CIFAR of He et al. (2016), shortcuts of option A.

    Weights as He et al. (2015) initialise them: normal, variance 2 / (9 × output channels).

    Args:
        depth: Layers with weights: 20, 32, 44, 56, 110, or any other 6n + 2.
        num_classes: Number of logits.
    """
    blocks, rest = divmod(depth - 2, 6)
    if rest or blocks < 1:
        raise InputError(f"a thin ResNet has 6n + 2 layers (8, 14, 20, …); got depth={depth!r}.")
    layers: list[nn.Module] = [_conv(3, 16), nn.BatchNorm2d(16), nn.ReLU()]
    channels = 16
    for width in THIN_WIDTHS:
        for _ in range(blocks):
            stride = 1 if channels == width else 2
            same = stride == 1
            shortcut = nn.Identity() if same else Thinned(stride, width - channels)
            layers.append(Residual(_basic(channels, width, stride), shortcut))
            channels = width
    model = _with_head(layers, channels, num_classes)
    _as_he(model)
    return model


def broad_resnet(
    blocks: Sequence[int],
    num_classes: int,
    *,
    bottleneck: bool,
    large: bool = False,
    cardinality: int = 1,
    width: int = 64,
) -> nn.Sequential:
    """A ResNet of He et al. (2016) for ImageNet with a 3×3 stem; PyTorch's own initialisation.

    Args:
        blocks: Blocks of each of the four groups: ``(2, 2, 2, 2)`` is ResNet-18, ``(3, 4, 6, 3)``
            is ResNet-34, or ResNet-50 with bottlenecks, ``(3, 4, 23, 3)`` ResNet-101.
        num_classes: Number of logits.
        bottleneck: Blocks of 1×1, 3×3 and 1×1 convolutions in place of two of 3×3.
        large: The stem for large images, 7×7 with stride 2 and pooling, and the initialisation
            of He et al. (2015): torchvision's networks.
        cardinality, width: Groups that a bottleneck's 3×3 is cut into, and channels of each of them
            at first: 32 and 4 are ResNeXt's.
    """
    layers: list[nn.Module] = _activated(3, 64)
    if large:
        layers[0] = _conv(3, 64, 2, 7)
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 64
    for size, stride in _steps(blocks):
        out = 4 * size if bottleneck else size
        shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != out:
            shortcut = nn.Sequential(_conv(channels, out, stride, 1), nn.BatchNorm2d(out))
        inner = size * width * cardinality // 64
        body = (
            _bottleneck(channels, inner, out, stride, cardinality)
            if bottleneck
            else _basic(channels, size, stride)
        )
        layers.append(Residual(body, shortcut))
        channels = out
    model = _with_head(layers, channels, num_classes)
    if large:
        _as_he(model)
    return model


def preact_resnet(blocks: Sequence[int], num_classes: int) -> nn.Sequential:
    """The broad ResNet with pre-activation of He et al. (2016b), two 3×3 convolutions a block.

    The last block is followed by batch norm and ReLU, as the paper says; pytorch-cifar leaves that
    out.
    """
    layers: list[nn.Module] = [_conv(3, 64)]
    channels = 64
    for width, stride in _steps(blocks):
        body = nn.Sequential(
            _conv(channels, width, stride), nn.BatchNorm2d(width), nn.ReLU(), _conv(width, width)
        )
        same = stride == 1 and channels == width
        shortcut = nn.Identity() if same else _conv(channels, width, stride, 1)
        layers.append(PreActivated(nn.BatchNorm2d(channels), body, shortcut))
        channels = width
    layers += [nn.BatchNorm2d(channels), nn.ReLU()]
    return _with_head(layers, channels, num_classes)


def quick_resnet(width: int, num_classes: int) -> nn.Sequential:
    """The ResNet-9 of David Page (DAWNBench, 2018), ``width`` channels at first; his has 64.

    Four convolutions that double the channels, a residual block after the second and the fourth,
    and pooling before a block grows dear: most of its work is done on small images with many
    channels, which a CPU likes. The head takes the mean over the pixels, as in the other networks
    here, where his takes the largest and divides the logits by 8.
    """
    layers: list[nn.Module] = _activated(3, width)
    for times, residual in ((2, True), (4, False), (8, True)):
        channels = times * width
        layers += [*_activated(channels // 2, channels), nn.MaxPool2d(2)]
        if residual:
            layers.append(Within(nn.Sequential(*_activated(channels), *_activated(channels))))
    return _with_head(layers, 8 * width, num_classes)


def aggregated_resnet(cardinality: int, width: int, num_classes: int) -> nn.Sequential:
    """The ResNeXt-29 of Xie et al. (2017) for CIFAR: bottlenecks whose 3×3 is cut into groups.

    Three groups of three blocks that come to 256, 512 and 1024 channels; the first and the 3×3
    convolutions of a block have ``cardinality`` × ``width`` channels, twice and four times as many
    in the later groups. pytorch-cifar begins with a 1×1 convolution where the paper has a 3×3.

    Args:
        cardinality: Groups that a 3×3 convolution is cut into.
        width: Channels of each of them: 2 and 64 make the 2×64d of Chen et al. (2019), 8 and 64 the
            smaller one of the paper.
        num_classes: Number of logits.
    """
    layers: list[nn.Module] = _activated(3, 64)
    channels = 64
    for group, out in enumerate((256, 512, 1024)):
        inner = cardinality * width * 2**group
        for number in range(3):
            stride = 2 if group and not number else 1
            shortcut: nn.Module = nn.Identity()
            if channels != out:
                shortcut = nn.Sequential(_conv(channels, out, stride, 1), nn.BatchNorm2d(out))
            body = _bottleneck(channels, inner, out, stride, cardinality)
            layers.append(Residual(body, shortcut))
            channels = out
    return _with_head(layers, channels, num_classes)


def _steps(blocks: Sequence[int]) -> list[tuple[int, int]]:
    """Width and stride of each block: a group's first halves the image, but for the first group."""
    return [
        (width, 2 if group and not number else 1)
        for group, (width, count) in enumerate(zip(BROAD_WIDTHS, blocks, strict=True))
        for number in range(count)
    ]


def _activated(channels: int, width: int | None = None) -> list[nn.Module]:
    width = width or channels
    return [_conv(channels, width), nn.BatchNorm2d(width), nn.ReLU()]


def _basic(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _conv(channels, width, stride),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        _conv(width, width),
        nn.BatchNorm2d(width),
    )


def _bottleneck(
    channels: int, inner: int, out: int, stride: int, cardinality: int = 1
) -> nn.Sequential:
    grouped = nn.Conv2d(inner, inner, 3, stride, padding=1, groups=cardinality, bias=False)
    return nn.Sequential(
        _conv(channels, inner, 1, 1),
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        grouped,
        nn.BatchNorm2d(inner),
        nn.ReLU(),
        _conv(inner, out, 1, 1),
        nn.BatchNorm2d(out),
    )


def _conv(channels: int, width: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False)


def _as_he(model: nn.Module) -> None:
    """Convolutions as He et al. (2015) initialise them."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _with_head(layers: list[nn.Module], channels: int, num_classes: int) -> nn.Sequential:
    """The layers, the mean over all pixels, and a linear layer; channels-last in memory."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes)]
    model = nn.Sequential(*layers, *head)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
