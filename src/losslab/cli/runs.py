"""``losslab runs``: list, show and export the runs in the folder of a study or a comparison."""

from __future__ import annotations

import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

if TYPE_CHECKING:
    import pandas

    from losslab.experiment.any_runs import ComparisonRuns
    from losslab.experiment.store import Store


class _ListByDefault(TyperGroup):
    """``losslab runs FOLDER`` is ``losslab runs list FOLDER``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in {*self.commands, *ctx.help_option_names}:
            args = ["list", *args]
        return super().parse_args(ctx, args)


runs = typer.Typer(
    cls=_ListByDefault,
    no_args_is_help=True,
    help="List, show and export the runs of a study or a comparison.\n\n"
    "losslab runs FOLDER lists, losslab runs show FOLDER RUN_ID shows one, losslab runs export "
    "FOLDER runs.csv writes a table.",
    short_help="List, show and export the runs of a folder.",
)

Folder = Annotated[Path, typer.Argument(help="Folder of a study or a comparison")]
Datasets = Annotated[list[str] | None, typer.Option("--dataset", help="Only this data set")]
Models = Annotated[list[str] | None, typer.Option("--model", help="Only this model")]
Losses = Annotated[list[str] | None, typer.Option("--loss", help="Only this loss (its label)")]
Statuses = Annotated[
    list[str] | None, typer.Option("--status", help="Only finished, or only diverged")
]
_TITLES = {"dataset": "data set", "model": "model", "loss": "loss", "status": "status"}


@runs.command("list")
def list_runs(
    folder: Folder,
    dataset: Datasets = None,
    model: Models = None,
    loss: Losses = None,
    status: Statuses = None,
    each: Annotated[bool, typer.Option("--each", help="One line a run, with its RUN_ID")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the runs as JSON, only, one list")
    ] = False,
) -> None:
    """Count the runs of a folder by data set, model and loss. The word list may be left out.

    An option given twice, as in --loss ce --loss focal, lets either through.

    Examples:

        losslab runs my-study
        losslab runs my-study --dataset iris --each
        losslab runs my-study --status diverged --json
    """
    source = _source(folder)
    table = _chosen(source.frame([*_EACH, _ACCURACY, "seconds"]), dataset, model, loss, status)
    if as_json:
        wanted = set(table["run_id"])
        found = [run for run in source.runs() if run["run_id"] in wanted]
        _print(json.dumps(found, ensure_ascii=False, indent=1))
    elif each:
        _print(_each(table))
    else:
        _print(_counts(table))


@runs.command("show")
def show(
    folder: Folder,
    run_id: Annotated[str, typer.Argument(metavar="RUN_ID", help="Its beginning is enough")],
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON, only")] = False,
) -> None:
    """Show one run: what it was, what it came to, and its curves.

    Examples:

        losslab runs show my-study 3f2a
        losslab runs show my-study 3f2a91c0b1d2e4f5 --json
    """
    source = _source(folder)
    run_id = _the_one(source.finished(), run_id, folder)
    run, detail = source.run(run_id), source.detail(run_id)
    assert run is not None
    if as_json:
        _print(json.dumps({**(detail or {}), **run}, ensure_ascii=False, indent=1))
    else:
        _print("\n\n".join(filter(None, (_facts(run), _results(run), _curves(detail)))))


@runs.command("export")
def export(
    folder: Folder,
    out: Annotated[
        Path | None, typer.Argument(metavar="[OUT]", help="OUT.csv or OUT.parquet")
    ] = None,
    dataset: Datasets = None,
    model: Models = None,
    loss: Losses = None,
    status: Statuses = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write TensorBoard's event files there")
    ] = None,
    mlflow: Annotated[
        str | None, typer.Option(metavar="URI", help="Log to this MLflow server or database")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write OUT in place of a file that is there")
    ] = False,
) -> None:
    """Write the runs as a table, or hand them to TensorBoard or MLflow with their curves.

    A file that is there already is left as it is, unless --force is given. What TensorBoard and
    MLflow have already is not given to them again.

    Examples:

        losslab runs export my-study runs.csv
        losslab runs export my-study focal.parquet --loss focal
        losslab runs export my-study --tensorboard logs --dataset iris
        losslab runs export my-study --mlflow http://127.0.0.1:5000
    """
    from losslab.errors import InputError

    if out is None and tensorboard is None and mlflow is None:
        raise InputError("Expected where to export to: OUT.csv, OUT.parquet, --tensorboard DIR or "
                         "--mlflow URI; name one.")  # fmt: skip
    if out is not None and out.suffix not in (".csv", ".parquet"):
        raise InputError(f"Expected a file that ends in .csv or .parquet, but got {out}.")
    if out is not None and os.path.exists(out) and not force:
        raise InputError(
            f"{out} exists already and is left as it is. Name another file, or write over it by "
            "--force."
        )
    source = _source(folder)
    table = _chosen(source.frame(), dataset, model, loss, status)
    if out is not None:
        _write(table, out)
        _print(f"{_counted(len(table), 'run')} written to {out}")
    if tensorboard is not None or mlflow is not None:
        _log(source, set(table["run_id"]), tensorboard, mlflow)


# ------------------------------------------------------------------------------------- which runs


def _source(folder: Path) -> Store | ComparisonRuns:
    from losslab.experiment.any_runs import open_runs

    return open_runs(folder)


def _chosen(
    table: pandas.DataFrame,
    dataset: Sequence[str] | None,
    model: Sequence[str] | None,
    loss: Sequence[str] | None,
    status: Sequence[str] | None,
) -> pandas.DataFrame:
    """The runs that the options leave; a name that no run has is a mistake, most likely."""
    from losslab.errors import InputError, nearest
    from losslab.experiment.records import STATUSES

    options = {"dataset": dataset, "model": model, "loss": loss, "status": status}
    known = {key: sorted(table[key].dropna().unique()) for key in options}
    known["status"] = list(STATUSES)
    for key, wanted in options.items():
        for name in wanted or ():
            if name not in known[key]:
                shown = "; ".join(known[key][:10]) + ("; …" if len(known[key]) > 10 else "")
                raise InputError(
                    f"Expected a {_TITLES[key]} that finished runs have ({shown or 'none yet'}), "
                    f"but got {name!r}.{nearest(name, known[key])}"
                )
        if wanted:
            table = table[table[key].isin(wanted)]
    return table


def _the_one(known: set[str], beginning: str, folder: Path) -> str:
    from losslab.errors import InputError

    if not beginning:
        raise InputError(
            "Expected the beginning of a RUN_ID, but got an empty text; "
            f"losslab runs {folder} --each lists them."
        )
    if beginning in known:
        return beginning
    found = sorted(run_id for run_id in known if run_id.startswith(beginning))
    if len(found) == 1:
        return found[0]
    if found:
        more = ", …" if len(found) > 5 else ""
        raise InputError(
            f"Expected the beginning of one RUN_ID, but {len(found)} begin with {beginning!r} "
            f"({', '.join(found[:5])}{more}); give more of it."
        )
    raise InputError(
        f"Expected the beginning of a RUN_ID, but no finished run in {folder} has {beginning!r}; "
        f"losslab runs {folder} --each lists them."
    )


# ------------------------------------------------------------------------------------- what is said


def _counts(table: pandas.DataFrame) -> str:
    if table.empty:
        return "No finished runs."
    by = ["dataset", "model", "loss"]
    counted = table.fillna({name: "–" for name in by}).groupby([*by, "status"]).size()
    rows = counted.unstack(fill_value=0).reindex(columns=["finished", "diverged"], fill_value=0)
    lines = _aligned(
        [("data set", "model", "loss", "finished", "diverged")]
        + [
            (*names, *map(str, numbers))
            for names, numbers in zip(rows.index, rows.to_numpy(), strict=True)
        ],
        right=2,
    )
    return f"{lines}\n\n{_total(table)}"


def _total(table: pandas.DataFrame) -> str:
    from losslab.report.numbers import seconds_text

    diverged = int((table["status"] == "diverged").sum()) or "none"
    kinds = [
        _counted(table[key].nunique(), what, plural)
        for key, what, plural in (
            ("dataset", "data set", None),
            ("model", "model", None),
            ("loss", "loss", "losses"),
        )
    ]
    return (
        f"{_counted(len(table), 'run')}, {diverged} diverged; {', '.join(kinds)}; "
        f"{seconds_text(table['seconds'].sum())} of training"
    )


_ACCURACY = "validation_selected.test.accuracy"
_EACH = ("run_id", "dataset", "model", "loss", "lr", "seed", "status")


def _each(table: pandas.DataFrame) -> str:
    from losslab.report.numbers import METRICS, value_text

    shown = table[[*_EACH, _ACCURACY]].astype(object)
    shown = shown.where(shown.notna(), None)
    rows: list[tuple[str, ...]] = [(*_EACH, "test accuracy %")]
    for *words, score in shown.itertuples(index=False):
        rows.append((*map(_word, words), value_text(METRICS["accuracy"], score)))
    return _aligned(rows, right=1)


def _facts(run: Mapping[str, Any]) -> str:
    from losslab.report.numbers import seconds_text

    loss = run.get("loss")
    spec = "" if run.get("spec") in (None, loss) else f", {run['spec']}"
    rows = [
        ("data set", run.get("dataset")),
        ("model", run.get("model")),
        ("loss", f"{_word(loss)}{spec}"),
        ("learning rate", run.get("lr")),
        ("seed", run.get("seed")),
        ("epochs", f"{_word(run.get('epochs'))}, in {seconds_text(run.get('seconds'))}"),
        ("finished", run.get("finished")),
        ("study", run.get("study")),
    ]
    reason = f": {run['reason']}" if run.get("reason") else ""
    lines = [f"  {name:<15}{_word(value)}" for name, value in rows if value is not None]
    return "\n".join([f"{run['run_id']}, {run.get('status')}{reason}", *lines])


def _results(run: Mapping[str, Any]) -> str:
    """Metrics down, selections across, validation and test side by side."""
    from losslab.report.numbers import METRICS, SELECTIONS, metric, value_text

    head, epochs = ["validation / test"], ["  epoch"]
    there = [name for name in SELECTIONS if run.get(f"{name}.epoch") is not None]
    for name in there:
        head.append(SELECTIONS[name])
        epochs.append(str(run[f"{name}.epoch"]))
    rows = [head, epochs]
    own = {key.rpartition(".")[2] for key in run if key.startswith("last.test.")}
    for row in (*METRICS.values(), *(metric(name) for name in sorted(own - METRICS.keys()))):
        cells = [
            " / ".join(
                value_text(row, run.get(f"{name}.{split}.{row.name}"))
                for split in ("validation", "test")
            )
            for name in there
        ]
        rows.append([f"  {row.heading}", *cells])
    return _aligned(rows, right=len(there)) if there else ""


def _curves(detail: Mapping[str, Any] | None) -> str:
    from losslab.experiment.any_runs import curves_of

    curves = curves_of(detail)
    epochs = curves.pop("epoch", [])
    rows: list[tuple[str, ...]] = [("curves", "", "first", "last", "least", "most")]
    for name, values in curves.items():
        numbers = [value for value in values if value is not None]
        if numbers:
            ends = (values[0], values[-1], min(numbers), max(numbers))
            rows.append((f"  {name}", sparkline(values), *map(_short, ends)))
    if len(rows) == 1:
        return ""
    span = f" over epochs {epochs[0]} to {epochs[-1]}" if epochs else ""
    rows[0] = (f"curves{span}", *rows[0][1:])
    return _aligned(rows, right=4)


_LEVELS = "▁▂▃▄▅▆▇█"
_ASCII_LEVELS = "_.-=+*#@"


def sparkline(values: Sequence[float | None], width: int = 32) -> str:
    """A curve in one line of text; a space where it has no number."""
    if len(values) > width:
        values = [values[round(i * (len(values) - 1) / (width - 1))] for i in range(width)]
    there = [value / 2 for value in values if value is not None]  # halves: no overflow
    low, high = min(there, default=0.0), max(there, default=0.0)
    span, levels = (high - low) or math.inf, len(_LEVELS)
    return "".join(
        " " if value is None else _LEVELS[min(int((value / 2 - low) / span * levels), levels - 1)]
        for value in values
    )


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _word(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _counted(number: int, noun: str, plural: str | None = None) -> str:
    from losslab.experiment.tasks.assemble import counted

    return counted(number, noun, plural).replace(str(number), f"{number:,}", 1)


def _aligned(rows: Iterable[Sequence[str]], right: int) -> str:
    """Rows as lines, column below column, the last ``right`` of them flush right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = len(widths) - right
    lines = [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def _print(text: str) -> None:
    """Print, with plainer symbols where the output has no others."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    if not encoding.lower().replace("-", "").startswith("utf"):
        plain = str.maketrans(
            {**dict(zip(_LEVELS, _ASCII_LEVELS, strict=True)), "–": "-", "−": "-"}
        )
        text = text.translate(plain).encode(encoding, "replace").decode(encoding)
    typer.echo(text)


# ------------------------------------------------------------------------------------- elsewhere


def _write(table: pandas.DataFrame, out: Path) -> None:
    from losslab.errors import InputError
    from losslab.experiment.records import write_atomically

    if out.suffix == ".csv":
        data = table.to_csv(index=False).encode()
    else:
        buffer = io.BytesIO()
        table.to_parquet(buffer, index=False)
        data = buffer.getvalue()
    try:
        write_atomically(out, data)
    except OSError as error:
        raise InputError(
            f"Expected to write {out}, but {error.strerror or error}; choose another place."
        ) from None


def _log(
    source: Store | ComparisonRuns, wanted: set[str], tensorboard: Path | None, mlflow: str | None
) -> None:
    from losslab.experiment.loggers import to_mlflow, to_tensorboard

    chosen = [run for run in source.runs() if run["run_id"] in wanted]
    if tensorboard is not None:
        new = to_tensorboard(chosen, source.detail, tensorboard)
        _print(f"{_counted(new, 'new run')} of {len(chosen)} in {tensorboard}: "
               f"tensorboard --logdir {tensorboard}")  # fmt: skip
    if mlflow is not None:
        new = to_mlflow(chosen, source.detail, mlflow)
        _print(f"{_counted(new, 'new run')} of {len(chosen)} logged at {mlflow}")
