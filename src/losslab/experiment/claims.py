"""What a paper claims, and whether a comparison's runs bear it out.

A claim is about the difference of two values over paired seeds. It is

- ``reproduced`` where the difference is there and points as claimed,
- ``contradicted`` where it is there and points the other way,
- ``not measured`` where no run has one of the values, or fewer than three seeds have both (both
  above 0, for a ratio),
- ``not shown at this size`` otherwise,

"there" meaning the paired t test after Holm's correction over all claims of a recipe, at 5 %.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from losslab.analysis.analyse import ANALYSES, Quantity
from losslab.errors import nearest
from losslab.experiment.findings import Known, load_all
from losslab.experiment.summary import yardstick

ALPHA = 0.05
_NONE: Mapping[str, Any] = {"values": {}}


@dataclass(frozen=True)
class Claim:
    """A sentence that two values decide.

    Args:
        text: The sentence.
        loss, against: Labels of the losses whose models are measured.
        value, against_value: What is measured of the one and of the other: a metric of the test
            examples at the epoch that the comparison selects, or ``ANALYSIS/VALUE``.
        expected: Whether the first is said to be ``larger`` or ``smaller``.
        ratio: Judge by the ratio of the two (by the difference of their logarithms), as is fit for
            positive values of which one may be many times the other.
        published: The source's own numbers, by label.
    """

    text: str
    loss: str
    against: str
    value: str
    against_value: str
    expected: str
    ratio: bool = False
    published: Mapping[str, float] = field(default_factory=dict)


def judge_claims(
    folder: Path,
    comparison: Mapping[str, Any],
    planned: Sequence[Mapping[str, Any]],
    known: Mapping[str, Known] | None = None,
) -> list[dict[str, Any]]:
    """Each claim of the folder's recipe with its numbers and its mark, ready for JSON.

    ``known`` is what is known of the runs, by run_id, where it has been read already.
    """
    from losslab.experiment.statistics import compare_paired

    claims = [Claim(**claim) for claim in (comparison.get("recipe") or {}).get("claims", ())]
    if not claims:
        return []
    known = load_all(folder, planned) if known is None else known
    measured = _Values(comparison, planned, known)
    pairs = [measured.pairs(claim) for claim in claims]
    differences = {
        str(number): [_sign(claim) * _difference(claim, a, b) for a, b in pair]
        for number, (claim, pair) in enumerate(zip(claims, pairs, strict=True))
    }
    answers = compare_paired(differences, margin=1.0)
    judged = []
    for number, (claim, pair) in enumerate(zip(claims, pairs, strict=True)):
        answer = answers[str(number)].as_dict()
        turn = _sign(claim)  # the difference as it is, not as it was claimed to point
        ends = [None if answer[k] is None else turn * answer[k] for k in ("low", "high")]
        low, high = ends if turn > 0 else ends[::-1]
        mean = None if answer["mean"] is None else turn * answer["mean"]
        if claim.ratio:
            mean, low, high = (None if x is None else math.exp(x) for x in (mean, low, high))
        quantity = measured.quantity(claim.value)
        judged.append(
            {
                **vars(claim),
                "mark": measured.not_there(claim) or _mark(answer),
                "n": answer["n"],
                "means": [
                    sum(side) / len(pair) if pair else None for side in zip(*pair, strict=True)
                ]
                or [None, None],
                "mean": mean,
                "low": low,
                "high": high,
                "p_adjusted": answer["p_adjusted"],
                "unit": quantity.unit,
            }
        )
    return judged


def _difference(claim: Claim, one: float, other: float) -> float:
    return math.log(one / other) if claim.ratio else one - other


def _sign(claim: Claim) -> float:
    return 1.0 if claim.expected == "larger" else -1.0


def _mark(answer: Mapping[str, Any]) -> str:
    p = answer["p_adjusted"]
    if answer["verdict"] == "refused":
        return "not measured: under three seeds"
    if p is None or p >= ALPHA:
        return "not shown at this size"
    return "reproduced" if answer["mean"] > 0 else "contradicted"


class _Values:
    """Every value of every finished run, by label and seed."""

    def __init__(
        self,
        comparison: Mapping[str, Any],
        planned: Sequence[Mapping[str, Any]],
        known: Mapping[str, Known],
    ) -> None:
        self.comparison = comparison
        self.records = {
            (record["loss"]["label"], record["seed"]): record
            for record in planned
            if record["status"] == "finished"
        }
        self.findings = {
            key: known[record["run_id"]].findings for key, record in self.records.items()
        }

    def pairs(self, claim: Claim) -> list[tuple[float, float]]:
        """Both values, for every seed that has both."""
        found = (
            (self._value(claim.loss, seed, claim.value),
             self._value(claim.against, seed, claim.against_value))
            for seed in self.comparison["seeds"]
        )  # fmt: skip
        both = [(a, b) for a, b in found if a is not None and b is not None]
        return [(a, b) for a, b in both if a > 0 and b > 0] if claim.ratio else both

    def not_there(self, claim: Claim) -> str | None:
        """A mark for a claim about a value that no run has, most likely a mistake in its name."""
        for value in (claim.value, claim.against_value):
            analysis, slash, name = value.rpartition("/")
            names = {n for of in self.findings.values() for n in of.get(analysis, _NONE)["values"]}
            if slash and name not in names:
                return f"not measured: no run has the value {name!r}.{nearest(name, sorted(names))}"
        return None

    def quantity(self, value: str) -> Quantity:
        """What a value is."""
        analysis, slash, name = value.rpartition("/")
        if not slash:
            by = yardstick(self.comparison, value)
            return Quantity(by.better, by.unit, by.margin)
        return ANALYSES[analysis.partition("(")[0]].quantity(name)

    def _value(self, label: str, seed: int, value: str) -> float | None:
        record = self.records.get((label, seed))
        if record is None:
            return None
        analysis, slash, name = value.rpartition("/")
        if not slash:
            selection = self.comparison["selection"]
            found: float | None = record["results"][selection]["test"].get(value)
            return found
        finding = self.findings[label, seed].get(analysis)
        return None if finding is None else finding["values"].get(name)
