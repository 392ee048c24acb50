"""Analyses by name: options checked before any model, and models that return no logits."""

import inspect
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

import losslab
from losslab.analysis.analyse import ANALYSES, analyse, request
from losslab.analysis.classifier import scale_flags
from losslab.analysis.dynamics import generalisation
from losslab.analysis.options import CHECKS
from losslab.analysis.robustness import robustness
from losslab.analysis.subject import Subject
from losslab.errors import InputError

pytestmark = pytest.mark.usefixtures("one_thread")
PROBABILITIES = "seems to return probabilities, not logits"
LOG_PROBABILITIES = "seems to return log-probabilities"
SMALL = {
    "robustness": "robustness(epsilons=[0.1], epsilons_l2=[0.5], steps=2)",
    "curvature": "curvature(examples=20, probes=3)",
    "representation": "representation(epochs=1)",
}


def network(last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), last)


def data(count: int = 40):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, 4, generator=generator), torch.arange(count) % 3


def subject(last: nn.Module) -> Subject:
    odds = torch.randn(4, 40, generator=torch.Generator().manual_seed(2))
    trace = {split: {"log_odds": odds, "correct": odds > 0} for split in ("train", "test")}
    model = network(last)
    return Subject(model, losslab.loss("focal"), data(), data(), data(), batch_size=8, trace=trace)


@pytest.mark.parametrize("name", ANALYSES)
@pytest.mark.parametrize(
    ("last", "flag"),
    [(nn.Identity(), None), (nn.Softmax(1), PROBABILITIES), (nn.LogSoftmax(1), LOG_PROBABILITIES)],
    ids=["logits", "softmax", "log-softmax"],
)
def test_a_softmax_at_the_end_is_told(name, last, flag):
    """Oracle: how the model was made; log-probabilities have other energies and nothing else.

    Break: a softmax measured without a word, a warning of honest logits, or a warning of numbers
    that log-probabilities leave as they are."""
    if name == "representation" and not isinstance(last, nn.Identity):
        with pytest.raises(InputError, match="'2' returns something else than the logits"):
            analyse(subject(last), request(SMALL[name]))
        return
    found = analyse(subject(last), request(SMALL.get(name, name)))
    told = [one for one in found.flags if "seems to return" in one]
    expected = flag is not None and (flag == PROBABILITIES or name in ("energies", "ood"))
    assert len(told) == expected
    assert not told or flag in told[0]


