"""How many examples a model still gets right when they are attacked, and whether to believe it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from losslab.analysis import black_box, masking
from losslab.analysis.attacks import OBJECTIVES, Attack
from losslab.analysis.ball import Box, as_floats, check_inside, limits_of, one_of, positive
from losslab.analysis.classifier import Data, predict, scale_flags, tensors
from losslab.analysis.finding import Finding
from losslab.analysis.masking import Run, share
from losslab.errors import InputError
from losslab.metrics.scores import correct

ATTACKS = {
    "fgsm": Attack(1.0, steps=1, random_start=False),
    "pgd_linf": Attack(1.0),
    "pgd_l2": Attack(1.0, norm="l2"),
}
SEARCHES = ("square_linf", "square_l2", "autoattack_linf", "autoattack_l2")
EPSILONS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
EPSILONS_L2 = (0.3, 1.0, 3.0)
QUERIES = 1000


def robustness(
    model: nn.Module,
    data: Data,
    *,
    attacks: Sequence[str] | Mapping[str, Attack] = tuple(ATTACKS),
    epsilons: Sequence[float] = EPSILONS,
    epsilons_l2: Sequence[float] = EPSILONS_L2,
    box: Box = "image",
    examples: int = 500,
    steps: int = 40,
    seed: int = 0,
    device: str | torch.device = "cpu",
    huge: float | None = None,
) -> Finding:
    """Accuracy under attack over ε, the worst case over all attacks, and signs of gradient masking.

    Every attack by the gradient is made twice, on ``cross_entropy`` and on ``log_odds``, from the
    same random starts; `losslab.analysis.masking` says what their difference means. What no attack
    fools at the largest ε, a search without gradients tries too, if pyautoattack is installed.

    Args:
        model: Moved to ``device``.
        data: Examples, of which those that the model gets wrong count as fooled.
        attacks: Names of attacks: ``fgsm``, ``pgd_linf``, ``pgd_l2``, and from pyautoattack
            ``square_linf``, ``square_l2``, ``autoattack_linf``, ``autoattack_l2``. Or attacks of
            one's own by label, whose ``epsilon``, ``objective`` and ``box`` are then set here.
        epsilons: Radii in L∞, in units of the box's width. The defaults are the first paper's.
        epsilons_l2: Radii in L2, likewise.
        box: What an input's numbers may be: ``(low, high)``; ``"image"``, which is (0, 255) for
            uint8 and (0, 1) for floats; None for any, and radii in the inputs' own units.
        examples: How many to attack, drawn with ``seed``; a loader's first ones.
        steps: Of PGD.
        seed: Decides which examples, and everything random in the attacks.
        device: Where the model computes.
        huge: A radius at which every example must be fooled; None: one that reaches from any point
            of the box to any other (without a box: from any example to any other).

    Returns:
        values: ``accuracy.clean``, ``accuracy.ATTACK.OBJECTIVE.EPSILON`` (a search has no
        objective; the huge radius is called huge), ``worst.NORM.EPSILON`` (right under every attack
        of that norm and of no larger ε) and ``zero_gradient.OBJECTIVE`` (share, of the examples
        that the model gets right, whose gradient is exactly zero). details: the curves; flags: see
        `losslab.analysis.masking`.

    Raises:
        InputError: If an input lies outside the box, or an attack cannot be run.

    Example:
        >>> data = torch.rand(20, 4), torch.randint(3, (20,))
        >>> found = robustness(nn.Linear(4, 3), data, attacks=["fgsm"], epsilons=[0.1])
        >>> sorted(found.values)[1:3]
        ['accuracy.fgsm.cross_entropy.0.1', 'accuracy.fgsm.log_odds.0.1']
    """
    _whole("examples", examples)
    _whole("steps", steps)
    if huge is not None:
        positive("huge", huge)
    by_norm = {"linf": radii("epsilons", epsilons), "l2": radii("epsilons_l2", epsilons_l2)}
    inputs, target = _chosen(data, examples, seed)
    limits = limits_of(box, inputs)
    templates, searches = _asked(attacks, limits, steps)
    inputs = check_inputs(inputs, box, searches)
    device = torch.device(device)
    logits, target = predict(model, (inputs, target), device=device)
    right = correct(logits, target)
    ask = _Asked(model, inputs, target, right, limits, device, seed)

    runs = [
        ask.run(label, replace(template, epsilon=epsilon, objective=objective))
        for label, template in templates.items()
        for objective in OBJECTIVES
        for epsilon in by_norm[template.norm]
    ]
    runs += [ask.search(name, epsilon) for name in searches for epsilon in by_norm[_norm_of(name)]]
    huge_runs = [
        ask.run(label, replace(_from_input(template), epsilon=radius, objective=objective))
        for label, template in templates.items()
        if template.steps > 1
        for radius in [_reach(template.norm, inputs, limits) if huge is None else huge]
        for objective in OBJECTIVES
    ]
    zero = {name: ask.zero_gradient(name) for name in OBJECTIVES if right.any()}
    worst = {norm: _worst(runs, norm) for norm in by_norm}
    spots, not_run = _spot_checks(ask, worst, searches)
    return Finding(
        values=_values(right, runs, huge_runs, worst, zero),
        details={
            "examples": len(target),
            "right": int(right.sum()),
            "box": None if limits is None else list(limits),
            "steps": steps,
            "seed": seed,
            "attacks": {label: template.settings() for label, template in templates.items()},
            "curves": _curves(runs),
            "huge": [_point(run) for run in huge_runs],
            "worst": {norm: _worst_curve(curve) for norm, curve in worst.items() if curve},
            "spot_checks": spots,
            "not_run": not_run,
            "notes": ask.notes,
            "thresholds": {
                "clear": masking.CLEAR,
                "level": masking.LEVEL,
                "left_at_huge": masking.LEFT,
            },
        },
        flags=(*scale_flags(logits), *masking.flags(runs, huge_runs, zero, spots)),
    )


class _Asked:
    """The model with the chosen examples, on which all attacks are made."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Tensor,
        target: Tensor,
        right: Tensor,
        limits: tuple[float, float] | None,
        device: torch.device,
        seed: int,
    ) -> None:
        self.model, self.inputs, self.target, self.right = model, inputs, target, right
        self.limits, self.device, self.seed = limits, device, seed
        self.notes: list[str] = []

    def batches(self, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Which examples, inputs and targets of those ``wanted``, small enough for the memory."""
        size = max(1, min(250, 2**19 // max(1, self.inputs[0].numel())))
        for rows in wanted.nonzero()[:, 0].split(size):
            yield rows, self.inputs[rows].to(self.device), self.target[rows].to(self.device)

    def run(self, label: str, attack: Attack) -> Run:
        """An attack by the gradient on all examples that the model gets right."""
        broken, zeros = ~self.right, [0, 0]
        generator = torch.Generator().manual_seed(self.seed)
        for rows, inputs, target in self.batches(self.right):
            found = attack(self.model, inputs, target, generator, surely_right=True)
            broken[rows] = found.fooled.cpu()
            zeros[0] += int(found.zero_first.sum())
            zeros[1] += int(found.zero_always.sum())
        shares = [count / max(1, int(self.right.sum())) for count in zeros]
        objective = str(attack.objective)
        return Run(label, attack.norm, objective, attack.epsilon, attack.steps, broken, *shares)

    def zero_gradient(self, objective: str) -> float:
        """Share of the examples that are right at which the objective has no gradient."""
        probe = Attack(1.0, steps=1, random_start=False, objective=objective, box=self.limits)
        return self.run("", probe).zero_first

    def search(self, name: str, epsilon: float, wanted: Tensor | None = None) -> Run:
        """An attack of the library, on those ``wanted`` of the examples that are right."""
        kind, norm = name.split("_")
        attack: Callable[..., black_box.Fooled] = black_box.auto_attack
        options: dict[str, Any] = {"norm": norm, "box": self.limits, "seed": self.seed}
        if kind == "square":
            attack, options = black_box.square, options | {"queries": QUERIES}
        broken = ~self.right
        for rows, inputs, target in self.batches(self.right if wanted is None else wanted):
            found = attack(self.model, inputs, target, epsilon, **options)
            broken[rows] = found.fooled.cpu()
            self.notes += [f"{name}: {note}" for note in found.notes]
        return Run(name, norm, None, epsilon, 0, broken)


def _chosen(data: Data, most: int, seed: int) -> tuple[Tensor, Tensor]:
    """The examples to attack: a random choice, so that data in order of class do no harm."""
    if isinstance(data, DataLoader):
        return tensors(data, most)
    size = len(data[0]) if isinstance(data, tuple) else len(data)  # type: ignore[arg-type]
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    rows = order[:most].sort().values
    if isinstance(data, tuple):
        if not size or len(data[1]) != size:
            raise InputError(
                f"Expected inputs and as many targets, at least one, but got {size} inputs and "
                f"{len(data[1])} targets."
            )
        return data[0][rows], data[1][rows]
    return tensors(Subset(data, rows.tolist()))


def _asked(
    attacks: Sequence[str] | Mapping[str, Attack], limits: tuple[float, float] | None, steps: int
) -> tuple[dict[str, Attack], list[str]]:
    """The attacks by the gradient, by label, and the names of the library's."""
    if isinstance(attacks, Mapping):
        return {str(label): replace(one, box=limits) for label, one in attacks.items()}, []
    names = [attacks] if isinstance(attacks, str) else list(attacks)
    for name in names:
        one_of("attacks", name, (*ATTACKS, *SEARCHES))
    chosen = {
        name: replace(one, box=limits, steps=one.steps if one.steps == 1 else steps)
        for name, one in ATTACKS.items()
        if name in names
    }
    return chosen, [name for name in SEARCHES if name in names]


def _from_input(attack: Attack) -> Attack:
    """Without a random start: at a huge ε the noise alone would fool the model."""
    return replace(attack, random_start=False, restarts=1, step_size=None)


def _reach(norm: str, inputs: Tensor, limits: tuple[float, float] | None) -> float:
    """A radius that reaches from any point of the box to any other; from any example, without."""
    if limits is not None:
        return 1.0 if norm == "linf" else math.sqrt(inputs[0].numel())
    spans = (inputs.amax(0) - inputs.amin(0)).double()
    reach = float(spans.max() if norm == "linf" else spans.norm())
    if not reach:
        raise InputError("Expected examples that differ, but all inputs are the same.")
    return reach


def _worst(runs: Sequence[Run], norm: str) -> dict[float, Tensor]:
    """By ε, whether an example is fooled by any attack of the norm of no larger ε."""
    worst: dict[float, Tensor] = {}
    for run in sorted((run for run in runs if run.norm == norm), key=lambda run: run.epsilon):
        before = next(reversed(worst.values())) if worst else torch.zeros_like(run.broken)
        worst[run.epsilon] = worst.get(run.epsilon, before) | run.broken
    return worst


def _spot_checks(
    ask: _Asked, worst: dict[str, dict[float, Tensor]], searches: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Square at the largest ε, on what withstood all; ``worst`` learns from it."""
    done, not_run = [], {}
    for norm, curve in worst.items():
        name = f"square_{norm}"
        reason = black_box.why_not(ask.inputs, norm)
        if not curve or name in searches:
            continue
        epsilon, broken = max(curve), curve[max(curve)]
        left = int((~broken).sum())
        if left <= masking.LEFT * len(broken):
            not_run[name] = f"not needed: at ε = {epsilon:g} {left} of {len(broken)} are left"
            continue
        if reason is not None:
            not_run[name] = reason
            continue
        found = ask.search(name, epsilon, wanted=~broken).broken & ~broken
        curve[epsilon] = broken | found
        spot = {"norm": norm, "epsilon": epsilon, "tried": left, "fooled": int(found.sum())}
        done.append({**spot, "share": share(found), "queries": QUERIES})
    return done, not_run


def _values(
    right: Tensor,
    runs: Sequence[Run],
    huge: Sequence[Run],
    worst: Mapping[str, Mapping[float, Tensor]],
    zero: Mapping[str, float],
) -> dict[str, float]:
    values = {"accuracy.clean": share(right)}
    for run, radius in [(r, f"{r.epsilon:g}") for r in runs] + [(r, "huge") for r in huge]:
        name = run.attack if run.objective is None else f"{run.attack}.{run.objective}"
        values[f"accuracy.{name}.{radius}"] = run.accuracy
    for norm, curve in worst.items():
        for epsilon, broken in curve.items():
            values[f"worst.{norm}.{epsilon:g}"] = share(~broken)
    return values | {f"zero_gradient.{name}": share for name, share in zero.items()}


def _curves(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One curve an attack and objective, with its own worst case over smaller ε."""
    curves: dict[str, list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.epsilon):
        curves.setdefault(run.name, []).append(run)
    return [
        {
            "attack": curve[0].attack,
            "norm": curve[0].norm,
            "objective": curve[0].objective,
            "points": [_point(run) for run in curve],
            "envelope": _worst_curve(_worst(curve, curve[0].norm))["accuracy"],
        }
        for curve in curves.values()
    ]


def _point(run: Run) -> dict[str, Any]:
    point: dict[str, Any] = {"epsilon": run.epsilon, "accuracy": run.accuracy}
    if run.objective is not None:
        point |= {"zero_first": run.zero_first, "zero_always": run.zero_always}
    return point


def _worst_curve(worst: Mapping[float, Tensor]) -> dict[str, list[float]]:
    accuracy = [share(~broken) for broken in worst.values()]
    return {"epsilon": list(worst), "accuracy": accuracy}


def check_inputs(inputs: Tensor, box: Box, attacks: Sequence[str]) -> Tensor:
    """The inputs as floats, if they lie in the box and the attacks named can be made on them.

    Raises:
        InputError: If not.
    """
    limits = limits_of(box, inputs)
    inputs = as_floats(inputs)
    check_inside(inputs, limits)
    for name in attacks:
        if name in SEARCHES:
            _refuse_search(name, inputs)
    return inputs


def radii(name: str, given: Sequence[float] | float) -> list[float]:
    """The radii of an option, in order.

    Raises:
        InputError: Unless all are finite numbers above 0.
    """
    listed = list(given) if isinstance(given, Sequence) else [given]
    for radius in listed:
        positive(f"every one of {name}", radius)
    return sorted({float(radius) for radius in listed})


def _norm_of(search: str) -> str:
    return search.split("_")[1]


def _refuse_search(name: str, inputs: Tensor) -> None:
    reason = black_box.why_not(inputs, _norm_of(name))
    if reason is not None:
        raise InputError(f"Expected attacks that can be run here, but {name} cannot: {reason}.")


def _whole(name: str, value: Any) -> None:
    if type(value) is not int or value < 1:
        raise InputError(f"Expected {name} to be a whole number of at least 1, but got {value!r}.")
