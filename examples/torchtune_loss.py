"""torchtune: the loss as its recipes call it, on a small decoder of our own.

In a recipe's configuration two lines take it:

    loss:
      _component_: losslab.integrations.adapters.TorchtuneLoss
      loss: expectation

Below is what a recipe does with it: labels one place on, whole logits flattened, or, where your own
recipe asks its model for chunks, a list of them.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losslab.integrations.adapters import TorchtuneLoss

VOCABULARY, LENGTH, PROMPT = 50, 16, 2


def batch(rows: int = 32) -> tuple[Tensor, Tensor]:
    """Counting from anywhere, in steps that the first two tokens show; those are not learned."""
    start, step = torch.randint(VOCABULARY, (rows, 1)), torch.randint(1, 4, (rows, 1))
    tokens = (start + step * torch.arange(LENGTH)) % VOCABULARY
    labels = tokens.clone()
    labels[:, :PROMPT] = -100
    return tokens, labels.roll(-1, 1).index_fill(1, torch.tensor(LENGTH - 1), -100)


class Decoder(nn.Module):
    """Two tokens back, and a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(VOCABULARY, 64)
        self.mix, self.output = nn.Linear(128, 128), nn.Linear(128, VOCABULARY)

    def hidden(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        return torch.relu(self.mix(torch.cat([x, x.roll(1, 1)], dim=-1)))


def main() -> None:
    torch.manual_seed(0)
    model, loss = Decoder(), TorchtuneLoss("mixed(focus=0.3)", num_output_chunks=4)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        tokens, labels = batch()
        logits = model.output(model.hidden(tokens))
        optimizer.zero_grad()
        loss(logits.flatten(0, 1), labels.flatten()).backward()
        optimizer.step()
    tokens, labels = batch()
    hidden = model.hidden(tokens)
    whole = loss(model.output(hidden), labels).item()
    chunks = [model.output(part) for part in hidden.chunk(loss.num_output_chunks, dim=1)]
    print(f"loss {whole:.6f}, in {len(chunks)} chunks {loss(chunks, labels).item():.6f}")
    counted = labels != -100
    right = (torch.cat(chunks, dim=1).argmax(-1) == labels)[counted].float().mean().item()
    print(f"next token: accuracy {100 * right:.1f} %")


if __name__ == "__main__":
    main()
