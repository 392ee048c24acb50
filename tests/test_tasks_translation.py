"""Multi30k and IWSLT14: files in their makers' form, every refusal, the task on a toy language.

The toy language has a word for every English one and turns the order round, so a translation can be
told by hand.
"""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import losslab
from losslab.errors import InputError
from losslab.experiment.tasks import TaskOptions, build_task
from losslab.experiment.tasks.text import translation
from losslab.experiment.tasks.text.adam import AdamRecipe, inverse_square_root
from losslab.experiment.tasks.text.parallel_text import read_iwslt14, read_iwslt17, read_multi30k
from losslab.experiment.tasks.text.subwords import END, PAD, START, fit_subwords
from losslab.experiment.tasks.text.translation import IGNORED, collate, translate
from losslab.experiment.tasks.text.translator import Shape
from losslab.experiment.train import train

DATA = Path(os.environ.get("LOSSLAB_DATA", Path(__file__).parents[2] / "shared" / "data"))
WORDS = {"haus": "house", "hund": "dog", "rot": "red", "klein": "small", "und": "and", "ein": "a"}
SIZES = {"train": 160, "val": 12, "test_2016_flickr": 14}


def toy(count: int, seed: int) -> list[tuple[str, str]]:
    generator = torch.Generator().manual_seed(seed)
    known = list(WORDS)
    pairs = []
    for _ in range(count):
        length = 2 + int(torch.randint(4, (1,), generator=generator))
        rows = torch.randint(len(known), (length,), generator=generator).tolist()
        words = [known[row] for row in rows]
        pairs.append((" ".join(words), " ".join(WORDS[word] for word in reversed(words))))
    return pairs


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(f"{line}\n" for line in lines).encode()
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)


def put(folder: Path, end: str = ".gz") -> Path:
    for number, (stem, count) in enumerate(SIZES.items()):
        pairs = toy(count, number)
        write(folder / f"{stem}.de{end}", [pair[0] for pair in pairs])
        write(folder / f"{stem}.en{end}", [pair[1] for pair in pairs])
    return folder


@pytest.fixture
def small(monkeypatch):
    """A model that learns the toy language in seconds."""
    model = replace(
        translation.MODELS["multi30k-de-en"]["small"],
        shape=Shape(width=32, heads=2, inner=64, layers=1, dropout=0.0),
        vocabulary=60,
        at_once=16,
        recipe=AdamRecipe(epochs=25, batch_size=16, lr=0.01, average=2),
    )
    monkeypatch.setitem(translation.MODELS["multi30k-de-en"], "small", model)


def refused(text: str, folder: Path | None, name: str = "multi30k-de-en", **options) -> None:
    with pytest.raises(InputError, match=text) as caught:
        build_task(name, TaskOptions(data_dir=folder, **options))
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- Multi30k's files


@pytest.mark.parametrize("place", ["", "multi30k/raw", "multi30k/data/task1/raw"])
@pytest.mark.parametrize("end", [".gz", ""])
def test_reads_what_was_written(tmp_path, place, end):
    """Oracle: the sentences written. Sides exchanged, or splits, fail."""
    put(tmp_path / place, end)
    corpus = read_multi30k(tmp_path, "de", "en")
    for number, (split, count) in enumerate(zip(corpus.splits, SIZES.values(), strict=True)):
        pairs = corpus.splits[split]
        assert list(zip(pairs.source, pairs.target, strict=True)) == toy(count, number)
    assert list(corpus.splits) == ["train", "validation", "test"]
    assert len(corpus.notes) == 6 and "not the official Multi30k: train.de" in corpus.notes[0]


def test_lines_end_at_line_feeds_only(tmp_path):
    """A line separator inside a sentence, carriage returns, an empty side of a training pair."""
    put(tmp_path)
    write(tmp_path / "train.de.gz", ["ein\u2028hund\r", "", "rot"])
    write(tmp_path / "train.en.gz", ["a dog", "red", "red"])
    corpus = read_multi30k(tmp_path, "de", "en")
    assert corpus.splits["train"].source == ("ein\u2028hund", "rot")
    assert corpus.splits["train"].target == ("a dog", "red")
    assert "1 training pairs left out: a side is empty" in corpus.notes


