"""The columns of a table as numbers, with everything learned from the training rows alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from losslab.errors import InputError
from losslab.experiment.tasks.assemble import counted

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from sklearn.compose import ColumnTransformer

LEAST_ROWS_A_LEVEL = 5  # a category of fewer training rows joins the rare ones
MOST_LEVELS = 100  # so do the least frequent ones beyond this many
MOSTLY_NUMBERS = 0.5  # share of numbers in a text column that calls for a note


@dataclass
class _Kinds:
    """Which columns are numbers, which categories, and what was said about the others."""

    numeric: list[str] = field(default_factory=list)
    categorical: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Columns:
    """Fitted columns: `transform` turns any rows of the table into a float32 matrix."""

    transformer: ColumnTransformer
    kinds: _Kinds
    width: int

    def transform(self, rows: pd.DataFrame) -> Tensor:
        """Rows -> float32 ``(rows, width)``."""
        matrix = self.transformer.transform(_as_numbers_and_text(rows, self.kinds))
        return torch.as_tensor(matrix, dtype=torch.float32)

    @property
    def notes(self) -> list[str]:
        """What a user should know: dropped columns, doubtful ones."""
        return self.kinds.notes

    @property
    def preprocessing(self) -> list[str]:
        """What was done, a line a kind of column."""
        lines = []
        if self.kinds.numeric:
            lines.append(
                f"{counted(len(self.kinds.numeric), 'numeric column')}: missing -> median of the "
                "training rows and an indicator; standardised by the training rows"
            )
        if self.kinds.categorical:
            lines.append(
                f"{counted(len(self.kinds.categorical), 'categorical column')}: one-hot; missing "
                f"is a category; categories of fewer than {LEAST_ROWS_A_LEVEL} training rows, "
                f"beyond the {MOST_LEVELS} most frequent, or unseen in training are one"
            )
        return [*lines, f"{counted(self.width, 'input')} in all"]


def fit_columns(path: Path, features: pd.DataFrame, train: np.ndarray) -> Columns:
    """Decide what each column is and learn its numbers from the rows ``train``."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    kinds = _sort_columns(path, features, train)
    if not kinds.numeric and not kinds.categorical:
        raise InputError(
            f"{path}: no column is left to learn from. "
            + ("; ".join(kinds.notes) or "The target is the only column")
            + "."
        )
    _refuse_infinite(path, features, kinds.numeric)
    transformer = ColumnTransformer(
        [
            (
                "numeric",
                make_pipeline(
                    SimpleImputer(strategy="median", add_indicator=True), StandardScaler()
                ),
                kinds.numeric,
            ),
            (
                "categorical",
                OneHotEncoder(
                    min_frequency=LEAST_ROWS_A_LEVEL,
                    max_categories=MOST_LEVELS,
                    handle_unknown="infrequent_if_exist",
                    sparse_output=False,
                ),
                kinds.categorical,
            ),
        ],
        sparse_threshold=0.0,
    )
    rows = _as_numbers_and_text(features.iloc[train], kinds)
    width = transformer.fit_transform(rows).shape[1]
    return Columns(transformer, kinds, width)


def _sort_columns(path: Path, features: pd.DataFrame, train: np.ndarray) -> _Kinds:
    """Numbers, categories, or dropped with a note."""
    kinds = _Kinds()
    for name in features.columns:
        reason = _useless(path, features[name], features[name].iloc[train])
        if reason is not None:
            kinds.notes.append(f"column {name!r} dropped: {reason}")
        elif _is_numeric(features[name]):
            kinds.numeric.append(name)
        else:
            kinds.categorical.append(name)
            kinds.notes += _mostly_numbers(features[name].iloc[train])
    return kinds


def _is_numeric(column: pd.Series) -> bool:
    """Numbers, true and false, dates and durations."""
    import pandas as pd

    types = pd.api.types
    return (
        types.is_numeric_dtype(column)
        or types.is_datetime64_any_dtype(column)
        or types.is_timedelta64_dtype(column)
    )


