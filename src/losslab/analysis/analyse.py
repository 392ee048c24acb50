"""All analyses of one trained model, by name.

Each takes a `Subject` (the model with what it learned from) and options, and returns a `Finding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from losslab.analysis import from_logits, from_model
from losslab.analysis.classifier import scale_flags
from losslab.analysis.finding import Finding
from losslab.analysis.options import check_options
from losslab.analysis.request import Request, read_request, refuse_unknown_options
from losslab.analysis.subject import Subject, drawn_by
from losslab.errors import InputError
from losslab.reading import Reading


@dataclass(frozen=True)
class Quantity:
    """What a value is.

    Args:
        better: Whether a larger (True) or a smaller (False) one is better; None: neither, so that
            differences are described and not judged.
        unit: ``"points"`` for shares, which are kept in [0, 1] and shown in percent; ``"nats"``;
            or nothing.
        margin: The largest difference not worth having.
        of: What it is a number of, where that changes it: ``"batches of {batch_size}"``, filled in
            from the finding's details.
    """

    better: bool | None = None
    unit: str = ""
    margin: float = 1.0
    of: str = ""

    def told_of(self, details: Mapping[str, Any]) -> str:
        """What it is a number of, for this finding; nothing where its name says all."""
        try:
            return self.of.format_map(details)
        except KeyError:  # details of another version
            return ""


@dataclass(frozen=True)
class Analysis:
    """An analysis that can be asked for by name.

    Args:
        name: Its name.
        about: One line for ``--help``.
        measure: ``measure(subject, **options)``.
        quantities: What its values are, by the beginning of their names; all others are numbers of
            which neither a larger nor a smaller one is better.
        unnamed: Options that may stand without their name, in order.
        trace: Whether it needs log-odds recorded while training.
        reads: What of the logits it rests on: ``"odds"``, which log-probabilities have as well;
            ``"energies"``, their size; ``"nothing"`` of them.
        examples: Whether it asks for one row of logits an example, not for tokens or anchors.
    """

    name: str
    about: str
    measure: Callable[..., Finding]
    quantities: Mapping[str, Quantity] = field(default_factory=dict)
    unnamed: tuple[str, ...] = ()
    trace: bool = False
    reads: str = "odds"
    examples: bool = False

    def quantity(self, value: str) -> Quantity:
        """What the value of that name is."""
        starts = [s for s in self.quantities if value == s or value.startswith(f"{s}.")]
        return self.quantities[max(starts, key=len)] if starts else Quantity()


def request(text: str) -> Request:
    """The request that a line of text makes, checked against the analyses that there are.

    Raises:
        InputError: For a name or an option that does not exist, or a value that an option cannot
            have.

    Example:
        >>> request("ood(fashion-mnist)").options
        {'out': 'fashion-mnist'}
    """
    asked = read_request(text, {name: known.unnamed for name, known in ANALYSES.items()})
    refuse_unknown_options(asked, ANALYSES[asked.name].measure, given=1)
    try:
        check_options(asked.name, asked.options)
    except InputError as error:
        raise InputError(f"{asked.name}: {error}") from None
    return asked


def analyse(subject: Subject, asked: Request) -> Finding:
    """Answer one request; a model that seems to return no logits gets a warning.

    Raises:
        InputError: If the model, the data or the options do not allow it; the analysis is named.
    """
    known = ANALYSES[asked.name]
    refuse_other_rows(asked, subject.reading)
    try:
        with drawn_by(subject.seed):
            finding = known.measure(subject, **asked.options)
        if known.reads == "nothing":
            return finding
        told = scale_flags(subject.outputs("test")[0], energies=known.reads == "energies")
    except InputError as error:
        raise InputError(f"{asked.name}: {error}") from None
    return replace(finding, flags=tuple(dict.fromkeys((*told, *finding.flags))))


def refuse_other_rows(asked: Request, reading: Reading) -> None:
    """Raise `InputError` for an analysis of examples where the model answers parts of them."""
    if ANALYSES[asked.name].examples and type(reading) is not Reading:
        fitting = ", ".join(name for name, known in ANALYSES.items() if not known.examples)
        raise InputError(
            f"{asked.name}: expected a model that answers each example by one row of logits, but "
            f"this task's answers are read otherwise ({reading.described()}). Of such models there "
            f"are {fitting}."
        )


_RATE = Quantity(None, "points")
_RATE_UP = Quantity(True, "points", 0.005)
_RATE_DOWN = Quantity(False, "points", 0.005)
_NATS = Quantity(None, "nats")
_NATS_DOWN = Quantity(False, "nats", 0.01)
_BRIER_DOWN = Quantity(False, "", 0.005)
_ERRORS = {
    name: _RATE_DOWN for name in ("ece", "adaptive_ece", "rms_ce", "max_ce", "classwise_ece")
} | {"brier": _BRIER_DOWN, "nll": _NATS_DOWN}

ANALYSES = {
    known.name: known
    for known in (
        Analysis(
            "margins",
            "distribution of the margin, in logits and log-odds",
            from_logits.margins,
            {"logits.negative": _RATE, "log_odds.negative": _RATE},
            unnamed=("split",),
        ),
        Analysis(
            "energies",
            "energy of the true class and of the others, by class",
            from_logits.energies,
            unnamed=("split",),
            reads="energies",
        ),
        Analysis(
            "gradients",
            "which examples carry the gradient, by confidence",
            from_logits.gradients,
            {"right": _RATE},
            unnamed=("split",),
        ),
        Analysis(
            "calibration",
            "ECE, Brier, NLL; before and after temperature scaling",
            from_logits.calibration,
            _ERRORS
            | {f"scaled.{name}": quantity for name, quantity in _ERRORS.items()}
            | dict.fromkeys(
                (
                    f"brier.{part}"
                    for part in (
                        "resolution",
                        "uncertainty",
                        "within_variance",
                        "within_covariance",
                    )
                ),
                Quantity(),
            ),
        ),
        Analysis(
            "generalisation",
            "the gap between training and test examples",
            from_model.generalisation,
            {
                "train.accuracy": _RATE,
                "test.accuracy": _RATE_UP,
                "test.nll": _NATS_DOWN,
                "train.nll": _NATS,
                "gap.accuracy": _RATE,
                "gap.nll": _NATS,
            },
            examples=True,
        ),
        Analysis(
            "ood",
            "telling test examples from others: ood(fashion-mnist)",
            from_logits.ood,
            {
                "auroc": _RATE_UP,
                "fpr95": _RATE_DOWN,
                "aupr_in": _RATE_UP,
                "aupr_out": _RATE_UP,
            },
            unnamed=("out", "examples"),
            reads="energies",
            examples=True,
        ),
        Analysis(
            "robustness",
            "accuracy under attack, and signs of gradient masking",
            from_model.robustness,
            {"accuracy": _RATE_UP, "worst": _RATE_UP, "zero_gradient": _RATE},
            unnamed=("epsilons",),
            examples=True,
        ),
        Analysis(
            "representation",
            "retrained output layer and linear probe on the features",
            from_model.representation,
            {
                f"{part}.{name}": quantity
                for part in ("retrained", "probe")
                for name, quantity in (
                    ("accuracy", _RATE_UP),
                    ("accuracy_before", _RATE_UP),
                    ("train_accuracy", _RATE),
                    ("balanced_accuracy", _RATE_UP),
                    ("balanced_accuracy_before", _RATE_UP),
                    ("accuracy_many", _RATE_UP),
                    ("accuracy_medium", _RATE_UP),
                    ("accuracy_few", _RATE_UP),
                    ("nll", _NATS_DOWN),
                )
            },
            reads="nothing",
            examples=True,
        ),
        Analysis(
            "curvature",
            "Hessian, gradient noise and Tr(HΣ) at the weights",
            from_model.curvature,
            dict.fromkeys(
                ("noise.trace", "escaping.trace", "escaping.matched"),
                Quantity(of="batches of {batch_size}"),
            ),
            unnamed=("loss",),
            examples=True,
        ),
        Analysis(
            "dynamics",
            "what was learned and forgotten (losslab compare only)",
            from_model.dynamics,
            {
                "train": _RATE,
                "test": _RATE,
                "test.accuracy": _RATE_UP,
                "gap.accuracy": _RATE,
                "gap.nll": _NATS,
            },
            trace=True,
        ),
    )
}
QUICK = ("margins", "energies", "gradients", "calibration", "generalisation")
"""The analyses that take no longer than a look at the data."""
