"""The modules: one base for every loss, sums of losses, one-vs-rest, binary, alternating steps."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.losses import reduction as r
from losslab.losses.catalog import Row
from losslab.losses.psi import times
from losslab.losses.rowwise import ComplementEntropyRows
from losslab.schedules import Schedule, deferred_weights, exact

Step = Callable[[Tensor, Tensor], Tensor]
_USES_WITHOUT_PROGRESS = 1000


class _Loss(nn.Module):
    """What all modules share: a spec, progress, sums, and buffers that keep their precision."""

    spec: str = "custom"
    _unmoved: int | None = 0  # uses of a schedule so far, until set_progress is called

    def set_progress(self, progress: float) -> None:
        """Move every schedule to the fraction of training done, in [0, 1]."""
        self._unmoved = None
        for child in self.children():
            if isinstance(child, _Loss):
                child.set_progress(progress)

    def _notice_stillness(self) -> None:
        """Warn, once, of a schedule that nobody moves: a mistake that no number shows."""
        if torch.compiler.is_compiling() or self._unmoved is None:
            return
        self._unmoved += 1
        if self._unmoved == _USES_WITHOUT_PROGRESS:
            self._unmoved = None
            warnings.warn(
                f"{self.spec} is scheduled and was used {_USES_WITHOUT_PROGRESS} times, but its "
                "set_progress was never called, so the schedule stays as it begins. Call "
                "loss.set_progress(step / total_steps) before each step of the training, or use a "
                "callback of losslab.integrations.",
                stacklevel=2,
            )

    @property
    def steps(self) -> tuple[Step, ...]:
        """The optimisation steps of one batch: one for all losses but alternating ones."""
        return (self,)

    def __add__(self, other: Any) -> SumLoss:
        if not isinstance(other, _Loss):
            return NotImplemented
        return SumLoss([*_terms(self), *_terms(other)])

    def __sub__(self, other: Any) -> SumLoss:
        return self + (-1.0) * other if isinstance(other, _Loss) else NotImplemented

    def __mul__(self, factor: Any) -> SumLoss:
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            return NotImplemented
        if not math.isfinite(factor):
            raise InputError(f"a loss can be scaled by a finite number only; got {factor}.")
        return SumLoss([(c * factor, loss) for c, loss in _terms(self)])

    __rmul__ = __mul__

    def extra_repr(self) -> str:
        return self.spec


class ClassificationLoss(_Loss):
    """Base of the losses on (N, C, …) logits, with the options of ``nn.CrossEntropyLoss``."""

    weight: Tensor | None

    def __init__(
        self,
        *,
        weight: Tensor | deferred_weights | None = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
        zero_if_empty: bool = False,
    ) -> None:
        super().__init__()
        r.check_reduction(reduction)
        r.check_label_smoothing(label_smoothing)
        if not (weight is None or isinstance(weight, Tensor) or callable(weight)):
            raise InputError(
                "weight must be a tensor of one number a class, or losslab.deferred_weights; "
                f"got {weight!r}. Write torch.tensor(…)."
            )
        self.register_buffer("weight", None)
        self.reweight(weight)
        self.ignore_index = ignore_index
        self.reduction = reduction
        self.label_smoothing = label_smoothing
        self.zero_if_empty = zero_if_empty

    @property
    def rows(self) -> r.Rows:
        """How this loss looks at rows of logits."""
        raise NotImplementedError

    @property
    def psi(self) -> r.Psi | None:
        """ψ of the softmax's log-odds, or None for a loss that is not such a function."""
        rows = self.rows
        return rows.psi if isinstance(rows, r.OddsRows) else None

    @property
    def slope(self) -> r.Psi | None:
        """ψ', where it is written out."""
        rows = self.rows
        return rows.slope if isinstance(rows, r.OddsRows) else None

    def options(self) -> dict[str, Any]:
        if self._weight_schedule is not None:
            self._notice_stillness()
        return {name: getattr(self, name) for name in r.OPTIONS}

    def reweight(self, weight: Tensor | deferred_weights | None) -> None:
        """Take other class weights."""
        self._weight_schedule = weight if callable(weight) else None
        self.weight = weight(0.0) if callable(weight) else weight

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        if self._weight_schedule is not None and self.weight is not None:
            self.weight.copy_(self._weight_schedule(progress))

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return r.classification_loss(input, target, self.rows, **self.options())


