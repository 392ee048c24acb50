"""A training loop of one's own: the one changed line, a schedule, mixed precision.

Under ``torchrun --nproc-per-node 2 examples/plain_pytorch.py`` the same runs as DDP.
"""

import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import losslab

EPOCHS, BATCH = 10, 64


def main() -> float:
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    rank = int(os.environ.get("RANK", 0))
    if ranks > 1:
        torch.distributed.init_process_group("gloo")
    X, y = load_digits(return_X_y=True)
    inputs, target = torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    if ranks > 1:
        model = DistributedDataParallel(model)
    criterion = losslab.loss("encouraging(rho=ramp(0, 1))")  # was: nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    train, test = slice(0, 1400), slice(1400, None)
    order = torch.Generator().manual_seed(0)
    for epoch in range(EPOCHS):
        criterion.set_progress(epoch / EPOCHS)  # only for losses with a schedule
        for batch in torch.randperm(1400, generator=order).split(BATCH):
            rows = batch[rank::ranks]
            with torch.autocast("cpu", torch.bfloat16):
                loss = criterion(model(inputs[train][rows]), target[train][rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = (model(inputs[test]).argmax(1) == target[test]).float().mean().item()
    if rank == 0:
        print(f"test accuracy {100 * right:.1f} %")
    if ranks > 1:
        torch.distributed.destroy_process_group()
    return right


if __name__ == "__main__":
    main()
