"""The tasks that come with losslab, and those made from a user's table, images or Python file."""

from losslab.experiment.tasks.build import build_task, model_names, task_names
from losslab.experiment.tasks.options import TaskOptions

__all__ = ["TaskOptions", "build_task", "model_names", "task_names"]
