"""ResNet-9, ResNeXt-29, ShuffleNetV2 and EfficientNet-B0: published sizes, values by hand, timm."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from losslab.errors import InputError
from losslab.experiment.tasks.images.residual import aggregated_resnet, quick_resnet
from losslab.experiment.tasks.images.slim import (
    Excited,
    Shuffled,
    Skipped,
    efficientnet_b0,
    shufflenet_v2,
)
from losslab.experiment.tasks.images.timm_model import timm_model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_published_sizes():
    """Oracle: David Page's 6,573,120 and ten biases; pytorch-cifar's ResNeXt29_2x64d (9,128,778)
    with the paper's 3×3 in place of its 1×1 at first, and the paper's 34.4 million of 8×64d.
    """
    assert parameters(quick_resnet(64, 10)) == 6_573_120 + 10
    assert parameters(aggregated_resnet(2, 64, 10)) == 9_128_778 + (27 - 3) * 64
    assert f"{parameters(aggregated_resnet(8, 64, 10)) / 1e6:.1f}" == "34.4"


@pytest.mark.parametrize("scale, published", [(0.5, 1_366_792), (1.0, 2_278_604), (1.5, 3_503_624)])
def test_shufflenets_have_torchvisions_size(scale, published):
    """Oracle: num_params of torchvision's weights, at 1,000 classes. A stem has no more weights
    for its stride, so pytorch-cifar's 1,263,854 with ten classes is the same network's.
    """
    assert parameters(shufflenet_v2(1000, scale)) == published
    assert parameters(shufflenet_v2(10)) == 1_263_854


def test_efficientnet_has_torchvisions_size():
    """Oracle: num_params of torchvision's weights, and 1,281 a class."""
    assert parameters(efficientnet_b0(1000)) == 5_288_548
    assert parameters(efficientnet_b0(10)) == 5_288_548 - 990 * 1281


@pytest.mark.parametrize(
    "make, side, channels",
    [
        (lambda: quick_resnet(4, 10), 4, 32),
        (lambda: aggregated_resnet(2, 4, 10), 8, 1024),
        (lambda: shufflenet_v2(10, 0.5), 4, 1024),
        (lambda: efficientnet_b0(10), 2, 1280),
    ],
)
def test_how_far_an_image_shrinks(make, side, channels):
    """Oracle: three halvings, two, three and four, counted in the papers' tables, of 32 pixels."""
    model = make().eval()
    seen = []
    pooling = next(m for m in model if isinstance(m, nn.AdaptiveAvgPool2d))
    pooling.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape)))
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)
    assert seen == [(2, channels, side, side)]


def test_channels_are_dealt_out_in_turn():
    """Oracle: channel_shuffle of the paper in two groups, by indices. Breaks on halves swapped."""
    inputs = torch.arange(8.0).reshape(1, 8, 1, 1)
    out = Shuffled(None, nn.Identity())(inputs).flatten().tolist()
    assert out == [0, 4, 1, 5, 2, 6, 3, 7]
    tenfold = Shuffled(nn.Identity(), _Times(10))(inputs[:, :2]).flatten().tolist()
    assert tenfold == [0, 0, 1, 10]


class _Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs * self.factor


def test_excitation_by_hand():
    """Oracle: x · σ(W₂ swish(W₁ mean(x) + b₁) + b₂) with matrices."""
    torch.manual_seed(0)
    layer = Excited(6, 2).double()
    inputs = torch.randn(3, 6, 5, 5, dtype=torch.float64)
    _, first, _, second, _ = layer.gate
    hidden = inputs.mean((2, 3)) @ first.weight[:, :, 0, 0].T + first.bias
    hidden = hidden * torch.sigmoid(hidden)
    gate = torch.sigmoid(hidden @ second.weight[:, :, 0, 0].T + second.bias)
    torch.testing.assert_close(layer(inputs), inputs * gate[:, :, None, None])


def test_blocks_are_left_out_at_random_and_made_up_for():
    """Oracle: each example is x or x + body(x) / (1 − p); a share p is x; evaluation drops none."""
    torch.manual_seed(0)
    block, inputs = Skipped(_Times(2), 0.25), torch.ones(8000, 1, 1, 1)
    values = block(inputs).flatten()
    assert set(values.tolist()) == {1.0, torch.tensor(1 + 2 / 0.75).item()}
    assert (values == 1).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert (block.eval()(inputs) == 3).all()
    drops = [m.drop for m in efficientnet_b0(10).modules() if isinstance(m, Skipped)]
    assert len(drops) == 9 and drops == sorted(drops)
    assert drops[0] == pytest.approx(0.2 * 2 / 16) and drops[-1] == pytest.approx(0.2 * 14 / 16)


