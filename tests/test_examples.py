"""The examples, run as a user would run them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
NEEDS = {
    "lightning_digits": ("lightning",),
    "hugging_face_trainer": ("transformers", "accelerate"),
    "scikit_learn": (),
    "boosting": ("lightgbm", "xgboost"),
    "skorch_module": ("skorch",),
    "trl_dft": ("trl",),
    "fairseq_criterion": (),
    "torchtune_loss": (),
}


# The same loop with one thing more, and how far its weights may be from the plain loop's: rounding
# for the first two, three digits of a number for bfloat16.
VARIANTS = {"compiled": 1e-4, "distributed": 1e-4, "mixed_precision": 0.1}
TWO_PROCESSES = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]


def run(*command):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    told = [line for line in done.stdout.splitlines() if "accuracy" in line and line.endswith("%")]
    return [float(line.split()[-2]) for line in told]


def weights(path):
    return torch.cat([part.flatten() for part in torch.load(path).values()])


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The weights at the end of the plain loop."""
    path = tmp_path_factory.mktemp("plain") / "weights.pt"
    (accuracy,) = run(sys.executable, str(EXAMPLES / "plain_pytorch.py"), str(path))
    assert accuracy > 85
    return weights(path)


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_learns(name):
    """Oracle: far above chance (at most 10 %) on digits, or tokens, that were not trained on."""
    for library in NEEDS[name]:
        pytest.importorskip(library)
    accuracies = run(sys.executable, str(EXAMPLES / f"{name}.py"))
    assert accuracies and min(accuracies) > 85


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_ends_at_the_plain_loops_weights(name, plain, tmp_path):
    """Oracle: the plain loop, after 280 steps with a moving schedule. Break: a sum of the
    processes' gradients for their mean; a schedule frozen into the graph; an autocast that does
    not reach the model."""
    launcher = TWO_PROCESSES if name == "distributed" else []
    path = tmp_path / "weights.pt"
    (accuracy,) = run(sys.executable, *launcher, str(EXAMPLES / f"{name}.py"), str(path))
    found = weights(path)
    distance = float((found - plain).norm() / plain.norm())
    assert accuracy > 85 and distance < VARIANTS[name]
    assert distance > 1e-4 or name != "mixed_precision"  # half precision was at work
