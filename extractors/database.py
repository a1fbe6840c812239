"""Tables of one DuckDB file as frames of text columns, in batches; the file is only ever read.

A table goes by its own name. Where several schemas hold a name, it is that of schema `main`, and the others are
`schema.table`. Views count as tables.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from warehouse.errors import TimeloomError

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
_LISTED = """
    SELECT schema_name, table_name FROM duckdb_tables() WHERE database_name = current_database() AND NOT internal
    UNION ALL
    SELECT schema_name, view_name FROM duckdb_views() WHERE database_name = current_database() AND NOT internal
"""
_TYPES = """
    SELECT column_name, data_type FROM duckdb_columns()
    WHERE database_name = current_database() AND schema_name = ? AND table_name = ? ORDER BY column_index
"""
_AUTOMATIC = re.compile(r"column0*(\d+)")
_NAME = re.compile(r"[A-Za-z_]\w*")


def database_tables(path: Path) -> list[str]:
    """Names of the tables and views of a DuckDB file, in order.

    Raises:
        TimeloomError: no DuckDB file, damaged, of another storage version, or locked by a writer.
    """
    with _connection(path) as connection:
        return sorted(_places(connection))


def database_columns(path: Path, table: str) -> list[str]:
    """Names of a table's columns, in its order.

    An empty CSV that DuckDB loaded without seeing its header is a table of `column0`, `column1`, … whose first row
    holds the names: these are its names then, and `database_frames` gives that row as one of nulls.

    Raises:
        TimeloomError: as for `database_tables`, or no such table.
    """
    with _connection(path) as connection:
        return [name for name, _, _ in _columns(connection, path, table)]


def database_frames(path: Path, table: str, columns: list[str]) -> Iterator[pl.DataFrame]:
    """Frames of some columns as text, about BATCH_ROWS rows each, in the file's order.

    Dates and times are ISO 8601 with a blank, those with a zone at UTC with `+00:00`; truth values `true` and `false`;
    whole floats stand without `.0`, as ids that were nullable once need it; other floats by the shortest text that
    gives the same number.

    Raises:
        TimeloomError: as for `database_tables`, no such table, or no such column.
    """
    with _connection(path) as connection:
        found = {name: (stored, kind) for name, stored, kind in _columns(connection, path, table)}
        for name in columns:
            if name not in found:
                raise TimeloomError(f"table {table}: lacks the column {name}", remedy="mend the source's YAML")
        texts = [_text(name, *found[name]) for name in columns] or ["NULL AS nothing"]
        schema, name = _places(connection)[table]
        query: Any = connection.sql(f"SELECT {', '.join(texts)} FROM {_quoted(schema)}.{_quoted(name)}")
        # Before DuckDB 1.5 the reader of batches went by another name.
        batches = getattr(query, "to_arrow_reader", None) or query.fetch_record_batch
        for batch in batches(BATCH_ROWS):
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


def _places(connection: "DuckDBPyConnection") -> dict[str, tuple[str, str]]:
    """Schema and name of every table, by what it goes by."""
    listed = connection.execute(_LISTED).fetchall()
    names = [name for _, name in listed]
    return {
        name if schema == "main" or names.count(name) == 1 else f"{schema}.{name}": (schema, name)
        for schema, name in listed
    }


def _columns(connection: "DuckDBPyConnection", path: Path, table: str) -> list[tuple[str, str, str]]:
    """Name, stored name and type of every column; the names differ where the header became a row."""
    places = _places(connection)
    if table not in places:
        raise TimeloomError(f"the database {path.name} has no table {table}", remedy="mend the source's YAML")
    types = connection.execute(_TYPES, list(places[table])).fetchall()
    stored = [name for name, _ in types]
    numbers = [int(match[1]) for name in stored if (match := _AUTOMATIC.fullmatch(name))]
    names = stored
    if numbers == list(range(len(stored))) and {kind for _, kind in types} == {"VARCHAR"}:
        schema, name = places[table]
        first = connection.execute(f"SELECT * FROM {_quoted(schema)}.{_quoted(name)} LIMIT 1").fetchall()
        header = [text for text in (first[0] if first else ()) if text and _NAME.fullmatch(text)]
        names = header if len({name.lower() for name in header}) == len(stored) else stored
    return [(shown, name, kind) for shown, (name, kind) in zip(names, types, strict=True)]


def _text(name: str, stored: str, kind: str) -> str:
    """SQL for a column as text under its name."""
    column = _quoted(stored)
    if kind == "TIMESTAMP WITH TIME ZONE":
        text = f"CAST({column} AT TIME ZONE 'UTC' AS VARCHAR) || '+00:00'"
    elif kind == "TIMESTAMP_NS":
        text = f"CAST(CAST({column} AS TIMESTAMP) AS VARCHAR)"
    elif kind in ("DOUBLE", "FLOAT"):
        # -0 has no whole text; 2**53 is where float64 stops telling whole numbers apart.
        whole = f"{column} = trunc({column}) AND abs({column}) < {2**53} AND ({column} <> 0 OR NOT signbit({column}))"
        text = (
            f"CASE WHEN {whole} THEN CAST(TRY_CAST({column} AS BIGINT) AS VARCHAR) ELSE CAST({column} AS VARCHAR) END"
        )
    else:
        text = f"CAST({column} AS VARCHAR)"
    if name != stored:
        text = f"NULLIF({text}, {_literal(name)})"
    return f"{text} AS {_quoted(name)}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
