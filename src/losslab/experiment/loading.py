"""Batches of data that are not tensors, read in this process or ahead of it by others."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
from torch.utils.data import DataLoader, Dataset, default_collate

from losslab.errors import InputError


class _Batches(Dataset[Any]):
    """Whole batches by number; in a process of its own each is drawn by a seed of its own."""

    def __init__(
        self,
        dataset: Any,
        rows: list[list[int]],
        collate: Callable[[list[Any]], Any],
        seed: int,
    ) -> None:
        self.dataset, self.rows, self.collate, self.seed = dataset, rows, collate, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        seed, rows = self.seed + number, self.rows[number]
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        try:
            if hasattr(self.dataset, "__getitems__"):
                return self.collate(self.dataset.__getitems__(rows))
            return self.collate([self.dataset[row] for row in rows])
        except InputError as error:  # raised here it would come out with the worker's traceback
            return error


def _as_it_is(batch: Any) -> Any:
    return batch


def loaded(
    dataset: Dataset[Any],
    rows: list[list[int]],
    collate: Callable[[list[Any]], Any] | None,
    loaders: int = 0,
    *,
    seed: int = 0,
) -> Iterator[Any]:
    """The batches of the given rows, in order.

    Args:
        loaders: Processes that read them ahead; 0 reads each here when it is asked for, and draws
            what the data set draws at random from the generators as they are.
        seed: With ``loaders``, batch k draws by ``seed + k``.

    Raises:
        InputError: As the data set does.
    """
    if not loaders:
        # The loader draws a number that it does not need; not from the global generator.
        own = torch.Generator()
        yield from DataLoader(dataset, batch_sampler=rows, collate_fn=collate, generator=own)
        return
    batches = _Batches(dataset, rows, collate or default_collate, seed)
    own, workers = torch.Generator(), min(loaders, len(rows))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # they were asked for
        ahead = iter(
            DataLoader(
                batches,
                batch_size=None,
                num_workers=workers,
                generator=own,
                collate_fn=_as_it_is,  # torch's own would make lists of tuples, tensors of arrays
            )
        )
    for batch in ahead:
        if isinstance(batch, InputError):
            raise batch
        yield batch
