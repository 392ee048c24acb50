"""A classifier for scikit-learn whose loss is any of losslab's.

    model = make_pipeline(StandardScaler(), LossClassifier("encouraging"))
    GridSearchCV(LossClassifier(), {"loss": ["cross_entropy", "encouraging", "mixed(focus=0.3)"]})

It is a fully connected network (none of hidden layers makes it linear) with the argument names of
scikit-learn's `MLPClassifier`, whose loss is cross-entropy alone. For networks of your own there is
skorch: ``NeuralNetClassifier(module, criterion=losslab.EncouragingLoss,
predict_nonlinearity=torch.nn.Softmax(dim=-1))``. It knows the softmax of PyTorch's losses only,
hence the last argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.losses.modules import OddsLoss
from losslab.losses.spec import loss as loss_of


class LossClassifier(ClassifierMixin, BaseEstimator):
    """A fully connected network trained with a loss of your choice, by Adam.

    Args:
        loss: A spec, as `losslab.loss` takes it, or a ψ of your own (log-odds -> loss). Schedules
            in it run over the whole training.
        hidden_layer_sizes: Units of each hidden layer (ReLU), or of the one layer; ``()`` is a
            linear classifier.
        learning_rate_init: Adam's rate, constant.
        max_iter: Passes over the training data; all are made.
        batch_size: Examples a step; ``"auto"`` is ``min(200, n_samples)``.
        alpha: L2 penalty as `MLPClassifier` has it: alpha/2 ‖w‖² over the batch's examples (or
            the sum of their weights).
        label_smoothing: As PyTorch's.
        class_weight: None, ``"balanced"``, or a weight by class.
        random_state: Decides weights and order; None draws anew.
        device: Where to train: ``"cpu"``, ``"cuda"``, ….

    Attributes:
        classes_: The classes, sorted.
        n_features_in_: Number of columns seen by `fit`.
        network_: The trained `torch.nn.Module`, from standardised or raw columns as given.
        loss_curve_: Mean training loss of each pass.
        n_iter_: Passes made.

    Inputs are used as they are, so put a ``StandardScaler`` before it. As in `MLPClassifier` the
    network has their precision: float32 columns make a float32 network, all others a float64 one.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> X, y = load_iris(return_X_y=True)
        >>> LossClassifier("encouraging", random_state=0).fit(X, y).score(X, y) > 0.9
        True
    """

    def __init__(
        self,
        loss: str | Callable[[Tensor], Tensor] = "cross_entropy",
        *,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        learning_rate_init: float = 1e-3,
        max_iter: int = 200,
        batch_size: int | str = "auto",
        alpha: float = 1e-4,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        random_state: Any = None,
        device: str = "cpu",
    ) -> None:
        self.loss = loss
        self.hidden_layer_sizes = hidden_layer_sizes
        self.learning_rate_init = learning_rate_init
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.alpha = alpha
        self.label_smoothing = label_smoothing
        self.class_weight = class_weight
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> LossClassifier:
        """Train a fresh network.

        Args:
            X: ``(n_samples, n_features)``.
            y: Their classes.
            sample_weight: Of each example in the loss's mean, at least 0; None weighs all alike.
                Class weights multiply it.

        Raises:
            ValueError: As scikit-learn's estimators do; `InputError` is one.
        """
        X, y = validate_data(self, X, y, dtype=self._dtypes())
        if sample_weight is not None:
            sample_weight = _check_sample_weight(
                sample_weight, X, dtype=X.dtype, ensure_non_negative=True
            )
            if not sample_weight.any():
                raise InputError("Expected a sample_weight above 0, but all are 0.")
        check_classification_targets(y)
        self.classes_, numbers = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise InputError(
                f"Expected two or more classes, but got one class: {self.classes_[0]}."
            )
        self._check()
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        inputs = torch.from_numpy(np.array(X)).to(self.device)
        target = torch.from_numpy(numbers.astype(np.int64)).to(self.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.network_ = self._network(inputs.shape[1]).to(self.device, inputs.dtype)
        criterion = self._criterion(numbers, sample_weight)
        weight = None if sample_weight is None else torch.from_numpy(sample_weight).to(self.device)
        self.loss_curve_ = self._train(inputs, target, weight, criterion, seed)
        self.n_iter_ = len(self.loss_curve_)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Logits ``(n_samples, n_classes)``; for two classes the log-odds of the second, alone."""
        logits = self._logits(X)
        return logits if len(self.classes_) > 2 else logits[:, 1] - logits[:, 0]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Softmax of the logits, ``(n_samples, n_classes)``."""
        return np.asarray(torch.from_numpy(self._logits(X)).softmax(dim=1))

    def predict(self, X: Any) -> np.ndarray:
        """The class of the largest logit."""
        best = self._logits(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=self._dtypes(), reset=False)
        inputs = torch.from_numpy(np.array(X)).to(
            self.device, next(self.network_.parameters()).dtype
        )
        with torch.inference_mode():
            logits = self.network_(inputs)
        return np.asarray(logits.cpu())

    def _dtypes(self) -> list[type]:
        """What the columns may be, as `MLPClassifier` has it; Apple's GPU has no float64."""
        on_apple = torch.device(self.device).type == "mps"
        return [np.float32] if on_apple else [np.float64, np.float32]

    def _check(self) -> None:
        sizes = self._sizes()
        for name, found, fits, wanted in (
            ("max_iter", self.max_iter, _whole(self.max_iter, 1), "a whole number of at least 1"),
            ("learning_rate_init", self.learning_rate_init,
             isinstance(self.learning_rate_init, Real) and self.learning_rate_init > 0, "above 0"),
            ("alpha", self.alpha, isinstance(self.alpha, Real) and self.alpha >= 0, "at least 0"),
            ("batch_size", self.batch_size,
             self.batch_size == "auto" or _whole(self.batch_size, 1),
             "'auto' or a whole number of at least 1"),
            ("hidden_layer_sizes", self.hidden_layer_sizes,
             all(_whole(size, 1) for size in sizes),
             "a whole number of at least 1, or a sequence of them"),
        ):  # fmt: skip
            if not fits:
                raise InputError(f"Expected {name} to be {wanted}, but got {found!r}.")
        if isinstance(self.loss, nn.Module) or not (
            isinstance(self.loss, str) or callable(self.loss)
        ):
            written = getattr(self.loss, "spec", "encouraging")
            raise InputError(
                f"Expected loss to be a spec, such as {written!r}, or a function of the log-odds, "
                f"but got {type(self.loss).__name__}."
            )

    def _sizes(self) -> Sequence[Any]:
        """The hidden layers' units, whether one was given or several."""
        given = self.hidden_layer_sizes
        return tuple(given) if isinstance(given, (Sequence, np.ndarray)) else (given,)

    def _criterion(self, numbers: np.ndarray, sample_weight: np.ndarray | None) -> nn.Module:
        options: dict[str, Any] = {
            "weight": self._class_weights(numbers, sample_weight),
            "label_smoothing": self.label_smoothing,
            "reduction": "mean" if sample_weight is None else "none",
        }
        if isinstance(self.loss, str):
            return loss_of(self.loss, **options).to(self.device)
        return OddsLoss(self.loss, **options).to(self.device)

    def _class_weights(
        self, numbers: np.ndarray, sample_weight: np.ndarray | None
    ) -> Tensor | None:
        if self.class_weight is None:
            return None
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            counts = np.bincount(numbers, sample_weight, len(self.classes_))
            found = counts.sum() / len(counts) / np.maximum(counts, np.finfo(np.float32).tiny)
        else:
            y = self.classes_[numbers]
            found = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        return torch.tensor(found, dtype=torch.float32)

    def _network(self, columns: int) -> nn.Module:
        sizes = (columns, *self._sizes())
        hidden = [
            part
            for wide, narrow in pairwise(sizes)
            for part in (nn.Linear(wide, narrow), nn.ReLU())
        ]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], len(self.classes_)))

    def _train(
        self,
        inputs: Tensor,
        target: Tensor,
        weight: Tensor | None,
        criterion: nn.Module,
        seed: int,
    ) -> list[float]:
        size = min(200, len(target)) if self.batch_size == "auto" else int(self.batch_size)
        everything = len(target) if weight is None else weight.sum().item()
        objectives = getattr(criterion, "steps", (criterion,))
        optimizers = [
            torch.optim.Adam(self.network_.parameters(), lr=self.learning_rate_init)
            for _ in objectives
        ]
        weights = [p for p in self.network_.parameters() if p.dim() > 1]
        total, step = self.max_iter * -(-len(target) // size), 0
        curve = []
        for rows_of_pass in _passes(len(target), size, self.max_iter, seed):
            summed = 0.0
            for rows in rows_of_pass:
                getattr(criterion, "set_progress", lambda _: None)(step / total)
                step += 1
                examples = len(rows) if weight is None else weight[rows].sum().item()
                if not examples:  # nothing to learn from
                    continue
                for objective, optimizer in zip(objectives, optimizers, strict=True):
                    optimizer.zero_grad()
                    loss = objective(self.network_(inputs[rows]), target[rows])
                    if weight is not None:
                        loss = _weighted(loss, weight[rows], target[rows], criterion)
                    penalty = sum(w.square().sum() for w in weights)
                    (loss + self.alpha / 2 / examples * penalty).backward()
                    optimizer.step()
                summed += loss.item() * examples
            curve.append(summed / everything)
        return curve


def _weighted(losses: Tensor, weight: Tensor, target: Tensor, criterion: nn.Module) -> Tensor:
    """The examples' mean by their weights, times those of their classes, as PyTorch's mean is."""
    found = (getattr(part, "weight", None) for part in criterion.modules())
    classes = next((by_class for by_class in found if by_class is not None), None)
    total = weight if classes is None else weight * classes[target]
    return (losses * weight).sum() / total.sum()


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def _passes(examples: int, size: int, count: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """The batches of each pass, in an order that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randperm(examples, generator=generator).split(size)