class OddsLoss(ClassificationLoss):
    """Any ψ of the true class's log-odds, with everything the built-in losses have.

    Math: ψ(a), a = z_y − log Σ_{j≠y} exp z_j; for soft targets t, Σ_k t_k ψ(a_k).

    Args:
        psi: an elementwise function of a float tensor, a = log(p/(1 − p)) of the true class, built
            from differentiable PyTorch operations. The gradient is ψ'(a)·(e_y − q).
        weight: (C,) class weights; a mean divides by the sum of those used. Or
            :class:`losslab.deferred_weights`.
        ignore_index: class index of rows to skip; class-index targets only.
        reduction: ``"none"``, ``"mean"`` or ``"sum"``.
        label_smoothing: in [0, 1]; the target becomes (1 − ε)·e_y + ε/C.
        zero_if_empty: a mean over no rows is 0 instead of PyTorch's NaN.

    Shape: input (C,), (N, C) or (N, C, d1, …); target class indices of that shape without C, or
        probabilities of the same shape. Returns a scalar, or the target's shape without C.

    Example:
        >>> import torch, losslab
        >>> loss = losslab.OddsLoss(lambda a: torch.relu(1 - a))
        >>> loss(torch.tensor([[3.0, 0.0]]), torch.tensor([0]))
        tensor(0.)
    """

    def __init__(self, psi: r.Psi, **options: Any) -> None:
        super().__init__(**options)
        if not callable(psi):
            raise InputError(
                "psi must be a function of a tensor, such as `lambda a: torch.relu(1 - a)`; "
                f"got {psi!r}. For a spec string use losslab.loss(SPEC)."
            )
        self._psi = psi

    @property
    def rows(self) -> r.Rows:
        return r.OddsRows(self._psi)


class CatalogLoss(ClassificationLoss):
    """A row of the catalogue as a module; :mod:`losslab.losses.api` makes one class a row."""

    row: Row

    def __init__(self, weight: Tensor | deferred_weights | None = None, **keywords: Any) -> None:
        options, parameters = r.split_options({"weight": weight, **keywords}, r.OPTIONS)
        super().__init__(**options)
        _set_parameters(self, parameters)

    @property
    def spec(self) -> str:  # type: ignore[override]
        return _spec(self)

    @property
    def rows(self) -> r.Rows:
        return self.row.softmax_rows(_arguments(self))

    def rows_at(self, progress: float) -> r.Rows:
        """``rows`` at a moment of training, with plain numbers for what schedules drive."""
        return self.row.softmax_rows(_resolve(self, progress))

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        _follow_schedules(self, progress)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return _keep_precision(self, fn, lambda: super(CatalogLoss, self)._apply(fn, recurse))


class BinaryOddsLoss(_Loss):
    """Any ψ on sigmoid outputs, beside ``nn.BCEWithLogitsLoss``: binary and multi-label.

    Math: t·pos_weight·ψ(z) + (1 − t)·ψ(−z) for each output.

    Args:
        psi: an elementwise function of log-odds; see :class:`OddsLoss`.
        weight: rescales every element; broadcast against the input.
        pos_weight: weight of positive examples, one number a class; broadcast likewise.
        reduction: ``"none"``, ``"mean"`` or ``"sum"`` over all elements.

    Shape: input (*) logits, target (*) numbers in [0, 1].

    Example:
        >>> import torch, losslab
        >>> losslab.BinaryOddsLoss(torch.sigmoid)(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.5000)
    """

    weight: Tensor | None
    pos_weight: Tensor | None
    reduction: str

    def __init__(
        self,
        psi: r.Psi,
        *,
        weight: Tensor | None = None,
        pos_weight: Tensor | None = None,
        reduction: str = "mean",
    ) -> None:
        super().__init__()
        self._psi = psi
        _binary_options(self, weight, pos_weight, reduction)

    @property
    def psi(self) -> r.Psi:
        return self._psi

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return r.binary_loss(
            input,
            target,
            self.psi,
            weight=self.weight,
            pos_weight=self.pos_weight,
            reduction=self.reduction,
        )


