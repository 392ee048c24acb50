"""Translation of Multi30k and IWSLT by a Transformer: every piece of a translation is a row.

``iwslt`` is the Transformer that fairseq calls ``transformer_iwslt_de_en``, trained as Zhao et al.
do: Adam with betas (0.9, 0.98), largest rate 1e-3, the rate of Vaswani et al. with 4,000 steps of
warm-up, weight decay 1e-4, dropout 0.3, about 16,000 tokens a step on IWSLT14 De-En (640 sentences)
for some 20,000 steps, and the weights of the last 10 epochs averaged. What differs from fairseq:
layers are normalised before each part, source and target share one table of pieces, a batch is a
number of sentences and not of tokens, and BLEU is sacrebleu's of plain text and not of tokenised
text. On Multi30k an epoch of it is 45 steps.

``small`` is for two cores: 1.4 million parameters and a rate that falls to 0 in a few epochs. It
was not tuned on anything but time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from losslab.errors import InputError
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import with_description
from losslab.experiment.tasks.needed import needed
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.text.adam import AdamRecipe
from losslab.experiment.tasks.text.beam import beam_search
from losslab.experiment.tasks.text.parallel_text import (
    Corpus,
    Pairs,
    read_iwslt14,
    read_iwslt17,
    read_multi30k,
)
from losslab.experiment.tasks.text.subwords import END, PAD, START, Subwords, fit_subwords
from losslab.experiment.tasks.text.translator import Shape, Translator
from losslab.metrics import Metric
from losslab.reading import TokenReading

IGNORED = -100
BEAM, PENALTY, TOGETHER = 5, 1.0, 64  # sentences that are translated together
METRIC = Metric("bleu", "BLEU", True, "", 0.3)
LANGUAGES = {
    "multi30k-de-en": ("de", "en"),
    "multi30k-fr-en": ("fr", "en"),
    "iwslt14-de-en": ("de", "en"),
    "iwslt17-fr-en": ("fr", "en"),
}


@dataclass(frozen=True)
class Model:
    """A model with its vocabulary and how it is trained.

    Args:
        shape: Of the Transformer.
        vocabulary: Pieces that both languages share.
        at_once: See `Translator`.
        recipe: How it is trained.
    """

    shape: Shape
    vocabulary: int
    at_once: int
    recipe: AdamRecipe


_IWSLT = Model(
    Shape(width=512, heads=4, inner=1024, layers=6, dropout=0.3),
    vocabulary=10_000,
    at_once=128,
    recipe=AdamRecipe(
        epochs=80, batch_size=640, lr=1e-3, warm_up_steps=4000, weight_decay=1e-4, average=10
    ),
)
_SMALL = Model(
    Shape(width=128, heads=4, inner=512, layers=2, dropout=0.1),
    vocabulary=4000,
    at_once=32,
    recipe=AdamRecipe(epochs=8, batch_size=64, lr=2e-3),
)
MODELS = {
    "multi30k-de-en": {"small": _SMALL, "iwslt": _IWSLT},
    "multi30k-fr-en": {"small": _SMALL, "iwslt": _IWSLT},
    "iwslt14-de-en": {"iwslt": _IWSLT, "small": _SMALL},
    "iwslt17-fr-en": {"iwslt": _IWSLT, "small": _SMALL},
}


class Sentences(Dataset[Any]):
    """Sentence pairs as piece numbers: ``((source, target so far), target)``."""

    def __init__(self, pairs: Pairs, subwords: Subwords) -> None:
        self.source = [torch.tensor([*row, END]) for row in subwords.encode(pairs.source)]
        self.target = [torch.tensor([START, *row, END]) for row in subwords.encode(pairs.target)]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (self.source[index], self.target[index][:-1]), self.target[index][1:]


class WrittenPieces(TokenReading):
    """As `TokenReading`, of a model that answers only the pieces that are no padding."""

    def logits(self, output: Tensor, target: Tensor) -> Tensor:
        return output


def collate(examples: Sequence[Any]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A batch, padded to its longest sentence."""
    source = _padded([read for (read, _), _ in examples], PAD)
    begun = _padded([written for (_, written), _ in examples], PAD)
    return (source, begun), _padded([target for _, target in examples], IGNORED)


