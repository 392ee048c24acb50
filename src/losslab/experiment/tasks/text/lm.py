"""Fine-tuning a language model: every token of a completion is a row, a prompt's are not.

Token by token the expectation loss 1 − p has the gradient of *dynamic fine-tuning* (Wu et al.
2025), −p log p with the first p held constant: ∇(1 − p) = −p ∇log p. They differ in value alone.

``tiny-gpt2`` is no pretrained model. It starts from random weights (2 layers, 0.9 million
parameters) and learns from the texts alone: a small stand-in that trains anywhere. Nothing says
that a loss made for fine-tuning should help it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from losslab.errors import InputError
from losslab.experiment.task import SPLITS, Task
from losslab.experiment.tasks.assemble import counted, with_description
from losslab.experiment.tasks.options import TaskOptions, refuse_unused
from losslab.experiment.tasks.recipe import Recipe
from losslab.experiment.tasks.text.adam import AdamRecipe, AdamWRecipe
from losslab.experiment.tasks.text.causal import TINY, Language, language
from losslab.experiment.tasks.text.lm_files import Text, read_texts
from losslab.experiment.tasks.text.parallel_text import read_multi30k
from losslab.reading import TokenReading

IGNORED = -100
LONGEST = 512  # tokens of a text; what comes after is cut off
VALIDATION_FRACTION = TEST_FRACTION = 0.1
TASKS = ("lm", "lm-multi30k")
MODELS = (TINY, "any on the Hugging Face hub, or the FOLDER of one")
FROM_SCRATCH = AdamRecipe(epochs=5, batch_size=64, lr=2e-3)
FINE_TUNING = AdamWRecipe(epochs=2, batch_size=16, lr=2e-5)


class Continuations(Dataset[Any]):
    """Texts as token numbers: ``(tokens, the token that follows each)``, `IGNORED` in a prompt."""

    def __init__(self, rows: Sequence[tuple[list[int], int]]) -> None:
        self.rows = [(torch.tensor(tokens), prompt) for tokens, prompt in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        tokens, prompt = self.rows[index]
        target = tokens[1:].clone()
        target[: prompt - 1] = IGNORED
        return tokens[:-1], target


def collate(examples: Sequence[tuple[Tensor, Tensor]]) -> tuple[tuple[Tensor, Tensor], Tensor]:
    """A batch ``((tokens, mask), targets)``, padded to its longest text."""
    tokens = [row for row, _ in examples]
    masks = [torch.ones_like(row) for row in tokens]
    targets = [target for _, target in examples]
    return (
        (pad_sequence(tokens, batch_first=True), pad_sequence(masks, batch_first=True)),
        pad_sequence(targets, batch_first=True, padding_value=IGNORED),
    )


def build_lm(name: str, options: TaskOptions) -> Task:
    """``lm`` from texts of your own, or ``lm-multi30k`` from Multi30k's English sentences."""
    refuse_unused(
        name,
        options,
        {"target": "it predicts tokens", "image_size": "it has no images"},
    )
    texts, rule, notes = _texts(name, options)
    model = language(options.model, [part for text in texts["train"] for part in text if part])
    sets: dict[str, Any] = {}
    for split in SPLITS:
        rows = numbered(model, texts[split])
        short = len(texts[split]) - len(rows)
        if short:
            notes.append(
                f"{counted(short, f'{split} text')} left out: the prompt alone fills the "
                f"{min(LONGEST, model.longest)} tokens"
            )
        if not rows:
            raise InputError(f"task {name!r}: no {split} text is left; shorten the prompts.")
        sets[split] = Continuations(rows)
    recipe: Recipe = FROM_SCRATCH if model.name == TINY else FINE_TUNING
    task = Task(
        name=name,
        **sets,
        num_classes=model.size,
        model=model.model,
        collate=collate,
        reading=TokenReading(IGNORED),
        **recipe.changed_by(options).task_fields(),
    )
    facts = {
        "source": "Multi30k, English" if name == "lm-multi30k" else "texts of the user's own",
        "split": {"rule": rule, "seed": options.split_seed},
        "preprocessing": [
            f"{model.facts['tokens']}; cut after {min(LONGEST, model.longest)} tokens",
            "prompt and completion as they stand, one after the other, and a token that ends",
            "tokens of a prompt are neither learned nor measured",
        ],
        "notes": notes,
        "model": {"name": model.name, **model.facts},
    }
    described = with_description(task, facts).description | {"sha256": sha256(texts)}
    return replace(task, description=described)


def numbered(model: Language, texts: Sequence[Text]) -> list[tuple[list[int], int]]:
    """Each text's tokens with how many of them are the prompt's; too long a prompt is left out."""
    prompts = model.encode([prompt for prompt, _ in texts], True)
    completions = model.encode([completion for _, completion in texts], False)
    longest = min(LONGEST, model.longest) + 1  # the last one is predicted and not read
    rows = [
        ([*prompt, *completion, model.end][:longest], len(prompt))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    return [(tokens, prompt) for tokens, prompt in rows if len(tokens) > prompt]


def sha256(texts: dict[str, list[Text]]) -> str:
    """Of all texts in their order."""
    return hashlib.sha256(json.dumps(texts, sort_keys=True).encode()).hexdigest()


def _texts(name: str, options: TaskOptions) -> tuple[dict[str, list[Text]], str, list[str]]:
    """The texts by split, how they were split, and what is to be said of them."""
    if name == "lm-multi30k":
        refuse_unused(name, options, {"validation_fraction": "it has validation sentences"})
        corpus = read_multi30k(options.data_dir, "de", "en")
        found = {
            split: [("", sentence) for sentence in pairs.target]
            for split, pairs in corpus.splits.items()
        }
        return _fewer(found, options), "its own", list(corpus.notes)
    found = read_texts(options.data_dir)
    missing = [split for split in ("test", "validation") if split not in found]
    if "validation" not in missing and options.validation_fraction is not None:
        raise InputError(
            f"task {name!r} takes no validation_fraction where there is a validation file; leave "
            "it out."
        )
    rest = found["train"]
    order = torch.randperm(
        len(rest), generator=torch.Generator().manual_seed(options.split_seed)
    ).tolist()
    for split in missing:
        fraction = TEST_FRACTION if split == "test" else options.validation_fraction
        size = max(1, round((fraction or VALIDATION_FRACTION) * len(rest)))
        found[split] = [rest[row] for row in sorted(order[:size])]
        order = order[size:]
    if not order:
        raise InputError(
            f"{Path(str(options.data_dir))}: expected at least {len(missing) + 1} training texts, "
            f"to take {' and '.join(missing)} from; got {len(rest)}."
        )
    found["train"] = [rest[row] for row in sorted(order)]
    rule = f"{' and '.join(missing)} drawn from the training texts" if missing else "its own"
    return _fewer(found, options), rule, []


def _fewer(texts: dict[str, list[Text]], options: TaskOptions) -> dict[str, list[Text]]:
    """Only so many training texts, in their order."""
    train, size = texts["train"], options.train_size
    if size is None:
        return texts
    if size > len(train):
        raise InputError(f"train_size must be at most the {len(train)} training texts; got {size}.")
    generator = torch.Generator().manual_seed(options.split_seed)
    rows = torch.randperm(len(train), generator=generator)[:size].sort().values.tolist()
    return {**texts, "train": [train[row] for row in rows]}
