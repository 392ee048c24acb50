"""Words in pieces: a byte-pair vocabulary fitted by sentencepiece on training sentences."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

from losslab.errors import InputError
from losslab.experiment.tasks.needed import needed

PAD, START, END, UNKNOWN = 0, 1, 2, 3


class Subwords:
    """Sentences to piece numbers and back; made by `fit_subwords`.

    ``size`` counts the pieces, the four without text (`PAD`, `START`, `END`, `UNKNOWN`) included.
    ``sha256`` is of the fitted model.
    """

    def __init__(self, model: bytes) -> None:
        self.model = model
        self.sha256 = hashlib.sha256(model).hexdigest()
        self._processor = _sentencepiece().SentencePieceProcessor(model_proto=model)
        self.size: int = self._processor.vocab_size()

    def encode(self, sentences: Sequence[str]) -> list[list[int]]:
        """The pieces of each sentence, without start and end."""
        pieces: list[list[int]] = self._processor.encode(list(sentences), num_threads=1)
        return pieces

    def decode(self, pieces: Sequence[Sequence[int]]) -> list[str]:
        """The sentences that such pieces spell."""
        sentences: list[str] = self._processor.decode([list(row) for row in pieces], num_threads=1)
        return sentences

    def __reduce__(self) -> tuple[Any, ...]:
        return Subwords, (self.model,)


def fit_subwords(sentences: Iterable[str], size: int) -> Subwords:
    """The byte-pair vocabulary of these sentences, the same for the same sentences.

    Fitted once a process for the same sentences and size. Text is normalised as sentencepiece does
    it for translation (NFKC, single spaces); every character that occurs gets a piece.

    Args:
        sentences: What it is fitted on.
        size: Most pieces; fewer come out where the sentences hold no more.

    Raises:
        InputError: If sentencepiece is missing, or ``size`` is too small for the characters.
    """
    return _fitted(tuple(sentences), size)


@lru_cache(maxsize=4)
def _fitted(sentences: tuple[str, ...], size: int) -> Subwords:
    model = io.BytesIO()
    try:
        _sentencepiece().SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=model,
            model_type="bpe",
            vocab_size=size,
            hard_vocab_limit=False,
            character_coverage=1.0,
            pad_id=PAD,
            bos_id=START,
            eos_id=END,
            unk_id=UNKNOWN,
            num_threads=1,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        characters = len(set("".join(sentences)))
        raise InputError(
            f"Expected a vocabulary of more than {characters + 4} pieces, the characters that "
            f"occur and four more, of {len(sentences)} sentences; got {size}, and sentencepiece "
            f"says: {' '.join(str(error).split())}"
        ) from None
    return Subwords(model.getvalue())


def _sentencepiece() -> Any:
    with needed("sentencepiece", "losslab[text]"):
        import sentencepiece
    return sentencepiece
