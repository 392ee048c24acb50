"""``losslab compare``: the main job."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from losslab.cli.analyse import FAILED, tell_of_failures

if TYPE_CHECKING:
    from losslab.experiment import Comparison, Task
    from losslab.experiment.launch import Training
    from losslab.experiment.plan import LossMaker

_DATA = "Data"
_TRAINING = "Training"
_DECISION = "Decision"
_ANALYSES = "Analyses"
_OUTPUT = "Output"
_UNEQUAL = 3  # times the rarest class: from there on a note points to balanced accuracy


def compare(
    task: Annotated[
        str,
        typer.Option(
            help="digits, mnist, fashion-mnist, cifar10, cifar100, a table (.csv, .parquet), a "
            "folder of images by class, or your own task.py; see losslab tasks"
        ),
    ],
    loss: Annotated[
        list[str],
        typer.Option(
            help="A loss, or LABEL:LOSS; the first is the baseline. Give at least two. A loss is "
            "one of losslab losses, or your own: FILE.py:NAME"
        ),
    ],
    seeds: Annotated[str, typer.Option(help="How many seeds (10), or which (0,3,7 or 5-14)")] = "5",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the comparison, new or to go on with; default losslab-runs/TASK-HASH",
            rich_help_panel=_OUTPUT,
        ),
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the data files", rich_help_panel=_DATA)
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Table: the column to predict", rich_help_panel=_DATA)
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(help="Table: the column of texts to predict it from", rich_help_panel=_DATA),
    ] = None,
    train_size: Annotated[
        int | None, typer.Option(help="Keep so many training examples", rich_help_panel=_DATA)
    ] = None,
    split_seed: Annotated[
        int,
        typer.Option(help="Decides the split; one for all runs", rich_help_panel=_DATA),
    ] = 0,
    validation_fraction: Annotated[
        float | None, typer.Option(help="Share held out for validation", rich_help_panel=_DATA)
    ] = None,
    imbalance: Annotated[
        float | None,
        typer.Option(
            help="Thin the training examples out to a long tail, this times rarer at its end",
            rich_help_panel=_DATA,
        ),
    ] = None,
    class_counts: Annotated[
        str | None,
        typer.Option(
            help="Thin them out to so many of each class: 500,50,5, or a text file of numbers",
            rich_help_panel=_DATA,
        ),
    ] = None,
    resample: Annotated[
        bool,
        typer.Option(help="A split of its own for every seed", rich_help_panel=_DATA),
    ] = False,
    image_size: Annotated[
        int | None, typer.Option(help="Folder of images: side in pixels", rich_help_panel=_DATA)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Of those that losslab tasks lists", rich_help_panel=_TRAINING),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the data", rich_help_panel=_TRAINING)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Examples a step", rich_help_panel=_TRAINING)
    ] = None,
    lr: Annotated[
        float | None, typer.Option(help="Learning rate", rich_help_panel=_TRAINING)
    ] = None,
    milestones: Annotated[
        str | None,
        typer.Option(
            help="Shares of the training at which the rate falls to a tenth (0.5,0.75), or none",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    adversarial: Annotated[
        str | None,
        typer.Option(
            help="Train on attacked inputs: pgd(0.3), fgsm(0.3), pgd(3, norm=l2)",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    label_smoothing: Annotated[
        float, typer.Option(help="Label smoothing of every loss", rich_help_panel=_TRAINING)
    ] = 0.0,
    device: Annotated[
        str, typer.Option(help="cpu, cuda, cuda:1, mps", rich_help_panel=_TRAINING)
    ] = "cpu",
    precision: Annotated[
        str, typer.Option(help="32-true, bf16-mixed or 16-mixed", rich_help_panel=_TRAINING)
    ] = "32-true",
    accumulate: Annotated[
        int,
        typer.Option(
            help="Make each batch's gradient in so many pieces, to save memory",
            rich_help_panel=_TRAINING,
        ),
    ] = 1,
    clip: Annotated[
        float | None,
        typer.Option(help="Largest norm of a step's gradient", rich_help_panel=_TRAINING),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            help="Runs at once, each in a process of its own with its share of the CPU threads",
            rich_help_panel=_TRAINING,
        ),
    ] = 1,
    loaders: Annotated[
        int,
        typer.Option(
            help="Processes that read batches ahead, where images stay in their files",
            rich_help_panel=_TRAINING,
        ),
    ] = 0,
    threads: Annotated[
        int | None,
        typer.Option(
            help="CPU threads; default 1 for small models on tables, else all",
            rich_help_panel=_TRAINING,
        ),
    ] = None,
    metric: Annotated[
        str,
        typer.Option(
            help="What the verdict is about: accuracy, balanced_accuracy, nll, brier, ece",
            rich_help_panel=_DECISION,
        ),
    ] = "accuracy",
    select: Annotated[
        str,
        typer.Option(
            help="Which epoch of a run counts: last, or validation_selected",
            rich_help_panel=_DECISION,
        ),
    ] = "last",
    margin: Annotated[
        float | None,
        typer.Option(
            help="Largest difference not worth having, in the metric's unit; default 0.005 "
            "(half a point) of accuracy",
            rich_help_panel=_DECISION,
        ),
    ] = None,
    matched_gradient: Annotated[
        bool,
        typer.Option(
            "--matched-gradient",
            help="Also run the baseline at learning rate × V_loss/V_baseline: is it only the "
            "larger step?",
            rich_help_panel=_DECISION,
        ),
    ] = False,
    analyse: Annotated[
        list[str] | None,
        typer.Option(
            "--analyse",
            "-a",
            help="What else to measure of every model, such as calibration or ood(fashion-mnist); "
            "losslab analyse --help lists all",
            rich_help_panel=_ANALYSES,
        ),
    ] = None,
    keep_models: Annotated[
        bool,
        typer.Option(
            "--keep-models",
            help="Keep the trained models, for losslab analyse",
            rich_help_panel=_ANALYSES,
        ),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No progress", rich_help_panel=_OUTPUT)
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print the summary as JSON, only", rich_help_panel=_OUTPUT),
    ] = False,
) -> None:
    """Compare losses on a task with paired seeds, and say whether the difference is real.

    The same seed gives every loss the same initial weights, batch order and augmentation. Ctrl-C
    keeps all finished runs; the same command goes on, also with more losses or seeds. On several
    GPUs: torchrun --nproc-per-node 2 -m losslab compare --device cuda …

    Examples:

        losslab compare --task digits --loss cross_entropy --loss encouraging --seeds 10
        losslab compare --task digits --loss cross_entropy --loss expectation --matched-gradient
        losslab compare --task mnist --data-dir data --loss cross_entropy --loss focal --workers 2
        losslab compare --task iris.csv --target species --loss cross_entropy --loss encouraging
        losslab compare --task my_task.py --loss cross_entropy --loss "el:encouraging(log_end=1)"
        losslab compare --task digits --loss cross_entropy --loss my_loss.py:late
        losslab compare --task digits --loss cross_entropy --loss encouraging --analyse calibration

    Exit status: 0 done, 2 bad input, 3 done but runs diverged or an analysis failed, 130
    interrupted.
    """
    import torch

    from losslab.analysis.analyse import request
    from losslab.errors import InputError
    from losslab.experiment import Comparison
    from losslab.experiment.adversarial import trained_against
    from losslab.experiment.findings import DataFrom, source_of
    from losslab.experiment.launch import Training, one_voice, rank
    from losslab.experiment.resample import resampled
    from losslab.experiment.tasks import TaskOptions, build_task

    with one_voice():
        for option, number in (("--threads", threads), ("--workers", workers)):
            if number is not None and number < 1:
                raise InputError(f"{option} must be at least 1; got {number}.")
        check_device(device)
        training = Training(precision, accumulate, clip, loaders=loaders)
        loss_options = {"label_smoothing": label_smoothing} if label_smoothing else {}
        losses, places = _losses(loss, loss_options)
        options = TaskOptions(
            data_dir=data_dir,
            target=target,
            text=text,
            epochs=epochs,
            batch_size=batch_size,
            lr=lr,
            model=model,
            milestones=_milestones(milestones),
            split_seed=split_seed,
            train_size=train_size,
            validation_fraction=validation_fraction,
            image_size=image_size,
            imbalance=imbalance,
            class_counts=_class_counts(class_counts),
        )

        def build(options: TaskOptions) -> Task:
            made = build_task(task, options)
            return made if adversarial is None else trained_against(made, adversarial)

        chosen = _seeds(seeds)
        own_split = resampled(build, options) if resample else None
        built = build(options) if own_split is None else own_split(chosen[0])
        torch.set_num_threads(threads or fitting_threads(built))
        comparison = Comparison(
            task=built,
            losses=losses,
            out=out or _default_folder(built, label_smoothing, training, resample),
            seeds=chosen,
            task_of=own_split,
            matched_gradient=matched_gradient,
            metric=metric,
            selection=select,
            margin=margin,
            device=device,
            loss_options=loss_options,
            command=_command(),
            training=training,
            analyses=[request(text) for text in analyse or ()],
            keep_models=keep_models,
            data_by_name=DataFrom(data_dir),
            source=source_of(task, options, resample, places),
        )
        if rank() == 0 and not (quiet or as_json):
            _tell_of_data(comparison)
        carry_out(comparison, workers, quiet, as_json)


def carry_out(comparison: Comparison, workers: int, quiet: bool, as_json: bool) -> None:
    """Run a comparison, tell of it, and exit with its status."""
    from losslab.cli.progress import ComparisonProgress, stopped
    from losslab.experiment import Interrupted, run
    from losslab.experiment.launch import rank
    from losslab.experiment.records import load_comparison

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    before = load_comparison(comparison.out)
    try:
        with ComparisonProgress(quiet or as_json or rank() > 0) as watch:
            summary = run(comparison, watch, workers=workers)
    except Interrupted as stop:
        if rank() == 0:
            print(stopped(stop.done, stop.total, comparison.out), file=sys.stderr)
        raise typer.Exit(130) from None
    failed = False
    if rank() == 0:
        _finish(comparison, summary, as_json, before)
        known = summary.get("analyses", {})
        asked = [str(request) for request in comparison.analyses]
        failed = tell_of_failures({text: known[text] for text in asked if text in known})
    if any(summary["diverged"].values()) or failed:
        raise typer.Exit(FAILED)


def _tell_of_data(comparison: Comparison) -> None:
    """What was left out of the data, unequal classes and too few seeds, before the work begins."""
    from losslab.experiment.labels import label_counts
    from losslab.experiment.statistics import FEWEST_SEEDS
    from losslab.experiment.tasks.assemble import counted
    from losslab.reading import Reading

    notes = list(comparison.task.description.get("notes") or ())
    if len(comparison.seeds) < FEWEST_SEEDS:
        few = counted(len(comparison.seeds), "seed")
        notes.append(f"{few}: a verdict needs at least {FEWEST_SEEDS}")
    if comparison.metric == "accuracy" and type(comparison.task.reading) is Reading:
        rarest, commonest = label_counts(comparison.task, "train").aminmax()
        if commonest > _UNEQUAL * rarest:
            notes.append(
                f"the classes are unequal, {rarest:,} to {commonest:,} training examples, and the "
                "verdict is about accuracy; --metric balanced_accuracy counts all classes alike"
            )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def _command() -> str:
    """The command line that repeats this one."""
    from losslab.experiment.launch import processes

    several = ["torchrun", "--nproc-per-node", str(processes()), "-m"] if processes() > 1 else []
    return shlex.join([*several, "losslab", *sys.argv[1:]])


def _finish(
    comparison: Comparison,
    summary: dict[str, Any],
    as_json: bool,
    before: dict[str, Any] | None,
) -> None:
    from rich.console import Console

    from losslab.report import print_table, write_report

    page = write_report(Path(comparison.out))
    if as_json:
        typer.echo(json.dumps(summary, ensure_ascii=False, indent=1))
    else:
        print_table(summary, Console(), report=page)
        _tell_of_others(Path(comparison.out), before)


def _tell_of_others(folder: Path, before: dict[str, Any] | None) -> None:
    """Name the losses whose runs lie in the folder but are not in this command's verdicts.

    ``before`` is the comparison whose report this one took the place of.
    """
    from losslab.experiment import load_all, load_planned

    comparison, runs_now = load_planned(folder)
    planned = {record["run_id"] for record in runs_now}
    others = {r["loss"]["label"] for r in load_all(folder) if r["run_id"] not in planned}
    if others:
        print(
            f"note: {folder} also holds runs of {', '.join(sorted(others))} that are in neither "
            "this table nor its correction; name their losses and seeds again to include them.",
            file=sys.stderr,
        )
    left_out = {run for runs in (before or {}).get("runs", {}).values() for run in runs} - planned
    if before is not None and left_out and before["command"] not in ("", comparison["command"]):
        print(
            f"note: the report before this one had more runs; {before['command']} brings it back",
            file=sys.stderr,
        )


def _losses(
    texts: list[str], options: dict[str, Any]
) -> tuple[list[tuple[str, LossMaker]], dict[str, str]]:
    """``LABEL:LOSS`` or ``LOSS`` each, and by its spec where a loss of the user's own lies.

    Without a label, a spec is its own in the canonical spelling, a ``FILE.py:NAME`` is NAME.
    """
    from losslab.cli.losses import label_and_loss
    from losslab.experiment.own_loss import is_own_loss, own_loss
    from losslab.experiment.plan import canonical_spec

    losses: list[tuple[str, LossMaker]] = []
    places: dict[str, str] = {}
    for text in texts:
        label, spec = label_and_loss(text)
        if is_own_loss(spec):
            made = own_loss(spec, **options)
            places[made.spec] = spec
            losses.append((label or spec.rpartition(":")[2], made))
        else:
            losses.append((label or canonical_spec(spec), spec))
    return losses, places


def _milestones(text: str | None) -> tuple[float, ...] | None:
    """``0.5,0.75`` -> those; ``none`` -> a constant rate."""
    from losslab.errors import InputError

    if text is None or text == "none":
        return None if text is None else ()
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(
            f"--milestones must be shares of the training, such as 0.5,0.75, or none; got {text!r}."
        ) from None


def _class_counts(text: str | None) -> tuple[int, ...] | None:
    """``500,50,5``, or a file of such numbers, separated by commas, spaces or lines."""
    from losslab.errors import InputError

    if text is None:
        return None
    try:
        listed = set(text) <= set("0123456789, ")
        content = text if listed else Path(text).read_text()
        return tuple(int(part) for part in content.replace(",", " ").split())
    except (ValueError, OSError) as error:
        raise InputError(
            "--class-counts must be whole numbers, such as 500,50,5, or a text file of them; got "
            f"{text!r} ({error})."
        ) from None


def _seeds(text: str) -> list[int]:
    """``10`` -> 0 … 9; ``0,3,7`` and ``5-14`` -> those."""
    from losslab.errors import InputError

    try:
        if re.fullmatch(r"\d+-\d+", text):
            first, last = (int(x) for x in text.split("-"))
            seeds = list(range(first, last + 1))
        elif "," in text:
            seeds = [int(x) for x in text.split(",")]
        else:
            seeds = list(range(int(text)))
    except ValueError:
        seeds = []
    if not seeds:
        raise InputError(
            f"--seeds must be how many seeds (10) or which ones (0,3,7 or 5-14); got {text!r}."
        )
    return seeds


def check_device(device: str) -> None:
    """Raise `InputError` where a device cannot be used."""
    import torch

    from losslab.errors import InputError
    from losslab.experiment.launch import own_device

    try:
        torch.empty(1, device=own_device(device))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].rstrip(".") + "."
        raise InputError(
            f"--device {device!r} cannot be used here: {reason} Try --device cpu."
        ) from None


def fitting_threads(task: Task) -> int:
    """One for small dense models, where waking a second thread costs more than it saves."""
    import torch

    inputs = task.train[0][0]
    work = 2 * task.batch_size * sum(p.numel() for p in task.model().parameters())
    small = torch.is_tensor(inputs) and inputs.dim() == 1 and work < 1e8
    return 1 if small else torch.get_num_threads()


def _default_folder(task: Task, label_smoothing: float, training: Training, resample: bool) -> Path:
    """One folder a task and setting, so that more losses or seeds join the runs already there."""
    decisive = [task.description, task.epochs, task.batch_size, label_smoothing]
    decisive += ["resample"] if resample else []
    decisive += [settings] if (settings := training.settings()) else []
    decisive += [] if task.attack is None else [task.attack.settings()]
    text = json.dumps(decisive, sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(task.name).name).strip("-") or "task"
    return Path("losslab-runs") / f"{name}-{digest}"