def build_translation(name: str, options: TaskOptions) -> Task:
    """A pair of `LANGUAGES`, such as ``multi30k-de-en``, in its own splits."""
    refuse_unused(
        name,
        options,
        {
            "target": "its translations are known",
            "image_size": "it has no images",
            "validation_fraction": "it comes with validation sentences",
        },
    )
    signature = bleu_signature()
    chosen = choose_model(name, options, tuple(MODELS[name]))
    model = MODELS[name][chosen]
    corpus = _kept(_read(name, options), options)
    source, target = LANGUAGES[name]
    train = corpus.splits["train"]
    subwords = fit_subwords((*train.source, *train.target), model.vocabulary)
    sentences: dict[str, Any] = {
        split: Sentences(pairs, subwords) for split, pairs in corpus.splits.items()
    }
    task = Task(
        name=name,
        **sentences,
        num_classes=subwords.size,
        model=partial(Translator, subwords.size, model.shape, model.at_once),
        collate=collate,
        reading=WrittenPieces(IGNORED),
        metrics=(METRIC,),
        model_scores=Bleu(corpus.splits, subwords),
        **model.recipe.changed_by(options).task_fields(),
    )
    facts = {
        "source": f"{name}, {source} to {target}",
        "split": {"rule": "its own", "seed": options.split_seed if options.train_size else None},
        "preprocessing": [
            "lower case, curly apostrophes straight" if name.startswith("iwslt14") else "as it is",
            f"sentencepiece BPE, {subwords.size} pieces for both languages, of the training pairs "
            f"(sha256 {subwords.sha256})",
        ],
        "notes": corpus.notes,
        "bleu": {
            "signature": signature,
            "beam": BEAM,
            "length_penalty": PENALTY,
        },
        "average": task.average,
        "model": {"name": chosen, "at_once": model.at_once},
    }
    described = with_description(task, facts).description | {"sha256": corpus.sha256}
    return replace(task, description=described)


class Bleu:
    """BLEU of a model's translations of a split, by sacrebleu, in percent."""

    def __init__(self, splits: Mapping[str, Pairs], subwords: Subwords) -> None:
        self.splits, self.subwords = splits, subwords

    def __call__(self, model: nn.Module, split: str) -> dict[str, float]:
        assert isinstance(model, Translator)
        pairs = self.splits[split]
        written = translate(model, self.subwords, pairs.source)
        return {"bleu": float(_bleu().corpus_score(written, [list(pairs.target)]).score)}


def translate(
    model: Translator, subwords: Subwords, sentences: Sequence[str], beam: int = BEAM
) -> list[str]:
    """Translations by beam search, in the order of the sentences."""
    device = model.words.weight.device
    source = [torch.tensor([*row, END]) for row in subwords.encode(sentences)]
    order = sorted(range(len(source)), key=lambda row: len(source[row]))
    found: dict[int, list[int]] = {}
    for rows in _lots(order, TOGETHER):
        padded = _padded([source[row] for row in rows], PAD)
        pieces = beam_search(
            model,
            padded.to(device),
            beam=beam,
            penalty=PENALTY,
            longest=2 * padded.shape[1] + 20,
        )
        found |= zip(rows, pieces, strict=True)
    return subwords.decode([found[row] for row in range(len(source))])


def _padded(rows: list[Tensor], value: int) -> Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


def _lots(rows: list[int], size: int) -> Iterator[list[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _read(name: str, options: TaskOptions) -> Corpus:
    if name.startswith("iwslt14"):
        return read_iwslt14(options.data_dir, *LANGUAGES[name])
    if name.startswith("iwslt17"):
        return read_iwslt17(options.data_dir, *LANGUAGES[name])
    return read_multi30k(options.data_dir, *LANGUAGES[name])


def _kept(corpus: Corpus, options: TaskOptions) -> Corpus:
    """The corpus with only so many training pairs, in their order."""
    train = corpus.splits["train"]
    if options.train_size is None or options.train_size == len(train):
        return corpus
    if options.train_size > len(train):
        raise InputError(
            f"train_size must be at most the {len(train)} training pairs; got {options.train_size}."
        )
    generator = torch.Generator().manual_seed(options.split_seed)
    drawn = torch.randperm(len(train), generator=generator)[: options.train_size].sort().values
    rows = drawn.tolist()
    fewer = Pairs(
        tuple(train.source[row] for row in rows), tuple(train.target[row] for row in rows)
    )
    return replace(corpus, splits={**corpus.splits, "train": fewer})


def bleu_signature() -> str:
    """What sacrebleu calls the BLEU measured here."""
    metric = _bleu()
    metric.corpus_score(["a"], [["a"]])  # it has none before
    return str(metric.get_signature().format())


def _bleu() -> Any:
    with needed("sacrebleu", "losslab[text]"):
        from sacrebleu.metrics import BLEU
    return BLEU()
