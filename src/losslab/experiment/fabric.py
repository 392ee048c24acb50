"""Steps carried out by Lightning Fabric: mixed precision, pieces, clipping, several processes."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from lightning_fabric.plugins.precision import MixedPrecision, Precision
from lightning_fabric.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from losslab import metrics
from losslab.errors import InputError
from losslab.experiment.batches import Split
from losslab.experiment.launch import Machine, Part, Training, processes
from losslab.experiment.shares import shares
from losslab.inputs import taken
from losslab.reading import Objective, Reading

T = TypeVar("T")


class FabricMachine(Machine):
    """A `Machine` over ``lightning_fabric.Fabric``, alone or as one process of several."""

    def __init__(self, training: Training, device: torch.device) -> None:
        self.training = training
        self.precision = _precision(training.precision, device)
        with _quiet():
            self.fabric = _fabric(self.precision, device)
            self.fabric.launch()
        super().__init__(self.fabric.device)
        self.ranks, self.rank = self.fabric.world_size, self.fabric.global_rank
        self.unchecked = self.ranks > 1

    def setup(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> nn.Module:
        self.forward = self.fabric.setup_module(model)
        self.wrapped: dict[int, Any] = {
            id(one): self.fabric.setup_optimizers(one) for one in optimizers
        }
        return self.forward

    def parts(
        self, inputs: Any, target: Any, objective: Objective, reading: Reading
    ) -> Iterator[Part]:
        pieces = shares(target, objective, reading, self.ranks, self.rank, self.training.accumulate)
        for number, (rows, weight) in enumerate(pieces, start=1):
            # DDP exchanges the mean of the ranks' gradients, once they are whole.
            with self._no_exchange() if number < len(pieces) else nullcontext():
                yield taken(inputs, rows), taken(target, rows), weight * self.ranks

    def _no_exchange(self) -> Any:
        return self.fabric.no_backward_sync(self.forward) if self.ranks > 1 else nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.fabric.backward(loss)

    def step(self, model: nn.Module, optimizer: Optimizer) -> None:
        if self.unchecked:
            _check_all_used(model)
            self.unchecked = False
        wrapped = self.wrapped[id(optimizer)]
        if self.training.clip is not None:
            norm = self.training.clip
            self.fabric.clip_gradients(
                self.forward, wrapped, max_norm=norm, error_if_nonfinite=False
            )
        wrapped.step()
        if self._scaler is not None:
            # The scaler skips a step whose scaled gradient overflows, as first ones do. The
            # schedule goes on, on purpose; a scheduler would warn that it does.
            vars(optimizer)["_opt_called"] = True

    def total(self, losses: list[Tensor]) -> float:
        total = torch.stack(losses).sum()
        if self.ranks > 1:
            torch.distributed.all_reduce(total)
        return total.item() / self.ranks

    def outputs(self, model: nn.Module, splits: Sequence[Split]) -> dict[str, dict[str, Tensor]]:
        def forward(inputs: Any) -> Any:
            with self.fabric.autocast():
                output = model(inputs)
            return self.precision.convert_output(output)

        if self.ranks == 1:
            return {split.name: split.predict(model, forward) for split in splits}
        for buffer in model.buffers():  # statistics of batches are each rank's own
            torch.distributed.broadcast(buffer, 0)
        return {split.name: self._predict(model, forward, split) for split in splits}

    @torch.inference_mode()
    def _predict(
        self, model: nn.Module, forward: Callable[[Any], Any], split: Split
    ) -> dict[str, Tensor]:
        """Every rank takes some of the batches, whole, so that their logits do not change."""
        model.eval()
        mine = {}
        for number, (inputs, target) in enumerate(split.batches):
            if number % self.ranks == self.rank:
                rows = split.rows(forward, inputs, target)
                mine[number] = {name: values.cpu() for name, values in rows.items()}
        of_ranks: list[Any] = [None] * self.ranks
        torch.distributed.all_gather_object(of_ranks, mine)
        found = {number: rows for of_rank in of_ranks for number, rows in of_rank.items()}
        return metrics.joined([found[number] for number in sorted(found)])

    def from_first(self, make: Callable[[], T]) -> T:
        if self.ranks == 1:
            return make()
        made: T | None = None
        failure: Exception | None = None
        if self.first:
            try:
                made = make()
            except Exception as error:
                failure = error
        told = None if failure is None else (isinstance(failure, InputError), str(failure))
        made, told = self.fabric.broadcast((made, told))
        if failure is not None:
            raise failure
        if told is not None:
            users, text = told
            raise InputError(text) if users else RuntimeError(f"process 0 failed: {text}")
        return made  # type: ignore[return-value]

    def alike(self, value: object) -> bool:
        values: list[object] = [None] * self.ranks
        if self.ranks > 1:
            torch.distributed.all_gather_object(values, value)
        return all(other == values[0] for other in values)

    @property
    def _scaler(self) -> Any:
        return getattr(self.precision, "scaler", None)

    def state(self) -> dict[str, Any]:
        return self.precision.state_dict()

    def load_state(self, state: dict[str, Any]) -> None:
        self.precision.load_state_dict(state)


class _Mixed(MixedPrecision):
    """Autocast alone: Fabric's would also round the inputs, and make infinities of large ones."""

    def convert_input(self, data: Any) -> Any:
        return data


def _precision(name: str, device: torch.device) -> Precision:
    if name == "32-true":
        return Precision()
    if device.type not in ("cpu", "cuda"):
        raise InputError(
            f"Expected the device cpu or cuda for the precision {name}, but got {device.type}; "
            "use 32-true there."
        )
    if name == "bf16-mixed" and device.type == "cuda":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise InputError(
                    f"Expected a GPU that computes in bfloat16, but {device} "
                    f"({torch.cuda.get_device_name(device)}) does not; use the precision 16-mixed."
                )
    return _Mixed(name, device.type)  # type: ignore[arg-type]


def _fabric(precision: Precision, device: torch.device) -> Fabric:
    if device.type not in ("cpu", "cuda", "mps"):
        raise InputError(
            f"Expected the device cpu, cuda or mps for accumulation and clipping, but got "
            f"{device.type}; leave them out."
        )
    if processes() == 1:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        return Fabric(
            accelerator=device.type,
            devices=[device.index] if device.type == "cuda" else 1,
            strategy=SingleDeviceStrategy(device),
            plugins=[precision, LightningEnvironment()],
        )
    here = int(os.environ["LOCAL_WORLD_SIZE"])
    return Fabric(
        accelerator=device.type,
        devices=here,
        num_nodes=processes() // here,
        strategy=DDPStrategy(),
        plugins=[precision, TorchElasticEnvironment()],
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the banner that Fabric prints as processes find each other."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _check_all_used(model: nn.Module) -> None:
    """DDP waits for every parameter's gradient, and says something hard to read if none comes."""
    named = model.named_parameters()
    unused = [name for name, p in named if p.requires_grad and p.grad is None]
    if unused:
        shown = ", ".join(unused[:3]) + (", …" if len(unused) > 3 else "")
        raise InputError(
            f"Expected the loss to depend on every parameter of the model, as several processes "
            f"need it to, but it does not on {shown}; set their requires_grad to False, or use "
            "one process."
        )
