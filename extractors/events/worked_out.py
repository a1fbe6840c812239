"""Expressions of a source's YAML over rows: what they give, where a cast failed, and which row they cannot take."""

from collections.abc import Callable
from functools import partial

import polars as pl

from extractors.events.series import column
from extractors.expressions import expression
from extractors.tables.rows import Rows, TextColumn
from warehouse.errors import TimeloomError


def worked_out(
    rows: Rows, text: str, dtype: type[pl.DataType], place: Callable[[], str]
) -> tuple[TextColumn, pl.Series | None]:
    """What an expression gives for rows (n,), null where a cast fails.

    Args:
        dtype: what it becomes.
        place: gives where the YAML says it: source, table and key.

    Returns:
        Its column, and in which rows (n,) bool a cast failed and left it null; None where none can.

    Raises:
        TimeloomError: it cannot take the value of some row, which is named by its number.
    """
    found = expression(text)
    try:
        made = rows.by(found.roots, partial(column, expression=found.made.cast(dtype)))
        if found.failed is None:
            return made, None
        failed = rows.by(found.roots, partial(column, expression=found.failed))
    except pl.exceptions.PolarsError:
        number = _first_failing(rows, found.roots, found.made.cast(dtype))
        raise TimeloomError(
            f"{place()} fails at row {number}: `{text}`", remedy="mend the expression; docs/sources.md lists what works"
        ) from None
    return made, failed.rows.fill_null(False)


def _first_failing(rows: Rows, roots: tuple[str, ...], made: pl.Expr) -> int:
    """The number of a record that the expression cannot take."""
    frame = pl.DataFrame({name: rows.columns[name].rows for name in roots})

    def fails(start: int, end: int) -> bool:
        try:
            column(frame.slice(start, end - start), made)
        except pl.exceptions.PolarsError:
            return True
        return False

    start, end = 0, len(frame)
    while end - start > 1:
        middle = (start + end) // 2
        start, end = (start, middle) if fails(start, middle) else (middle, end)
    return int(rows.number[start])
