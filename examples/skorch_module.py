"""skorch: a module of your own, in scikit-learn's search over losses.

skorch knows the softmax of PyTorch's own losses alone, so it is told of it; else `predict_proba`
would return logits.
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from skorch import NeuralNetClassifier

import losslab


def main() -> float:
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split((X / 16).astype(np.float32), y, random_state=0)
    torch.manual_seed(0)
    net = NeuralNetClassifier(
        torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)),
        criterion=losslab.EncouragingLoss,
        predict_nonlinearity=torch.nn.Softmax(dim=-1),
        optimizer=torch.optim.Adam,
        lr=0.01,
        max_epochs=10,
        verbose=0,
    )
    search = GridSearchCV(net, {"criterion__log_end": [0.5, 0.75, 1.0]}, cv=3).fit(X, y)
    right = float(search.score(X_test, y_test))
    p = search.predict_proba(X_test)
    print(f"log_end={search.best_params_['criterion__log_end']}, rows of p sum to {p[0].sum():.4f}")
    print(f"test accuracy {100 * right:.1f} %")
    return right


if __name__ == "__main__":
    main()
