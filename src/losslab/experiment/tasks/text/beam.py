"""The translation that a model thinks most likely, sought with a beam."""

from __future__ import annotations

import torch
from torch import Tensor

from losslab.experiment.tasks.text.subwords import END, PAD, START, UNKNOWN
from losslab.experiment.tasks.text.translator import Decoding, Translator

Found = tuple[float, list[int]]  # a finished translation and its score


@torch.no_grad()
def beam_search(
    model: Translator, source: Tensor, *, beam: int = 5, penalty: float = 1.0, longest: int = 200
) -> list[list[int]]:
    """The best translation of each sentence that the beam finds, without start and end.

    The score of a translation of n pieces, its end counted, is its log-probability divided by
    n^``penalty``, as in fairseq. A sentence is done when ``beam`` translations are finished, or
    when no unfinished one can still score above the best.

    Args:
        model: In evaluation mode.
        source: Piece numbers ``(sentences, length)``, `PAD` behind the end.
        beam: How many unfinished translations are followed; 1 is the greedy search.
        penalty: 0 favours short translations, 1 compares log-probabilities a piece.
        longest: Most pieces of a translation, its end counted.
    """
    search = _Search(model, source, beam, penalty, longest)
    while search.open.numel():
        search.step()
    return [max(found, key=_score)[1] for found in search.found]


def _score(found: Found) -> float:
    return found[0]


class _Search:
    """The state of a search: of each open sentence ``beam`` beginnings, the best first."""

    def __init__(
        self, model: Translator, source: Tensor, beam: int, penalty: float, longest: int
    ) -> None:
        self.beam, self.penalty, self.longest = beam, penalty, longest
        sentences = len(source)
        self.decoding = Decoding(model, source, beam)
        self.open = torch.arange(sentences, device=source.device)
        self.scores = torch.full((sentences, beam), -torch.inf, device=source.device)
        self.scores[:, 0] = 0.0  # at first all beginnings are the same one
        self.pieces = torch.full((sentences, beam, 1), START, device=source.device)
        self.found: list[list[Found]] = [[] for _ in range(sentences)]

    def step(self) -> None:
        values, ways, pieces = self._candidates(self.decoding.step(self.pieces[:, :, -1]))
        length = self.pieces.shape[2]  # pieces of a translation that ends now, without the start
        ending = pieces == END
        self._finish(values, ways, ending, length)
        # what does not end goes on, the best first
        first = ending.to(torch.int8).argsort(dim=1, stable=True)[:, : self.beam]
        self.scores = values.masked_fill(ending, -torch.inf).gather(1, first)
        ways, pieces = ways.gather(1, first), pieces.gather(1, first)
        still = torch.tensor(
            [
                not self._done(int(sentence), best, length)
                for sentence, best in zip(self.open, self.scores[:, 0].tolist(), strict=True)
            ],
            device=self.open.device,
        )
        rows = still.nonzero()[:, 0]
        self.open, self.scores, ways = self.open[rows], self.scores[rows], ways[rows]
        self.decoding.keep(rows, ways)
        begun = self.pieces[rows[:, None], ways]
        self.pieces = torch.cat([begun, pieces[rows][:, :, None]], dim=2)

    def _candidates(self, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The best continuations: scores, what they continue, and by what, ``(open, 2·beam)``.

        At most ``beam`` of them end, so ``beam`` are left to go on.
        """
        gain = logits.float().log_softmax(dim=2)
        gain[:, :, [PAD, START, UNKNOWN]] = -torch.inf
        if self.pieces.shape[2] == self.longest:
            gain[:, :, :END] = gain[:, :, END + 1 :] = -torch.inf
        total = (self.scores[:, :, None] + gain).flatten(1)
        values, places = total.topk(min(2 * self.beam, total.shape[1]), dim=1)
        return values, places // logits.shape[2], places % logits.shape[2]

    def _finish(self, values: Tensor, ways: Tensor, ending: Tensor, length: int) -> None:
        """Note the translations among the ``beam`` best that end here."""
        ends = ending[:, : self.beam] & values[:, : self.beam].isfinite()
        for row, column in ends.nonzero().tolist():
            score = float(values[row, column]) / length**self.penalty
            pieces = self.pieces[row, ways[row, column], 1:].tolist()
            self.found[int(self.open[row])].append((score, pieces))

    def _done(self, sentence: int, best: float, length: int) -> bool:
        found = self.found[sentence]
        if length == self.longest or best == -torch.inf:
            return True
        if len(found) >= self.beam:
            return True
        # scores only fall, and are divided by at most the greatest length
        return bool(found) and max(found)[0] >= best / self.longest**self.penalty
