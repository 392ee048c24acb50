"""A user's own Python file: the examples run, and mistakes are told with file and line."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

import pytest
import torch

from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task, python_file

EXAMPLE = Path(__file__).parents[1] / "examples" / "my_task.py"

FIELDS = """
import torch
from torch.utils.data import TensorDataset

def data():
    return TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))

def fields():
    return dict(
        name="mine", train=data(), validation=data(), test=data(), num_classes=2,
        model=lambda: torch.nn.Linear(2, 2),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        epochs=1, batch_size=2,
    )
"""


def write(folder: Path, body: str, name: str = "mine.py") -> Path:
    path = folder / name
    path.write_text(FIELDS + textwrap.dedent(body))
    return path


def line_of(path: Path, text: str) -> int:
    return next(n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def refused(place: Path | str, *texts: str, **options) -> None:
    with pytest.raises(InputError) as caught:
        build_task(str(place), TaskOptions(**options))
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture(autouse=True)
def _path_of_before(monkeypatch):
    """Folders that a task file puts on Python's path go away after the test."""
    import sys

    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_example_file_runs():
    """Oracle: the example's own numbers; a few epochs get it above chance (3 classes)."""
    task = build_task(str(EXAMPLE))
    assert task.name == "spirals" and len(task.train) == 900 and len(task.test) == 300
    assert task.description["source"] == "made-up spirals"
    assert len(task.description["source_sha256"]) == 64
    torch.manual_seed(0)
    model = task.model()
    optimizer = task.optimizer(model.parameters())
    inputs, targets = task.train.tensors
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
    inputs, targets = task.test.tensors
    assert float((model(inputs).argmax(dim=1) == targets).double().mean()) > 0.8


def test_the_example_in_the_documentation_runs(tmp_path):
    """Oracle: the indented code of the module's docstring, run as a file."""
    code = re.search(r"(?m)^    # my_task\.py;(?:.*\n(?:    .*\n|\n)*)", python_file.__doc__)[0]
    path = tmp_path / "my_task.py"
    path.write_text(textwrap.dedent(code))
    task = build_task(str(path))
    assert task.name == "quadrants" and len(task.train) == 400


def test_dictionary_function_name_and_overrides(tmp_path):
    """Oracle: epochs and batch size as given; the function after the colon is the one called."""
    path = write(tmp_path, "def other():\n    return dict(fields(), name='other')\n")
    task = build_task(f"{path}:other", TaskOptions(epochs=9, batch_size=3))
    assert (task.name, task.epochs, task.batch_size) == ("other", 9, 3)
    assert task.description["source"] == "mine.py:other"


def test_options_reach_a_function_that_takes_them(tmp_path):
    """Oracle: the learning rate seen in the optimiser, with and without a default argument."""
    body = """
    def task(options{default}):
        rate = options.lr
        return dict(fields(), optimizer=lambda p: torch.optim.SGD(p, lr=rate))
    """
    for default in ("", "=None"):
        path = write(tmp_path, body.replace("{default}", default), f"mine{len(default)}.py")
        about = build_task(str(path), TaskOptions(lr=0.25)).description
        assert about["optimizer"]["lr"] == 0.25


def test_an_edited_file_is_another_task(tmp_path):
    """Oracle: the description, from which a run's identity is made."""
    body = "def task():\n    return fields()\n"
    one = build_task(str(write(tmp_path, body))).description
    again = build_task(str(write(tmp_path, body))).description
    other = build_task(str(write(tmp_path, body + "# edited\n"))).description
    assert one == again != other


def test_neighbours_can_be_imported(tmp_path):
    """Oracle: a module beside the file, imported when the model is made, after the build."""
    (tmp_path / "neighbour_of_mine.py").write_text("WIDTH = 2\n")
    path = write(
        tmp_path,
        """
        def make():
            from neighbour_of_mine import WIDTH
            return torch.nn.Linear(2, WIDTH)

        def task():
            return dict(fields(), model=make)
        """,
    )
    assert build_task(str(path)).model().out_features == 2


