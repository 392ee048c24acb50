"""The Transformer of translations, and the search for them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from losslab.experiment.tasks.text.beam import _Search, beam_search
from losslab.experiment.tasks.text.subwords import END, PAD, START, UNKNOWN
from losslab.experiment.tasks.text.translator import Decoding, Shape, Translator, positions

WORDS = 7
SHAPE = Shape(width=8, heads=2, inner=12, layers=2, dropout=0.0)
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def translator(seed: int = 0, words: int = WORDS, at_once: int = 16, **changes) -> Translator:
    torch.manual_seed(seed)
    model = Translator(words, Shape(**{**vars(SHAPE), **changes}), at_once).eval()
    with torch.no_grad():  # sharper than at the start, so that translations differ in likelihood
        model.words.weight.mul_(3)
    return model


def favour_end(model: Translator, logit: float) -> None:
    """Add about so much to the logit of the end, wherever it is."""
    with torch.no_grad():
        model.decoder.norm.bias[0] = 1.0
        model.words.weight[:, 0] = 0.0
        model.words.weight[END, 0] = logit


def batch(sizes: list[tuple[int, int]], words: int = WORDS, seed: int = 1):
    """Random pieces: sentences of these lengths, padded at the end."""
    generator = torch.Generator().manual_seed(seed)
    longest = [max(pair[side] for pair in sizes) for side in (0, 1)]
    sides = [torch.full((len(sizes), length), PAD) for length in longest]
    for row, pair in enumerate(sizes):
        for side, length in zip(sides, pair, strict=True):
            side[row, :length] = torch.randint(UNKNOWN + 1, words, (length,), generator=generator)
    return sides[0], sides[1]


def by_the_book(model: Translator, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """All logits of one sentence, without padding, by PyTorch's modules with a float mask."""
    place = torch.arange(max(len(source), len(target)))[:, None]
    wave = torch.zeros(len(place), model.width)
    for i in range(model.width):
        angle = place[:, 0] / 10_000 ** ((i - i % 2) / model.width)
        wave[:, i] = angle.sin() if i % 2 == 0 else angle.cos()
    table = model.words.weight
    read = table[source] * math.sqrt(model.width) + wave[: len(source)]
    written = table[target] * math.sqrt(model.width) + wave[: len(target)]
    mask = torch.full((len(target), len(target)), -torch.inf).triu(1)
    hidden = model.decoder(written[None], model.encoder(read[None]), tgt_mask=mask)
    return hidden[0] @ table.T


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_a_batch_is_its_sentences_one_by_one(at_once):
    """Oracle: each sentence alone, by PyTorch's modules, positions by their formula. Padding that
    is attended to, rows out of order, or another table for the output fail."""
    model = translator(at_once=at_once)
    sizes = [(5, 3), (2, 6), (7, 1), (1, 4), (4, 4)]
    source, target = batch(sizes)
    found = model((source, target))
    expected = [
        by_the_book(model, source[row, :a], target[row, :b]) for row, (a, b) in enumerate(sizes)
    ]
    torch.testing.assert_close(found, torch.cat(expected), **CLOSE)


def test_gradients_do_not_hang_on_how_many_are_computed_at_once():
    """Oracle: all at once. A lot that is left out of the gradient fails."""
    source, target = batch([(5, 3), (2, 6), (7, 1), (1, 4), (4, 4)])
    grads = []
    for at_once in (2, 16):
        model = translator(at_once=at_once).train()
        model((source, target)).square().sum().backward()
        grads.append([p.grad for p in model.parameters()])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


def test_later_pieces_change_nothing():
    """Causality: rows before a changed piece stay; those from it on do not."""
    model = translator()
    source, target = batch([(4, 6)])
    other = target.clone()
    other[0, 3] = UNKNOWN + 1 if target[0, 3] != UNKNOWN + 1 else UNKNOWN + 2
    one, two = model((source, target)), model((source, other))
    torch.testing.assert_close(one[:3], two[:3], **CLOSE)
    assert not torch.allclose(one[3:], two[3:], atol=1e-3)


def test_more_padding_changes_nothing():
    """Both sides padded by three more places."""
    model = translator()
    source, target = batch([(4, 6), (2, 3)])
    longer = (F.pad(source, (0, 3), value=PAD), F.pad(target, (0, 3), value=PAD))
    torch.testing.assert_close(model(longer), model((source, target)), **CLOSE)


def test_positions_go_on():
    """Places from 3 on are those of the whole, also of an odd width."""
    whole = positions(0, 9, 7)
    assert whole.shape == (9, 7)
    torch.testing.assert_close(positions(3, 4, 7), whole[3:7])


