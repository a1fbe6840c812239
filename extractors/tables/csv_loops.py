"""Loops over bytes, compiled before their first use: what splits CSV into fields and reads the times in it.

They look at eight bytes at once, as integers: a byte that is zero shows in `(word - ONES) & ~word & HIGH`, exactly for
the first one. Those words begin anywhere, which processors of 64 bits can read. Nothing checks bounds here; every place
that is read lies within `size` and the 16 bytes behind it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numba
import numpy as np

from warehouse.arrays import I8, I32, I64, U8, U32, U64

SKIPPED, TEXT, NUMBERED = range(3)
REGULAR, IRREGULAR, MORE_ROWS, MORE_TEXTS = range(4)
NOT_A_MOMENT = np.iinfo(np.int64).min
_LF, _CR = 10, 13
NO_QUOTE = 256
"""As a quote it is no byte's value."""

_ONES = np.uint64(0x0101010101010101)
_HIGH = np.uint64(0x8080808080808080)
_LINE_FEEDS = _ONES * np.uint64(_LF)
_MIX = np.uint64(0xFF51AFD7ED558CCD)


def split_fields(
    letters: U8, words: U64, size: int, ended: bool, returns: bool, kinds: I8, slots: I64,
    bounds: I64, starts: I64, widths: I32, numbers: U32, first: I64, length: I32, table: I32, counts: I64,
    separator: int, quote: int,
) -> tuple[int, int]:  # fmt: skip
    """Splits records into fields, as far as they are whole and regular: how that ended, and how many there are.

    Args:
        letters: the data, and 16 bytes more; `words`, the eight bytes from each place on.
        size: bytes of the data.
        ended: whether the file ends with it.
        returns: whether there are carriage returns.
        kinds: (f,) SKIPPED, TEXT or NUMBERED of each field; `slots`, which of its kind it is.
        bounds: (n + 1,) gets where the records begin, and where the last one ends.
        starts, widths: (t, n) get the places of t columns of texts: see extractors.tables.csv_fields.SpanTexts.
        numbers: (k, n) gets the numbers of k columns of numbered texts.
        first, length: (k, d) get the places of the distinct texts; `counts`, (k,) how many there are.
        table: (k, 2 d) -1 throughout; d is a power of two.
        separator, quote: their bytes; NO_QUOTE where there is none.
    """
    fields = len(kinds)
    separators = _ONES * np.uint64(separator)
    place, row = 0, 0
    bounds[0] = 0
    while place < size:
        if row + 1 == len(bounds):
            return MORE_ROWS, row
        field = 0
        while True:
            start, width, doubled = place, 0, False
            if letters[place] == quote:
                start = place = place + 1
                while True:
                    while place < size and letters[place] != quote:
                        place += 1
                    if place >= size:
                        # A quoted field that goes on behind the data.
                        return (IRREGULAR if ended or row == 0 else REGULAR), row
                    if letters[place + 1] != quote or place + 1 >= size:
                        break
                    doubled = True
                    place += 2
                width = place - start
                place += 1
            else:
                while True:
                    word = words[place]
                    mark, feed = word ^ separators, word ^ _LINE_FEEDS
                    ends = (((mark - _ONES) & ~mark) | ((feed - _ONES) & ~feed)) & _HIGH
                    if ends != 0:
                        before = ((ends & (~ends + np.uint64(1))) >> np.uint64(7)) - np.uint64(1)
                        # As a signed integer, else the compiler makes a float of the sum.
                        place += np.int64(((before & _ONES) * _ONES) >> np.uint64(56))  # type: ignore[assignment]
                        break
                    place += 8
                    if place >= size:
                        break
                width = place - start
            field += 1
            last = field == fields
            if last and returns and letters[place] == _LF and width > 0 and letters[place - 1] == _CR:
                width -= 1
            elif last and returns and letters[place] == _CR and letters[place + 1] == _LF:
                place += 1
            if place >= size and not ended:
                return (IRREGULAR if row == 0 else REGULAR), row
            behind = letters[place]
            if (behind != _LF) if last else (behind != separator):
                return IRREGULAR, row
            if returns:
                for letter_at in range(start, start + width):
                    if letters[letter_at] == _CR:
                        return IRREGULAR, row
            kind, slot = kinds[field - 1], slots[field - 1]
            if kind == TEXT:
                starts[slot, row] = start
                widths[slot, row] = -width if doubled else width
            elif kind == NUMBERED:
                mixed = np.uint64(width)
                at = start
                while at + 8 <= start + width:
                    mixed = (mixed ^ words[at]) * _MIX
                    mixed ^= mixed >> np.uint64(32)
                    at += 8
                left = np.uint64(8 * (start + width - at))
                rest = (np.uint64(1) << left) - np.uint64(1)
                mixed = (mixed ^ (words[at] & rest)) * _MIX
                mixed ^= mixed >> np.uint64(29)
                mask = np.uint64(table.shape[1] - 1)
                signed_width = -width if doubled else width
                while True:
                    number = table[slot, mixed & mask]
                    if number < 0:
                        number = counts[slot]
                        if number == length.shape[1]:
                            return MORE_TEXTS, row
                        table[slot, mixed & mask] = number
                        first[slot, number] = start
                        length[slot, number] = signed_width
                        counts[slot] += 1
                        break
                    if length[slot, number] == signed_width:
                        other, at = first[slot, number], start
                        while at + 8 <= start + width and words[at] == words[other]:
                            at += 8
                            other += 8
                        if at + 8 > start + width and ((words[at] ^ words[other]) & rest) == 0:
                            break
                    mixed += np.uint64(1)
                numbers[slot, row] = number
            place += 1
            if last:
                break
        if fields == 1 and width == 0 and (start == 0 or letters[start - 1] != quote):
            # An empty line, which is no record.
            return IRREGULAR, row
        row += 1
        bounds[row] = min(place, size)
    return REGULAR, row


