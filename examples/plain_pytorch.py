"""A training loop of one's own: the one changed line, and a schedule.

``compiled.py``, ``mixed_precision.py`` and ``distributed.py`` are this loop with one thing more.
With a file name as argument each saves the weights there.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import losslab

EPOCHS, BATCH, TRAIN = 10, 50, 1400


def main() -> float:
    X, y = load_digits(return_X_y=True)
    inputs, target = torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    criterion = losslab.loss("encouraging(rho=ramp(0, 1))")  # was: nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(EPOCHS):
        criterion.set_progress(epoch / EPOCHS)  # only for losses with a schedule
        for batch in torch.randperm(TRAIN).split(BATCH):
            loss = criterion(model(inputs[batch]), target[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(inputs[TRAIN:]).argmax(1) == target[TRAIN:]).float().mean().item()
    print(f"test accuracy {100 * right:.1f} %")
    if sys.argv[1:]:
        torch.save(model.state_dict(), sys.argv[1])
    return right


if __name__ == "__main__":
    main()
