"""Raw tables as streams of text columns: CSV, gzipped CSV or Parquet, one file or a folder of parts."""

import csv
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from extractors.source import Source, aggregate
from warehouse.errors import TimeloomError

ENDINGS = (".csv", ".csv.gz", ".parquet")
BLOCK_BYTES = 16 << 20


def table_files(folder: Path, table: str) -> list[Path]:
    """The files of a table, in name order: `table.csv`, `.csv.gz` or `.parquet`, or a folder of such parts.

    Raises:
        TimeloomError: a folder has a file's name, or the table stands there in two forms.
    """
    named = [folder / f"{table}{ending}" for ending in ENDINGS]
    for path in named:
        if path.is_dir():
            raise TimeloomError(f"{path.name} is a folder", remedy="give the file itself")
    files = [path for path in named if path.is_file()]
    parts = folder / table
    pieces = sorted(path for path in parts.iterdir() if path.name.endswith(ENDINGS)) if parts.is_dir() else []
    if len(files) + bool(pieces) > 1:
        raise TimeloomError(f"the table {table} stands there twice", remedy="keep one of its files")
    return files or pieces


class RawFile:
    """One raw file, read in blocks of text columns.

    Attributes:
        malformed: line-level failures met so far: rows whose number of fields is wrong.
    """

    def __init__(self, path: Path, table: str, null_values: list[str]) -> None:
        self.path = path
        self.table = table
        self.null_values = null_values
        self.malformed = 0
        self._swallowed = False
        self.columns = self._header()

    def _refuse(self, what: str, remedy: str) -> TimeloomError:
        return TimeloomError(f"table {self.table}: {what}", remedy=remedy)

    def _header(self) -> list[str]:
        try:
            if self.path.name.endswith(".parquet"):
                names = list(pq.read_schema(self.path).names)
            else:
                with pa.input_stream(str(self.path), compression="detect") as stream:
                    text = stream.read(1 << 20).decode("utf-8-sig", errors="replace")
                names = next(csv.reader(text.splitlines()), [])
        except (OSError, pa.ArrowException) as error:
            raise self._refuse(
                "cannot be read", "check the file: truncated, not readable, or not what its name says"
            ) from error
        if not names:
            raise self._refuse("is empty, it has not even a header", "export it again, or mark it `optional: true`")
        repeated = [number for number, name in enumerate(names, 1) if names.index(name) != number - 1]
        if repeated:
            # By number: without a header the first line is a patient's.
            first = names.index(names[repeated[0] - 1]) + 1
            raise self._refuse(
                f"has columns {first} and {repeated[0]} of one name", "rename one of them, or add the header line"
            )
        return names

    def require(self, columns: set[str]) -> None:
        """Refuses the file where a column is missing.

        Raises:
            TimeloomError: names the column.
        """
        missing = sorted(columns - set(self.columns))
        if missing:
            alone = len(self.columns) == 1
            remedy = "separate its columns by commas" if alone else "mend the export, or the source's YAML"
            raise self._refuse(f"lacks the column {missing[0]}", remedy)

    def _malformed_row(self, row: "pacsv.InvalidRow") -> str:
        self.malformed += 1
        text = row.text.strip()
        self._swallowed |= "\n" in text and text.count('"') % 2 == 1
        return "skip"

    def _ends_in_quotes(self, last: str | None) -> bool:
        """Whether the last field, which spans lines, was never closed and so swallowed the rows after its start."""
        if last is None or "\n" not in last or self.path.name.endswith(".parquet"):
            return False
        tail = b""
        with pa.input_stream(str(self.path), compression="detect") as stream:
            while block := stream.read(BLOCK_BYTES):
                tail = (tail + block)[-4:]
        return not tail.rstrip(b"\r\n").endswith(b'"')

    def _batches(self, columns: list[str]) -> Iterator[pa.RecordBatch]:
        if self.path.name.endswith(".parquet"):
            yield from pq.ParquetFile(self.path).iter_batches(columns=columns, batch_size=1 << 18)
            return
        with (
            pa.input_stream(str(self.path), compression="detect") as stream,
            pacsv.open_csv(
                stream,
                read_options=pacsv.ReadOptions(block_size=BLOCK_BYTES),
                parse_options=pacsv.ParseOptions(newlines_in_values=True, invalid_row_handler=self._malformed_row),
                convert_options=pacsv.ConvertOptions(
                    column_types={name: pa.string() for name in self.columns},
                    include_columns=columns,
                    null_values=self.null_values,
                    strings_can_be_null=True,
                ),
            ) as reader,
        ):
            yield from reader

    def blocks(self, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
        """Frames of text columns, in the file's order.

        Raises:
            TimeloomError: truncated, not UTF-8, not what the name says, or with a quote that is never closed.
        """
        last = None
        try:
            for batch in self._batches(columns or self.columns):
                frame = pl.from_arrow(batch)
                assert isinstance(frame, pl.DataFrame)
                text = frame.cast(pl.String)
                if len(text) and self.columns[-1] in text.columns:
                    last = text[self.columns[-1]][-1]
                yield text.with_columns(pl.when(~pl.all().is_in(self.null_values)).then(pl.all()))
        except (OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
            raise self._refuse(
                "breaks off or is not readable text", "check the file: truncated, not UTF-8, or not CSV"
            ) from error
        if self._swallowed or self._ends_in_quotes(last):
            raise self._refuse("has a quoted field that is never closed", "export it again with its quotes doubled")


def load_lookup(folder: Path, source: Source, table: str, keys: list[str], columns: dict[str, str]) -> pl.DataFrame:
    """The right side of a join: one row a key, text columns.

    Raises:
        TimeloomError: the table is missing, or has several rows a key where no aggregate is given.
    """
    needed = sorted({*keys, *(aggregate(spec)[1] for spec in columns.values())})
    frames: list[pl.DataFrame] = []
    for path in table_files(folder, table):
        raw = RawFile(path, table, source.null_values)
        raw.require(set(needed))
        frames.extend(raw.blocks(needed))
    if not frames:
        empty = [*keys, *columns]
        return pl.DataFrame(schema=dict.fromkeys(empty, pl.String))
    frame = pl.concat(frames).drop_nulls(keys).unique()
    kinds = {name: aggregate(spec) for name, spec in columns.items()}
    plain = [pl.col(column).alias(name) for name, (function, column) in kinds.items() if not function]
    lookup = frame.select(*keys, *plain).unique(maintain_order=True)
    if lookup.select(keys).is_duplicated().any():
        raise TimeloomError(
            f"the join with {table} finds several rows a key", remedy="use min(column) or max(column) in the YAML"
        )
    extremes: list[pl.Expr] = [
        getattr(pl.col(column), function)().alias(name) for name, (function, column) in kinds.items() if function
    ]
    if extremes:
        lookup = lookup.join(frame.group_by(keys).agg(extremes), on=keys)
    return lookup.select(*keys, *columns)
