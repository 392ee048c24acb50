"""`reviews` and tables with a column of text: made-up files, the LSTMs, the real file.

The oracles of the vocabulary and the networks are written without tokenizers and without padding.
"""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from losslab import loss
from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.split import stratified_split
from losslab.experiment.tasks.text import reviews as builder
from losslab.experiment.tasks.text.adam import AdamWRecipe
from losslab.experiment.tasks.text.lstm import SIZES, WordLSTM
from losslab.experiment.tasks.text.sequences import lengths_of, trimmed
from losslab.experiment.train import train

pytest.importorskip("tokenizers")

DATA = Path(os.environ.get("LOSSLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
TEXT = "It's the dress, shirt; I love hate fit fits too tight loose colour! and so-so N/A"
WORDS = TEXT.split(" ")
UNSEEN = 12  # a row of the test split
SAID = ("awful", "poor", "middling", "nice", "wonderful")


def made(count: int = 60, seed: int = 0, longest: int = 90) -> list[dict[str, str]]:
    """Reviews of 1 to ``longest`` words; one word in the text says the rating."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        rating = number % 5
        words = [str(word) for word in draw.choice(WORDS, draw.integers(1, longest))]
        words.insert(int(draw.integers(0, min(len(words), 40))), SAID[rating].upper())
        title = "" if number % 3 else f"Title{number}, odd"
        rows.append({"Title": title, "Review Text": " ".join(words), "Rating": str(rating + 1)})
    return rows


def csv_of(rows: list[dict[str, str]]) -> bytes:
    """As Kaggle's file: a column without a name, others around those that are read."""
    text = io.StringIO()
    names = ["", "Age", "Title", "Review Text", "Rating", "Class Name"]
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows({"": k, "Age": 30, "Class Name": "Knits", **row} for k, row in enumerate(rows))
    return text.getvalue().encode()


def zipped(content: bytes, name: str = builder.NAME) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"__MACOSX/._{name}", b"\0\5\26\7")
        archive.writestr(name, content)
    return packed.getvalue()


def put(folder: Path, name: str, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)
    return folder


def build(folder: Path, **options):
    return build_task("reviews", TaskOptions(data_dir=folder, **options))


def refused(folder: Path | None, *texts: str, task: str = "reviews", **options) -> None:
    with pytest.raises(InputError) as caught:
        build_task(task, TaskOptions(data_dir=folder, **options))
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sub, name, packed",
    [
        ("", "womens_clothing_reviews.csv.zip", True),
        ("womens_clothing", f"{builder.NAME}.zip", True),
        ("", "archive.zip", True),
        ("reviews", builder.NAME, False),
    ],
)
def test_every_form_of_the_file_makes_one_task(tmp_path, sub, name, packed):
    """Oracle: the plain CSV in the folder itself; macOS's own entry in a zip is passed over."""
    content = csv_of(made())
    plain = build(put(tmp_path / "plain", builder.NAME, content))
    other = build(put(tmp_path / sub, name, zipped(content) if packed else content))
    assert other.description == plain.description
    assert plain.description["notes"] == ["not the reviews' own file: 60 rows"]
    assert [len(s) for s in (plain.train, plain.validation, plain.test)] == [45, 5, 10]


def test_words_are_numbered_as_by_hand(tmp_path):
    """Oracle: counting with `re` and `Counter`. A vocabulary that has seen the test texts, another
    order, case, cut, or padding at the front fails."""
    rows = made()
    rows[UNSEEN] |= {"Review Text": "unseen unseen"}
    task = build(put(tmp_path, builder.NAME, csv_of(rows)))
    texts = [re.findall(r"\w+|[^\w\s]+", row["Review Text"].lower()) for row in rows]
    codes = np.array([int(row["Rating"]) - 1 for row in rows])
    parts = stratified_split(codes, (0.2, 0.1), 0)
    counts = Counter(word for row in parts[0] for word in texts[row])
    known = sorted((word for word in counts if counts[word] > 1), key=lambda w: (-counts[w], w))
    numbers = {word: number for number, word in enumerate(known, start=2)}
    for split, part in (("train", parts[0]), ("test", parts[1]), ("validation", parts[2])):
        inputs, targets = getattr(task, split).tensors
        for found, row in zip(inputs.tolist(), part, strict=True):
            expected = [numbers.get(word, 1) for word in texts[row]][:70]
            assert found == expected + [0] * (70 - len(expected))
        assert targets.tolist() == codes[part].tolist()
    assert task.model().embedding.num_embeddings == len(known) + 2
    assert UNSEEN in parts[1]


