"""DistributedDataParallel: torchrun --nproc-per-node 2 examples/distributed.py

DDP takes the mean of the processes' gradients. With equal shares of a batch that is the gradient
of the batch's mean. Where shares are unequal in number, in class weights or in ignored rows, take
``reduction="sum"``, times the number of processes, over what counts in the whole batch.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import losslab

EPOCHS, BATCH, TRAIN = 10, 50, 1400


def main() -> float:
    torch.distributed.init_process_group("gloo")
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    X, y = load_digits(return_X_y=True)
    inputs, target = torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y)
    torch.manual_seed(0)  # one for all: the same batches, of which each takes its rows
    plain = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    model = DistributedDataParallel(plain)
    criterion = losslab.loss("encouraging(rho=ramp(0, 1))")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for epoch in range(EPOCHS):
        criterion.set_progress(epoch / EPOCHS)
        for batch in torch.randperm(TRAIN).split(BATCH):
            rows = batch[rank::ranks]
            loss = criterion(model(inputs[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        right = (plain(inputs[TRAIN:]).argmax(1) == target[TRAIN:]).float().mean().item()
    if rank == 0:
        print(f"test accuracy {100 * right:.1f} %")
        if sys.argv[1:]:
            torch.save(plain.state_dict(), sys.argv[1])
    torch.distributed.destroy_process_group()
    return right


if __name__ == "__main__":
    main()
