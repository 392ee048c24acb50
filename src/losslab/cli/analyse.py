"""``losslab analyse``: what a loss did to a trained model, beyond its accuracy."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from losslab.analysis.finding import Finding
    from losslab.analysis.request import Request
    from losslab.analysis.subject import Subject

FAILED = 3
_MODEL = "A model of your own"
_OUTPUT = "Output"


def analyse(
    target: Annotated[
        Path,
        typer.Argument(
            help="Folder of a comparison made with --keep-models or --analyse, or a file of weights"
        ),
    ],
    analyse: Annotated[
        list[str] | None,
        typer.Option(
            "--analyse",
            "-a",
            help="What to measure, such as robustness; default margins, energies, gradients, "
            "calibration and generalisation",
        ),
    ] = None,
    run: Annotated[
        list[str] | None, typer.Option(help="Only this run of the folder; its beginning is enough")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder with the data files")] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The data and the model that the weights are of; as for losslab compare",
            rich_help_panel=_MODEL,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model of the task", rich_help_panel=_MODEL)
    ] = None,
    loss: Annotated[
        str, typer.Option(help="The loss it was trained with", rich_help_panel=_MODEL)
    ] = "cross_entropy",
    seed: Annotated[
        int, typer.Option(help="Decides what is random in an analysis", rich_help_panel=_MODEL)
    ] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Weights: write findings.json and report.html there", rich_help_panel=_OUTPUT
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the findings as JSON, only", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:
    """Measure what a loss did to trained models: a comparison's, or one of your own.

    Of a comparison every value is compared between the losses, seed by seed, and goes into the
    report. An analysis may have options: robustness(epsilons=[0.1, 0.3], examples=200).

    Examples:

        losslab compare --task digits --loss ce --loss focal --keep-models --out d
        losslab analyse d -a margins -a calibration
        losslab analyse m --data-dir data -a "ood(fashion-mnist)" -a robustness
        losslab analyse weights.pt --task my_task.py -a calibration --out found

    Analyses:

        margins         distribution of the margin, in logits and log-odds
        energies        energy of the true class and of the others, by class
        gradients       which examples carry the gradient, by confidence
        calibration     ECE, Brier, NLL; before and after temperature scaling
        generalisation  the gap between training and test examples
        ood             telling test examples from others: ood(fashion-mnist)
        robustness      accuracy under attack, and signs of gradient masking
        representation  retrained output layer and linear probe on the features
        curvature       Hessian, gradient noise and Tr(HΣ) at the weights
        dynamics        what was learned and forgotten (losslab compare only)

    An analysis that fails leaves the others alone: a warning stands in its place.

    Exit status: 0 done, 2 bad input, 3 done but an analysis failed.
    """
    from losslab.analysis.analyse import QUICK, request

    asked = [request(text) for text in analyse or QUICK]
    if target.is_dir():
        _refuse({"--task": task, "--model": model, "--out": out}, "a folder's runs know theirs")
        _folder(target, asked, run, data_dir, device, as_json)
    else:
        _refuse({"--run": run}, f"{target} is no folder of a comparison")
        options = {"data_dir": data_dir, "model": model}
        _weights(target, asked, task, options, loss, seed, device, out, as_json)


def _folder(
    folder: Path,
    asked: list[Request],
    only: list[str] | None,
    data_dir: Path | None,
    device: str,
    as_json: bool,
) -> None:
    """Answer the requests for the folder's runs, and draw its report anew."""
    from losslab.experiment import records
    from losslab.experiment.findings import missing, subjects_of

    with records.working_in(folder):
        subjects = subjects_of(folder, only, data_dir=data_dir, device=device)
        todo = {run: missing(folder, run, asked) for run in subjects}
        try:
            _answer(folder, subjects, {run: of for run, of in todo.items() if of}, as_json)
        except Exception:  # what was found before is not lost
            _show(folder, asked, as_json)
            raise
        failed = _show(folder, asked, as_json)
    if failed:
        raise typer.Exit(FAILED)


def _answer(
    folder: Path,
    subjects: Mapping[str, Callable[[], Subject]],
    todo: Mapping[str, Sequence[Request]],
    as_json: bool,
) -> None:
    from rich.console import Console
    from rich.progress import track

    from losslab.experiment.findings import analyse_run

    console = Console(stderr=True)
    for run, requests in track(
        todo.items(), "analyses", console=console, transient=True, disable=as_json
    ):
        for name, reason in analyse_run(folder, run, subjects[run](), requests):
            if not console.is_terminal and not as_json:
                told = f"{run}: {name}{', failed' if reason else ''}"
                console.print(told, markup=False, soft_wrap=True)


