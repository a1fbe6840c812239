"""Raw ids in one spelling: what spreadsheets, data frames and copying made of them is undone, everywhere alike.

A patient whose id one table writes `1001` and another `1001.0`, or with a blank that nobody sees, would be two. Each id
is judged alone, so that what becomes of it does not depend on the rows beside it.
"""

import re
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from warehouse.arrays import U8

# How programs write that there is none, in lower case. None of these is a patient or a visit.
NULL_IDS = (
    "null", "(null)", "<null>", "[null]", "na", "n/a", "#n/a", "<na>", "nan", "nat", "none", "nil", r"\n",
    "-", "--", ".", "?", '""', "''",
)  # fmt: skip
# What takes no place on a screen, or looks like a blank and is none: marks of byte order, soft hyphens, joiners,
# directions, no-break spaces, and control characters such as the zero bytes that pad a field; not tabs and line ends,
# which are blanks.
INVISIBLE = "\x00-\x08\x0e-\x1f\x7f-\x9f"
INVISIBLE += "\u00a0\u00ad\u034f\u061c\u180e\u200b-\u200f\u202a-\u202f\u2060-\u2064\u2066-\u2069\ufeff"
_INVISIBLE = f"[{INVISIBLE}]"
# An integer that some tool made a float.
_WHOLE = r"^([+-]?[0-9]+)\.0+$"
# 1.23457E+11 may stand for any of a million ids: it is none.
_EXPONENT = r"^[+-]?[0-9](?:\.[0-9]+)?[eE]\+[0-9]+$"
UPPER, STRIP_ZEROS = "upper", "strip_zeros"
_FIRST_SEEN, _LAST_SEEN = ord(" "), ord("~")
_LONGEST_NULL = max(map(len, NULL_IDS))
# Ids of these bytes have nothing to undo; they may spell that there is none.
_ORDINARY = np.zeros(256, np.bool_)
_ORDINARY[list(f"{string.ascii_letters}{string.digits}_-".encode())] = True


def are_digits(letters: U8) -> bool:
    """Whether the bytes of ids are digits alone, as they mostly are: there is then nothing to undo."""
    return bool((letters - np.uint8(ord("0")) < 10).all())


def letters_of(ids: pl.Series) -> tuple[U8, bool]:
    """The bytes of all ids, and whether one of them is an empty text."""
    if ids.is_empty():
        return np.zeros(0, np.uint8), False
    array = ids.to_arrow(compat_level=pl.CompatLevel.oldest())
    _, offsets, data = array.buffers()
    bounds = np.frombuffer(offsets, np.int64, len(array) + 1, 8 * array.offset)
    letters = np.frombuffer(data or b"", np.uint8)[bounds[0] : bounds[-1]]
    return letters, int(np.count_nonzero(np.diff(bounds) == 0)) != array.null_count


def may_hide(letters: U8) -> bool:
    """Whether the bytes of ids are more than ASCII's visible signs: something invisible may be among them."""
    return bool(((letters < _FIRST_SEEN) | (letters > _LAST_SEEN)).any())


def have_invisible(ids: pl.Series) -> pl.Series:
    """(n,) whether something stands in an id that nobody sees."""
    return ids.str.contains(_INVISIBLE).fill_null(False)


def plain_numbers(ids: pl.Series) -> pl.Series:
    """Ids (n,) without what nobody sees; `1001.0` is `1001`, as Parquet's floats are read. Others stay as they are."""
    letters, _ = letters_of(ids)
    if not (letters == ord(".")).any() and not may_hide(letters):
        return ids
    return _seen(ids).str.replace(_WHOLE, "$1")


def _seen(ids: pl.Series) -> pl.Series:
    return ids.str.replace_all(_INVISIBLE, "")


def known_ids(ids: pl.Series) -> pl.Series:
    """Ids (n,) of subjects or visits in one spelling, null where there is none.

    On top of `plain_numbers`, blanks around them go; what programs write for nothing (NULL_IDS) is null, and so is a
    number with an exponent, which may stand for many.
    """
    ids = ids.cast(pl.String)
    letters, empty = letters_of(ids)
    if not empty and are_digits(letters):
        return ids
    if not empty and _ORDINARY[letters].all():
        short = ids.filter(ids.str.len_bytes() <= _LONGEST_NULL)
        if not short.str.to_lowercase().is_in(NULL_IDS).any():
            return ids
    bare = _seen(ids).str.strip_chars().str.replace(_WHOLE, "$1")
    nothing = (bare == "") | bare.str.to_lowercase().is_in(NULL_IDS) | bare.str.contains(_EXPONENT)
    return bare.set(nothing.fill_null(False), None)


@dataclass(frozen=True)
class SubjectIds:
    """How a site's ids of subjects become one spelling.

    Attributes:
        pattern: a regular expression that an id must match whole; None lets every id be one.
        normalise: what is done to an id before, in this order: UPPER, STRIP_ZEROS (in front), or a regular expression
            whose one group is the id; where it is not found, the id stays.
    """

    pattern: str | None = None
    normalise: tuple[str, ...] = ()

    @cached_property
    def _steps(self) -> Sequence[str | re.Pattern[str]]:
        return [step if step in (UPPER, STRIP_ZEROS) else re.compile(step) for step in self.normalise]

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return None if self.pattern is None else re.compile(self.pattern)

    def of(self, ids: pl.Series) -> pl.Series:
        """Ids (n,) in one spelling, null where there is none or one that does not match the pattern."""
        if self._pattern is None and not self.normalise:
            return known_ids(ids)
        distinct = ids.drop_nulls().unique()
        made = [None if text is None else self._one(text) for text in known_ids(distinct).to_list()]
        return ids.replace_strict(distinct, known_ids(pl.Series(made, dtype=pl.String)), return_dtype=pl.String)

    def _one(self, text: str) -> str | None:
        for step in self._steps:
            if isinstance(step, re.Pattern):
                found = step.search(text)
                text = text if found is None or found[1] is None else found[1]
            else:
                text = text.upper() if step == UPPER else text.lstrip("0") or text[:1]
        return text if self._pattern is None or self._pattern.fullmatch(text) else None