def test_the_functions_themselves_tell_as_well():
    """Break: a warning that only those see who ask by name."""
    model = network(nn.Softmax(1))
    (flag,) = generalisation(model, data(), data()).flags
    assert PROBABILITIES in flag
    found = robustness(model, data(), epsilons=[0.1], epsilons_l2=[], steps=2)
    assert PROBABILITIES in found.flags[0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_every_row_counts_whatever_the_precision(dtype, classes):
    """Oracle: a softmax made here, and one row of it changed. Break: a tolerance that the sums of
    half precision miss, or a warning of a model that returns one such row by chance."""
    logits = 3 * torch.randn(50, classes, generator=torch.Generator().manual_seed(classes))
    p = logits.softmax(1).to(dtype)
    assert PROBABILITIES in scale_flags(p.float())[0]
    assert scale_flags(logits) == scale_flags(logits, energies=True) == ()
    log_p = logits.log_softmax(1)
    assert scale_flags(log_p) == ()
    assert LOG_PROBABILITIES in scale_flags(log_p, energies=True)[0]
    for row in (torch.arange(classes) == 0) * 1.1, logits[0]:
        assert scale_flags(torch.cat([p.float(), row[None].float()])) == ()
    assert scale_flags(torch.ones(5, 1)) == ()  # one class: nothing to tell them by


@pytest.mark.parametrize("name", ANALYSES)
def test_every_option_is_checked(name):
    """Oracle: the signature of what is called. Break: an option that nobody checks, or a default
    that its own check refuses."""
    options = list(inspect.signature(ANALYSES[name].measure).parameters.values())[1:]
    assert set(CHECKS[name]) == {option.name for option in options}
    for option in options:
        if option.default is not None:
            default = option.default
            default = list(default) if isinstance(default, tuple) else default
            CHECKS[name][option.name](option.name, default)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("robustness(epsilons=[-1])", "robustness: Expected every one of epsilons to be a finite"),
        ("robustness(epsilons_l2=[0.1, big])", "every one of epsilons_l2 .* got 'big'"),
        ("robustness(attacks=[pgd])", "attacks to be one of .*Did you mean 'pgd_l"),
        ("robustness(attacks=5)", "attacks to be a name or a list of names, but got 5"),
        ("robustness(box=[1, 0])", "box to be two finite numbers, the lower first"),
        ("robustness(box=imag)", "box to be one of image, none.*Did you mean 'image'"),
        ("robustness(steps=0)", "steps to be a whole number of at least 1, but got 0"),
        ("robustness(examples=2.5)", "examples to be a whole number"),
        ("robustness(huge=0)", "huge to be a finite number above 0"),
        ("curvature(loss=nosuch)", "curvature: Unknown loss 'nosuch'"),
        ("curvature(loss=5)", "loss to be a name, but got 5"),
        ("curvature(probes=1)", "probes to be a whole number of at least 2"),
        ("gradients(split=nosuch)", "gradients: Expected split to be one of train, validation"),
        ("gradients(under=[focal, fcal])", "Unknown loss 'fcal'"),
        ("gradients(under='one_vs_rest(focal)')", "not a function of the true class's log-odds"),
        ("gradients(edges=[0, 2])", "edges of the bands of p"),
        ("margins(validate)", "split to be one of .*Did you mean 'validation'"),
        ("calibration(bins=0)", "bins to be a whole number"),
        ("ood(5)", "out to be a name or a list of names, but got 5"),
        ("ood(noise, examples=0)", "examples to be a whole number"),
        ("representation(lr=0)", "lr to be a finite number above 0"),
        ("representation(weight_decay=-1)", "weight_decay to be a finite number of at least 0"),
        ("representation(probe=1)", "probe to be true or false"),
        ("dynamics(epoch=0)", "epoch to be a whole number of at least 1"),
        ("dynamics(threshold=1)", "threshold to lie between 0 and 1"),
    ],
)
def test_values_that_mean_nothing_are_refused_when_they_are_read(text, message):
    """Oracle: the message. Break: a mistake that shows after the first training run."""
    with pytest.raises(InputError, match=message):
        request(text)


def test_one_loss_to_look_under_may_stand_alone():
    """Oracle: a list of it. Break: a name taken letter by letter."""
    alone, listed = (
        analyse(subject(nn.Identity()), request(f"gradients(under={under})"))
        for under in ("expectation", "[expectation]")
    )
    assert set(alone.details["by_loss"]) == {"own", "expectation"}
    assert alone.details == listed.details


def test_numbers_of_the_noise_say_of_which_batches():
    """Oracle: the subject's batch size. Break: Tr Σ without the size that it depends on."""
    found = analyse(subject(nn.Identity()), request(SMALL["curvature"]))
    quantity = ANALYSES["curvature"].quantity
    for name in ("noise.trace", "escaping.trace", "escaping.matched"):
        assert quantity(name).told_of(found.details) == "batches of 8"
    assert quantity("hessian.trace").told_of(found.details) == ""


class Views(Dataset):
    """Examples that are seen otherwise each time, as random parts of photos are."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        drawn = [float(torch.randn(())), np.random.randn(), random.gauss(0, 1)]
        return torch.tensor(drawn) + torch.eye(3)[index % 3], index % 3


def test_the_seed_decides_what_is_seen_of_random_data():
    """Oracle: the same again, in another order, after other draws. Break: random views by whatever
    the process drew before, so that losses are compared on other views of the same images."""
    network = nn.Linear(3, 3)

    def values(*asked, seed=3):
        torch.randn(7), np.random.randn(7), random.random()
        about = Subject(network, losslab.loss("focal"), Views(), Views(), Views(), seed=seed)
        return {one: analyse(about, request(one)).values for one in asked}

    asked = ("generalisation", "representation(balanced=true, probe=false)")
    state = torch.get_rng_state()
    once = values(*asked)
    assert values(*reversed(asked)) == once != values(*asked, seed=4)
    torch.set_rng_state(state)
    torch.randn(7)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    values(asked[0])
    assert torch.equal(torch.get_rng_state(), after)