def test_errors_name_file_and_line(tmp_path):
    """Oracle: the line of the mistake looked up in the file; the original message in one line."""
    path = write(tmp_path, "def task():\n    return load()\n\ndef load():\n    return 1 / 0\n")
    refused(path, f"{path}, line {line_of(path, '1 / 0')}: ZeroDivisionError: division by zero")
    path = write(tmp_path, "raise KeyError('a\\nb')\n")
    refused(path, f"{path}, line {line_of(path, 'raise')}: KeyError:")
    path = write(tmp_path, "import not_there_at_all\n")
    refused(path, f"line {line_of(path, 'not_there')}: ModuleNotFoundError: No module named")
    path = write(tmp_path, "def task():\n    raise SystemExit(3)\n")
    refused(path, f"line {line_of(path, 'SystemExit')}: SystemExit: 3")
    path = write(tmp_path, "def task(:\n    pass\n")
    refused(path, f"mine.py, line {line_of(path, 'task(:')}: ")


def test_ctrl_c_is_no_mistake(tmp_path):
    """Oracle: KeyboardInterrupt comes through."""
    path = write(tmp_path, "def task():\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        build_task(str(path))


def test_a_task_that_cannot_be_learned_from(tmp_path):
    """Oracle: the task's own message, with the line that made it."""
    body = """
    from losslab.experiment.task import Task

    def task():
        return Task(**dict(fields(), num_classes=3))  # here
    """
    path = write(tmp_path, body)
    refused(
        path, f"line {line_of(path, '# here')}: task 'mine', train split: no example of class 2"
    )
    path = write(tmp_path, "def task():\n    return dict(fields(), num_classes=3)\n")
    refused(path, f"{path}: task 'mine', train split: no example of class 2")


def test_a_model_that_fails_on_the_data(tmp_path):
    """Oracle: a layer of the wrong width is found before the first run."""
    path = write(
        tmp_path, "def task():\n    return dict(fields(), model=lambda: torch.nn.Linear(3, 2))"
    )
    refused(path, f"{path}: RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    path = write(
        tmp_path, "def task():\n    return dict(fields(), model=lambda: torch.nn.Linear(2, 5))"
    )
    refused(path, "the model must return logits of shape (batch, num_classes), here (2, 2)")


@pytest.mark.parametrize(
    "body, text",
    [
        (
            "def task():\n    fields()",
            "dictionary with its fields; got None. Does it lack a return",
        ),
        (
            "def task():\n    return 3",
            "must return a losslab Task or a dictionary with its fields; got int.",
        ),
        (
            "def task():\n    return dict(fields(), epoch=3)",
            "unknown field 'epoch'. Did you mean 'epochs'?",
        ),
        ("def task():\n    return {'name': 'x'}", "without train, validation, test, num_classes,"),
        (
            "def tsk():\n    return 3",
            "there is none. Did you mean 'tsk'? It defines data, fields, tsk.",
        ),
        ("task = 3", "expected task to be a function that returns a losslab Task; it is int"),
        ("def task(a, b):\n    return a", "as one argument; it needs a, b"),
        ("def task(*, a):\n    return a", "as one argument; it needs a"),
    ],
)
def test_wrong_functions_and_returns(tmp_path, body, text):
    """Oracle: one mistake each, explained."""
    refused(write(tmp_path, body), text)


def test_options_that_cannot_reach_the_function(tmp_path):
    """Oracle: an option that would be silently ignored is refused."""
    path = write(tmp_path, "def task():\n    return fields()\n")
    for option in ({"lr": 0.1}, {"split_seed": 1}, {"model": "mlp"}, {"target": "x"}):
        name = next(iter(option))
        refused(path, f"{name}=", "cannot reach it", f"use options.{name}", **option)


def test_no_such_file(tmp_path):
    """Oracle: the path is named, with and without a function."""
    refused(tmp_path / "none.py", "none.py: no such file", "where task is a function")
    refused(f"{tmp_path / 'none.py'}:other", "none.py: no such file", "where other is a function")
