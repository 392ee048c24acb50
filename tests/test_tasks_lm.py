"""Language models: texts in every form, prompts that are no rows, the gradient of fine-tuning."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import losslab
from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.text.causal import Language
from losslab.experiment.tasks.text.lm import IGNORED, Continuations, collate, numbered
from losslab.experiment.tasks.text.lm_files import read_texts
from losslab.experiment.train import train
from losslab.reading import TokenReading

ROWS = [("What is red?", " The house."), ("", "A dog."), ("Say it: ", "small")]
JSONL = "".join(
    json.dumps({"prompt": prompt, "completion": completion}) + "\n" for prompt, completion in ROWS
)
CSV = 'prompt,completion\nWhat is red?," The house."\n,A dog.\nSay it: ,small\n'
WORDS = ["a", "the", "red", "small", "dog", "house", "and", "runs", "sleeps", "is", "."]


def refused(text: str, place: Path | None, **options) -> None:
    with pytest.raises(InputError, match=text) as caught:
        build_task("lm", TaskOptions(data_dir=place, **options))
    assert "\n" not in str(caught.value)


def sentences(count: int, seed: int) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 9, (count,), generator=generator).tolist()
    return [
        " ".join(WORDS[k] for k in torch.randint(len(WORDS), (n,), generator=generator).tolist())
        for n in lengths
    ]


# ---------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("name", "content"),
    [("train.jsonl", JSONL), ("train.csv", CSV), ("train.csv", CSV.replace("\n", "\r\n"))],
)
@pytest.mark.parametrize("packed", [False, True])
def test_prompts_and_completions_are_read(tmp_path, name, content, packed):
    """Oracle: the rows written, by folder and by file, gzipped or not."""
    path = tmp_path / (name + ".gz" * packed)
    path.write_bytes(gzip.compress(content.encode()) if packed else content.encode())
    assert read_texts(tmp_path) == read_texts(path) == {"train": ROWS}


def test_lines_and_texts_are_read(tmp_path):
    """Oracle: by hand. A text has no prompt; spaces stay as they are, empty lines go."""
    (tmp_path / "train.txt").write_text("one\n\n two \u2028x\n", encoding="utf-8")
    (tmp_path / "val.jsonl").write_text('{"text": "three"}\n\n', encoding="utf-8")
    (tmp_path / "test.csv").write_text("text,more\nfour,x\n", encoding="utf-8")
    assert read_texts(tmp_path) == {
        "train": [("", "one"), ("", " two \u2028x")],
        "validation": [("", "three")],
        "test": [("", "four")],
    }


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.jsonl", b'{"text": "a"}\n{"text": "b', r"line 2: expected a JSON object .* cut sh"),
        ("train.jsonl", b'{"prompt": "a"}\n', r'line 1: expected a "completion"'),
        ("train.jsonl", b'{"completion": ""}\n', r'line 1: expected a "completion"'),
        ("train.jsonl", b'{"text": 3}\n', "each a text and not empty; got"),
        ("train.csv", b"prompt,answer\na,b\n", r'line 2: expected a "completion"'),
        ("train.csv", b'text\n"a', "not valid CSV .* cut short"),
        ("train.txt", b"\n\n", "expected at least one text"),
        ("train.txt", b"caf\xe9\n", "cannot be read as UTF-8 text"),
        (
            "train.txt.gz",
            gzip.compress(b"text " * 99, mtime=0)[:-9],
            "cannot be read as UTF-8 text .* cut",
        ),
        ("train.txt", b"one\ntwo\n", "expected at least 3 training texts, to take test and valid"),
        ("other.txt", b"a\n", "expected a file train: .jsonl with"),
    ],
)
def test_files_that_are_no_texts_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    refused(message, tmp_path)


def test_what_else_is_refused(tmp_path):
    refused("say with data_dir", None)
    (tmp_path / "x.pdf").write_bytes(b"%PDF")
    refused("another kind of file", tmp_path / "x.pdf")
    (tmp_path / "train.txt").write_text("\n".join(sentences(30, 0)))
    refused("takes no target", tmp_path, target="x")
    refused("train_size must be at most the 24 training texts; got 25", tmp_path, train_size=25)


# ---------------------------------------------------------------- tokens


def letters(longest: int = 100) -> Language:
    """A token a letter, 1 before a prompt, 2 at the end."""

    def encode(texts, prompts):
        return [[1] * prompts + [ord(letter) for letter in text] for text in texts]

    return Language("letters", torch.nn.Module, encode, 2, 128, longest, {})


def test_a_prompt_is_no_row_and_targets_are_the_tokens_that_follow():
    """Oracle: written out by hand. Targets off by one, or a prompt that is learned, fail."""
    rows = numbered(letters(), [("ab", "cd"), ("", "e")])
    examples = [Continuations(rows)[row] for row in (0, 1)]
    (tokens, mask), target = collate(examples)
    a, b, c, d, e = (ord(letter) for letter in "abcde")
    assert tokens.tolist() == [[1, a, b, c, d], [1, e, 0, 0, 0]]
    assert mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    no = IGNORED
    assert target.tolist() == [[no, no, c, d, 2], [e, 2, no, no, no]]


def test_long_texts_are_cut_and_long_prompts_left_out():
    """Four tokens are read, so five are kept: the last is predicted only."""
    rows = numbered(letters(4), [("", "abcdef"), ("abcdef", "g"), ("abc", "de"), ("abcd", "e")])
    assert [(tokens[1:], prompt) for tokens, prompt in rows] == [
        ([97, 98, 99, 100], 1),
        ([97, 98, 99, 100], 4),
    ]


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("how", ["reading", "ignore_index"])
def test_the_expectation_loss_has_the_gradient_of_dynamic_fine_tuning(how):
    """Oracle: the published formula in float64, the mean over the tokens that count of
    −sg(p) log p. Its gradient is that of 1 − p, its value is not; a mean over all tokens, or over
    sentences, has another gradient."""
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(3, 7, 11, dtype=torch.float64, generator=generator)
    target = torch.randint(11, (3, 7), generator=generator)
    target[0, 4:] = target[1, :5] = IGNORED
    reference = logits.clone().requires_grad_()
    kept = target != IGNORED
    log_p = reference.log_softmax(2)[kept].gather(1, target[kept][:, None])[:, 0]
    formula = (-log_p.exp().detach() * log_p).mean()
    formula.backward()
    for dtype, close in ((torch.float64, 1e-12), (torch.float32, 1e-6)):
        mine = logits.to(dtype, copy=True).requires_grad_()
        if how == "reading":
            loss = TokenReading(IGNORED).loss(losslab.loss("expectation"), mine, target)
        else:
            criterion = losslab.loss("expectation", ignore_index=IGNORED)
            loss = criterion(mine.flatten(0, 1), target.flatten())
        loss.backward()
        torch.testing.assert_close(mine.grad.double(), reference.grad, rtol=0, atol=close)
        expected = 1 - log_p.exp().mean()
        torch.testing.assert_close(loss.double(), expected, rtol=0, atol=10 * close)
        assert (loss - formula).abs() > 0.01
    assert reference.grad[~kept].abs().max() == 0


@pytest.mark.parametrize("focus", [0.0, 0.3, 0.5])
def test_a_mixture_has_the_gradient_of_its_parts(focus):
    """Oracle: the gradients of cross_entropy and expectation, of which it is a weighted sum,
    without the first where focus is 1/2 and with it below."""
    logits = torch.randn(2, 5, 9, dtype=torch.float64)
    target = torch.randint(9, (2, 5))
    target[1, 3:] = IGNORED
    grads = []
    for spec in ("cross_entropy", "expectation", f"mixed(focus={focus})"):
        mine = logits.clone().requires_grad_()
        TokenReading(IGNORED).loss(losslab.loss(spec), mine, target).backward()
        grads.append(mine.grad)
    weights = torch.linalg.lstsq(
        torch.stack([grads[0].flatten(), grads[1].flatten()], 1), grads[2].flatten()[:, None]
    ).solution[:, 0]
    torch.testing.assert_close(weights[0] * grads[0] + weights[1] * grads[1], grads[2])
    assert (weights[0] > 0.01) == (focus < 0.5) and weights[1] > 0


# ---------------------------------------------------------------- models


def folder_with_gpt2(folder: Path) -> Path:
    """A GPT-2 of random weights with a tokeniser of whole words, as save_pretrained writes them."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(["<end>", "?", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="<end>", unk_token="?"
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(5)
    config = transformers.GPT2Config(
        vocab_size=len(vocabulary), n_positions=12, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def put_prompts(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for seed, (split, count) in enumerate((("train", 24), ("validation", 6), ("test", 8))):
        prompts, completions = sentences(count, seed), sentences(count, seed + 10)
        (folder / f"{split}.jsonl").write_text(
            "".join(
                json.dumps({"prompt": prompt, "completion": " " + completion}) + "\n"
                for prompt, completion in zip(prompts, completions, strict=True)
            )
        )
    return folder


def test_a_model_of_a_folder_is_fine_tuned(tmp_path):
    """Oracle: transformers on one text at a time, without padding, after no step; the number of
    rows by counting words. Wrong shifts, padding or prompts among the rows fail."""
    import transformers

    model = folder_with_gpt2(tmp_path / "model")
    options = TaskOptions(
        data_dir=put_prompts(tmp_path / "texts"), model=str(model), epochs=1, batch_size=5, lr=1e-30
    )
    task = build_task("lm", options)
    result = train(task, losslab.loss("cross_entropy"), seed=0)
    direct = transformers.AutoModelForCausalLM.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    gains = []
    for line in (tmp_path / "texts" / "test.jsonl").read_text().splitlines():
        row = json.loads(line)
        prompt, completion = (tokenizer(row[key]).input_ids for key in ("prompt", "completion"))
        tokens = [*prompt, *completion, 0][:13]
        with torch.no_grad():
            logits = direct(torch.tensor([tokens[:-1]])).logits[0].double()
        goal = torch.tensor(tokens[1:])
        gains += F.cross_entropy(logits, goal, reduction="none")[len(prompt) - 1 :].tolist()
    last = result.results["last"]["test"]
    assert len(result.examples["log_odds"]) == len(gains)
    assert last["nll"] == pytest.approx(sum(gains) / len(gains), rel=1e-5)
    assert len(task.description["model"]["weights_sha256"]) == 64
    assert task.description["model"]["name"] == "model" and task.num_classes == 2 + len(WORDS)


def test_the_small_gpt2_learns_from_lines(tmp_path):
    """Oracle: the NLL at the start, the log of the vocabulary, and the split's sizes by hand. Also
    that more padding changes nothing."""
    (tmp_path / "train.txt").write_text("the dog runs .\na house is red .\n" * 100)
    options = TaskOptions(data_dir=tmp_path / "train.txt", epochs=3, batch_size=8, lr=0.005)
    task = build_task("lm", options)
    assert [len(getattr(task, s)) for s in ("train", "validation", "test")] == [160, 20, 20]
    result = train(task, losslab.loss("mixed(focus=0.3)"), seed=0)
    assert result.status == "finished", result.reason
    assert result.results["last"]["test"]["nll"] < 0.5
    (tokens, mask), _ = collate([task.test[0], task.test[1]])
    longer = F.pad(tokens, (0, 4)), F.pad(mask, (0, 4))
    with torch.no_grad():
        one, two = result.model.eval()((tokens, mask)), result.model(longer)
    torch.testing.assert_close(two[:, : tokens.shape[1]], one, rtol=1e-4, atol=1e-4)


def test_models_that_are_none_are_refused(tmp_path, monkeypatch):
    """A folder without a model, and transformers missing."""
    texts = put_prompts(tmp_path / "texts")
    (tmp_path / "empty").mkdir()
    refused("cannot be loaded", texts, model=str(tmp_path / "empty"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(r"pip install 'losslab\[text\]'", texts, model=str(tmp_path / "empty"))
