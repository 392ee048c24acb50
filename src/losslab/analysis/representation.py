"""How good a model's features are: its output layer learned anew, and linear probes.

Both freeze everything under the layer that they learn, in evaluation mode, so the features of all
examples are computed once; the model that is given is left as it was.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from losslab import metrics
from losslab.analysis.classifier import Data
from losslab.analysis.features import features_of, output_layer
from losslab.analysis.finding import Finding
from losslab.errors import InputError
from losslab.metrics.shots import shot_metrics


@torch.inference_mode(False)
@torch.enable_grad()
def retrain_output_layer(
    model: nn.Module,
    train: Data,
    test: Data,
    *,
    layer: str | None = None,
    epochs: int = 20,
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 1e-4,
    batch_size: int = 128,
    decay_every: int = 5,
    balanced: bool = False,
    criterion: nn.Module | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Finding:
    """Accuracy after the output layer alone was initialised anew and trained on frozen features.

    The new layer and the order of its batches hang on ``seed`` alone: models that were trained with
    different losses get the same start.

    Args:
        model: A classifier whose logits are what one ``nn.Linear`` returns; moved to ``device``.
        train: Examples that the new layer learns from.
        test: Examples that it is measured on.
        layer: Name of the output layer, as in ``model.named_modules()``; found if left out.
        epochs: Passes over ``train``.
        lr: Learning rate of SGD, times 0.1 after every ``decay_every`` epochs.
        momentum: Of SGD.
        weight_decay: Of SGD, on weights and biases.
        batch_size: Examples a step.
        decay_every: Epochs between decays.
        balanced: Draw the batches class by class, each as likely as the others, instead of every
            example once an epoch: the retrained classifier (cRT) of Kang et al. 2020, for long
            tails.
        criterion: What the new layer is trained with, as it stands; cross-entropy if left out.
        seed: Decides the new layer's start and the order of its batches.
        device: Where the model and the layer compute.

    Returns:
        ``accuracy``, ``nll`` (test) and ``train_accuracy`` of the new layer after the last epoch,
        ``accuracy_before`` of the model as it came (test). With ``balanced`` also
        ``balanced_accuracy``, ``balanced_accuracy_before`` and the new layer's accuracies over
        classes with many, a medium number of and few training examples, as far as there are
        any (``accuracy_many``, …: `losslab.metrics.shots`).

    Raises:
        InputError: If no ``nn.Linear`` is found to produce the logits, or a number of the recipe
            makes no sense.

    Example:
        >>> x, y = torch.randn(64, 5), torch.arange(64) % 3
        >>> model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> found = retrain_output_layer(model, (x, y), (x, y), epochs=2)
        >>> found.details["layer"], found.details["features"]
        ('2', 8)

    Source: Zhao et al. 2022, section 5.3 and appendix C (20 epochs, learning rate 0.1, times 0.1
    every 5), after Kang et al. 2020. Momentum, weight decay and batch size are not stated there.
    """
    recipe = _Recipe(epochs, lr, momentum, weight_decay, batch_size, decay_every, seed, balanced)
    recipe.check()
    name = output_layer(model, train, layer, device=device)
    features, before, target = features_of(model, name, train, device, incoming=True)
    test_features, test_before, test_target = features_of(model, name, test, device, incoming=True)
    metrics.accuracy(before, target), metrics.accuracy(test_before, test_target)  # targets in range
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    generator = torch.Generator().manual_seed(seed)
    new = _fresh(old.in_features, old.out_features, old.bias is not None, generator).to(device)
    losses = _learn(new, features.to(device), target.to(device), criterion, recipe, generator)
    values = {"accuracy_before": metrics.accuracy(test_before, test_target).item()}
    flags: tuple[str, ...] = ()
    with torch.no_grad():
        logits, test_logits = new(features.to(device)).cpu(), new(test_features.to(device)).cpu()
    if bool(logits.isfinite().all()) and bool(test_logits.isfinite().all()):
        values |= {
            "accuracy": metrics.accuracy(test_logits, test_target).item(),
            "nll": metrics.nll(test_logits, test_target).item(),
            "train_accuracy": metrics.accuracy(logits, target).item(),
        }
        if balanced:
            values["balanced_accuracy_before"] = metrics.balanced_accuracy(
                test_before, test_target
            ).item()
            values |= _by_class(test_logits, test_target, target)
    else:
        flags = (
            f"The new output layer diverged at the learning rate {lr:g}; its features are as large "
            f"as {features.abs().max():.3g}. Nothing is said of their quality.",
        )
    details = {
        "layer": name,
        "features": old.in_features,
        "recipe": asdict(recipe),
        "lr": [recipe.rate(epoch) for epoch in range(epochs)],
        "train_loss": [loss if math.isfinite(loss) else None for loss in losses],
    }
    return Finding(values, details, flags)


def linear_probe(
    model: nn.Module,
    train: Data,
    test: Data,
    *,
    layer: str | None = None,
    C: float = 1.0,
    max_iter: int = 1000,
    device: str | torch.device = "cpu",
) -> Finding:
    """Accuracy of a logistic regression on a model's standardised features.

    Args:
        model: Any classifier; moved to ``device``.
        train: Examples that the regression is fitted to, and the features standardised by.
        test: Examples that it is measured on.
        layer: Name of the module whose output is probed, flattened, as in
            ``model.named_modules()``; if left out, what comes into the output layer.
        C: Inverse strength of the L2 penalty, as scikit-learn has it.
        max_iter: Iterations of its solver (L-BFGS).
        device: Where the model computes.

    Returns:
        ``accuracy`` (test) and ``train_accuracy``. A fit that has not converged is flagged.

    Raises:
        InputError: If there is no such layer, its output cannot be probed, or ``train`` has a
            single class.

    Example:
        >>> x, y = torch.randn(64, 5), torch.arange(64) % 3
        >>> model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> linear_probe(model, (x, y), (x, y), layer="0").details["features"]
        8
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    incoming = layer is None
    name = output_layer(model, train, None, device=device) if layer is None else layer
    features, _, target = features_of(model, name, train, device, incoming=incoming)
    test_features, _, test_target = features_of(model, name, test, device, incoming=incoming)
    if len(target.unique()) < 2:
        raise InputError(
            "Expected examples of at least two classes to fit a linear probe to, but all are of "
            f"class {int(target[0])}."
        )
    scaler = StandardScaler()
    inputs = scaler.fit_transform(features.double().numpy())
    test_inputs = scaler.transform(test_features.double().numpy())
    probe = LogisticRegression(C=C, max_iter=max_iter)
    converged = _fit(probe, inputs, target.numpy())
    constant = int((features == features[0]).all(dim=0).sum())
    details = {
        "layer": name,
        "side": "input" if incoming else "output",
        "features": features.shape[1],
        "constant_features": constant,
        "C": C,
        "iterations": int(probe.n_iter_.max()),
        "converged": converged,
    }
    values = {
        "accuracy": float(probe.score(test_inputs, test_target.numpy())),
        "train_accuracy": float(probe.score(inputs, target.numpy())),
    }
    flags = () if converged else (f"The linear probe has not converged in {max_iter} iterations.",)
    return Finding(values, details, flags)


