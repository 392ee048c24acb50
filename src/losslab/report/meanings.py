"""What each metric means, for readers of a page who meet it for the first time."""

from __future__ import annotations

_MEANINGS = {
    "accuracy": "The share of the examples whose most probable class is the true one.",
    "balanced_accuracy": "The accuracy of each class, averaged over the classes, so that a rare "
    "class counts as much as a common one.",
    "nll": "The mean of −log p of the true class: 0 is perfect, and a confident mistake costs "
    "most. It asks for probabilities that are right, not only for the right class.",
    "brier": "The mean squared distance between the probabilities and the truth: 0 is perfect, 2 "
    "the worst. Like NLL it judges probabilities, but forgives a confident mistake sooner.",
    "ece": "Expected calibration error: how far confidence and accuracy are apart, in 15 bins of "
    "confidence. At 0 the predictions made with 80 % confidence are right 80 % of the time.",
    "margin": "The true class's logit less the largest other one, averaged: how far the examples "
    "are from the decision, in the logits' own scale.",
    "energy": "−z of the true class, averaged, as in the paper on the encouraging loss: more "
    "negative where the network gives the true class a larger logit.",
    "matthews": "Correlation of predicted and true class: 1 is perfect, 0 is what guessing or "
    "always answering the same gives.",
    "f1": "The harmonic mean of precision and recall of class 1.",
    "f1_macro": "F1 of each class, averaged over the classes.",
    "bleu": "How many words and runs of up to four words the translations share with the "
    "reference, from 0 to 100.",
    "ap": "Average precision of the boxes, averaged over classes and over how well they must fit "
    "(IoU from 0.50 to 0.95), as COCO measures it.",
    "ap50": "Average precision where a box counts as found at IoU 0.50.",
    "ap75": "Average precision where a box counts as found at IoU 0.75.",
    "accuracy_many": "Accuracy of the classes with many training examples.",
    "accuracy_medium": "Accuracy of the classes with a middling number of training examples.",
    "accuracy_few": "Accuracy of the classes with few training examples.",
}


def meaning(name: str) -> str:
    """A sentence or two on a metric; empty for one that is not known here."""
    return _MEANINGS.get(name, "")
