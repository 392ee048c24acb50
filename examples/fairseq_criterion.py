"""fairseq: the criterion as its trainer calls it, here in a loop of two pieces a batch.

Where fairseq is installed, this registers it as ``--criterion encouraging``:

    from fairseq.criterions import FairseqCriterion, register_criterion
    from losslab.integrations import adapters

    @register_criterion("encouraging")
    class Encouraging(FairseqCriterion):
        def __init__(self, task):
            super().__init__(task)
            spec = "smoothed(encouraging, amount=0.1)"
            self.loss = adapters.FairseqCriterion(spec, self.padding_idx)

        def forward(self, model, sample, reduce=True):
            return self.loss(model, sample, reduce)

        @staticmethod
        def reduce_metrics(logs):
            from fairseq import metrics
            found = adapters.FairseqCriterion.aggregate(logs)
            metrics.log_scalar("loss", found["loss"], found["sample_size"], round=3)

        @staticmethod
        def logging_outputs_can_be_summed():
            return True
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from losslab.integrations.adapters import FairseqCriterion

VOCABULARY, LENGTH, PADDING = 30, 12, 1


def sample(rows: int) -> dict[str, Any]:
    """Words of unequal length, to be written in another alphabet."""
    words = torch.randint(2, VOCABULARY, (rows, LENGTH))
    long = torch.arange(LENGTH) < torch.randint(3, LENGTH + 1, (rows, 1))
    target = (words * 7) % (VOCABULARY - 2) + 2
    source = words.masked_fill(~long, PADDING)
    return {"net_input": {"src_tokens": source}, "target": target.masked_fill(~long, PADDING)}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.output = nn.Embedding(VOCABULARY, 32), nn.Linear(32, VOCABULARY)

    def forward(self, src_tokens: Tensor) -> tuple[Tensor, None]:
        return self.output(self.table(src_tokens)), None


def main() -> None:
    torch.manual_seed(0)
    model = Model()
    criterion = FairseqCriterion("smoothed(encouraging, amount=0.1)", padding_idx=PADDING)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(100):  # as fairseq's trainer: pieces add up, then the sum is divided
        optimizer.zero_grad()
        pieces = [criterion(model, sample(rows)) for rows in (24, 8)]
        torch.stack([loss for loss, _, _ in pieces]).sum().backward()
        counted = sum(size for _, size, _ in pieces)
        for parameter in model.parameters():
            parameter.grad.div_(counted)
        optimizer.step()
    print(criterion.aggregate([log for _, _, log in pieces]))
    unseen = sample(64)
    right = model(**unseen["net_input"])[0].argmax(-1) == unseen["target"]
    share = right[unseen["target"] != PADDING].float().mean().item()
    print(f"letters: accuracy {100 * share:.1f} %")


if __name__ == "__main__":
    main()