class BinaryCatalogLoss(BinaryOddsLoss):
    """A row of the catalogue on sigmoid outputs."""

    row: Row

    def __init__(self, weight: Tensor | None = None, **keywords: Any) -> None:
        _Loss.__init__(self)
        options, parameters = r.split_options({"weight": weight, **keywords}, r.BINARY_OPTIONS)
        _binary_options(self, **options)
        _set_parameters(self, parameters)

    @property
    def spec(self) -> str:  # type: ignore[override]
        return _spec(self)

    @property
    def psi(self) -> r.Psi:
        arguments = _arguments(self)
        return lambda a: self.row.psi(a, **arguments)  # type: ignore[misc]

    def set_progress(self, progress: float) -> None:
        super().set_progress(progress)
        _follow_schedules(self, progress)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        return _keep_precision(self, fn, lambda: super(BinaryCatalogLoss, self)._apply(fn, recurse))


class SumLoss(_Loss):
    """c₁·loss₁ + c₂·loss₂ + …; made by ``+``, ``-`` and ``*``.

    Terms that are ψ(a) with the same options share one pass over the logits.

    Args:
        terms: pairs of a coefficient and a loss.

    Example:
        >>> import torch, losslab
        >>> loss = losslab.CrossEntropyLoss() + 0.5 * losslab.ExpectationLoss()
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(0.9431)
    """

    def __init__(self, terms: Sequence[tuple[float, _Loss]]) -> None:
        super().__init__()
        for _, loss in terms:
            if len(loss.steps) > 1:
                raise InputError(
                    f"{loss.spec} alternates two steps, which a sum or multiple would drop. "
                    "Wrap the whole instead: complement_objective(a + 0.5*b)."
                )
        self.coefficients = tuple(float(c) for c, _ in terms)
        self.losses = nn.ModuleList([loss for _, loss in terms])

    @property
    def spec(self) -> str:  # type: ignore[override]
        text = ""
        for c, loss in _terms(self):
            sign = ("-" if c < 0 else "") if not text else (" - " if c < 0 else " + ")
            text += sign + ("" if abs(c) == 1 else f"{exact(abs(c))}*") + loss.spec
        return text

    def set_progress(self, progress: float) -> None:
        for loss in self.losses:
            loss.set_progress(progress)  # type: ignore[operator]

    @property
    def psi(self) -> r.Psi | None:
        """Σ c_i ψ_i, where every term is a ψ of the same kind of log-odds."""
        return _sum_of_psi([(c, getattr(loss, "psi", None)) for c, loss in _terms(self)])

    @property
    def slope(self) -> r.Psi | None:
        return _sum_of_psi([(c, getattr(loss, "slope", None)) for c, loss in _terms(self)])

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        first = self.losses[0]
        psi = self.psi
        if psi is not None and isinstance(first, ClassificationLoss) and self._same_options():
            return r.classification_loss(
                input, target, r.OddsRows(psi, self.slope), **first.options()
            )
        return sum(times(c, loss(input, target)) for c, loss in _terms(self))  # type: ignore[return-value]

    def _same_options(self) -> bool:
        if not all(isinstance(loss, ClassificationLoss) for loss in self.losses):
            return False
        first, *others = (loss.options() for loss in self.losses)  # type: ignore[operator]
        return all(
            option is first[name] or (name != "weight" and option == first[name])
            for options in others
            for name, option in options.items()
        )


class OneVsRestLoss(ClassificationLoss):
    """One sigmoid a class instead of a softmax, with class-index targets.

    Math: ψ(z_y) + Σ_{k≠y} ψ(−z_k), the classes' binary losses summed (or averaged).

    Args:
        loss: a ψ-loss whose ψ and options are used. For squared and absolute errors their sigmoid
            form is taken: ``OneVsRestLoss(MeanSquaredErrorLoss())`` is "MSE + sigmoid" of Zhao et
            al., table 5.
        class_reduction: ``"sum"`` or ``"mean"`` over the classes.

    Shape: input (C,), (N, C) or (N, C, d1, …) logits; target as for the wrapped loss.

    Example:
        >>> import torch, losslab
        >>> loss = losslab.OneVsRestLoss(losslab.CrossEntropyLoss())
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))
        tensor(1.3863)
    """

    def __init__(self, loss: _Loss, *, class_reduction: str = "sum") -> None:
        if not isinstance(loss, ClassificationLoss | SumLoss) or _sigmoid_psi(loss) is None:
            raise InputError(
                "one_vs_rest takes a loss that is a function of one output's log-odds, such as "
                f"EncouragingLoss(); got {getattr(loss, 'spec', repr(loss))}. With a spec string "
                "write losslab.loss('one_vs_rest(SPEC)')."
            )
        if class_reduction not in ("sum", "mean"):
            raise InputError(f"class_reduction must be 'sum' or 'mean'; got {class_reduction!r}.")
        options = _options_of(loss)
        super().__init__(**options)
        self.loss = loss
        self.class_reduction = class_reduction

    @property
    def spec(self) -> str:  # type: ignore[override]
        tail = "" if self.class_reduction == "sum" else ", class_reduction=mean"
        return f"one_vs_rest({self.loss.spec}{tail})"

    @property
    def rows(self) -> r.Rows:
        psi = _sigmoid_psi(self.loss)
        assert psi is not None
        return r.OneVsRestRows(psi, mean=self.class_reduction == "mean")


