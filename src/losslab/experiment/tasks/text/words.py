"""Texts as numbers of words, in a vocabulary of the training texts (by `tokenizers`)."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from losslab.experiment.tasks.needed import needed

PADDING, UNKNOWN = 0, 1
LEAST_TIMES = 2  # a word that the training texts have less often is unknown
MOST_WORDS = 50_000  # the commonest


@lru_cache(maxsize=4)
def numbered(
    training: tuple[str, ...], others: tuple[tuple[str, ...], ...], length: int
) -> tuple[tuple[Tensor, ...], int]:
    """Word numbers ``(texts, length)`` of the training texts and of each of the others.

    Words are runs of letters and digits, or of other signs, in lower case; they are numbered by how
    often the training texts have them. What comes after ``length`` words is cut off, shorter texts
    are padded at the end. The last few answers are remembered.

    Returns:
        The tensors, and how many words there are, padding and the unknown word included.
    """
    tokenizer = _fitted(training, length)

    def numbers(texts: tuple[str, ...]) -> Tensor:
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        return torch.tensor(rows, dtype=torch.int64).view(len(texts), length)

    return tuple(map(numbers, (training, *others))), tokenizer.get_vocab_size()


def _fitted(texts: tuple[str, ...], length: int) -> Any:
    with needed("tokenizers", "losslab[text]"):
        import tokenizers
    pad, unknown = "[PAD]", "[UNK]"
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token=unknown))
    made.normalizer = tokenizers.normalizers.Lowercase()
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(
        vocab_size=MOST_WORDS,
        min_frequency=LEAST_TIMES,
        special_tokens=[pad, unknown],
        show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    made.enable_truncation(length)
    made.enable_padding(pad_id=PADDING, pad_token=pad, length=length)
    assert (made.token_to_id(pad), made.token_to_id(unknown)) == (PADDING, UNKNOWN)
    return made
