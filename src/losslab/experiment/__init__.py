"""The laboratory: tasks, paired runs, records and verdicts.

task (data, model) ──► runs (losses × seeds) ──► records ──► statistics ──► summary

Comparison(task, [("ce", "cross_entropy"), ("el", "encouraging")], out, seeds=range(10))
run(comparison)          makes the runs that the folder lacks and returns the summary
train(task, loss, seed)  one run, by itself
"""

from losslab.experiment.environment import describe_environment
from losslab.experiment.events import (
    Analysed,
    EpochDone,
    RunFinished,
    RunStarted,
    Started,
    TogetherEpochDone,
    TogetherStarted,
)
from losslab.experiment.plan import Comparison, make_plan
from losslab.experiment.records import load_all, load_examples
from losslab.experiment.runner import Interrupted, run
from losslab.experiment.summary import load_planned, summarize, summarize_folder
from losslab.experiment.task import Task
from losslab.experiment.train import train
from losslab.experiment.watch import Epoch, TrainingResult

__all__ = [
    "Analysed",
    "Comparison",
    "Epoch",
    "EpochDone",
    "Interrupted",
    "RunFinished",
    "RunStarted",
    "Started",
    "Task",
    "TogetherEpochDone",
    "TogetherStarted",
    "TrainingResult",
    "describe_environment",
    "load_all",
    "load_examples",
    "load_planned",
    "make_plan",
    "run",
    "summarize",
    "summarize_folder",
    "train",
]
