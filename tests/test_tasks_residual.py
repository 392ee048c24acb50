"""The residual networks: parameters as published, and values against the formulas of the papers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from losslab.errors import InputError
from losslab.experiment.tasks.images.residual import broad_resnet, preact_resnet, thin_resnet


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def count_of_paper(blocks: int, classes: int) -> int:
    """Weights of a thin ResNet by table 6 of He et al., with option A: 9 a convolution's pair of
    channels, two a channel of batch norm, and the linear layer.
    """
    total = 9 * 3 * 16 + 2 * 16
    before = 16
    for width in (16, 32, 64):
        total += 9 * before * width + 2 * width
        total += (2 * blocks - 1) * (9 * width * width + 2 * width)
        before = width
    return total + 64 * classes + classes


@pytest.mark.parametrize(
    "depth, printed", [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")]
)
def test_thin_networks_have_the_papers_size(depth, printed):
    """Oracle: table 6 of He et al. (2016) in millions, and the exact count by hand."""
    size = parameters(thin_resnet(depth, 10))
    assert size == count_of_paper((depth - 2) // 6, 10)
    decimals = len(printed.partition(".")[2])
    assert f"{size / 1e6:.{decimals}f}" == printed
    assert parameters(thin_resnet(depth, 100)) == size + 90 * 65
    layers = [m for m in thin_resnet(depth, 10).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth


@pytest.mark.parametrize(
    "blocks, bottleneck, published",
    [
        ((2, 2, 2, 2), False, 11_173_962),
        ((3, 4, 6, 3), False, 21_282_122),
        ((3, 4, 6, 3), True, 23_520_842),
    ],
)
def test_broad_networks_have_pytorch_cifars_size(blocks, bottleneck, published):
    """Oracle: the parameter counts of pytorch-cifar's ResNet18, ResNet34 and ResNet50."""
    assert parameters(broad_resnet(blocks, 10, bottleneck=bottleneck)) == published


def test_preactivated_network_has_pytorch_cifars_size_and_a_last_norm():
    """Oracle: pytorch-cifar's PreActResNet18 has 11,171,146; the last batch norm adds 2 × 512."""
    assert parameters(preact_resnet((2, 2, 2, 2), 10)) == 11_171_146 + 1024


@pytest.mark.parametrize("depth", [0, 2, 18, 21])
def test_depths_that_do_not_exist(depth):
    """Oracle: 6n + 2 with n at least 1."""
    with pytest.raises(InputError, match=r"6n \+ 2 layers"):
        thin_resnet(depth, 10)


def settled(model: nn.Module) -> nn.Module:
    """In evaluation mode, with batch norms that do something."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean"):
                getattr(module, name).data.normal_(generator=generator).mul_(0.3).add_(0.5)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return model.double().eval()


class ByHand:
    """Takes a network's layers in the order they were made, and applies them with functions."""

    def __init__(self, model: nn.Module) -> None:
        self.convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
        self.norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        (self.last,) = (m for m in model.modules() if isinstance(m, nn.Linear))

    def conv(self, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.convolutions.pop(0).weight
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def norm(self, x: Tensor) -> Tensor:
        layer = self.norms.pop(0)
        scale = layer.weight / (layer.running_var + layer.eps).sqrt()
        centred = x - layer.running_mean[:, None, None]
        return centred * scale[:, None, None] + layer.bias[:, None, None]

    def logits(self, x: Tensor) -> Tensor:
        assert not self.convolutions and not self.norms
        return x.mean(dim=(2, 3)) @ self.last.weight.T + self.last.bias


def test_thin_network_against_functions():
    """Oracle: equations 1 and 2 of He et al. written out with functions, in float64.

    Breaks on a missing ReLU, a wrong stride, or zeros put before the old channels.
    """
    model = settled(thin_resnet(14, 10))
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    hand = ByHand(model)
    x = hand.norm(hand.conv(images)).relu()
    for width, stride in ((16, 1), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1)):
        y = hand.norm(hand.conv(hand.norm(hand.conv(x, stride)).relu()))
        kept = x[:, :, ::stride, ::stride]
        zeros = torch.zeros(2, width - kept.shape[1], *kept.shape[2:], dtype=x.dtype)
        x = (y + torch.cat([kept, zeros], dim=1)).relu()
        assert x.shape[1] == width
    assert x.shape == (2, 64, 8, 8)
    torch.testing.assert_close(model(images), hand.logits(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("bottleneck", [False, True])
def test_broad_network_against_functions(bottleneck):
    """Oracle: the blocks of He et al. (figures 3 and 5) with projections, in float64."""
    model = settled(broad_resnet((1, 2, 1, 1), 7, bottleneck=bottleneck))
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    hand = ByHand(model)
    x = hand.norm(hand.conv(images)).relu()
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (512, 2)):
        if bottleneck:
            y = hand.norm(hand.conv(x)).relu()
            y = hand.norm(hand.conv(y, stride)).relu()
            y = hand.norm(hand.conv(y))
        else:
            y = hand.norm(hand.conv(hand.norm(hand.conv(x, stride)).relu()))
        if x.shape != y.shape:
            x = hand.norm(hand.conv(x, stride))
        x = (x + y).relu()
        assert x.shape[1] == width * (4 if bottleneck else 1)
    assert x.shape[2:] == (4, 4)
    torch.testing.assert_close(model(images), hand.logits(x), rtol=1e-10, atol=1e-10)


def test_preactivated_network_against_functions():
    """Oracle: equation 1 of He et al. (2016b), with one more norm and ReLU at the end.

    Only the first block of a group that changes the shape projects, and what it projects is
    activated; the first block of all does not.
    """
    model = settled(preact_resnet((2, 1, 1, 1), 10))
    images = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    hand = ByHand(model)
    x = hand.conv(images)
    for width, stride in ((64, 1), (64, 1), (128, 2), (256, 2), (512, 2)):
        active = hand.norm(x).relu()
        y = hand.conv(hand.norm(hand.conv(active, stride)).relu())
        x = y + (x if x.shape == y.shape else hand.conv(active, stride))
        assert x.shape[1] == width
    x = hand.norm(x).relu()
    torch.testing.assert_close(model(images), hand.logits(x), rtol=1e-10, atol=1e-10)


def test_initial_weights_of_thin_networks():
    """Oracle: He et al. (2015): deviation sqrt(2 / (9 × output channels)), kurtosis 3."""
    torch.manual_seed(0)
    model = thin_resnet(32, 10)
    weights = [
        m.weight.detach().double() * (9 * m.out_channels / 2) ** 0.5
        for m in model.modules()
        if isinstance(m, nn.Conv2d)
    ]
    values = torch.cat([w.reshape(-1) for w in weights])
    assert abs(float(values.std()) - 1) < 0.01 and abs(float(values.mean())) < 0.01
    assert abs(float((values**4).mean()) - 3) < 0.1