def test_damaged_and_missing_files_are_refused(tmp_path):
    """Each message names the file and what to do."""
    refused("data_dir", None)
    refused("not a folder", tmp_path / "nowhere")
    refused("no training sentences found", tmp_path)
    put(tmp_path)
    whole = (tmp_path / "train.en.gz").read_bytes()
    (tmp_path / "train.en.gz").write_bytes(whole[: len(whole) // 2])
    refused(r"train\.en\.gz: cannot be read .* cut short: copy or download", tmp_path)
    (tmp_path / "train.en.gz").write_bytes(whole[:-6] + bytes([whole[-6] ^ 1]) + whole[-5:])
    refused(r"train\.en\.gz: cannot be read", tmp_path)
    write(tmp_path / "train.en.gz", ["one line"])
    refused(r"train: expected as many sentences .* got 160 and 1", tmp_path)
    (tmp_path / "train.en.gz").write_bytes(gzip.compress(b"caf\xe9\n" * 160))
    refused(r"train\.en\.gz: expected UTF-8", tmp_path)
    (tmp_path / "train.en.gz").write_bytes(whole)
    (tmp_path / "val.en.gz").unlink()
    refused(r"expected val\.en\.gz .* missing", tmp_path)


def test_options_that_say_nothing_are_refused(tmp_path):
    put(tmp_path)
    refused("takes no validation_fraction", tmp_path, validation_fraction=0.1)
    refused("has no model 'smal'", tmp_path, model="smal")
    refused("at most the 160 training pairs; got 161", tmp_path, train_size=161)


@pytest.mark.skipif(not (DATA / "multi30k").is_dir(), reason=f"no multi30k in {DATA}")
@pytest.mark.parametrize("source", ["de", "fr"])
def test_the_real_files(source):
    """Oracle: the published sizes, the checksums, and the first sentence."""
    corpus = read_multi30k(DATA, source, "en")
    assert [len(pairs) for pairs in corpus.splits.values()] == [29_000, 1_014, 1_000]
    assert corpus.notes == []
    first = corpus.splits["train"].target[0]
    assert first == "Two young, White males are outside near many bushes."


# ---------------------------------------------------------------- IWSLT14's files


def iwslt_files() -> dict[str, bytes]:
    """Training lines among tags (50 talks of a title and one line), five sets of two segments."""
    files = {}
    for side, language in enumerate(("de", "en")):
        lines = []
        for talk in range(50):
            said = [f"Satz {talk} vom Haus", f"Sentence {talk} of House"][side]
            lines += [f"<url>http://{talk}</url>", "<keywords>talks</keywords>"]
            lines += [f"<talkid>{talk}</talkid>", f"<title>{said} !</title>", said]
        lines.append(["zu lang " * 5, "short"][side])
        files[f"train.tags.de-en.{language}"] = "".join(f"{line}\n" for line in lines).encode()
        for number, talk in enumerate(("dev2010", "dev2012", "tst2010", "tst2011", "tst2012")):
            name = f"IWSLT14.TED{'X' * (talk == 'dev2012')}.{talk}.de-en.{language}.xml"
            said = ["Es ist’s &amp; war", "It is &amp; Was"][side]
            files[name] = (
                f'<doc docid="1">\n<title>no</title>\n<seg id="1"> {said} {number} </seg>\n'
                f'<seg id="2">{number}\u00a0b</seg>\n</doc>\n'
            ).encode()
    return files


def archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as out:
        for name, content in files.items():
            member = tarfile.TarInfo(f"de-en/{name}")
            member.size = len(content)
            out.addfile(member, io.BytesIO(content))


def test_iwslt_is_split_as_fairseq_splits_it(tmp_path):
    """Oracle: the lines by hand: 100 pairs (titles and sentences), every 23rd to validation, one
    pair out for its lengths, ten test pairs in the order of the sets. Archive and folder agree."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b" / "iwslt14" / "de-en").mkdir(parents=True)
    archive(tmp_path / "a" / "de-en.tgz", iwslt_files())
    for name, content in iwslt_files().items():
        (tmp_path / "b" / "iwslt14" / "de-en" / name).write_bytes(content)
    packed, unpacked = read_iwslt14(tmp_path / "a"), read_iwslt14(tmp_path / "b")
    assert packed == unpacked and packed.sha256 == unpacked.sha256
    assert "1 of 101 training pairs left out" in packed.notes[0]
    said = [f"sentence {n} of house{end}" for n in range(50) for end in (" !", "")]
    splits = packed.splits
    assert splits["validation"].target == tuple(said[n] for n in (22, 45, 68, 91))
    assert splits["train"].target == tuple(x for n, x in enumerate(said, 1) if n % 23)
    assert splits["test"].source[:3] == ("es ist's & war 0", "0 b", "es ist's & war 1")
    assert len(splits["test"]) == 10
    turned = read_iwslt14(tmp_path / "a", "en", "de").splits["test"]
    assert (turned.source, turned.target) == (splits["test"].target, splits["test"].source)


def test_iwslt_that_is_not_whole_is_refused(tmp_path):
    refused("read from de-en.tgz", tmp_path, "iwslt14-de-en")
    files = iwslt_files()
    archive(tmp_path / "de-en.tgz", files)
    whole = (tmp_path / "de-en.tgz").read_bytes()
    (tmp_path / "de-en.tgz").write_bytes(whole[: len(whole) // 2])
    refused("damaged or cut short: download", tmp_path, "iwslt14-de-en")
    missing = {name: content for name, content in files.items() if "tst2011" not in name}
    archive(tmp_path / "de-en.tgz", missing)
    refused("expected it to hold IWSLT14.TED.tst2011", tmp_path, "iwslt14-de-en")


def test_iwslt17_in_its_own_sets(tmp_path):
    """Oracle: the lines by hand: a title and 30 sentences, dev2010 for validation, six years of two
    segments for the test, case kept. Break: a tag that is taken for a sentence, a year too
    few, a set of another year."""
    folder = tmp_path / "iwslt17" / "fr-en"
    folder.mkdir(parents=True)
    for side, language in enumerate(("fr", "en")):
        lines = [
            '<doc docid="1" genre="lectures">',
            "<speaker>X</speaker>",
            "<reviewer>Y</reviewer>",
        ]
        lines += ['<translator href="z">Z</translator>', "<url>u</url>", "<talkid>3</talkid>"]
        lines += [f"<title>{['Titre', 'Title'][side]} A</title>", "<description>D E</description>"]
        lines += [f"{['Phrase', 'Sentence'][side]} {k} of House" for k in range(30)] + ["</doc>"]
        (folder / f"train.tags.fr-en.{language}").write_text("".join(f"{x}\n" for x in lines))
        for year in ("dev2010", *(f"tst{y}" for y in range(2010, 2016))):
            said = f'<seg id="1"> {["Été", "Summer"][side]} {year} </seg>\n<seg id="2">b</seg>\n'
            (folder / f"IWSLT17.TED.{year}.fr-en.{language}.xml").write_text(said)
    found = read_iwslt17(tmp_path).splits
    whole = ("Title A", "D E", *(f"Sentence {k} of House" for k in range(30)))
    assert found["train"].target == whole and found["train"].source[2] == "Phrase 0 of House"
    assert found["validation"].source == ("Été dev2010", "b")
    assert found["test"].target[::2] == tuple(f"Summer tst{y}" for y in range(2010, 2016))
    (folder / "IWSLT17.TED.tst2013.fr-en.en.xml").unlink()
    refused("IWSLT17.TED.tst2013.fr-en.en.xml, which is missing", tmp_path, "iwslt17-fr-en")
    refused("IWSLT17 is read from fr-en.tgz", tmp_path / "nowhere", "iwslt17-fr-en")


# ---------------------------------------------------------------- the task


def test_subwords_spell_the_sentences_and_are_fitted_on_training_alone(tmp_path, small):
    """Oracle: the sentences themselves, the special pieces by hand, another test file."""
    task = build_task("multi30k-de-en", TaskOptions(data_dir=put(tmp_path)))
    subwords = task.model_scores.subwords
    for row, (source, target) in enumerate(toy(SIZES["train"], 0)[:20]):
        (read, begun), goal = task.train[row]
        assert subwords.decode([read[:-1].tolist(), goal[:-1].tolist()]) == [source, target]
        assert read[-1] == END == goal[-1] and begun[0] == START
        assert torch.equal(begun[1:], goal[:-1])
    assert subwords.size == task.num_classes <= 60
    write(tmp_path / "test_2016_flickr.de.gz", ["zzz"] * 14)
    other = build_task("multi30k-de-en", TaskOptions(data_dir=tmp_path))
    assert other.model_scores.subwords.sha256 == subwords.sha256
    assert other.description["sha256"] != task.description["sha256"]


def test_a_vocabulary_is_cut_to_what_there_is_and_refused_below_the_characters():
    """Oracle: the letters, by hand."""
    assert fit_subwords(["ab ab"], 500).size < 20
    with pytest.raises(InputError, match=r"more than 7 pieces"):
        fit_subwords(["abc"], 5)


def test_batches_are_trimmed_and_losses_are_means_over_pieces(tmp_path, small):
    """Oracle: PyTorch's cross_entropy with ignore_index over the padded logits, sentence by
    sentence. Padding that counts, or a mean over sentences, fails."""
    task = build_task("multi30k-de-en", TaskOptions(data_dir=put(tmp_path)))
    examples = [task.train[row] for row in range(9)]
    (read, begun), goal = collate(examples)
    assert read.shape[1] == max(len(inputs[0]) for inputs, _ in examples)
    assert begun.shape == goal.shape and ((begun == PAD) == (goal == IGNORED)).all()
    torch.manual_seed(0)
    model = task.model()
    loss = task.reading.loss(losslab.loss("cross_entropy"), model((read, begun)), goal)
    padded = torch.full((*goal.shape, task.num_classes), 7.0)
    for row, ((source, written), target) in enumerate(examples):
        padded[row, : len(target)] = model((source[None], written[None]))
    expected = F.cross_entropy(padded.transpose(1, 2), goal, ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def test_a_run_learns_and_records_bleu(tmp_path, small):
    """Oracle: sacrebleu by hand over what the finished model writes, and the toy language itself.
    Translations out of order, or of the wrong split, fail; so does a model that learns nothing."""
    from sacrebleu.metrics import BLEU

    task = build_task("multi30k-de-en", TaskOptions(data_dir=put(tmp_path)))
    result = train(task, losslab.loss("smoothed(cross_entropy, amount=0.1)"), seed=0)
    assert result.status == "finished", result.reason
    pairs = toy(SIZES["test_2016_flickr"], 2)
    with torch.no_grad():
        written = translate(
            result.model.eval(), task.model_scores.subwords, [pair[0] for pair in pairs]
        )
    by_hand = BLEU().corpus_score(written, [[pair[1] for pair in pairs]]).score
    last = result.results["last"]
    assert last["test"]["bleu"] == pytest.approx(by_hand)
    assert last["test"]["bleu"] > 50
    assert last["validation"]["bleu"] != last["test"]["bleu"]
    signature = task.description["bleu"]["signature"]
    assert signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")


def test_train_size_keeps_pairs_together(tmp_path, small):
    """Oracle: the set of pairs written; fewer, in their order, and others with another seed."""
    put(tmp_path)

    def kept(seed: int):
        options = TaskOptions(data_dir=tmp_path, train_size=50, split_seed=seed)
        task = build_task("multi30k-de-en", options)
        spell = task.model_scores.subwords.decode
        rows = [task.train[row] for row in range(len(task.train))]
        read = spell([inputs[0][:-1].tolist() for inputs, _ in rows])
        return list(zip(read, spell([goal[:-1].tolist() for _, goal in rows]), strict=True))

    whole = toy(SIZES["train"], 0)
    assert len(kept(0)) == 50 and set(kept(0)) <= set(whole)
    places = iter(whole)
    assert all(any(pair == other for other in places) for pair in kept(0))
    assert kept(0) == kept(0) != kept(1)


def test_the_rate_rises_and_falls_as_the_inverse_square_root():
    """Oracle: Vaswani et al.'s formula, scaled to 1 at the end of the warm-up."""
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = inverse_square_root(optimizer, 100, warm_up_steps=10)
    rates = []
    for _ in range(40):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    steps = torch.arange(1, 41, dtype=torch.float64)
    expected = 2.0 * 10**0.5 * torch.minimum(steps**-0.5, steps * 10**-1.5)
    torch.testing.assert_close(torch.tensor(rates, dtype=torch.float64), expected)


def test_averages_no_more_epochs_than_there_are(tmp_path, small):
    task = build_task("multi30k-de-en", TaskOptions(data_dir=put(tmp_path), epochs=1))
    assert (task.epochs, task.average) == (1, 1)


@pytest.mark.parametrize("library", ["sentencepiece", "sacrebleu.metrics"])
def test_a_missing_library_is_told_with_the_command(tmp_path, monkeypatch, small, library):
    from losslab.experiment.tasks.text import subwords

    put(tmp_path)
    subwords._fitted.cache_clear()
    monkeypatch.setitem(sys.modules, library, None)
    refused(r"pip install 'losslab\[text\]'", tmp_path)
