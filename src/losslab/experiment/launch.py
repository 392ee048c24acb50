"""How the steps of a run are carried out: in this process as they stand, or by Lightning Fabric.

`train` says what a step is. A `Machine` says how: `Machine` itself adds nothing to PyTorch, which
is what a small model on one device wants; `losslab.experiment.fabric` brings mixed precision,
gradients in pieces, clipping, and several processes. It is imported only where one of these is
asked for: its wrappers take a fifth of a small model's step, and its import takes seconds.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from losslab.errors import InputError, nearest
from losslab.experiment.batches import Split
from losslab.reading import Objective, Reading

_PATIENCE = 10.0  # seconds
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")

Part = tuple[Any, Any, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Training:
    """How to train, beyond what the task says. The defaults change nothing.

    Args:
        precision: ``"32-true"`` computes in the model's own type; ``"bf16-mixed"`` and
            ``"16-mixed"`` (whose gradients are scaled, so that small ones survive) compute matrix
            products in half precision, the loss and the weights in full.
        accumulate: Make each batch's gradient in so many pieces, one after another, for models
            whose batch does not fit into memory. The batch, the step and the schedule stay what
            they are.
        clip: Scale a step's gradient down to this norm where it is longer.
        checkpoint_every: Seconds between checkpoints, where there is a place for them. Decides no
            number.
        loaders: Processes that read and augment batches ahead, for data that are not tensors; of
            each of several processes its own. Decides no number, unless examples that are measured
            (validation, test, a training split that is followed) are random themselves.

    Example:
        >>> Training(accumulate=4, clip=1.0).settings()
        {'accumulate': 4, 'clip': 1.0}
    """

    precision: str = "32-true"
    accumulate: int = 1
    clip: float | None = None
    checkpoint_every: float = 60.0
    loaders: int = 0

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise InputError(
                f"Expected precision to be one of {', '.join(PRECISIONS)}, but got "
                f"{self.precision!r}.{nearest(str(self.precision), PRECISIONS)}"
            )
        if type(self.accumulate) is not int or self.accumulate < 1:
            raise InputError(
                "Expected accumulate to be a whole number of at least 1, the pieces of a batch, "
                f"but got {self.accumulate!r}."
            )
        if self.clip is not None and not 0 < self.clip < math.inf:
            raise InputError(
                "Expected clip to be a finite number above 0, the gradient's largest norm, but "
                f"got {self.clip!r}; leave it out to clip nothing."
            )
        if not self.checkpoint_every >= 0:
            raise InputError(
                "Expected checkpoint_every to be seconds, at least 0, but got "
                f"{self.checkpoint_every!r}; math.inf makes no checkpoints."
            )

        if type(self.loaders) is not int or self.loaders < 0:
            raise InputError(
                "Expected loaders to be a whole number of at least 0, processes that read batches, "
                f"but got {self.loaders!r}."
            )

    def settings(self) -> dict[str, Any]:
        """What decides a run's numbers and is not as usual."""
        decisive = (f for f in fields(self) if f.name not in ("checkpoint_every", "loaders"))
        return {
            f.name: getattr(self, f.name) for f in decisive if getattr(self, f.name) != f.default
        }


def processes() -> int:
    """How many processes ``torchrun`` has started to train together; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def rank() -> int:
    """The number of this process among those that ``torchrun`` has started."""
    return int(os.environ["RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def own_device(device: str | torch.device) -> torch.device:
    """The device of this process: of several on GPUs, each has its own."""
    device = torch.device(device)
    if processes() == 1:
        return device
    if device.index is not None:
        raise InputError(
            f"Expected a kind of device for {processes()} processes, each of which takes its own, "
            f"but got {str(device)!r}; write {device.type}."
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(
            f"Expected the device cpu or cuda for {processes()} processes, but got "
            f"{str(device)!r}; start the command without torchrun."
        )
    if device.type == "cpu":
        return device
    here, found = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
    if here > found:
        remedy = f"start torchrun with --nproc-per-node {found}" if found else "use the device cpu"
        raise InputError(
            f"Expected a GPU for each of the {here} processes on this machine, but it has {found}; "
            f"{remedy}."
        )
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]))


def machine_for(training: Training, device: str | torch.device) -> Machine:
    """What carries out a run's steps.

    Raises:
        InputError: Where the device cannot do what is asked for.
    """
    own = own_device(device)
    if not training.settings() and processes() == 1:
        return Machine(own)
    try:
        from losslab.experiment.fabric import FabricMachine
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "lightning_fabric":
            raise
        raise InputError(
            "precision, accumulation, clipping and several processes need Lightning Fabric: "
            "pip install 'losslab[lab]'."
        ) from None

    return FabricMachine(training, own)


@contextmanager
def one_voice() -> Iterator[None]:
    """Of several processes, let the first alone say what is wrong with the input.

    ``torchrun`` ends all processes when one does, so the others give the first time to speak. If
    they are still there then, the mistake is known to them alone.
    """
    try:
        yield
    except InputError:
        if rank() > 0:
            time.sleep(_PATIENCE)
        raise


class Machine:
    """One process and one device; nothing stands between the loop and PyTorch."""

    ranks, rank = 1, 0

    def __init__(self, device: torch.device) -> None:
        self.device = device

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes and speaks."""
        return self.rank == 0

    def setup(
        self, model: nn.Module, optimizers: Sequence[Optimizer]
    ) -> Callable[[Tensor], Tensor]:
        """What to call instead of the model in training."""
        return model

    def parts(
        self, inputs: Any, target: Any, objective: Objective, reading: Reading
    ) -> Iterable[Part]:
        """What this process computes of a batch: inputs, targets, and how much their loss counts.

        The weighted losses of all parts, on all processes, have the gradient of the batch's loss.
        """
        return ((inputs, target, 1.0),)

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def step(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Update the parameters by the gradient that the batch's parts have left."""
        optimizer.step()

    def total(self, losses: list[Tensor]) -> float:
        """The batch's loss, from the weighted losses of this process's parts."""
        return losses[0].item()

    def outputs(self, model: nn.Module, splits: Sequence[Split]) -> dict[str, dict[str, Tensor]]:
        """What is kept of each row of whole splits, the same on all processes."""
        return {split.name: split.predict(model) for split in splits}

    def from_first(self, make: Callable[[], T]) -> T:
        """What ``make()`` returns on the first process, which alone calls it."""
        return make()

    def alike(self, value: object) -> bool:
        """Whether all processes have the same ``value``."""
        return True

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of the machine itself."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        pass