def _useless(path: Path, column: pd.Series, train: pd.Series) -> str | None:
    """Why a column cannot help, judged by the training rows; None if it can."""
    import pandas as pd

    known = train.dropna()
    if known.empty:
        return "no value in any training row"
    strange = [value for value in known if not pd.api.types.is_scalar(value)]
    if strange:
        raise InputError(
            f"{path}: column {column.name!r} holds {type(strange[0]).__name__} values; expected "
            "numbers or text. Remove it, or spread it over several columns."
        )
    counts = known.value_counts()
    if len(counts) == 1 and len(known) == len(train):
        return f"the same value in every training row ({known.iloc[0]!r})"
    if _is_numeric(column):
        return "it numbers the rows" if _numbers_the_rows(column) else None
    if len(counts) == len(known):
        return "an identifier, different in every training row"
    if counts.iloc[0] < LEAST_ROWS_A_LEVEL and len(known) == len(train):
        return (
            f"an identifier or free text, no value in {LEAST_ROWS_A_LEVEL} training rows "
            f"({len(counts)} different values)"
        )
    return None


def _numbers_the_rows(column: pd.Series) -> bool:
    """Whole numbers that go up by one from row to row, as a written-out index does.

    Looks at all rows, not at values against the target: a file sorted by class would otherwise give
    the class away.
    """
    import pandas as pd

    if not pd.api.types.is_integer_dtype(column) or len(column) < 10 or column.isna().any():
        return False
    return bool((column.diff().iloc[1:] == 1).all())


def _mostly_numbers(train: pd.Series) -> list[str]:
    """A note on text that is mostly numbers: a mark for missing values, or a decimal comma."""
    import pandas as pd

    known = train.dropna().astype(str)
    parsed = pd.to_numeric(known, errors="coerce")
    share = float(parsed.notna().mean())
    if not MOSTLY_NUMBERS < share < 1:
        return []
    odd = known[parsed.isna()].iloc[0]
    return [
        f"column {train.name!r} is taken as categories because of values such as {odd!r}, though "
        f"{math.floor(100 * share)} % of its values are numbers; leave a missing value empty"
    ]


def _refuse_infinite(path: Path, features: pd.DataFrame, numeric: list[str]) -> None:
    import numpy as np
    import pandas as pd

    found = []
    for name in numeric:
        if pd.api.types.is_float_dtype(features[name]):
            rows = np.flatnonzero(np.isinf(features[name].to_numpy(dtype=float, na_value=np.nan)))
            if len(rows):
                found.append(f"{name!r} ({len(rows)}, first in row {features.index[rows[0]] + 1})")
    if found:
        raise InputError(
            f"{path}: numbers must be finite; infinite values in column {', '.join(found)}. "
            "Leave a missing value empty, or correct it."
        )


def _as_numbers_and_text(rows: pd.DataFrame, kinds: _Kinds) -> pd.DataFrame:
    """The kept columns as float64 (dates as days since 1970) and as text without gaps."""
    import pandas as pd

    columns: dict[str, pd.Series] = {}
    for name in kinds.numeric:
        columns[name] = _as_float(rows[name])
    for name in kinds.categorical:
        text = rows[name].astype(object).astype(str)
        columns[name] = text.where(rows[name].notna(), "(missing)")
    return pd.DataFrame(columns, index=rows.index)


def _as_float(column: pd.Series) -> pd.Series:
    import numpy as np
    import pandas as pd

    types = pd.api.types
    if types.is_datetime64_any_dtype(column):
        if column.dt.tz is not None:
            column = column.dt.tz_convert(None)
        column = column - pd.Timestamp(0)
    if types.is_timedelta64_dtype(column):
        return column / pd.Timedelta(days=1)
    return pd.Series(column.to_numpy(dtype=float, na_value=np.nan), index=column.index)
