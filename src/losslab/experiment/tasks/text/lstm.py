"""The LSTM classifiers of Battash et al., table 3."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from losslab.experiment.tasks.text.sequences import lengths_of, trimmed
from losslab.experiment.tasks.text.words import PADDING

SIZES = {"lstm1": (1, 50), "lstm2": (1, 75), "lstm3": (1, 100), "lstm4": (2, 50), "lstm5": (2, 100)}
"""Layers, and units of each, which is also the size of a word's vector."""
DROPOUT = 0.3  # of the words' vectors


class WordLSTM(nn.Module):
    """Word numbers ``(examples, length)``, padded at the end, -> logits.

    A vector a word, LSTM layers over them, and a linear layer on what the last one answers at the
    last word.
    """

    def __init__(self, words: int, classes: int, layers: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words, width, padding_idx=PADDING)
        self.dropout = nn.Dropout(DROPOUT)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        lengths = lengths_of(words != PADDING)
        words = trimmed(words, lengths)
        outputs, _ = self.lstm(self.dropout(self.embedding(words)))
        return self.head(outputs[torch.arange(len(words), device=words.device), lengths - 1])