def test_steps_are_the_whole():
    """Oracle: `Translator.forward`. Two ways of each of three sentences, one sentence dropped and
    ways exchanged between; a wrong cache fails."""
    model = translator()
    source, _ = batch([(5, 1), (2, 1), (7, 1)])
    generator = torch.Generator().manual_seed(3)
    pieces = torch.randint(UNKNOWN + 1, WORDS, (3, 2, 4), generator=generator)
    with torch.no_grad():
        decoding = Decoding(model, source, 2)
        for length in (1, 2, 3):
            logits = decoding.step(pieces[:, :, length - 1])
            for way in (0, 1):
                whole = model((source, pieces[:, way, :length])).view(3, length, -1)
                torch.testing.assert_close(logits[:, way], whole[:, -1], **CLOSE)
        rows, ways = torch.tensor([0, 2]), torch.tensor([[1, 0], [1, 1]])
        decoding.keep(rows, ways)
        pieces = pieces[rows[:, None], ways]
        logits = decoding.step(pieces[:, :, 3])
        for way in (0, 1):
            whole = model((source[rows], pieces[:, way])).view(2, 4, -1)
            torch.testing.assert_close(logits[:, way], whole[:, -1], **CLOSE)


def every_translation(model: Translator, source: torch.Tensor, longest: int):
    """All translations of one sentence of at most ``longest`` pieces, with log-probabilities."""
    pieces = range(UNKNOWN + 1, model.words.num_embeddings)
    for length in range(longest):
        for written in itertools.product(pieces, repeat=length):
            target = torch.tensor([START, *written])
            with torch.no_grad():
                gain = by_the_book(model, source, target).double().log_softmax(1)
            goal = torch.tensor([*written, END])
            yield list(written), float(gain.gather(1, goal[:, None]).sum())


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("end", [0.0, -3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_wide_beam_finds_the_best_of_all(seed, end, penalty):
    """Oracle: all 40 translations of up to 4 pieces (one of them the end), scored one by one; short
    ones are the best, or long ones. A beam that forgets beginnings or goes on with another's keys,
    another penalty, or a stop that comes too early fail."""
    model = translator(seed, words=UNKNOWN + 4)
    favour_end(model, end)
    source, _ = batch([(5, 1), (2, 1), (3, 1)], words=UNKNOWN + 4, seed=seed)
    found = beam_search(model, source, beam=40, penalty=penalty, longest=4)
    search = _Search(model, source, 40, penalty, 4)
    with torch.no_grad():
        while search.open.numel():
            search.step()
    for row, size in enumerate((5, 2, 3)):
        scored = [
            (chance / (len(written) + 1) ** penalty, written)
            for written, chance in every_translation(model, source[row, :size], 4)
        ]
        assert len(scored) == 40
        assert found[row] == max(scored)[1]
        score_of = {tuple(written): score for score, written in scored}
        for score, written in search.found[row]:
            assert score == pytest.approx(score_of[tuple(written)], abs=1e-4)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_beam_of_one_is_greedy(seed):
    """Oracle: the likeliest piece, time after time, from the whole model."""
    model = translator(seed, words=12)
    source, _ = batch([(5, 1), (2, 1), (6, 1)], words=12, seed=seed)
    found = beam_search(model, source, beam=1, longest=8)
    for row, size in enumerate((5, 2, 6)):
        written = [START]
        while len(written) < 8:
            logits = by_the_book(model, source[row, :size], torch.tensor(written))[-1]
            logits[[PAD, START, UNKNOWN]] = -torch.inf
            written.append(int(logits.argmax()))
            if written[-1] == END:
                break
        assert found[row] == [piece for piece in written[1:] if piece != END]


def test_sentences_are_translated_as_if_alone():
    """Oracle: one sentence at a time, unpadded, of translations of several lengths. Sentences that
    leak into others, or that are dropped with another's state when they are done, fail."""
    sizes = [(5, 1), (2, 1), (9, 1), (1, 1), (4, 1), (9, 1)]
    several = 0
    for seed in range(4):
        model = translator(seed, words=30, layers=1)
        favour_end(model, 2.0 + seed / 2)
        source, _ = batch(sizes, words=30, seed=seed)
        together = beam_search(model, source, beam=3, longest=12)
        alone = [
            beam_search(model, source[row : row + 1, :size], beam=3, longest=12)[0]
            for row, (size, _) in enumerate(sizes)
        ]
        assert together == alone
        several += len({len(row) for row in together}) > 1
    assert several