class ComplementObjectiveLoss(_Loss):
    """Complement objective training: a step on ``loss``, then a step on the complement entropy.

    Math: the second step minimises Σ_{j≠y} q_j log q_j/(C − 1), q the softmax over the classes ≠ y.

    Args:
        loss: the loss of the first step; its weight, ignore_index and reduction serve both.

    Called like any loss it returns ``loss``; a training loop that knows of alternating steps takes
    both from ``steps``:

        for step in criterion.steps:
            optimizer.zero_grad()
            step(model(inputs), target).backward()
            optimizer.step()

    Example:
        >>> import losslab
        >>> len(losslab.ComplementObjectiveLoss(losslab.CrossEntropyLoss()).steps)
        2

    Source: Chen et al. 2019, algorithm 1; Battash et al., equation 6 and table 5.
    """

    def __init__(self, loss: _Loss) -> None:
        super().__init__()
        self.loss = loss
        options = _options_of(loss) | {"label_smoothing": 0.0}
        self.complement = _ComplementEntropy(**options)

    @property
    def spec(self) -> str:  # type: ignore[override]
        return f"complement_objective({self.loss.spec})"

    @property
    def steps(self) -> tuple[Step, ...]:
        return (self.loss, self.complement)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.loss(input, target)


class SmoothedLoss(_Loss):
    """A loss with label smoothing of its own, as a spec can name it.

    Math: that of ``loss`` with ``label_smoothing=amount``: (1 − ε)·L(y) + (ε/C)·Σ_k L(k).

    Args:
        loss: a loss or a sum of losses; a copy of it is kept.
        amount: ε, in [0, 1], in place of the option ``label_smoothing`` that the loss may have.

    For losses that are compared with and without smoothing; elsewhere the option
    ``label_smoothing`` does the same.

    Example:
        >>> import torch, losslab
        >>> loss = losslab.loss("smoothed(cross_entropy, amount=0.1)")
        >>> loss(torch.tensor([[2.0, 0.0]]), torch.tensor([0]))
        tensor(0.2269)

    Source: Szegedy et al. 2016; for bonuses Zhao et al. 2022, table 8.
    """

    def __init__(self, loss: _Loss, *, amount: float = 0.1) -> None:
        super().__init__()
        r.check_label_smoothing(amount)
        parts = [term for _, term in _terms(loss)]
        if not all(isinstance(part, ClassificationLoss) for part in parts):
            raise InputError(
                "smoothed takes a loss or a sum of losses, such as EncouragingLoss(); got "
                f"{getattr(loss, 'spec', repr(loss))}. Put smoothed inside the other wrapper."
            )
        self.loss = copy.deepcopy(loss)
        self.amount = float(amount)
        for _, part in _terms(self.loss):
            part.label_smoothing = self.amount

    @property
    def spec(self) -> str:  # type: ignore[override]
        return f"smoothed({self.loss.spec}, amount={exact(self.amount)})"

    def set_progress(self, progress: float) -> None:
        self.loss.set_progress(progress)

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return self.loss(input, target)


class _ComplementEntropy(ClassificationLoss):
    spec = "complement_entropy"

    @property
    def rows(self) -> r.Rows:
        return ComplementEntropyRows()


# The parameters of a catalogue row, held by softmax and sigmoid modules alike: numbers where
# nothing changes, buffers for those arguments of ψ that a schedule drives.


