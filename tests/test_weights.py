"""Files of weights: what is read, and what is refused in words of our own."""

import argparse
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from losslab.errors import InputError
from losslab.experiment import weights


def model():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


@pytest.mark.parametrize("form", ["bare", "model", "state_dict"])
def test_forms(form, tmp_path):
    """Oracle: the weights that were saved."""
    saved = model()
    state = saved.state_dict()
    torch.save(state if form == "bare" else {form: state}, tmp_path / "w.pt")
    loaded = weights.weights_into(model(), tmp_path / "w.pt")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, state[name])


def test_of_another_model(tmp_path):
    torch.save(nn.Linear(4, 3).state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"weights of another model: it lacks 0\.bias"):
        weights.weights_into(model(), tmp_path / "w.pt")
    wide = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 3))
    torch.save(wide.state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"0.weight is \(9, 4\) there, \(5, 4\)"):
        weights.weights_into(model(), tmp_path / "w.pt")


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod."]
)
@pytest.mark.parametrize("form", ["bare", "state_dict"])
def test_names_of_wrapped_models(prefix, form, tmp_path):
    """Oracle: the weights that were saved. Break: a wrapper's name taken for another model."""
    saved = model().state_dict()
    state = {f"{prefix}{name}": value for name, value in saved.items()}
    torch.save(state if form == "bare" else {form: state}, tmp_path / "w.pt")
    loaded = weights.weights_into(model(), tmp_path / "w.pt").state_dict()
    assert all(torch.equal(loaded[name], saved[name]) for name in saved)


def test_torch_itself_writes_such_names(tmp_path):
    """Oracle: PyTorch's own wrappers. Break: prefixes that it does not write."""
    for wrapped in (nn.DataParallel(model()), torch.compile(model(), backend="eager")):
        torch.save(wrapped.state_dict(), tmp_path / "w.pt")
        loaded = weights.weights_into(model(), tmp_path / "w.pt").state_dict()
        for name, value in wrapped.state_dict().items():
            assert torch.equal(loaded[name.split(".", 1)[1]], value)


class Wraps(nn.Module):
    """A model whose own names begin as a wrapper's do."""

    def __init__(self):
        super().__init__()
        self.module = model()


def test_names_of_the_models_own_are_kept(tmp_path):
    """Break: a model's own names cut off; a prefix of some names alone taken for a wrapper's."""
    saved = Wraps()
    torch.save(saved.state_dict(), tmp_path / "w.pt")
    loaded = weights.weights_into(Wraps(), tmp_path / "w.pt")
    assert torch.equal(loaded.module[0].weight, saved.module[0].weight)
    torch.save(model().state_dict(), tmp_path / "w.pt")
    with pytest.raises(InputError, match=r"it lacks module\.0\.bias"):
        weights.weights_into(Wraps(), tmp_path / "w.pt")
    state = model().state_dict()
    torch.save(
        {("module." if "0" in k else "") + k: v for k, v in state.items()}, tmp_path / "w.pt"
    )
    with pytest.raises(InputError, match=r"the model has no module\.0\.bias"):
        weights.weights_into(model(), tmp_path / "w.pt")


def _text(path):
    path.write_text("no weights")


def _whole_model(path):
    torch.save(nn.Linear(2, 2), path)


def _checkpoint(path):
    torch.save({"state_dict": model().state_dict(), "args": argparse.Namespace(lr=1)}, path)


def _number(path):
    torch.save({"state_dict": model().state_dict(), "best": np.float64(3)}, path)


def _cut(path):
    torch.save(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:300])


def _pickle(path):
    path.write_bytes(pickle.dumps({"a": np.zeros(2)}))


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (_text, "it is damaged, or not written by torch.save"),
        (lambda path: path.touch(), "it is damaged, or not written by torch.save"),
        (_cut, "it is damaged, or not written by torch.save"),
        (_pickle, "it is damaged, or not written by torch.save"),
        (_whole_model, "it holds a whole model, not tensors by name alone"),
        (_checkpoint, "it holds an object (argparse.Namespace), not tensors by name alone"),
        (_number, "it holds an object (numpy."),
        (lambda path: path.mkdir(), "Is a directory"),
    ],
)
def test_that_cannot_be_read(write, reason, tmp_path):
    """Oracle: one line that says what the file is not, and what to do. Break: a pickle that runs
    code when it is loaded, torch.load's advice to let it, colours or a line cut off."""
    write(tmp_path / "w.pt")
    with pytest.raises(InputError) as told:
        weights.weights_into(model(), tmp_path / "w.pt")
    said = str(told.value)
    assert said.startswith(f"{tmp_path / 'w.pt'} cannot be read as weights: {reason}")
    assert said.endswith("; save the weights alone, by torch.save(model.state_dict(), FILE).")
    assert "\n" not in said and "\x1b" not in said and "weights_only" not in said


def test_that_holds_no_weights(tmp_path):
    """Oracle: the message."""
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    with pytest.raises(
        InputError, match=r"Expected .* to hold weights by name, but it holds a dict"
    ):
        weights.weights_into(model(), tmp_path / "w.pt")
    with pytest.raises(InputError, match="but there is none"):
        weights.weights_into(model(), tmp_path / "none.pt")
