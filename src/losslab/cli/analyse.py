"""``losslab analyse``: what a loss did to a trained model, beyond its accuracy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from losslab.analysis.request import Request

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
    from rich.console import Console
    from rich.progress import track

    from losslab.experiment import records
    from losslab.experiment.findings import analyse_run, missing, subjects_of
    from losslab.experiment.summary import summarize_folder
    from losslab.report import print_findings, write_report

    with records.working_in(folder):
        subjects = subjects_of(folder, only, data_dir=data_dir, device=device)
        todo = {run: missing(folder, run, asked) for run in subjects}
        todo = {run: requests for run, requests in todo.items() if requests}
        console = Console(stderr=True)
        watched = track(todo.items(), "analyses", console=console, transient=True, disable=as_json)
        for run, requests in watched:
            for name in analyse_run(folder, run, subjects[run](), requests):
                if not console.is_terminal and not as_json:
                    console.print(f"{run}: {name}", markup=False, soft_wrap=True)
        summary = summarize_folder(folder)
        records.write_json(folder / "summary.json", summary)
    page = write_report(folder)
    chosen = {str(request): summary["analyses"][str(request)] for request in asked}
    if as_json:
        typer.echo(json.dumps(chosen, ensure_ascii=False, indent=1))
    else:
        print_findings(chosen, summary["baseline"], Console(), report=page)


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
    from losslab.analysis.analyse import ANALYSES, analyse
    from losslab.errors import InputError
    from losslab.experiment.findings import data_from, subject_of, weights_into
    from losslab.experiment.tasks import TaskOptions, build_task
    from losslab.report import print_one_model, write_findings

    if not file.exists():
        raise InputError(
            f"Expected the folder of a comparison or a file of weights, but there is no {file}."
        )
    if task is None:
        raise InputError(
            f"Expected to be told what {file} is the weights of: name its data and model by "
            "--task, such as --task mnist --data-dir DIR, or --task my_task.py."
        )
    for asked_for in asked:
        if ANALYSES[asked_for.name].trace:
            raise InputError(
                f"{asked_for} needs what is recorded while training, which weights do not hold; "
                "ask for it by losslab compare --analyse."
            )
    built = build_task(task, TaskOptions(**options))
    model = weights_into(built.model(), file)
    subject = subject_of(
        built,
        losslab.loss(loss),
        model,
        None,
        seed=seed,
        device=device,
        data_by_name=data_from(options["data_dir"]),
    )
    console = Console(stderr=True)
    found = {}
    for request in asked:
        with console.status(f"{request} …"):
            found[str(request)] = analyse(subject, request)
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
