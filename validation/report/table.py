"""A table of the report: on the page, as JSON and as Parquet alike."""

from dataclasses import dataclass
from typing import Literal

import polars as pl

from validation.report.cells import Cell, Hidden

Format = Literal["text", "count", "share", "number", "tenths", "fine"]
Row = dict[str, Cell]


@dataclass(frozen=True)
class Column:
    name: str
    heading: str
    format: Format = "count"


@dataclass(frozen=True)
class Table:
    """A table of aggregates.

    Attributes:
        name: of its files in quality/.
        note: a sentence that says how to read it.
        upright: printed with a line per column, as the papers print Tables A1 and A2.
    """

    name: str
    title: str
    columns: list[Column]
    rows: list[Row]
    note: str = ""
    upright: bool = False

    def frame(self) -> pl.DataFrame:
        """The table for programs: a hidden cell is null, and `withheld` names its column with its label."""
        kinds = {"text": pl.String, "count": pl.Int64, "share": pl.Float64, "number": pl.Float64}
        kinds |= {"tenths": pl.Float64, "fine": pl.Float64}
        schema = {column.name: kinds[column.format] for column in self.columns} | {"withheld": pl.String}
        rows = [
            {name: None if isinstance(cell, Hidden) else cell for name, cell in row.items()}
            | {"withheld": "; ".join(f"{name}: {cell.label}" for name, cell in row.items() if isinstance(cell, Hidden))}
            for row in self.rows
        ]
        return pl.DataFrame(rows, schema=schema, orient="row")
