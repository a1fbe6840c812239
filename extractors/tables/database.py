"""Tables of one DuckDB file as frames of text columns, in batches; the file is only ever read.

A table goes by its own name. Where several schemas hold a name, it is that of schema `main`, and the others are
`schema.table`. Views count as tables.
"""

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from warehouse.errors import TimeloomError
from warehouse.files import signature_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BATCH_ROWS = 1 << 17
# One thread keeps the rows in the file's order. What does not fit into this memory fails rather than spills to disk.
_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "memory_limit": "256MB",
    "temp_directory": "",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
_COLUMNS = """
    SELECT schema_name, table_name, column_name, data_type FROM duckdb_columns()
    WHERE database_name = current_database() AND NOT internal ORDER BY schema_name, table_name, column_index
"""
_AUTOMATIC = re.compile(r"column0*(\d+)")
_NAME = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True)
class _Column:
    """A column: its name, and the name and type in the file; the names differ where a header became a row."""

    name: str
    stored: str
    kind: str


@dataclass(frozen=True)
class _Table:
    schema: str
    name: str
    columns: tuple[_Column, ...]

    @property
    def place(self) -> str:
        return f"{_quoted(self.schema)}.{_quoted(self.name)}"


def database_tables(path: Path) -> list[str]:
    """Names of the tables and views of a DuckDB file, in order.

    Raises:
        TimeloomError: no DuckDB file, damaged, of another storage version, or locked by a writer.
    """
    return sorted(_catalog(path, _stamp(path)))


def database_columns(path: Path, table: str) -> list[str]:
    """Names of a table's columns, in its order.

    An empty CSV that DuckDB loaded without seeing its header is a table of `column0`, `column1`, … whose first row
    holds the names: these are its names then, and `database_frames` gives that row as one of nulls.

    Raises:
        TimeloomError: as for `database_tables`, or no such table.
    """
    return [column.name for column in _table(path, table).columns]


def database_fractions(path: Path, table: str) -> list[str]:
    """Names of a table's columns that hold numbers with a fraction; raises what `database_columns` does."""
    kinds = ("DOUBLE", "FLOAT", "DECIMAL")
    return [column.name for column in _table(path, table).columns if column.kind.startswith(kinds)]


def database_frames(path: Path, table: str, columns: list[str], rows: int = BATCH_ROWS) -> Iterator[pl.DataFrame]:
    """Frames of some columns as text, about `rows` rows each, in the file's order.

    Dates and times are ISO 8601 with a blank, those with a zone at UTC with `+00:00`; truth values `true` and `false`;
    whole floats stand without `.0`, as ids that were nullable once need it; other floats by the shortest text that
    gives the same number.

    Raises:
        TimeloomError: as for `database_tables`, no such table, or no such column.
    """
    found = _table(path, table)
    known = {column.name: column for column in found.columns}
    for name in columns:
        if name not in known:
            raise TimeloomError(f"table {table}: lacks the column {name}", remedy="mend the source's YAML")
    texts = [_text(known[name]) for name in columns] or ["NULL AS nothing"]
    with _connection(path) as connection:
        query: Any = connection.sql(f"SELECT {', '.join(texts)} FROM {found.place}")
        # Before DuckDB 1.5 the reader of batches went by another name.
        batches = getattr(query, "to_arrow_reader", None) or query.fetch_record_batch
        for batch in batches(rows):
            frame = pl.from_arrow(batch)
            assert isinstance(frame, pl.DataFrame)
            yield frame.select(columns) if columns else pl.DataFrame(height=len(frame))


@contextmanager
def _connection(path: Path) -> Iterator["DuckDBPyConnection"]:
    import duckdb

    try:
        connection = duckdb.connect(str(path), read_only=True, config=_SETTINGS)
        try:
            # Views that read other files, and whatever a damaged catalog might ask for, stay inside this file.
            connection.execute("SET enable_external_access = false")
            yield connection
        finally:
            connection.close()
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        what, remedy = _explained(path, str(error))
        # The cause may quote a row or the path: it is left out.
        raise TimeloomError(f"the database {path.name} {what}", remedy=remedy) from None