def _set_parameters(module: Any, given: Mapping[str, Any]) -> None:
    module.parameters_given = module.row.check(given)
    module._scheduled = {
        n: v for n, v in module.parameters_given.items() if isinstance(v, Schedule)
    }
    module._arguments = _resolve(module, 0.0)
    module._driven = ()
    if module._scheduled:
        module._driven = tuple(n for n in module.row.dynamic if n in module._arguments)
        for name in module._driven:
            value = torch.tensor(module._arguments.pop(name), dtype=torch.float64)
            module.register_buffer(name, value)


def _resolve(module: Any, progress: float) -> dict[str, Any]:
    values = {
        n: v(progress) if isinstance(v, Schedule) else v for n, v in module.parameters_given.items()
    }
    return module.row.resolve(values)


def _arguments(module: Any) -> dict[str, Any]:
    if module._driven:
        module._notice_stillness()
    return {**module._arguments, **{name: getattr(module, name) for name in module._driven}}


def is_scheduled(module: nn.Module) -> bool:
    """Whether any part of it moves with the training."""
    return any(
        getattr(part, "_scheduled", None) or getattr(part, "_weight_schedule", None) is not None
        for part in module.modules()
    )


def _follow_schedules(module: Any, progress: float) -> None:
    if module._scheduled:
        arguments = _resolve(module, progress)
        for name in module._driven:
            getattr(module, name).fill_(arguments[name])


def _keep_precision(module: Any, fn: Any, apply: Callable[[], Any]) -> Any:
    """Move scheduled values with the module, but never round them to a half type."""
    values = {name: getattr(module, name).item() for name in module._driven}
    result = apply()
    for name, value in values.items():
        buffer = getattr(module, name)
        dtype = torch.float32 if buffer.device.type == "mps" else torch.float64
        setattr(module, name, torch.tensor(value, dtype=dtype, device=buffer.device))
    return result


def _spec(module: Any) -> str:
    """``name(parameter=value, …)`` with the parameters that differ from their defaults."""
    defaults = {p.name: p.default for p in module.row.parameters}
    shown = [f"{n}={_literal(v)}" for n, v in module.parameters_given.items() if v != defaults[n]]
    return f"{module.row.name}({', '.join(shown)})" if shown else module.row.name


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return exact(value) if isinstance(value, float) else str(value)


def _binary_options(
    module: Any,
    weight: Tensor | None = None,
    pos_weight: Tensor | None = None,
    reduction: str = "mean",
) -> None:
    r.check_reduction(reduction)
    module.register_buffer("weight", weight)
    module.register_buffer("pos_weight", pos_weight)
    module.reduction = reduction


def _terms(loss: _Loss) -> list[tuple[float, Any]]:
    if isinstance(loss, SumLoss):
        return list(zip(loss.coefficients, loss.losses, strict=True))
    return [(1.0, loss)]


def _options_of(loss: _Loss) -> dict[str, Any]:
    """The options of a loss, for a wrapper to take over (a sum's terms share theirs)."""
    inner = loss.losses[0] if isinstance(loss, SumLoss) else loss
    if not isinstance(inner, ClassificationLoss):
        raise InputError(f"expected a classification loss to wrap; got {loss.spec}.")
    if isinstance(loss, SumLoss) and not loss._same_options():
        raise InputError(
            f"the terms of {loss.spec} must share weight, reduction and all other options, since "
            "the wrapper takes them over; make the sum with losslab.loss(SPEC, weight=…)."
        )
    options = inner.options()
    return options | {"weight": inner._weight_schedule or options["weight"]}


def _sum_of_psi(terms: list[tuple[float, r.Psi | None]]) -> r.Psi | None:
    """Σ c_i ψ_i, or None where a term is not a ψ."""
    if any(psi is None for _, psi in terms):
        return None
    return lambda a: sum(times(c, psi(a)) for c, psi in terms)  # type: ignore[misc, return-value]


def _sigmoid_psi(loss: Any) -> r.Psi | None:
    """ψ as one sigmoid output sees it; a sum's is the sum of its terms'."""
    if isinstance(loss, SumLoss):
        return _sum_of_psi([(c, _sigmoid_psi(term)) for c, term in _terms(loss)])
    if isinstance(loss, CatalogLoss):
        psi, arguments = loss.row.psi, _arguments(loss)
        return None if psi is None else lambda a: psi(a, **arguments)
    return getattr(loss, "psi", None)
