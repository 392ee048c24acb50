"""How a detector's answers, a score of every class and a box at every anchor, are learned from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from losslab.errors import InputError
from losslab.experiment.tasks.detection.boxes import IGNORED
from losslab.reading import Objective, Reading


class AnchorReading(Reading):
    """The model returns ``(scores (N, A, K), offsets (N, A, 4))``; targets are ``(N, A, 5)``.

    **Learned from** is every class at every anchor that is not ignored: a question with the answers
    no and yes, whose logits are 0 and the score. Two logits make a softmax a sigmoid, so whatever
    the loss, it is its sigmoid form. Its sum is divided by the number of anchors that stand for an
    object, as in RetinaNet; yes counts ``alpha`` and no 1 − ``alpha``. To it comes the smooth L1
    distance of the offsets at these anchors, divided by their number too.

    **Measured** are the anchors that stand for an object, by their scores of the K classes: which
    class is taken for likeliest there. All questions would be 31 billion on COCO's validation
    images, and nearly all of them easy.

    Args:
        alpha: What yes counts; 0.25 for the focal loss in RetinaNet.
        beta: Where the smooth L1 distance turns from square to straight; 0.1 in Detectron2.
    """

    def __init__(self, alpha: float = 0.25, beta: float = 0.1) -> None:
        self.alpha, self.beta = alpha, beta

    def described(self) -> str:
        return f"anchors, alpha={self.alpha}, smooth L1 beta={self.beta}, by positives"

    def labels(self, target: Tensor) -> Tensor:
        classes = target[..., 0]
        return classes[classes >= 0].long()

    def logits(self, output: Any, target: Tensor) -> Tensor:
        scores, offsets = _checked(output, target)
        # Nothing, unless a number anywhere is not finite: then the run has diverged. Several
        # processes need the whole model in what is differentiated.
        nothing = 0.0 * (scores.sum() + offsets.sum())
        return scores[target[..., 0] >= 0] + nothing

    def loss(self, criterion: Objective, output: Any, target: Tensor) -> Tensor:
        scores, offsets = _checked(output, target)
        classes = target[..., 0]
        here, used = classes >= 0, classes != IGNORED
        yes = classes[..., None] == torch.arange(scores.shape[-1], device=classes.device)
        no = ~yes & used[..., None]
        answers = self.alpha * _sum(criterion, scores[yes], 1)
        answers = answers + (1 - self.alpha) * _sum(criterion, scores[no], 0)
        distance = smooth_l1_loss(
            offsets[here], target[..., 1:][here], beta=self.beta, reduction="sum"
        )
        return (answers + distance) / self.size(target)

    def size(self, target: Tensor) -> float:
        return float(max(1, int((target[..., 0] >= 0).sum())))


def _sum(criterion: Objective, scores: Tensor, answer: int) -> Tensor:
    """The sum of a loss, which is a mean, over questions with one answer."""
    if not len(scores):
        return scores.sum()
    logits = torch.stack([torch.zeros_like(scores), scores], dim=1)
    target = torch.full((len(scores),), answer, device=scores.device)
    return criterion(logits, target) * len(scores)


def _checked(output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    shapes = [tuple(part.shape) for part in output] if isinstance(output, (tuple, list)) else []
    examples, places = target.shape[:2]
    fits = len(shapes) == 2 and shapes[0][:2] == shapes[1][:2] == (examples, places)
    if not fits or len(shapes[0]) != 3 or shapes[1][2:] != (4,):
        raise InputError(
            f"Expected the model to return scores ({examples}, {places}, classes) and offsets "
            f"({examples}, {places}, 4), one row an anchor, but got "
            f"{' and '.join(map(str, shapes)) or type(output).__name__}."
        )
    return output[0], output[1]