@dataclass(frozen=True)
class _Recipe:
    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    batch_size: int
    decay_every: int
    seed: int
    balanced: bool = False

    def check(self) -> None:
        for name in ("epochs", "batch_size", "decay_every"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InputError(
                    f"Expected {name} to be a whole number of at least 1, but got {value!r}."
                )
        if not 0 < self.lr < math.inf:
            raise InputError(f"Expected lr to be a finite number above 0, but got {self.lr!r}.")

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, counted from 0."""
        return self.lr * 0.1 ** (epoch // self.decay_every)


def _fresh(features: int, classes: int, bias: bool, generator: torch.Generator) -> nn.Linear:
    """A layer as ``nn.Linear`` initialises it, by a generator of its own."""
    layer = nn.utils.skip_init(nn.Linear, features, classes, bias=bias)
    bound = 1 / math.sqrt(features)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
    return layer


def _learn(
    layer: nn.Linear,
    features: Tensor,
    target: Tensor,
    criterion: nn.Module | None,
    recipe: _Recipe,
    generator: torch.Generator,
) -> list[float]:
    """Train ``layer`` on features and targets by the recipe; the mean loss of every epoch."""
    criterion = nn.CrossEntropyLoss() if criterion is None else criterion.to(features.device)
    optimizer = torch.optim.SGD(
        layer.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay
    )
    losses = []
    for epoch in range(recipe.epochs):
        optimizer.param_groups[0]["lr"] = recipe.rate(epoch)
        total = torch.zeros((), device=features.device)
        order = _order(target.cpu(), recipe.balanced, generator).to(features.device)
        for rows in order.split(recipe.batch_size):
            optimizer.zero_grad()
            loss = criterion(layer(features[rows]), target[rows])
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(rows)
        losses.append(total.item() / len(target))
    return losses


def _order(target: Tensor, balanced: bool, generator: torch.Generator) -> Tensor:
    """The examples of an epoch: each once, or so many of classes that are all as likely."""
    if not balanced:
        return torch.randperm(len(target), generator=generator)
    chance = 1 / torch.bincount(target)[target].double()
    return torch.multinomial(chance, len(target), replacement=True, generator=generator)


def _by_class(logits: Tensor, target: Tensor, train_target: Tensor) -> dict[str, float]:
    """Accuracies that do not drown the rare classes."""
    kept = metrics.examples(logits, target)
    sizes = torch.bincount(train_target, minlength=logits.shape[1])
    found = {row.name: row.measured(kept) for row in shot_metrics(sizes.tolist())}
    found["balanced_accuracy"] = metrics.balanced_accuracy(logits, target).item()
    return {name: value for name, value in found.items() if math.isfinite(value)}


def _fit(probe: Any, inputs: Any, target: Any) -> bool:
    """Fit, and say whether the solver has converged."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", ConvergenceWarning)
        probe.fit(inputs, target)
    for other in told:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return not any(issubclass(one.category, ConvergenceWarning) for one in told)
