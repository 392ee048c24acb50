"""Reviews of women's clothing, or any table with a column of text: LSTMs.

The networks are the five of Battash et al., table 3. Beside them the paper states eight seeds and
nothing else of the training. Its sizes are those of a widely copied tutorial on the same file
(*Multiclass text classification using LSTM in PyTorch*, 2020), from which come the vocabulary
(words that occur twice at least, in lower case), the cut after 70 words, the dropout of 0.3 on
their vectors, the test split of a fifth, and Adam. It trains in batches of 5,000 for up to 90
epochs on titles and texts together; here a run is shorter, of smaller batches, on the texts alone.

Rate, batch and epochs were not searched for: of `lstm1` with plain cross_entropy one run (seed 0)
was looked at on the validation texts: 61.3 % after three epochs, 60.7 % after six.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from losslab.errors import InputError, nearest
from losslab.experiment.task import Task
from losslab.experiment.tasks.assemble import assemble, counted
from losslab.experiment.tasks.official import places
from losslab.experiment.tasks.options import TaskOptions, choose_model, refuse_unused
from losslab.experiment.tasks.split import TEST_FRACTION, keep, stratified_split
from losslab.experiment.tasks.tables.table_file import read_table, table_name, take_target
from losslab.experiment.tasks.text.adam import AdamWRecipe
from losslab.experiment.tasks.text.lstm import SIZES, WordLSTM
from losslab.experiment.tasks.text.words import LEAST_TIMES, numbered

if TYPE_CHECKING:
    import pandas as pd

FOLDERS = ("womens_clothing", "womens-clothing", "reviews")
NAME = "Womens Clothing E-Commerce Reviews.csv"
FILES = ("womens_clothing_reviews.csv.zip", f"{NAME}.zip", NAME, "archive.zip")
WHERE_TO_GET = "https://www.kaggle.com/datasets/nicapotato/womens-ecommerce-clothing-reviews"
MD5 = "0a739940276c8d252de145f7d5f830b2"
COLUMNS = ("Review Text", "Rating")
RATINGS = ("1", "2", "3", "4", "5")
VALIDATION_FRACTION = 0.1
MOST_WORDS = {"reviews": 70, "table": 200}  # of a text; what comes after is cut off
RECIPES = {model: AdamWRecipe(epochs=6, batch_size=128, lr=0.005) for model in SIZES}


def build_reviews(options: TaskOptions) -> Task:
    """22,641 reviews with a rating from 1 to 5, split 70/10/20 within each rating."""
    refuse_unused(
        "reviews",
        options,
        {"target": "it predicts the rating", "image_size": "it has no images"},
    )
    path, content = _find(options.data_dir)
    texts, ratings = _read(path, content)
    official = hashlib.md5(content).hexdigest() == MD5
    notes = [] if official else [f"not the reviews' own file: {counted(len(texts), 'row')}"]
    return _task(
        "reviews",
        texts,
        ratings,
        RATINGS,
        options,
        MOST_WORDS["reviews"],
        {"source": "Women's E-Commerce Clothing Reviews, their text", "notes": notes},
    )


def build_text_table(path: Path, options: TaskOptions) -> Task:
    """A table of which one column is a text, split 70/10/20 within each class."""
    refuse_unused(str(path), options, {"image_size": "it has no images"})
    columns, codes, class_names, notes = take_target(path, read_table(path), options.target)
    texts, missing = _texts(path, columns, str(options.text))
    if missing.any():
        notes = [*notes, f"{counted(int(missing.sum()), 'row')} dropped: no text"]
        codes = codes[~missing]
    return _task(
        table_name(path),
        texts,
        codes,
        class_names,
        options,
        MOST_WORDS["table"],
        {
            "source": f"table {path.name}, text {options.text!r}, target {options.target!r}",
            "notes": notes,
        },
    )


def _task(
    name: str,
    texts: Sequence[str],
    codes: np.ndarray,
    class_names: Sequence[str],
    options: TaskOptions,
    longest: int,
    facts: dict[str, Any],
) -> Task:
    model = choose_model(name, options, tuple(RECIPES))
    fractions = (TEST_FRACTION, options.validation_fraction or VALIDATION_FRACTION)
    train, test, validation = stratified_split(codes, fractions, options.split_seed)
    train = train[keep(codes[train], options.train_size, options.split_seed)]
    parts = (train, validation, test)
    first, *rest = (tuple(texts[row] for row in part) for part in parts)
    inputs, words = numbered(first, tuple(rest), longest)
    layers, width = SIZES[model]
    return assemble(
        name=name,
        splits=[
            (numbers, torch.from_numpy(codes[part]))
            for numbers, part in zip(inputs, parts, strict=True)
        ],
        class_names=class_names,
        model_name=model,
        model=partial(WordLSTM, words, len(class_names), layers, width),
        recipe=RECIPES[model].changed_by(options),
        facts={
            **facts,
            "split": {"rule": "stratified", "seed": options.split_seed},
            "preprocessing": [
                "lower case; words are runs of letters and digits, or of other signs",
                f"{words} words: those that the training texts have {LEAST_TIMES} times or more, "
                "padding and the unknown word",
                f"cut after {longest} words",
            ],
        },
    )


def _texts(path: Path, columns: pd.DataFrame, name: str) -> tuple[list[str], np.ndarray]:
    """The texts of a column, and which rows have none."""
    import pandas as pd

    if name not in columns.columns:
        names = [str(column) for column in columns.columns]
        raise InputError(
            f"{path}: no column {name!r} to read texts from.{nearest(name, names)} "
            f"Columns beside the target: {', '.join(names) or 'none'}."
        )
    column = columns[name]
    if pd.api.types.is_numeric_dtype(column):
        raise InputError(
            f"{path}: expected texts in column {name!r}; got numbers such as {column.iloc[0]!r}. "
            "Name another column with text (--text), or leave it out to predict from numbers."
        )
    missing = column.isna().to_numpy()
    return [str(value) for value in column[~missing]], missing


def _find(data_dir: str | Path | None) -> tuple[Path, bytes]:
    """The file, and the bytes of its CSV."""
    wanted = f"reviews is read from {FILES[0]} or {NAME!r}, zipped or not ({WHERE_TO_GET})"
    looked = places(wanted, data_dir, FOLDERS)
    for place in looked:
        for file in FILES:
            if (place / file).is_file():
                return place / file, _csv(place / file)
    raise InputError(f"{wanted}; none found. Looked in {', '.join(map(str, looked))}.")


def _csv(path: Path) -> bytes:
    if path.suffix != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if PurePosixPath(name).name == NAME]
            if not found:
                raise InputError(f"{path}: expected {NAME!r} in it; it holds other files.")
            return archive.read(found[0])
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise InputError(
            f"{path}: expected a complete zip archive; it is damaged or cut short ({error}). "
            "Download it again."
        ) from None


def _read(path: Path, content: bytes) -> tuple[list[str], np.ndarray]:
    """Texts, and ratings from 0, of the rows that have a text."""
    import pandas as pd

    try:
        frame = pd.read_csv(
            io.BytesIO(content), dtype=str, keep_default_na=False, usecols=list(COLUMNS)
        )
    except Exception as error:  # of pandas and codecs, kinds of their own
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path}: cannot be read as the table of reviews, with columns {', '.join(COLUMNS)} "
            f"({reason}). It is another file, or damaged: download it again."
        ) from None
    wrong = (~frame["Rating"].isin(RATINGS)).to_numpy().nonzero()[0]
    if len(wrong) or frame.empty:
        what = f"got {frame['Rating'].iloc[wrong[0]]!r} in row {wrong[0] + 1}" if len(wrong) else ""
        raise InputError(
            f"{path}: expected a rating from 1 to 5 in every row; {what or 'there are no rows'}. "
            "The file is cut short or damaged: download it again."
        )
    said = frame[frame["Review Text"].str.strip() != ""]
    ratings = said["Rating"].astype(int).to_numpy() - 1
    return said["Review Text"].tolist(), ratings.astype(np.int64)
