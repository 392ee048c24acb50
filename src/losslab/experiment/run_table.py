"""Runs as tables for pandas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas

TEXT = ("run_id", "study", "dataset", "model", "loss", "spec", "status", "reason", "finished")
COLUMNS = ("run_id", "study", "dataset", "model", "loss", "spec", "lr", "seed", "status", "reason",
           "seconds", "finished", "epochs")  # fmt: skip
"""What every run's line has, before ``SELECTION.epoch`` and ``SELECTION.SPLIT.METRIC``."""


def run_table(
    runs: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> pandas.DataFrame:
    """Runs as a table: the columns asked for, or `COLUMNS` and then all else that they have."""
    import pandas

    return _steady(pandas.DataFrame.from_records(list(runs)), columns)


def arrow_table(data: bytes, columns: Sequence[str] | None) -> pandas.DataFrame | None:
    """Lines read by Arrow, or None where that would not give what `Store.runs` gives: damaged
    lines, repeated runs, a column of several types."""
    import pyarrow
    from pyarrow import json as arrow_json

    kinds = {"string": pyarrow.string(), "Int64": pyarrow.int64(), "float64": pyarrow.float64()}
    names = TEXT if columns is None else dict.fromkeys(["run_id", "finished", *columns])
    options = arrow_json.ParseOptions(
        explicit_schema=pyarrow.schema([(name, kinds[_kind(name) or "float64"]) for name in names]),
        unexpected_field_behavior="infer" if columns is None else "ignore",
    )
    try:
        read = arrow_json.read_json(pyarrow.BufferReader(data), parse_options=options)
    except pyarrow.ArrowInvalid:
        return None
    ids, types = read.column("run_id"), pyarrow.types
    if not data.count(b"\n") == len(ids) == len(ids.unique()) or ids.null_count:
        return None
    if any(types.is_nested(kind) or types.is_timestamp(kind) for kind in read.schema.types):
        return None
    by_time = read.select(["finished", "run_id"]).to_pandas().fillna({"finished": ""})
    order = by_time.sort_values(["finished", "run_id"]).index
    return _steady(read.to_pandas().loc[order].reset_index(drop=True), columns)


def _steady(table: pandas.DataFrame, columns: Sequence[str] | None) -> pandas.DataFrame:
    """Each column of one type, whatever the runs at hand have in it, nothing at all included."""
    import pandas

    names = columns or [*COLUMNS, *(name for name in table.columns if name not in COLUMNS)]
    table = table.reindex(columns=names)
    return pandas.DataFrame({n: table[n].astype(_kind(n) or table[n].dtype) for n in names})


def _kind(column: str) -> str | None:
    """The type of a column; None for one that a study added and that tells itself."""
    if column in TEXT:
        return "string"
    if column in ("seed", "epochs") or column.endswith(".epoch"):
        return "Int64"
    return "float64" if column in ("lr", "seconds") or "." in column else None
