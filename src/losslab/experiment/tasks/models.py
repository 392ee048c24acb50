"""The models of the built-in tasks: small, plain and quick on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Standardize(nn.Module):
    """Numbers of any dtype -> float32 ``(x - mean) / std``, a mean and std for each channel.

    As a model's first layer it lets images stay uint8 in memory, a quarter of float32.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).reshape(-1, 1, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs.to(self.mean.dtype) - self.mean) / self.std


def mlp(inputs: int, num_classes: int, hidden: Sequence[int]) -> nn.Sequential:
    """Flatten, then fully connected ReLU layers of the given widths; none makes it linear."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = inputs
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, num_classes))


def cnn(channels: int, size: int, num_classes: int, widths: Sequence[int]) -> nn.Sequential:
    """Blocks of 3×3 convolution, batch norm, ReLU and 2×2 max-pooling, then one linear layer.

    The weights lie channels-last in memory: on a CPU that halves the time of a step.

    Args:
        channels: Channels of the images.
        size: Side of the images, at least ``2 ** len(widths)``.
        num_classes: Number of logits.
        widths: Channels of each block.
    """
    layers: list[nn.Module] = []
    for width in widths:
        layers += [
            nn.Conv2d(channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels, size = width, size // 2
    body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * size * size, num_classes))
    return body.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def liu2016(num_classes: int) -> nn.Sequential:
    """The CNN of Liu et al. (2016) for 28×28 grey images, as Zhao et al. (2022) built it.

    Batch norm of the input; 1, 3, 4 and 3 convolutions of 3×3 with 64 channels, each followed by
    PReLU and batch norm; 2×2 max-pooling after the second, third and fourth group; a linear layer
    of 256 with batch norm and no activation; logits without a bias. The first convolution pads
    nothing, as in their code (Liu et al. do not say).
    """
    layers: list[nn.Module] = [nn.BatchNorm2d(1), *_conv_prelu(1, padding=0)]
    for count in (3, 4, 3):
        for _ in range(count):
            layers += _conv_prelu(64, padding=1)
        layers.append(nn.MaxPool2d(2))
    logits = nn.Linear(256, num_classes, bias=False)
    nn.init.kaiming_normal_(logits.weight)
    layers += [nn.Flatten(), nn.Linear(64 * 3 * 3, 256), nn.BatchNorm1d(256), logits]
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _conv_prelu(channels: int, padding: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, 64, 3, padding=padding), nn.PReLU(), nn.BatchNorm2d(64)]


def with_dropout(model: nn.Sequential, share: float) -> nn.Sequential:
    """The model with dropout before its last layer."""
    *body, last = model
    return nn.Sequential(*body, nn.Dropout(share), last)


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and deviation of each channel of uint8 ``images``, exact; a deviation is at least 1."""
    values = torch.arange(256, dtype=torch.float64)
    means, deviations = [], []
    for channel in images.unbind(1):
        counts = torch.bincount(channel.reshape(-1), minlength=256).double()
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean) ** 2).sum() / counts.sum()
        means.append(float(mean))
        deviations.append(max(float(variance.sqrt()), 1.0))
    return means, deviations


def standardized(mean: Sequence[float], std: Sequence[float], body: nn.Module) -> nn.Sequential:
    """``body`` behind a `Standardize` layer."""
    return nn.Sequential(Standardize(mean, std), body)