def _explained(path: Path, message: str) -> tuple[str, str]:
    if not path.is_file():
        return "does not exist", "mend sources.path"
    if "not a valid DuckDB" in message:
        return "is no DuckDB file", "give the file itself, unpacked"
    if "version number" in message:
        return "is of another version of DuckDB", "export its tables to Parquet, or write it again with this version"
    if "Could not set lock" in message or "different configuration" in message:
        return "is being written by another program", "close that program, or copy the file"
    if "external access" in message or "disabled by configuration" in message:
        return "has a view that reads other files", "make it a table of the file"
    if "out of memory" in message.lower():
        return "has a view that needs more memory than it may have", "make it a table of the file"
    return "cannot be read", "check the file: truncated, damaged, or not yours to read"


def _stamp(path: Path) -> tuple[tuple[int, ...], ...]:
    """Tells whether a database changed since its catalog was read: it, or the log of its writer beside it."""
    found = [file.stat() for file in (path, path.with_name(f"{path.name}.wal")) if file.exists()]
    return tuple(tuple(signature_of(status)) for status in found)


@lru_cache(maxsize=8)
def _catalog(path: Path, stamp: tuple[tuple[int, ...], ...]) -> dict[str, _Table]:
    """Every table and view, by what it goes by. Opening a database takes longer than reading a small table of it."""
    with _connection(path) as connection:
        columns: dict[tuple[str, str], list[tuple[str, str]]] = {}
        for schema, table, name, kind in connection.execute(_COLUMNS).fetchall():
            columns.setdefault((schema, table), []).append((name, kind))
        names = Counter(table for _, table in columns)
        return {
            table if schema == "main" or names[table] == 1 else f"{schema}.{table}": _Table(
                schema, table, _named(connection, schema, table, stored)
            )
            for (schema, table), stored in columns.items()
        }


def _table(path: Path, table: str) -> _Table:
    catalog = _catalog(path, _stamp(path))
    if table not in catalog:
        raise TimeloomError(f"the database {path.name} has no table {table}", remedy="mend the source's YAML")
    return catalog[table]


def _named(
    connection: "DuckDBPyConnection", schema: str, table: str, stored: list[tuple[str, str]]
) -> tuple[_Column, ...]:
    """The columns of a table; where DuckDB numbered them, by the names that its first row holds, if these are names."""
    numbers = [int(match[1]) for name, _ in stored if (match := _AUTOMATIC.fullmatch(name))]
    header = [name for name, _ in stored]
    if numbers == list(range(len(stored))) and {kind for _, kind in stored} == {"VARCHAR"}:
        rows = connection.execute(f"SELECT * FROM {_quoted(schema)}.{_quoted(table)} LIMIT 1").fetchall()
        first = [text for text in (rows[0] if rows else ()) if text and _NAME.fullmatch(text)]
        header = first if len({name.lower() for name in first}) == len(stored) else header
    return tuple(_Column(name, *name_and_type) for name, name_and_type in zip(header, stored, strict=True))


def _text(column: _Column) -> str:
    """SQL for a column as text under its name."""
    stored = _quoted(column.stored)
    plain = f"CAST({stored} AS VARCHAR)"
    text = plain
    if column.kind == "TIMESTAMP WITH TIME ZONE":
        text = f"CAST({stored} AT TIME ZONE 'UTC' AS VARCHAR) || '+00:00'"
    elif column.kind == "TIMESTAMP_NS":
        text = f"CAST(CAST({stored} AS TIMESTAMP) AS VARCHAR)"
    elif column.kind in ("DOUBLE", "FLOAT"):
        # -0 has no whole text; 2**53 is where float64 stops telling whole numbers apart.
        whole = f"{stored} = trunc({stored}) AND abs({stored}) < {2**53} AND ({stored} <> 0 OR NOT signbit({stored}))"
        text = f"CASE WHEN {whole} THEN CAST(TRY_CAST({stored} AS BIGINT) AS VARCHAR) ELSE {plain} END"
    if column.name != column.stored:
        text = f"NULLIF({text}, {_literal(column.name)})"
    return f"{text} AS {_quoted(column.name)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
