"""Networks made for telephones, with stems for images of 32×32 pixels: ShuffleNetV2, EfficientNet.

Both are as published but for the stem, which keeps the image's size unless it is ``large``:
ShuffleNetV2's has stride 1 and no pooling, as in pytorch-cifar, EfficientNet's has stride 1.
Strides have no weights, so they have as many parameters as the published ones.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SHUFFLE_WIDTHS = {0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024)}
# expansion, kernel, stride, channels, blocks of each group: table 1 of Tan and Le (2019)
EFFICIENT_B0 = (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
)


class Shuffled(nn.Module):
    """A unit of ShuffleNetV2: two branches side by side, and their channels dealt out in turn.

    The left branch takes the first half of the channels and leaves it alone (``left`` is None), or
    both take all of them.
    """

    def __init__(self, left: nn.Module | None, right: nn.Module) -> None:
        super().__init__()
        self.left, self.right = left, right

    def forward(self, inputs: Tensor) -> Tensor:
        kept, changed = inputs.chunk(2, dim=1) if self.left is None else (inputs, inputs)
        if self.left is not None:
            kept = self.left(kept)
        both = torch.stack([kept, self.right(changed)], dim=2)  # left 0, right 0, left 1, …
        return both.flatten(1, 2)


def shufflenet_v2(num_classes: int, scale: float = 1.0, large: bool = False) -> nn.Sequential:
    """ShuffleNetV2 of Ma et al. (2018): 1.26 million parameters at scale 1 and ten classes.

    Args:
        num_classes: Number of logits.
        scale: 0.5, 1 or 1.5: how many channels.
        large: The paper's stem, which takes a quarter of the side, in place of the small one.
    """
    *widths, last = SHUFFLE_WIDTHS[scale]
    layers: list[nn.Module] = _conv(3, 24, 3, 2 if large else 1)
    if large:
        layers.append(nn.MaxPool2d(3, 2, 1))
    channels = 24
    for width, count in zip(widths, (4, 8, 4), strict=True):
        half = width // 2
        layers.append(
            Shuffled(
                nn.Sequential(*_each(channels, 2), *_conv(channels, half, 1)),
                nn.Sequential(*_conv(channels, half, 1), *_each(half, 2), *_conv(half, half, 1)),
            )
        )
        for _ in range(count - 1):
            branch = nn.Sequential(*_conv(half, half, 1), *_each(half, 1), *_conv(half, half, 1))
            layers.append(Shuffled(None, branch))
        channels = width
    layers += [*_conv(channels, last, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(last, num_classes))
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _conv(channels: int, width: int, size: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.ReLU()]


def _each(channels: int, stride: int) -> list[nn.Module]:
    """A 3×3 convolution of each channel by itself, with batch norm and no activation."""
    convolution = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class Excited(nn.Module):
    """Squeeze and excitation: a channel times a number in (0, 1) read off all channels' means."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.SiLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.gate(inputs)


class Skipped(nn.Module):
    """``x + body(x)``; in training the body is left out for an example with probability ``drop``,
    and made up for in the others (stochastic depth).
    """

    def __init__(self, body: nn.Module, drop: float) -> None:
        super().__init__()
        self.body, self.drop = body, drop

    def forward(self, inputs: Tensor) -> Tensor:
        out = self.body(inputs)
        if self.training and self.drop:
            stays = torch.rand(len(out), 1, 1, 1, device=out.device) >= self.drop
            out = out * stays / (1 - self.drop)
        return inputs + out

    def extra_repr(self) -> str:
        return f"drop={self.drop:.4g}"


def efficientnet_b0(
    num_classes: int, dropout: float = 0.2, drop: float = 0.2, large: bool = False
) -> nn.Sequential:
    """EfficientNet-B0 of Tan and Le (2019): 4.02 million parameters with ten classes.

    Args:
        num_classes: Number of logits.
        dropout: Of the last layer's inputs.
        drop: Of the last block; the blocks before it are left out less often, in a straight line.
        large: The paper's stem, of stride 2.
    """
    layers: list[nn.Module] = _swish(3, 32, 3, 2 if large else 1)
    channels, made = 32, 0
    blocks = sum(group[-1] for group in EFFICIENT_B0)
    for expansion, kernel, stride, width, count in EFFICIENT_B0:
        for number in range(count):
            step = 1 if number else stride
            body = _inverted(channels, width, expansion, kernel, step)
            same = step == 1 and channels == width
            layers.append(Skipped(body, drop * made / blocks) if same else body)
            channels, made = width, made + 1
    layers += [*_swish(channels, 1280, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(1280, num_classes))
    _initialise(model, num_classes)
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _inverted(channels: int, width: int, expansion: int, kernel: int, stride: int) -> nn.Sequential:
    """Out to ``expansion`` times the channels, each by itself, and back in without activation."""
    inner = channels * expansion
    layers = _swish(channels, inner, 1) if expansion > 1 else []
    layers += _swish(inner, inner, kernel, stride, inner)
    layers += [
        Excited(inner, channels // 4),
        nn.Conv2d(inner, width, 1, bias=False),
        nn.BatchNorm2d(width),
    ]
    return nn.Sequential(*layers)


def _swish(
    channels: int, width: int, size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    convolution = nn.Conv2d(
        channels, width, size, stride, padding=size // 2, groups=groups, bias=False
    )
    return [convolution, nn.BatchNorm2d(width), nn.SiLU()]


def _initialise(model: nn.Module, num_classes: int) -> None:
    """As the authors' code: normal by fan-out, the last layer uniform by its outputs."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            reach = 1 / math.sqrt(num_classes)
            nn.init.uniform_(module.weight, -reach, reach)
            nn.init.zeros_(module.bias)