def _show(folder: Path, asked: Sequence[Request], as_json: bool) -> bool:
    """Print what was found of a folder's runs; whether an analysis failed on any."""
    from rich.console import Console

    from losslab.experiment import records
    from losslab.experiment.summary import summarize_folder
    from losslab.report import print_findings, write_report

    summary = summarize_folder(folder)
    records.write_json(folder / "summary.json", summary)
    page = write_report(folder)
    known, wanted = summary.get("analyses", {}), map(str, asked)
    chosen = {request: known[request] for request in wanted if request in known}
    if as_json:
        typer.echo(json.dumps(chosen, ensure_ascii=False, indent=1))
    else:
        print_findings(chosen, summary["baseline"], Console(), report=page)
    return tell_of_failures(chosen)


def tell_of_failures(analyses: Mapping[str, Mapping[str, Any]]) -> bool:
    """Say on standard error, a line each, which requests failed on some runs; whether any did."""
    failed = {asked: entry["failed"] for asked, entry in analyses.items() if entry.get("failed")}
    for asked, by_label in failed.items():
        lost = sum(map(len, by_label.values()))
        told = next(
            flag["text"]
            for label in by_label
            for flag in analyses[asked]["flags"][label]
            if flag["text"].startswith("not measured: ")
        )
        of = lost + sum(analyses[asked]["runs"].values())
        print(f"error: {asked} {told} ({lost} of {of} runs)", file=sys.stderr)
    return bool(failed)


def _weights(
    file: Path,
    asked: list[Request],
    task: str | None,
    options: dict[str, Any],
    loss: str,
    seed: int,
    device: str,
    out: Path | None,
    as_json: bool,
) -> None:
    """Answer the requests for one model, and print or draw what was found."""
    from rich.console import Console

    import losslab
    from losslab.analysis.analyse import analyse
    from losslab.analysis.finding import Finding
    from losslab.errors import InputError
    from losslab.experiment.findings import DataFrom, not_measured, subject_of
    from losslab.experiment.tasks import TaskOptions, build_task
    from losslab.experiment.weights import weights_into

    if not file.exists():
        raise InputError(
            f"Expected the folder of a comparison or a file of weights, but there is no {file}."
        )
    if task is None:
        raise InputError(
            f"Expected to be told what {file} is the weights of: name its data and model by "
            "--task, such as --task mnist --data-dir DIR, or --task my_task.py."
        )
    built = build_task(task, TaskOptions(**options))
    subject = subject_of(
        built,
        losslab.loss(loss),
        weights_into(built.model(), file),
        None,
        seed=seed,
        device=device,
        data_by_name=DataFrom(options["data_dir"]),
    )
    console = Console(stderr=True)
    found: dict[str, Finding] = {}
    failed: dict[str, str] = {}
    try:
        for request in asked:
            with console.status(f"{request} …"):
                try:
                    found[str(request)] = analyse(subject, request)
                except InputError as error:
                    failed[str(request)] = not_measured(request.name, str(error))
                    found[str(request)] = Finding({}, flags=(failed[str(request)],))
    except Exception:  # what was found before is not lost
        _show_one(found, file, out, as_json)
        raise
    _show_one(found, file, out, as_json)
    for name, told in failed.items():
        print(f"error: {name} {told}", file=sys.stderr)
    if failed:
        raise typer.Exit(FAILED)


def _show_one(found: Mapping[str, Finding], file: Path, out: Path | None, as_json: bool) -> None:
    """Print what was found of one model, and write it down if asked to."""
    from rich.console import Console

    from losslab.report import print_one_model, write_findings

    page = write_findings(found, file, out) if out is not None else None
    if as_json:
        shown = {name: vars(finding) for name, finding in found.items()}
        typer.echo(json.dumps(shown, ensure_ascii=False, indent=1))
    else:
        print_one_model(found, Console(), report=page)


def _refuse(options: dict[str, Any], reason: str) -> None:
    from losslab.errors import InputError

    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} has no meaning here, since {reason}; leave it out.")