@pytest.mark.parametrize("name, layers, width", [("lstm1", 1, 6), ("lstm4", 2, 5)])
def test_the_networks_answer_as_row_by_row_without_padding(name, layers, width):
    """Oracle: nn.LSTM on each text alone, in value and gradient. Padding that is read or
    a wrong last word fails."""
    assert SIZES[name][0] == layers
    torch.manual_seed(3)
    model = WordLSTM(30, 5, layers, width).double().eval()
    lengths = torch.randint(1, 24, (150,))
    words = torch.randint(1, 30, (150, 40)) * (torch.arange(40) < lengths[:, None])
    logits = model(words)
    alone = []
    for row, length in zip(words, lengths.tolist(), strict=True):
        _, (state, _) = model.lstm(model.embedding(row[:length])[None])
        alone.append(model.head(state[-1]))
    expected = torch.cat(alone)
    torch.testing.assert_close(logits, expected)
    weight = torch.randn_like(expected)
    parameters = list(model.parameters())
    mine = torch.autograd.grad((logits * weight).sum(), parameters)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters)
    torch.testing.assert_close(mine, theirs)


def test_lengths_end_at_the_last_word():
    """By hand: a hole counts as a word; nothing but padding has length 1; the longest decides."""
    words = torch.tensor([[4, 0, 5, 0, 0], [0, 0, 0, 0, 0], [7, 0, 0, 0, 0]])
    lengths = lengths_of(words != 0)
    assert lengths.tolist() == [3, 1, 1]
    assert trimmed(words[:, None], lengths).tolist() == words[:, None, :3].tolist()


def test_networks_have_the_papers_sizes(tmp_path):
    """Oracle: the parameters of an LSTM counted by hand, with the sizes that the paper lists."""
    folder = put(tmp_path, builder.NAME, csv_of(made()))
    papers = {"lstm1": (1, 50), "lstm2": (1, 75), "lstm3": (1, 100), "lstm4": (2, 50)}
    for name, (layers, width) in (papers | {"lstm5": (2, 100)}).items():
        model = build(folder, model=name).model()
        own = layers * (4 * width * (width + width) + 8 * width)
        words = model.embedding.num_embeddings * width
        assert sum(p.numel() for p in model.parameters()) == words + own + 5 * width + 5


