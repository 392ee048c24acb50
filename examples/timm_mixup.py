"""timm: a small ResNet on digits, with timm's mixup, CutMix and label smoothing.

In timm's own ``train.py`` the same is one line, ``train_loss_fn = losslab.loss("encouraging")``,
after the choice of the loss and before ``train_loss_fn.to(device=device)``.
"""

import numpy as np
import timm
import timm.data
import timm.task
import torch
from sklearn.datasets import load_digits

import losslab

EPOCHS, BATCH = 5, 64


def main() -> float:
    X, y = load_digits(return_X_y=True)
    images, labels = torch.tensor(X, dtype=torch.float32).view(-1, 1, 8, 8) / 16, torch.tensor(y)
    images = images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    torch.manual_seed(0)
    np.random.seed(0)  # timm's mixup draws from it
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    mixup = timm.data.Mixup(0.2, cutmix_alpha=0.2, label_smoothing=0.1, num_classes=10)
    criterion = losslab.loss("encouraging")  # was: timm.loss.SoftTargetCrossEntropy()
    task = timm.task.ClassificationTask(model, criterion, verbose=False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for batch in torch.randperm(1400)[:1344].split(BATCH):  # mixup wants even batches
            result = task(*mixup(images[batch], labels[batch]))
            optimizer.zero_grad()
            result["loss"].backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        right = (model(images[1400:]).argmax(1) == labels[1400:]).float().mean().item()
    print(f"test accuracy {100 * right:.1f} %")
    return right


if __name__ == "__main__":
    main()
