"""What is told of analyses before any model is trained."""

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from losslab.analysis import black_box
from losslab.analysis.analyse import ANALYSES, request
from losslab.errors import InputError
from losslab.experiment import maker
from losslab.experiment.readiness import refuse_unready
from losslab.experiment.runner import run
from test_runner import comparison, make_task

pytestmark = pytest.mark.usefixtures("one_thread")


def other_data(name):
    """Data of another form than the task's; of its own form by the name of alike."""
    if name not in ("alike", "wide"):
        raise InputError(f"task {name!r}: no such task, file or folder.")
    inputs = make_task().test.tensors[0]
    return TensorDataset(
        inputs if name == "alike" else inputs.repeat(1, 2), torch.zeros(len(inputs))
    )


def refused(text, task=None):
    refuse_unready([request(text)], task or make_task(), other_data)


@pytest.mark.parametrize("name", ANALYSES)
def test_what_can_be_answered_is_let_through(name):
    """Break: a check that refuses an analysis as it is by default."""
    refused(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ood(nosuchtask)", "ood: task 'nosuchtask': no such task"),
        ("ood([noise, alike, wide])", "ood: Expected the examples of wide to be as the model's"),
        ("representation(layer=nosuch)", "representation: Expected the output layer to be one of"),
        ("robustness(box=[0, 0.001])", "robustness: Expected inputs inside the box"),
        ("robustness(box=image)", "robustness: Expected inputs inside the box"),
        ("dynamics(epoch=99)", r"dynamics: Expected epoch to lie before the last of .*got 99"),
    ],
)
def test_nothing_is_trained_for_what_cannot_be_answered(text, message, monkeypatch, tmp_path):
    """Oracle: no run, no folder. Break: a mistake that shows after the first training run."""
    monkeypatch.setattr(maker, "train", None)
    monkeypatch.setattr(maker, "train_together", None)
    asked = comparison(tmp_path / "run", analyses=[request(text)], data_by_name=other_data)
    with pytest.raises(InputError, match=message):
        run(asked)
    assert not (tmp_path / "run").exists()
    refused("ood([noise, alike])")


def test_attacks_of_a_library_that_is_not_there(monkeypatch):
    """Break: pyautoattack missed after the training."""
    monkeypatch.setattr(black_box, "why_not", lambda inputs, norm: "needs pyautoattack: pip …")
    with pytest.raises(InputError, match="square_linf cannot: needs pyautoattack"):
        refused("robustness(attacks=[fgsm, square_linf])")
    refused("robustness(attacks=[fgsm])")


def test_a_model_without_an_output_layer():
    """Break: a model that no layer can be retrained of, trained before that is told."""

    def model():
        return nn.Sequential(make_task().model(), nn.Softmax(dim=1))

    task = make_task(model=model)
    with pytest.raises(InputError, match=r"what one nn\.Linear layer returns"):
        refused("representation", task)


def test_looking_at_a_model_draws_no_random_numbers():
    """Oracle: the generator's state. Break: runs that depend on whether an analysis is asked."""
    before = torch.get_rng_state()
    refused("representation")
    assert torch.equal(before, torch.get_rng_state())