def test_aggregated_block_by_hand():
    """Oracle: a grouped convolution as separate ones side by side, in float64."""
    torch.manual_seed(0)
    block = aggregated_resnet(2, 4, 10)[3].double().eval()
    inputs = torch.randn(1, 64, 8, 8, dtype=torch.float64)
    into, grouped, out = (m for m in block.body if isinstance(m, nn.Conv2d))
    norm = 1 / (1 + 1e-5) ** 0.5
    x = (functional.conv2d(inputs, into.weight) * norm).relu()
    halves = zip(x.chunk(2, 1), grouped.weight.chunk(2), strict=True)
    x = torch.cat([functional.conv2d(part, weight, padding=1) for part, weight in halves], 1)
    x = functional.conv2d((x * norm).relu(), out.weight) * norm
    expected = (x + functional.conv2d(inputs, block.shortcut[0].weight) * norm).relu()
    torch.testing.assert_close(block(inputs), expected)


def torchvision_models() -> ModuleType:
    try:
        from torchvision import models
    except Exception as error:  # one built for another torch raises RuntimeError
        pytest.skip(f"torchvision cannot be imported: {error}")
    return models


@pytest.mark.parametrize("name", ["efficientnet_b0", "shufflenet_v2_x1_0"])
def test_values_are_torchvisions(name):
    """Oracle: torchvision's network with our weights and its stem made to keep the size."""
    theirs = getattr(torchvision_models(), name)(num_classes=10)
    ours = efficientnet_b0(10) if name == "efficientnet_b0" else shufflenet_v2(10)
    if name == "efficientnet_b0":
        theirs.features[0][0].stride = (1, 1)
    else:
        theirs.conv1[0].stride, theirs.maxpool = (1, 1), nn.Identity()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        other.data.copy_(mine.data)
    inputs = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for model in (ours, theirs):
            model.eval()
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- timm


@pytest.fixture
def timm(monkeypatch) -> ModuleType:
    """A stand-in for timm: one network for any size, one for a size it must be told."""
    stub = ModuleType("timm")
    stub.asked = []

    def create_model(name, **settings):
        stub.asked.append((name, settings))
        if name == "any_size" and "img_size" in settings:
            raise TypeError("unexpected keyword argument 'img_size'")
        if name == "only_224" and settings.get("img_size") != 224:
            raise AssertionError("not a multiple of 7")
        side = settings.get("img_size", 1)
        return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.LazyLinear(10))

    stub.create_model = create_model
    stub.list_models = lambda: ["any_size", "sized", "only_224"]
    stub.is_model = lambda name: name in stub.list_models()
    monkeypatch.setitem(sys.modules, "timm", stub)
    return stub


def test_timm_is_asked_for_a_fresh_model(timm):
    """Oracle: the settings that the stub sees: no weights, classes, channels, size where taken."""
    assert timm_model("timm:any_size", 10, 32)(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    plain = {"pretrained": False, "num_classes": 10, "in_chans": 3}
    assert timm.asked[-1] == ("any_size", plain)
    timm_model("timm:sized", 10, 32)
    assert timm.asked[-1] == ("sized", {**plain, "img_size": 32})


def test_models_that_timm_has_not_or_cannot_make(timm):
    """Oracle: one line each, with the nearest name, or timm's own reason."""
    with pytest.raises(InputError, match=r"no model 'anysize'\. Did you mean 'any_size'"):
        timm_model("timm:anysize", 10, 32)
    with pytest.raises(InputError, match=r"only_224 .* 3 × 32 × 32 \(not a multiple of 7\)"):
        timm_model("timm:only_224", 10, 32)


def test_timm_missing_or_broken(monkeypatch, tmp_path):
    """Oracle: None in sys.modules raises ImportError; a package that raises RuntimeError, as with
    a torchvision built for another torch. One line with a command each.
    """
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'losslab\[vision\]'") as caught:
        timm_model("timm:resnet18", 10, 32)
    assert "\n" not in str(caught.value)
    monkeypatch.delitem(sys.modules, "timm")
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator nms does not exist\\nmore')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"timm.*RuntimeError: operator nms does not exist\)"):
        timm_model("timm:resnet18", 10, 32)
