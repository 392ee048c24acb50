"""A classifier for scikit-learn whose loss is any of losslab's.

    model = make_pipeline(StandardScaler(), LossClassifier("encouraging"))
    GridSearchCV(LossClassifier(), {"loss": ["cross_entropy", "encouraging", "mixed(focus=0.3)"]})

It is a fully connected network (none of hidden layers makes it linear) with the argument names of
scikit-learn's `MLPClassifier`, whose loss is cross-entropy alone. For networks of your own there is
skorch: ``NeuralNetClassifier(module, criterion=losslab.EncouragingLoss)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Tensor, nn

from losslab.errors import InputError
from losslab.losses.modules import OddsLoss
from losslab.losses.spec import loss as loss_of


class LossClassifier(ClassifierMixin, BaseEstimator):
    """A fully connected network trained with a loss of your choice, by Adam.

    Args:
        loss: A spec, as `losslab.loss` takes it, or a ψ of your own (log-odds -> loss). Schedules
            in it run over the whole training.
        hidden_layer_sizes: Units of each hidden layer (ReLU); ``()`` is a linear classifier.
        learning_rate_init: Adam's rate, constant.
        max_iter: Passes over the training data; all are made.
        batch_size: Examples a step; ``"auto"`` is ``min(200, n_samples)``.
        alpha: L2 penalty as `MLPClassifier` has it: alpha/2 ‖w‖² over the batch's examples.
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

    Inputs are used as they are, so put a ``StandardScaler`` before it.

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
        hidden_layer_sizes: Sequence[int] = (100,),
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

    def fit(self, X: Any, y: Any) -> LossClassifier:
        """Train a fresh network.

        Raises:
            ValueError: As scikit-learn's estimators do; `InputError` is one.
        """
        X, y = validate_data(self, X, y, dtype=np.float32)
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
            self.network_ = self._network(inputs.shape[1]).to(self.device)
        self.loss_curve_ = self._train(inputs, target, self._criterion(y), seed)
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
        X = validate_data(self, X, dtype=np.float32, reset=False)
        with torch.inference_mode():
            logits = self.network_(torch.from_numpy(np.array(X)).to(self.device))
        return np.asarray(logits.cpu())

    def _check(self) -> None:
        if self.max_iter < 1 or self.learning_rate_init <= 0 or self.alpha < 0:
            raise InputError(
                "Expected max_iter of at least 1, learning_rate_init above 0 and alpha of at least "
                f"0, but got {self.max_iter}, {self.learning_rate_init} and {self.alpha}."
            )

    def _criterion(self, y: np.ndarray) -> nn.Module:
        weight = None
        if self.class_weight is not None:
            found = compute_class_weight(self.class_weight, classes=self.classes_, y=y)
            weight = torch.tensor(found, dtype=torch.float32)
        options = {"weight": weight, "label_smoothing": self.label_smoothing}
        if isinstance(self.loss, str):
            return loss_of(self.loss, **options).to(self.device)
        return OddsLoss(self.loss, **options).to(self.device)

    def _network(self, columns: int) -> nn.Module:
        sizes = (columns, *self.hidden_layer_sizes)
        hidden = [
            part
            for wide, narrow in pairwise(sizes)
            for part in (nn.Linear(wide, narrow), nn.ReLU())
        ]
        return nn.Sequential(*hidden, nn.Linear(sizes[-1], len(self.classes_)))

    def _train(
        self, inputs: Tensor, target: Tensor, criterion: nn.Module, seed: int
    ) -> list[float]:
        size = min(200, len(target)) if self.batch_size == "auto" else int(self.batch_size)
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
                for objective, optimizer in zip(objectives, optimizers, strict=True):
                    optimizer.zero_grad()
                    loss = objective(self.network_(inputs[rows]), target[rows])
                    penalty = sum(w.square().sum() for w in weights)
                    (loss + self.alpha / 2 / len(rows) * penalty).backward()
                    optimizer.step()
                summed += loss.item() * len(rows)
                step += 1
            curve.append(summed / len(target))
        return curve


def _passes(examples: int, size: int, count: int, seed: int) -> Iterator[tuple[Tensor, ...]]:
    """The batches of each pass, in an order that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randperm(examples, generator=generator).split(size)
