"""Units of values: the row's own, the one that stands in the value, and letters that may be either a unit or a flag."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

import polars as pl

from extractors.events.interner import Interner
from extractors.events.series import column
from extractors.events.values import FLAG_OR_TEXT, LETTERS, READ_AS, UNIT_OR_FLAG
from extractors.tables.rows import Rows

# Added to a flag's number where the unit in the value is another one than the row's.
CONTRADICTS = 64
_NUMBER = {name: number for number, name in enumerate(READ_AS)}
# A letter that the units decide on: a unit where they name it, else a flag.
LETTER = _NUMBER[UNIT_OR_FLAG]
_COMPARED = tuple(_NUMBER[name] for name in ("<", "<=", ">", ">=", "range"))
# What stands for a letter until the file is read: the column, and the letter.
_OPEN = "\0"
# Spellings of one unit, by what they are compared as.
_ALIKE = (
    (r"[\s_.°]|^deg(?:rees?)?|^x(?=10)", ""),
    (r"\^", "*"),
    (r"µ|μ|mc(?=g|l|mol)", "u"),
    (r"\b(?:k|m)?iu\b|\bunits?\b", "u"),
    (r"\bgms?\b|\bgrams?\b", "g"),
    (r"\bsec(?:ond)?s?\b", "s"),
    (r"\bmin(?:ute)?s?\b", "min"),
    (r"\b(?:hrs?|hours?)\b", "h"),
    (r"\bdays?\b", "d"),
    (r"^(?:k|thous?)/", "10*3/"),
    (r"\blit(?:re|er)s?\b", "l"),
    (r"\bpercent\b|\bpct\b", "%"),
    (r"\binch(?:es)?\b", "in"),
    (r"\blbs\b", "lb"),
    (r"²", "2"),
)
# Words that a column of units holds where there is none, as `_compared` leaves them.
_NO_UNIT = ("", "-", "n/a", "na", "none", "null", "nan", "unknown", "unspecified", "notapplicable", "nounit")
# What a letter measures as a unit: beside a row's unit of that kind it is no flag.
_KINDS = {
    "L": re.compile(r"[mdcun]?l|lpm"),
    "l": re.compile(r"[mdcun]?l|lpm"),
    "C": re.compile(r"c|f|k|celsius|fahrenheit"),
    "h": re.compile(r"s|min|h|d"),
}


class Units:
    """The units of one table, numbered, and whether letters in its values are units.

    A letter behind a number, as in `8.1 L`, is a flag where the row has a unit of its own. In a row without one it is a
    flag if the column has others, which is known when the whole file is read: until then the letter has a number of its
    own among the units. So no row hangs on those beside it in its block.

    Args:
        spellings: how a unit is spelt in the release, by its spelling in the export; null where it means none.
        known: units that have a number already.
    """

    def __init__(self, spellings: dict[str, str | None], known: Iterable[str] = ()) -> None:
        self._spellings = spellings
        self._interner = Interner(known)
        self._marks: dict[str, set[str]] = defaultdict(set)
        self._open: dict[int, str] = {}
        self._rows: Counter[str] = Counter()

    @property
    def texts(self) -> list[str | None]:
        """The units by number, null for a letter that is a flag."""
        return [self._settled(text) if place in self._open else text for place, text in enumerate(self._interner.texts)]

    @property
    def settled(self) -> list[tuple[str, str, bool]]:
        """Letters that the whole file decided on: the column, the letter, and whether it is a flag."""
        letters = (text.split(_OPEN) for text in sorted(self._open.values()))
        return [(name, letter, self._is_flag(name, letter)) for name, letter in letters]

    @property
    def doubtful(self) -> dict[str, int]:
        """Events whose letter was taken for a unit although it may be a flag, by the value's column."""
        found: Counter[str] = Counter()
        for text, rows in self._rows.items():
            name, letter = text.split(_OPEN)
            found[name] += 0 if self._is_flag(name, letter) else rows
        return {name: rows for name, rows in found.items() if rows}

    def saw(self, name: str, marks: pl.Series) -> None:
        """Takes the flags that stand in some values of a column."""
        if marks.null_count() < len(marks):
            self._marks[name].update(marks.drop_nulls().unique())

    def count(self, numbers: pl.Series, made: pl.Series) -> None:
        """Takes the units (n,) of rows, and which of them make an event (n,), to count the letters among them."""
        for number, text in self._open.items():
            self._rows[text] += int(((numbers == number) & made).sum())

    def stated(self, rows: Rows, name: str | None) -> pl.Series:
        """The unit of each row (n,) as its own column says."""
        if name is None:
            return pl.Series([None], dtype=pl.UInt32).new_from_index(0, len(rows))
        spelt = pl.col(name).str.strip_chars().replace("", None).replace(self._spellings)
        return rows.by([name], lambda frame: self._interner.of(column(frame, spelt)), distinct=True).rows

    def settle(
        self, name: str, number: pl.Series, flag: pl.Series, written: pl.Series, unit: pl.Series, flags: bool | None
    ) -> tuple[pl.Series, pl.Series, pl.Series]:
        """Number, flag and unit of each row (n,), where the value says something of its unit or leaves it open.

        Args:
            name: the value's column.
            flag: numbers in READ_AS.
            written: the unit in the value.
            unit: the row's own unit, as a number.
            flags: what the site says of letters that may be both.
        """
        places = (written.is_not_null() | (flag == _NUMBER[FLAG_OR_TEXT]).fill_null(False)).arg_true()
        if places.is_empty():
            return number, flag, unit
        texts = self._interner.texts
        asked = pl.DataFrame(
            {"written": written.gather(places), "unit": unit.gather(places), "flag": flag.gather(places)}
        )
        distinct = asked.unique(maintain_order=True)
        answers = [
            self._answer(name, text, None if place is None else texts[place], how, flags)
            for text, place, how in distinct.iter_rows()
        ]
        answer = pl.DataFrame(
            answers, schema={"name": pl.String, "as": pl.UInt8, "is_number": pl.Boolean}, orient="row"
        )
        answer = answer.with_columns(self._interner.of(answer["name"]).alias("number")).drop("name")
        for place, text in enumerate(self._interner.texts[len(texts) :], len(texts)):
            if _OPEN in text:
                self._open[place] = text
        settled = asked.join(
            distinct.hstack(answer), on=["written", "unit", "flag"], how="left", nulls_equal=True, maintain_order="left"
        )
        lost = places.filter(~settled["is_number"])
        return (
            number if lost.is_empty() else number.clone().scatter(lost, None),
            flag.clone().scatter(places, settled["as"]),
            unit.clone().scatter(places, settled["unit"].fill_null(settled["number"])),
        )

    def _answer(
        self, name: str, written: str | None, unit: str | None, flag: int | None, flags: bool | None
    ) -> tuple[str | None, int | None, bool]:
        """The unit of a row that has none of its own, the flag, and whether the value is a number."""
        plain = _NUMBER["unit"] if flag == LETTER else flag
        marked = _NUMBER["flag"] if flag == LETTER else flag
        if flag == _NUMBER[FLAG_OR_TEXT]:
            is_flag = unit is not None or flags is True
            return (None, _NUMBER["flag"], True) if is_flag else (None, None, False)
        if written is None:
            return None, flag, True
        if flag == LETTER or (flag in _COMPARED and written in LETTERS):
            measured = unit is not None and _measures(written, unit)
            if flags is True or (flags is None and unit is not None and not measured):
                self._marks[name].add(written)
                return None, marked, True
            if flags is None and unit is None:
                return f"{name}{_OPEN}{written}", flag, True
        spelt = self._spellings.get(written, written)
        if unit is None or spelt is None or _agree(spelt, unit):
            return spelt, plain, True
        return None, (plain or 0) + CONTRADICTS, True

    def _is_flag(self, name: str, letter: str) -> bool:
        """Whether the column has other flags than this letter, written in the same case."""
        # Small letters are units far more often: hours stay hours where others are H or `*`.
        return any(
            mark != letter and (mark.islower() if letter.islower() else not mark.islower())
            for mark in self._marks[name]
        )

    def _settled(self, text: str) -> str | None:
        name, letter = text.split(_OPEN)
        return None if self._is_flag(name, letter) else self._spellings.get(letter, letter)


def _measures(letter: str, unit: str) -> bool:
    """Whether a letter is a unit beside a row's unit: one of its kind, or a rate of it, as L is beside L/min."""
    compared = _compared(unit)
    return _KINDS[letter].fullmatch(compared) is not None or compared.split("/")[0] == letter.lower()


def _agree(written: str, unit: str) -> bool:
    """Whether two units are one, or one of them says less than the other, as mg does of mg/dL."""
    first, second = _compared(written), _compared(unit)
    return second in _NO_UNIT or first == second or first == second.split("/")[0] or second == first.split("/")[0]


def _compared(unit: str) -> str:
    text = unit.casefold()
    for spelling, common in _ALIKE:
        text = re.sub(spelling, common, text)
    return text
