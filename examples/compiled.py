"""torch.compile: model and loss as one graph, without a break.

A schedule moves a number that the graph reads, so it does not compile anew. The first step takes
some ten seconds, for the compiler.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import losslab

EPOCHS, BATCH, TRAIN = 10, 50, 1400


def main() -> float:
    X, y = load_digits(return_X_y=True)
    inputs, target = torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    criterion = losslab.loss("encouraging(rho=ramp(0, 1))")

    @torch.compile(fullgraph=True)
    def loss_of(inputs: Tensor, target: Tensor) -> Tensor:
        return criterion(model(inputs), target)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(EPOCHS):
        criterion.set_progress(epoch / EPOCHS)
        for batch in torch.randperm(TRAIN).split(BATCH):
            loss = loss_of(inputs[batch], target[batch])
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
