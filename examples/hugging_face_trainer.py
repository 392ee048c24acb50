"""Hugging Face's Trainer: any model that returns logits, with gradient accumulation."""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from transformers import Trainer, TrainingArguments

from losslab.integrations.transformers import TrainerLoss


class Digits(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x, labels=None):
        return {"logits": self.network(x)}


def main() -> float:
    X, y = load_digits(return_X_y=True)
    rows = [
        {"x": torch.tensor(x, dtype=torch.float32) / 16, "labels": int(label)}
        for x, label in zip(X, y, strict=True)
    ]
    loss = TrainerLoss("encouraging", label_smoothing=0.05)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=10,
            per_device_train_batch_size=16,
            gradient_accumulation_steps=4,
            learning_rate=3e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(
            Digits(),
            arguments,
            train_dataset=rows[:1400],
            compute_loss_func=loss,  # the one line
            callbacks=loss.callbacks,
        )
        trainer.train()
        answers = trainer.predict(rows[1400:]).predictions.argmax(1)
    right = float((answers == y[1400:]).mean())
    print(f"test accuracy {100 * right:.1f} %")
    return right


if __name__ == "__main__":
    main()
