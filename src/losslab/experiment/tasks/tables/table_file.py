"""Reading a CSV, TSV or Parquet file into a data frame, and its target column into classes."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from losslab.errors import InputError, nearest
from losslab.experiment.tasks.assemble import counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

ENDINGS = (".csv", ".tsv", ".parquet", ".csv.gz", ".tsv.gz")
MISSING_MARKS = ["?"]  # beside pandas' own: empty, NA, NaN, N/A, null, None, …
MOST_FLOAT_CLASSES = 20  # more distinct values of a float target than this are a regression target
LEAST_ROWS_A_CLASS = 3  # one for each split


def is_table(name: str) -> bool:
    """Whether the file name ends like a table's."""
    return name.lower().endswith(ENDINGS)


def table_name(path: Path) -> str:
    """The file's name without its table ending."""
    ending = max((e for e in ENDINGS if path.name.lower().endswith(e)), key=len, default="")
    return path.name[: len(path.name) - len(ending)] or path.name


def read_table(path: Path) -> pd.DataFrame:
    """The table in a file; `InputError` for one that is missing, empty, damaged or ambiguous."""
    if not path.is_file():
        raise InputError(f"{path}: no such file. Expected a table ({', '.join(ENDINGS)}).")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty. Expected a header line and rows of values.")
    try:
        frame = _read(path)
    except InputError:
        raise
    except Exception as error:  # pandas, pyarrow, gzip and codecs raise kinds of their own
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"{path}: cannot be read as a table ({type(error).__name__}: {reason}). "
            "Expected UTF-8 text with one header line and as many values in each row, or Parquet."
        ) from None
    if frame.empty:
        raise InputError(f"{path}: no rows below the header. Expected one row an example.")
    frame.columns = frame.columns.map(str)
    return frame.reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    import pandas as pd

    if path.name.lower().endswith(".parquet"):
        frame = pd.read_parquet(path)
        _refuse_duplicates(path, list(frame.columns))
        return frame
    separator = _separator(path)
    settings: dict[str, Any] = {"sep": separator, "skipinitialspace": True, "encoding": "utf-8"}
    header = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False, **settings)
    _refuse_duplicates(path, header.iloc[0].tolist())
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        frame = pd.read_csv(
            path, index_col=False, low_memory=False, na_values=MISSING_MARKS, **settings
        )
    return frame if separator == "," else frame.apply(_with_decimal_comma)


def _with_decimal_comma(column: pd.Series) -> pd.Series:
    """Numbers, where a column of text is nothing but numbers such as 17,99 and 1.234,5."""
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column):
        return column
    known = column.dropna().astype(str).str.strip()
    if not len(known) or not known.str.fullmatch(_DECIMAL_COMMA).all():
        return column
    if not known.str.contains(",").any():  # 1.234 alone may mean either
        return column
    plain = known.str.replace(".", "", regex=False).str.replace(",", ".", regex=False)
    return plain.astype(float).reindex(column.index)


_DECIMAL_COMMA = r"[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?([eE][+-]?\d+)?"


def _separator(path: Path) -> str:
    """Tab for .tsv; else a comma, or what the header line has instead of commas (; or tab)."""
    import gzip

    name = path.name.lower()
    if name.removesuffix(".gz").endswith(".tsv"):
        return "\t"
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "rt", encoding="utf-8") as file:
        first = file.readline()
    return next((mark for mark in (",", ";", "\t") if mark in first), ",")


def _refuse_duplicates(path: Path, names: list) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        shown = ", ".join(repr(name) for name in twice[:5]) + (", …" if len(twice) > 5 else "")
        raise InputError(
            f"{path}: column names must be different; found more than once: {shown}. "
            "Rename them; if the first line holds values, add a header line above it."
        )


def take_target(
    path: Path, frame: pd.DataFrame, target: str | None
) -> tuple[pd.DataFrame, np.ndarray, list[str], list[str]]:
    """Divide a table into features and classes.

    Returns:
        Features (rows with a target only), class numbers, class names, notes.
    """
    names = [str(name) for name in frame.columns]
    listing = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
    if target is None:
        raise InputError(
            f"{path}: which column is to be predicted? Say so with target (--target NAME). "
            f"Columns: {listing}."
        )
    if target not in names:
        raise InputError(
            f"{path}: no column {target!r}.{nearest(target, names)} Columns: {listing}."
        )
    known = frame[target].notna()
    missing = int((~known).sum())
    if missing == len(frame):
        raise InputError(f"{path}: column {target!r} is missing in every row; nothing to learn.")
    notes = []
    if missing:
        notes.append(f"{counted(missing, 'row')} dropped: no value in target column {target!r}")
    rows = frame.loc[known]
    codes, class_names = _classes(path, rows[target])
    _check_classes(path, target, codes, class_names)
    return rows.drop(columns=target), codes, class_names, notes


def _classes(path: Path, column: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Class numbers in the order of the sorted values, and the values as names."""
    import numpy as np
    import pandas as pd

    values = column
    if pd.api.types.is_float_dtype(values):
        finite = np.isfinite(values.to_numpy(dtype=float))
        if not finite.all():
            raise InputError(f"{path}: target column {column.name!r} holds infinite values.")
        if (values % 1 == 0).all():  # whole numbers, read as floats because some are missing
            values = values.astype("int64")
        elif values.nunique() > MOST_FLOAT_CLASSES:
            raise InputError(
                f"{path}: target column {column.name!r} has {values.nunique()} distinct values "
                f"with fractions (such as {float(values.iloc[0])!r}): this looks like regression. "
                "Choose a column of classes, or divide the values into classes first."
            )
    elif pd.api.types.is_datetime64_any_dtype(values):
        raise InputError(
            f"{path}: target column {column.name!r} holds dates; expected classes "
            "(text, whole numbers, or true and false)."
        )
    elif not pd.api.types.is_numeric_dtype(values):
        values = values.astype(str).str.strip()
    kinds, codes = np.unique(values.to_numpy(), return_inverse=True)
    return codes.astype(np.int64), [str(kind) for kind in kinds]


def _check_classes(path: Path, target: str, codes: np.ndarray, class_names: list[str]) -> None:
    import numpy as np

    if len(class_names) < 2:
        raise InputError(
            f"{path}: target column {target!r} has only the value {class_names[0]!r}; "
            "at least two classes are needed."
        )
    counts = np.bincount(codes)
    rare = np.flatnonzero(counts < LEAST_ROWS_A_CLASS)
    if not len(rare):
        return
    if len(class_names) > max(MOST_FLOAT_CLASSES, len(codes) // 10):
        raise InputError(
            f"{path}: target column {target!r} has {len(class_names)} distinct values in "
            f"{len(codes)} rows: this looks like regression or an identifier. "
            "Choose a column of classes, or divide the values into classes first."
        )
    shown = ", ".join(f"{class_names[c]!r} ({counts[c]})" for c in rare[:5])
    raise InputError(
        f"{path}: each class of {target!r} needs at least {LEAST_ROWS_A_CLASS} rows, one for "
        f"each of train, validation and test; too few: {shown}{', …' if len(rare) > 5 else ''}. "
        "Drop these rows, merge the classes, or add rows."
    )