def copy_texts(letters: U8, starts: I64, widths: I32, bounds: I64, target: U8, quote: int) -> None:
    """Copies texts one behind the other, of doubled quotes one.

    Args:
        bounds: (n + 1,) where each would begin if no quotes were doubled; gets where they do.
        target: gets the texts.
    """
    shift = 0
    for row in range(len(starts)):
        at, width = bounds[row] - shift, widths[row]
        start = starts[row]
        bounds[row] = at
        if width >= 0:
            for offset in range(width):
                target[at + offset] = letters[start + offset]
            continue
        source = start
        while source < start - width:
            target[at] = letters[source]
            at += 1
            if letters[source] == quote:
                source += 1
                shift += 1
            source += 1
    bounds[len(starts)] -= shift


def read_moments(letters: U8, starts: I64, widths: I32, found: I64) -> bool:
    """Reads texts (n,) as microseconds since 1970, NOT_A_MOMENT where there is none; whether all could be read."""
    days = np.int64(0)
    seen = np.int64(-1)
    for row in range(len(starts)):
        if widths[row] == 0:
            found[row] = NOT_A_MOMENT
            continue
        if widths[row] != 19:
            return False
        at = starts[row]
        if (
            letters[at + 4] != 45 or letters[at + 7] != 45 or letters[at + 10] != 32
            or letters[at + 13] != 58 or letters[at + 16] != 58
        ):  # fmt: skip
            return False
        value = np.int64(0)
        for digit_at in (0, 1, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17, 18):
            digit = np.int64(letters[at + digit_at]) - 48
            if digit < 0 or digit > 9:
                return False
            value = 10 * value + digit
        date, clock = value // 1_000_000, value % 1_000_000
        hour, minute, second = clock // 10_000, clock // 100 % 100, clock % 100
        if hour > 23 or minute > 59 or second > 59:
            return False
        if date != seen:
            year, month, day = date // 10_000, date // 100 % 100, date % 100
            leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
            if month < 1 or month > 12 or day < 1:
                return False
            february = 29 if leap else 28
            if day > (february if month == 2 else 30 + ((month + (month >> 3)) & 1)):
                return False
            # Days since 1970-01-01 of the proleptic Gregorian calendar, years begun in March.
            shifted = year - (1 if month <= 2 else 0)
            months = (month + 9) % 12
            leaps = shifted // 4 - shifted // 100 + shifted // 400
            days = 365 * shifted + leaps + (153 * months + 2) // 5 + day - 719469
            seen = date
        found[row] = ((days * 24 + hour) * 60 + minute) * 60_000_000 + second * 1_000_000
    return True


@dataclass(frozen=True)
class Loops:
    """The functions of this module, compiled."""

    split_fields: Callable[..., tuple[int, int]]
    copy_texts: Callable[..., None]
    read_moments: Callable[..., bool]


@cache
def compiled() -> Loops:
    """Compiles the loops, or fetches them from where they were kept: beside this file, or among the user's caches.

    A place where nothing can be kept, or where what was kept is damaged, costs the time to compile them.
    """
    try:
        return _tried(kept=True)
    except Exception:  # whatever a damaged file makes of numba's reader
        return _tried(kept=False)


def _tried(*, kept: bool) -> Loops:
    made: list[Any] = [numba.njit(loop, cache=kept, nogil=True) for loop in (split_fields, copy_texts, read_moments)]
    loops = Loops(*made)
    # Compiled for these types, on one record of one text and one number.
    letters = np.frombuffer(b"2020-02-29 13:00:00,1\n" + b"\n" * 16, np.uint8)
    words = np.lib.stride_tricks.as_strided(letters[:8].view(np.uint64), (len(letters) - 8,), (1,))
    places, widths, numbers = np.zeros(2, np.int64), np.zeros((1, 1), np.int32), np.zeros((1, 1), np.uint32)
    starts, first, length = np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int64), np.zeros((1, 1), np.int32)
    kinds, slots, counts = np.array([TEXT, NUMBERED], np.int8), np.zeros(2, np.int64), np.zeros(1, np.int64)
    table = np.full((1, 2), -1, np.int32)
    loops.split_fields(
        letters, words, len(letters) - 16, True, False, kinds, slots,
        places, starts, widths, numbers, first, length, table, counts, ord(","), ord('"'),
    )  # fmt: skip
    loops.copy_texts(letters, starts[0], widths[0], np.array([0, 19]), np.empty(19, np.uint8), ord('"'))
    loops.read_moments(letters, starts[0], widths[0], np.empty(1, np.int64))
    return loops
