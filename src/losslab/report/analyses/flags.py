"""The warnings of analyses, folded: one line for what many seeds and losses have in common."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from losslab.report.numbers import with_minus

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


@dataclass(frozen=True)
class Flag:
    """A warning of one analysis, folded over seeds and losses.

    ``text`` has the numbers of the first loss and seed where not all are the same (``differs``).
    """

    labels: tuple[str, ...]
    seeds: tuple[int, ...]
    text: str
    differs: bool = False

    @property
    def whose(self) -> str:
        """``encouraging, seeds 0, 1, 2``."""
        plural = "s" if len(self.seeds) > 1 else ""
        return f"{', '.join(self.labels)}, seed{plural} {_ranges(self.seeds)}"

    @property
    def sentence(self) -> str:
        """The text, and whose numbers it has where not all are the same."""
        text = with_minus(self.text)
        if not self.differs:
            return text
        whose = [self.labels[0]] if len(self.labels) > 1 else []
        whose += [f"seed {self.seeds[0]}"] if len(self.seeds) > 1 else []
        return f"{text.rstrip('.')} (numbers of {', '.join(whose)})"


def folded(flags: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Flag]:
    """Warnings that differ in their numbers alone made one, over the seeds and over losses.

    Example:
        >>> told = {"a": [{"seed": 0, "text": "3 of 9 left"}, {"seed": 1, "text": "4 of 9 left"}]}
        >>> [(flag.whose, flag.sentence) for flag in folded(told)]
        [('a, seeds 0, 1', '3 of 9 left (numbers of seed 0)')]
    """
    merged: dict[tuple[Any, ...], list[Flag]] = {}
    for label, told in flags.items():
        for shape, flag in _over_seeds(label, told):
            merged.setdefault((shape, flag.seeds), []).append(flag)
    return [
        Flag(
            tuple(flag.labels[0] for flag in alike),
            alike[0].seeds,
            alike[0].text,
            any(flag.differs for flag in alike) or len({flag.text for flag in alike}) > 1,
        )
        for alike in merged.values()
    ]


def _over_seeds(label: str, told: Sequence[Mapping[str, Any]]) -> Iterator[tuple[Any, Flag]]:
    """A loss's warnings by their shape: what is left without numbers, and the how-manieth."""
    kinds: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    met: dict[tuple[int, str], int] = {}
    for flag in told:
        shape = _NUMBER.sub("#", flag["text"])
        again = met[flag["seed"], shape] = met.get((flag["seed"], shape), -1) + 1
        kinds.setdefault((shape, again), []).append(flag)
    for shape_again, alike in kinds.items():
        seeds = tuple(dict.fromkeys(flag["seed"] for flag in alike))
        texts = [flag["text"] for flag in alike]
        yield shape_again, Flag((label,), seeds, texts[0], len(set(texts)) > 1)


def _ranges(seeds: Sequence[int]) -> str:
    """``0, 1, 2``; from four neighbours on ``0–9``."""
    parts: list[list[int]] = []
    for seed in sorted(seeds):
        if parts and seed == parts[-1][-1] + 1:
            parts[-1].append(seed)
        else:
            parts.append([seed])
    return ", ".join(
        f"{part[0]}–{part[-1]}" if len(part) > 3 else ", ".join(map(str, part)) for part in parts
    )
