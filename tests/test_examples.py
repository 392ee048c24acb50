"""The examples, run as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {
    "plain_pytorch": (),
    "lightning_digits": ("lightning",),
    "hugging_face_trainer": ("transformers", "accelerate"),
    "scikit_learn": (),
    "boosting": ("lightgbm", "xgboost"),
}


def run(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    return [float(line.split()[-2]) for line in done.stdout.splitlines() if "accuracy" in line]


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_learns_digits(name):
    """Oracle: far above chance (10 %) on digits that were not trained on."""
    for library in NEEDS[name]:
        pytest.importorskip(library)
    accuracies = run(sys.executable, str(EXAMPLES / f"{name}.py"))
    assert accuracies and min(accuracies) > 85


def test_the_plain_loop_in_two_processes():
    """Oracle: the same loop in one process, whose batches the two share."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
                "--master-port", "0", "--standalone"]  # fmt: skip
    (two,) = run(*torchrun, str(EXAMPLES / "plain_pytorch.py"))
    (one,) = run(sys.executable, str(EXAMPLES / "plain_pytorch.py"))
    assert two == pytest.approx(one, abs=1.5)