def test_learns_and_repeats(tmp_path, one_thread):
    """Oracle: the word that says the rating, and a second run bit for bit."""
    folder = put(tmp_path, builder.NAME, csv_of(made(300, longest=6)))
    task = build(folder, epochs=8, batch_size=16, lr=0.02)
    first, again = (train(task, loss("encouraging"), seed=1) for _ in range(2))
    assert first.accuracy > 0.9
    for one, other in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rates_fall_in_a_straight_line(tmp_path):
    """By hand; and AdamW without decay."""
    recipe = AdamWRecipe(epochs=2, batch_size=4, lr=0.1)
    fields = recipe.task_fields()
    optimizer = fields["optimizer"](nn.Linear(1, 1).parameters())
    scheduler = fields["lr_scheduler"](optimizer, 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert optimizer.param_groups[0]["lr"] == 0
    assert type(optimizer).__name__ == "AdamW" and optimizer.defaults["weight_decay"] == 0
    steps = AdamWRecipe(2, 4, 0.1, milestones=(0.5,)).task_fields()["lr_scheduler"](optimizer, 4)
    assert [steps.lr_lambdas[0](k) for k in range(4)] == pytest.approx([1, 1, 0.1, 0.1])


def test_reviews_without_a_text_are_left_out(tmp_path):
    """By hand: one with a title alone, one with spaces; one that says 'N/A' stays."""
    rows = made()
    rows[0] |= {"Title": "Lovely", "Review Text": ""}
    rows[5] |= {"Review Text": "  "}
    rows[10] |= {"Review Text": "N/A"}
    task = build(put(tmp_path, builder.NAME, csv_of(rows)))
    assert sum(task.description["sizes"].values()) == 58


def test_what_is_refused(tmp_path):
    """Each message names the file, what is wrong and what to do."""
    content = csv_of(made())
    refused(None, "womens_clothing_reviews.csv.zip", "--data-dir", "https://")
    refused(tmp_path, "none found. Looked in", str(tmp_path / "womens_clothing"))
    name = "womens_clothing_reviews.csv.zip"
    packed = zipped(content)
    for number, damaged in enumerate([packed[: len(packed) // 2], b"<html>"]):
        folder = put(tmp_path / f"damaged{number}", name, damaged)
        refused(folder, str(folder / name), "damaged or cut short", "Download it again")
    flipped = bytearray(packed)
    flipped[-600] ^= 0xFF
    refused(put(tmp_path / "flipped", name, bytes(flipped)), "damaged or cut short")
    other = put(tmp_path / "other", name, zipped(content, "dresses.csv"))
    refused(other, "it holds other files")
    end = content.rindex(b",Knits")  # …", rating, class
    half = put(tmp_path / "half", builder.NAME, content[: end - 2])
    refused(half, "a rating from 1 to 5", "in row 60", "cut short")
    quoted = put(tmp_path / "quoted", builder.NAME, content[: end - 6])
    refused(quoted, "damaged: download it again")
    columns = content.replace(b"Review Text", b"Comment", 1)
    refused(put(tmp_path / "columns", builder.NAME, columns), "with columns Review Text, Rating")
    folder = put(tmp_path / "sound", builder.NAME, content)
    refused(folder, "takes no target", target="Rating")
    refused(folder, "takes no text (it is no table)", text="Title")
    refused(folder, "Did you mean 'lstm", model="lstm")
    refused(None, "takes no text (it is no table)", task="digits", text="x")


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    """Oracle: Python's own way to make an import fail."""
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    folder = put(tmp_path, builder.NAME, csv_of(made(50, seed=9)))
    refused(folder, "needs tokenizers", "pip install 'losslab[text]'")


def write_table(path: Path, rows: list[dict[str, str]]) -> str:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def test_any_table_with_a_column_of_text(tmp_path):
    """By hand: classes of the target column, rows without a text dropped and told."""
    rows = [
        {"id": str(k), "said": f"a {'good' if k % 2 else 'bad'} film", "is": "yn"[k % 2]}
        for k in range(40)
    ]
    rows[3]["said"] = ""
    path = write_table(tmp_path / "films.csv", rows)
    task = build_task(path, TaskOptions(target="is", text="said"))
    assert task.name == "films" and task.class_names == ("n", "y")
    assert task.description["notes"] == ["1 row dropped: no text"]
    assert sum(task.description["sizes"].values()) == 39
    inputs, targets = task.test.tensors
    assert inputs.shape[1] == 200 and len({tuple(row) for row in inputs.tolist()}) == 2
    good = inputs[:, 1].max() if inputs[targets == 1][0, 1] == inputs[:, 1].max() else None
    wanted = inputs[targets == 1][0, 1] if good is None else good
    assert torch.equal(inputs[:, 1] == wanted, targets == 1)
    refused(None, "Did you mean 'said'?", task=path, target="is", text="sad")
    refused(None, "expected texts in column 'id'; got numbers", task=path, target="is", text="id")
    refused(None, "which column is to be predicted?", task=path, text="said")
    assert build_task(path, TaskOptions(target="is")).description["model"]["name"] == "mlp"


def test_real_reviews():
    """Oracle: Python's csv on the real file. A row lost or a rating misread fails."""
    if not (DATA / "womens_clothing").is_dir():
        pytest.skip(f"no real data: {DATA / 'womens_clothing'} (set LOSSLAB_DATA)")
    path, content = builder._find(DATA)
    texts, ratings = builder._read(path, content)
    rows = csv.DictReader(io.StringIO(content.decode(), newline=""))
    kept = [row for row in rows if row["Review Text"].strip()]
    assert texts == [row["Review Text"] for row in kept]
    assert ratings.tolist() == [int(row["Rating"]) - 1 for row in kept]
    assert len(kept) == 22_641
