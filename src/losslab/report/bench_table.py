"""A benchmark as tables in the terminal: sizes as columns, losses as rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from losslab.bench.memory import in_bytes
from losslab.report.numbers import NONE

Case = Mapping[str, Any]
Cell = Callable[[Mapping[str, Any]], Text]
Caption = Callable[[Case], str]

_ASCII = str.maketrans(
    {"×": "x", "→": "->", "–": "-", "µ": "u", "ψ": "psi", "…": "...", "’": "'", "·": "*"}
)
_LABEL_WIDTH, _CELL_WIDTH = 34, 13  # at most, and at least
_FASTER, _SLOWER = "green", "yellow"


def print_bench(document: Mapping[str, Any], console: Console) -> None:
    """Prints the machine, a table for each dtype (and for linear layers), and the cautions.

    A ratio is green where three quarters of its rounds were faster than the baseline, yellow where
    three quarters were slower. What does not fit beside one another goes below one another.
    """
    unicode = console.encoding.lower().replace("-", "").startswith("utf")
    printer = _Printer(console, document, unicode)
    console.print(printer.text(machine_line(document["environment"]), "dim"))
    for cases in groups(document["cases"]):
        console.print()
        console.print(printer.text(printer.heading(cases[0]), "bold"))
        for block in printer.blocks(cases):
            printer.show(block)
    if document["cautions"]:
        console.print()
    for caution in document["cautions"]:
        style = "yellow" if caution["kind"] == "warning" else ""
        console.print(printer.text(f"{caution['kind']}: {caution['text']}", style))


def machine_line(environment: Mapping[str, Any]) -> str:
    """Processor or device, threads, versions, load."""
    device = environment["device"]
    where = environment["cpu"] if device == "cpu" else device
    threads = "1 thread" if environment["threads"] == 1 else f"{environment['threads']} threads"
    parts = [
        f"{where} ({environment['capability']})" if device == "cpu" else where,
        f"{threads} on {environment['cores']} cores",
        f"torch {environment['torch']}",
        f"losslab {environment['losslab']}",
        f"Python {environment['python']}",
    ]
    if environment["load_average"] is not None:
        parts.append(f"load {environment['load_average']:.2f} at the start")
    if environment["LOSSLAB_BACKEND"]:
        parts.append(f"LOSSLAB_BACKEND={environment['LOSSLAB_BACKEND']}")
    return ", ".join(parts)


def groups(cases: Sequence[Case]) -> list[list[Case]]:
    """The measured cases that belong into one table: same dtype, with or without linear layer."""
    found: dict[tuple[str, bool], list[Case]] = {}
    for case in cases:
        if case["rounds"]:
            found.setdefault((case["dtype"], case["features"] is None), []).append(case)
    return list(found.values())


def what_is_timed(settings: Mapping[str, Any]) -> str:
    return "Forward + backward" if settings["backward"] else "Forward alone"


def duration(seconds: float) -> str:
    """``84.2 µs``, ``12.3 ms``, ``1.52 s``: three figures."""
    for unit, size in (("µs", 1e-6), ("ms", 1e-3)):
        if seconds < 999.5 * size:
            return f"{_three(seconds / size)} {unit}"
    return f"{_three(seconds)} s"


def ratio_text(ratio: float) -> str:
    """``0.54``, ``12.3``."""
    return f"{ratio:.2f}" if ratio < 9.995 else _three(ratio)


def _three(value: float) -> str:
    digits = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:.{digits}f}"


class _Printer:
    """Turns cases into rich's objects: labels are never markup, symbols always encodable."""

    def __init__(self, console: Console, document: Mapping[str, Any], unicode: bool) -> None:
        self.console = console
        self.unicode = unicode
        self.settings = document["settings"]

    def text(self, content: str, style: str = "") -> Text:
        if not self.unicode:
            content = content.translate(_ASCII).encode("ascii", "replace").decode("ascii")
        return Text(content, style=style)

    def heading(self, case: Case) -> str:
        smoothing = self.settings["label_smoothing"]
        shape = "rows×classes" if case["features"] is None else "rows×features→classes"
        parts = [what_is_timed(self.settings), case["dtype"]]
        if smoothing:
            parts.append(f"label smoothing {smoothing:g}")
        return f"{', '.join(parts)}, losslab's backend {case['backend']}, at {shape}"

    def blocks(self, cases: Sequence[Case]) -> Iterator[Sequence[Case]]:
        """As many columns at once as the terminal is wide."""
        self.label_width = min(_LABEL_WIDTH, max(len(label) for label in _labels(cases)))
        self.cell_width = max(_CELL_WIDTH, *(len(case["title"]) + 1 for case in cases))
        fitting = max(1, (self.console.width - self.label_width) // (self.cell_width + 1))
        for i in range(0, len(cases), fitting):
            yield cases[i : i + fitting]

    def show(self, cases: Sequence[Case]) -> None:
        """Three tables with the same columns: ratio, time, memory."""
        baseline = cases[0]["baseline"]
        counted = "the logits" if cases[0]["features"] is None else "inputs and their gradients"
        sections = (
            (f"Time, ratio to {baseline} (median, quartiles below)", _rounds, self._ratio),
            ("Time of a step, median", None, self._time),
            (f"Peak memory above {counted}, in logits and bytes", None, self._memory),
        )
        for title, below, cell in sections:
            self.console.print()
            self.console.print(self.text(title, "italic"))
            self.console.print(self._table(cases, below, cell))

    def _table(self, cases: Sequence[Case], below: Caption | None, cell: Cell) -> Table:
        table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
        table.add_column("", width=self.label_width, overflow="fold")
        for case in cases:
            caption = case["title"] if below is None else f"{case['title']}\n{below(case)}"
            heading = self.text(caption)
            table.add_column(heading, justify="right", no_wrap=True, width=self.cell_width)
        for label in _labels(cases):
            rows = [_of(case, label) for case in cases]
            cells = [cell(row) if row is not None else self.text(NONE) for row in rows]
            table.add_row(self.text(label), *cells)
        return table

    def _ratio(self, row: Mapping[str, Any]) -> Text:
        ratio = row["ratio"]
        if ratio is None:
            return self.text(NONE)
        if row["role"] == "baseline":
            return self.text("1", "dim")
        style = _FASTER if ratio["high"] < 1 else _SLOWER if ratio["low"] > 1 else ""
        quartiles = f"\n{ratio_text(ratio['low'])}–{ratio_text(ratio['high'])}"
        return Text().append(ratio_text(ratio["median"]), style).append(self.text(quartiles, "dim"))

    def _time(self, row: Mapping[str, Any]) -> Text:
        return self.text(duration(row["time"]["median"]) if row["time"] else NONE)

    def _memory(self, row: Mapping[str, Any]) -> Text:
        memory = row["memory"]
        if memory is None:
            return self.text(NONE)
        shown = self.text(f"{memory['in_logits']:.2f}")
        return shown.append_text(self.text(f" {in_bytes(memory['counted_bytes']):>7}", "dim"))


def _rounds(case: Case) -> str:
    return f"{case['rounds']} rounds" if case["rounds"] > 1 else "1 round"


def _labels(cases: Sequence[Case]) -> list[str]:
    return list(dict.fromkeys(row["label"] for case in cases for row in case["results"]))


def _of(case: Case, label: str) -> Mapping[str, Any] | None:
    return next((row for row in case["results"] if row["label"] == label), None)
