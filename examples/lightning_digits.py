"""Lightning: the module with its one changed line, and the callback that advances its schedule."""

import lightning.pytorch as lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import losslab
from losslab.integrations.lightning import LossSchedule


class Digits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.criterion = losslab.loss("mixed(focus=phases(0, 0.25, 0.5))")  # nn.CrossEntropyLoss()

    def training_step(self, batch, _):
        return self.criterion(self.network(batch[0]), batch[1])

    def test_step(self, batch, _):
        right = (self.network(batch[0]).argmax(1) == batch[1]).float().mean()
        self.log("test_accuracy", right)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main() -> float:
    lightning.seed_everything(0, verbose=False)
    X, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(X, dtype=torch.float32) / 16, torch.tensor(y))
    train, test = torch.utils.data.random_split(data, [1400, 397])
    trainer = lightning.Trainer(
        max_epochs=10,
        callbacks=[LossSchedule()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Digits()
    trainer.fit(module, DataLoader(train, 64, shuffle=True))
    (found,) = trainer.test(module, DataLoader(test, 397), verbose=False)
    print(f"test accuracy {100 * found['test_accuracy']:.1f} %")
    return found["test_accuracy"]


if __name__ == "__main__":
    main()
