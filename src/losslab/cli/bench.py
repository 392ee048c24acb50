"""``losslab bench``: time and peak memory on this machine."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from losslab.bench import Case, Settings

_WHAT = "What"
_HOW = "How"
_OUTPUT = "Output"
_SECONDS_BETWEEN_DRAWINGS, _SECONDS_BETWEEN_LINES = 0.3, 15


def bench(
    loss: Annotated[
        list[str] | None,
        typer.Option(
            help="A loss, see losslab losses, or own_psi: relu(1 − a) as your own ψ; default "
            "cross_entropy, encouraging, mixed(focus=0.3), focal and own_psi",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="ROWSxCLASSES of the logits; default 256x10, 128x1000, 4096x1000, 1024x32000",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    linear: Annotated[
        list[str] | None,
        typer.Option(
            help="ROWSxFEATURESxCLASSES: the linear layer before the loss is measured with it",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="float32 (default), bfloat16, float16, float64", rich_help_panel=_WHAT),
    ] = None,
    rival: Annotated[
        list[str] | None,
        typer.Option(
            help="Beside F.cross_entropy, which is always there: published (the encouraging loss "
            "by probabilities, as its paper computes it), compiled (the baseline by "
            "torch.compile), linear_cross_entropy (PyTorch's, in chunks, with --linear), or none; "
            "default published, and with --linear linear_cross_entropy",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    label_smoothing: Annotated[
        float, typer.Option(help="Label smoothing of everyone", rich_help_panel=_WHAT)
    ] = 0.0,
    backward: Annotated[
        bool,
        typer.Option(
            "--backward/--forward-only",
            help="With the gradient, or without as in validation",
            rich_help_panel=_WHAT,
        ),
    ] = True,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1", rich_help_panel=_HOW)] = "cpu",
    threads: Annotated[
        int | None, typer.Option(help="CPU threads; default all", rich_help_panel=_HOW)
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="native, triton or eager; several are measured beside one another; default "
            "losslab's choice",
            rich_help_panel=_HOW,
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(
            help="About how long to measure, all sizes together (five rounds at least)",
            rich_help_panel=_HOW,
        ),
    ] = 60.0,
    repeats: Annotated[
        int | None,
        typer.Option(help="Exactly so many rounds of each size instead", rich_help_panel=_HOW),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            help="Folder for bench.json (every round) and bench.png",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress", rich_help_panel=_OUTPUT)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print everything as JSON, only", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:
    """Measure losses beside F.cross_entropy here: time of a step, peak memory.

    All take turns, round after round in changing order, and each round gives
    everyone's ratio to the baseline in the same round: what else the machine
    does slows all alike. The table has the median and the quartiles of these
    ratios. Memory is the most that PyTorch's allocator held, above the logits.
    What does not fit into the free memory is skipped.

    Examples:

        losslab bench
        losslab bench --loss focal --size 4096x1000 --repeats 31
        losslab bench --dtype float32 --dtype bfloat16 --rival compiled
        losslab bench --linear 1024x512x32000 --loss cross_entropy --threads 1
        losslab bench --out bench-here

    Exit status: 0 done, 2 bad input, 3 done but something could not be
    measured, 130 interrupted.
    """
    import torch

    from losslab.bench import document, run
    from losslab.errors import InputError

    settings = _settings(loss, size, linear, dtype, rival, backend, label_smoothing, backward,
                         device, seconds, repeats)  # fmt: skip
    if threads is not None and threads < 1:
        raise InputError(f"--threads must be at least 1; got {threads}.")
    _check_folder(out)
    if threads is not None:
        torch.set_num_threads(threads)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _progress(quiet or as_json) as watch:
        result = run(settings, watch)
    measured = document(result, shlex.join(["losslab", *sys.argv[1:]]))
    _show(measured, as_json)
    if out is not None:
        _write(measured, out, as_json)
    if result.interrupted:
        print("Stopped; this is what was measured so far.", file=sys.stderr)
        raise typer.Exit(130)
    if any(caution["kind"] == "skipped" for caution in measured["cautions"]):
        raise typer.Exit(3)


def _settings(
    loss: list[str] | None,
    size: list[str] | None,
    linear: list[str] | None,
    dtype: list[str] | None,
    rival: list[str] | None,
    backend: list[str] | None,
    label_smoothing: float,
    backward: bool,
    device: str,
    seconds: float,
    repeats: int | None,
) -> Settings:
    """The options, checked."""
    from losslab.bench import DEFAULT_LOSSES, Settings
    from losslab.bench.contestants import DEFAULT_RIVALS, check_rivals, loss_named
    from losslab.bench.machine import check_backends, check_device
    from losslab.errors import InputError

    losses = tuple(loss or DEFAULT_LOSSES)
    for text in losses:
        loss_named(text, label_smoothing)
    if repeats is not None and repeats < 3:
        raise InputError(
            f"--repeats must be at least 3: quartiles of fewer rounds mean nothing; got {repeats}."
        )
    if not 0 < seconds < float("inf"):
        raise InputError(f"--seconds must be positive; got {seconds:g}.")
    rivals = DEFAULT_RIVALS if rival is None else check_rivals(rival, bool(linear))
    return Settings(
        cases=_cases(size, linear, dtype),
        losses=losses,
        rivals=rivals,
        backends=check_backends(backend or []),
        label_smoothing=label_smoothing,
        backward=backward,
        repeats=repeats,
        seconds=seconds,
        device=check_device(device),
    )


def _cases(
    size: list[str] | None, linear: list[str] | None, dtype: list[str] | None
) -> tuple[Case, ...]:
    """Every dtype at every size; the default sizes only where none at all is given."""
    from losslab.bench.cases import DEFAULT_SIZES, Case, check_dtype, parse_linear, parse_size

    sizes = size or ([] if linear else list(DEFAULT_SIZES))
    cases = []
    for name in dict.fromkeys(map(check_dtype, dtype or ["float32"])):
        for rows, classes in dict.fromkeys(map(parse_size, sizes)):
            cases.append(Case(rows, classes, name))
        for rows, features, classes in dict.fromkeys(map(parse_linear, linear or [])):
            cases.append(Case(rows, classes, name, features))
    return tuple(cases)


def _check_folder(out: Path | None) -> None:
    """Before a minute of measuring, not after."""
    from losslab.errors import InputError

    if out is None:
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out must be a folder that can be written to; got {out}: {error.strerror}."
        ) from None


def _show(measured: dict[str, Any], as_json: bool) -> None:
    from rich.console import Console

    from losslab.report.bench_table import print_bench

    if as_json:
        typer.echo(json.dumps(measured, ensure_ascii=False, indent=1))
    else:
        print_bench(measured, Console(highlight=False))


def _write(measured: dict[str, Any], out: Path, as_json: bool) -> None:
    from losslab.experiment.records import write_json
    from losslab.report.bench_figure import bench_figure
    from losslab.report.style import look

    write_json(out / "bench.json", measured)
    written = [str(out / "bench.json")]
    if any(case["rounds"] for case in measured["cases"]):
        with look():
            bench_figure(measured).savefig(out / "bench.png", dpi=160)
        written.append(str(out / "bench.png"))
    typer.echo(f"Written: {', '.join(written)}", err=as_json)


@contextmanager
def _progress(silent: bool) -> Iterator[Any]:
    """What is being measured, and the time left, on standard error."""
    from rich.console import Console
    from rich.live import Live

    console = Console(stderr=True)
    if silent:
        yield None
    elif console.is_terminal:  # drawn between rounds: a thread that draws would disturb them
        with Live(console=console, auto_refresh=False, transient=True) as live:
            yield _Drawn(live)
    else:
        yield _Lines()


class _Drawn:
    """One line that changes a few times a second at most."""

    def __init__(self, live: Any) -> None:
        self.live, self.drawn = live, 0.0

    def __call__(self, event: Any) -> None:
        from rich.text import Text

        from losslab.bench import RoundDone

        now = time.monotonic()
        if not isinstance(event, RoundDone) or now - self.drawn > _SECONDS_BETWEEN_DRAWINGS:
            self.drawn = now
            self.live.update(Text(_line(event)), refresh=True)


class _Lines:
    """A line a case, and now and then one between, where there is no terminal to draw on."""

    def __init__(self) -> None:
        self.spoke = time.monotonic()

    def __call__(self, event: Any) -> None:
        from losslab.bench import CaseDone

        now = time.monotonic()
        if isinstance(event, CaseDone) or now - self.spoke > _SECONDS_BETWEEN_LINES:
            self.spoke = now
            print(_line(event), file=sys.stderr)


def _line(event: Any) -> str:
    from losslab.bench import CaseDone, Preparing

    at = f"case {event.number} of {event.total} ({event.case.title} {event.case.dtype})"
    if isinstance(event, Preparing):
        return f"{at}: warming up, {event.label}"
    if isinstance(event, CaseDone):
        return f"{at}: skipped" if event.skipped else f"{at}: {event.rounds} rounds"
    of = "" if event.of is None else f" of {event.of}"
    left = "" if event.seconds_left is None else f", about {event.seconds_left:.0f} s left"
    return f"{at}: round {event.done}{of}{left}"
