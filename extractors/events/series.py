"""What is made of a block's columns, at the cost of their distinct values or of the few rows that have any."""

import numpy as np
import polars as pl


def spread(marked: pl.Series, places: pl.Series, rows: int) -> pl.Series:
    """Marks of the rows at some places as marks of all rows."""
    of_rows = np.zeros(rows, np.bool_)
    of_rows[places.filter(marked).to_numpy()] = True
    return pl.Series(of_rows)


def filled(texts: pl.Series) -> pl.Series:
    """Texts without the blanks around them, null where nothing is left."""
    stripped = texts.str.strip_chars()
    empty = stripped == ""
    return stripped.set(empty, None) if empty.any() else stripped


def both(value: pl.Series, text_beside: pl.Series) -> pl.Series:
    """A value that is more than a number, and what is said beside it; few rows have both."""
    text = text_beside.zip_with(text_beside.is_not_null(), value)
    places = (value.is_not_null() & text_beside.is_not_null() & (value != text_beside)).arg_true()
    if places.is_empty():
        return text
    together = value.gather(places) + "; " + text_beside.gather(places)
    of_row = np.full(len(text), len(places), np.uint32)
    of_row[places.to_numpy()] = np.arange(len(places), dtype=np.uint32)
    joined = together.extend_constant(None, 1).gather(pl.Series(of_row))
    return joined.zip_with(joined.is_not_null(), text)


def column(frame: pl.DataFrame, expression: pl.Expr) -> pl.Series:
    return frame.with_columns(expression.alias("_column"))["_column"]
