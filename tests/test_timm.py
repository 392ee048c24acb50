"""timm: mixup's and CutMix's soft targets through the losses, its training task, its models.

timm needs torchvision, whose wheel breaks other libraries beside the CPU's PyTorch, so both lie in
a folder of their own and these tests run by themselves: ``make test-timm``, also a part of
``make test``. Elsewhere they skip.
"""

import os
import subprocess
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import losslab

if find_spec("timm") is None:
    pytest.skip("timm is not here; `make test-timm` runs these", allow_module_level=True)

from losslab.experiment.tasks.images.timm_model import timm_model
from losslab.experiment.tasks.images.torchvision_parts import supply_operators

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of torchvision's image library, which may not load
    supply_operators()
    import timm
    import timm.data
    import timm.loss
    import timm.task

pytestmark = pytest.mark.usefixtures("one_thread")
CLASSES, ROWS = 5, 8
EXAMPLE = Path(__file__).parent.parent / "examples" / "timm_mixup.py"
MIXES = {
    "mixup": {"mixup_alpha": 2.0},
    "cutmix": {"mixup_alpha": 0.0, "cutmix_alpha": 2.0},
    "pairs": {"mixup_alpha": 2.0, "cutmix_alpha": 2.0, "mode": "pair"},
    "elements": {"mixup_alpha": 2.0, "cutmix_alpha": 2.0, "mode": "elem"},
}
SPECS = ["encouraging", "mixed(focus=0.3)", "focal", "mean_squared_error"]
every_mix = pytest.mark.parametrize("mix", MIXES)


def labels():
    return torch.randint(CLASSES, (ROWS,), generator=torch.Generator().manual_seed(3))


def soft_targets(mix, smoothing=0.1):
    """What timm makes of the labels, which images aside is all that a loss sees."""
    np.random.seed(1)
    made = timm.data.Mixup(**MIXES[mix], label_smoothing=smoothing, num_classes=CLASSES)
    _, target = made(torch.rand(ROWS, 1, 16, 16), labels())
    assert (target.max(1).values < 0.9).any()  # something was mixed
    return target


def fresh_logits():
    generator = torch.Generator().manual_seed(2)
    return (3 * torch.randn(ROWS, CLASSES, generator=generator)).requires_grad_()


def value_and_gradient(criterion, *target, upstream=1.7):
    logits = fresh_logits()
    value = criterion(logits, *target)
    (upstream * value).backward()
    return value.detach(), logits.grad


@every_mix
def test_cross_entropy_of_soft_targets_is_timms(mix):
    """Oracle: timm's SoftTargetCrossEntropy, value and gradient. Break: a mean over rows and
    classes, or over the targets' sum."""
    target = soft_targets(mix)
    ours = value_and_gradient(losslab.loss("cross_entropy"), target)
    timms = value_and_gradient(timm.loss.create_classification_loss(soft_targets=True), target)
    torch.testing.assert_close(ours, timms, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.3])
def test_label_smoothing_is_timms(smoothing):
    """Oracle: timm's LabelSmoothingCrossEntropy. Break: the smoothed mass shared by the other
    classes alone."""
    ours = losslab.loss("cross_entropy", label_smoothing=smoothing)
    timms = timm.loss.create_classification_loss(smoothing=smoothing)
    found, wanted = value_and_gradient(ours, labels()), value_and_gradient(timms, labels())
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", SPECS)
@every_mix
def test_mixup_is_the_weighted_sum_of_hard_labels(mix, spec):
    """Oracle: timm's own share of each label times the loss of that label alone, row by row, under
    a random gradient. Break: ψ of the mean log-odds, or of the soft target's probability."""
    target = soft_targets(mix, smoothing=0.0)
    upstream = torch.rand(ROWS, generator=torch.Generator().manual_seed(4))
    soft = value_and_gradient(
        lambda z, t: (losslab.loss(spec, reduction="none")(z, t) * upstream).sum(), target
    )
    first, second = labels(), labels().flip(0)
    share = target.gather(1, first[:, None])[:, 0].where(first != second, torch.ones(ROWS))
    assert ((share > 0) & (share < 1)).any()

    def by_hand(z):
        hard = losslab.loss(spec, reduction="none")
        return ((share * hard(z, first) + (1 - share) * hard(z, second)) * upstream).sum()

    torch.testing.assert_close(soft, value_and_gradient(by_hand), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("psi", [lambda a: torch.relu(1 - a).square(), lambda a: -torch.tanh(a)])
def test_a_loss_of_ones_own_under_mixup(psi):
    """Oracle: the sum over classes of share · ψ(log-odds) in float64, by the definition."""
    target = soft_targets("elements")

    def by_the_book(z):
        others = z.double()[:, None].repeat(1, CLASSES, 1)
        others = others.masked_fill(torch.eye(CLASSES, dtype=torch.bool), -torch.inf)
        log_odds = z.double() - others.logsumexp(2)
        return (target * psi(log_odds)).sum(1).mean().float()

    found = value_and_gradient(losslab.OddsLoss(psi), target)
    torch.testing.assert_close(found, value_and_gradient(by_the_book), rtol=1e-4, atol=1e-5)


def steps(criterion):
    """The weights of a small network of timm after two steps of timm's own task."""
    torch.manual_seed(0)
    np.random.seed(0)
    model = timm.create_model("test_resnet", num_classes=CLASSES, in_chans=1)
    task = timm.task.ClassificationTask(model, criterion, verbose=False)
    mixup = timm.data.Mixup(0.4, cutmix_alpha=1.0, num_classes=CLASSES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        result = task(*mixup(torch.rand(ROWS, 1, 32, 32), labels()))
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_timms_training_task():
    """Oracle: the same steps with timm's own loss. Break: targets that the task changes, or a loss
    that it cannot move to a device."""
    wanted = steps(timm.loss.SoftTargetCrossEntropy())
    assert steps(losslab.loss("cross_entropy")) == pytest.approx(wanted, abs=1e-5)
    assert not torch.allclose(steps(losslab.loss("focal")), wanted, atol=1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit"])
def test_models_by_name(name):
    """Oracle: the shapes asked for. Break: a size not passed on to a network of one size."""
    model = timm_model(f"timm:{name}", num_classes=CLASSES, size=32, channels=1)
    assert model(torch.rand(2, 1, 32, 32)).shape == (2, CLASSES)


def test_the_example_learns_digits():
    """Oracle: far above chance (10 %) on digits that were not trained on. Run as a user would, but
    for the operators that torchvision may lack here."""
    start = (
        "import runpy, sys; from losslab.experiment.tasks.images import torchvision_parts;"
        "torchvision_parts.supply_operators(); runpy.run_path(sys.argv[1], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", start, str(EXAMPLE)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-2]) > 85
