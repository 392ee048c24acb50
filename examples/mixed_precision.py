"""Mixed precision: the model in bfloat16 (float16 on a GPU), the loss in float32 by itself.

Under autocast a loss computes in float32, as ``F.cross_entropy`` does, whatever the logits are.
float16 wants a gradient scaler; for bfloat16 it is switched off.
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import losslab

EPOCHS, BATCH, TRAIN = 10, 50, 1400


def main() -> float:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    half = torch.float16 if device == "cuda" else torch.bfloat16
    X, y = load_digits(return_X_y=True)
    inputs = torch.tensor(X, dtype=torch.float32, device=device) / 16
    target = torch.tensor(y, device=device)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).to(device)
    criterion = losslab.loss("encouraging(rho=ramp(0, 1))").to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scaler = torch.amp.GradScaler(device, enabled=half is torch.float16)
    for epoch in range(EPOCHS):
        criterion.set_progress(epoch / EPOCHS)
        for batch in torch.randperm(TRAIN).split(BATCH):
            with torch.autocast(device, half):
                loss = criterion(model(inputs[batch]), target[batch])
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    with torch.no_grad():
        right = (model(inputs[TRAIN:]).argmax(1) == target[TRAIN:]).float().mean().item()
    print(f"test accuracy {100 * right:.1f} %")
    if sys.argv[1:]:
        torch.save(model.state_dict(), sys.argv[1])
    return right


if __name__ == "__main__":
    main()
