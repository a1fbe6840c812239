"""Values as laboratories write them: a number, a number behind a sign, a range, a number with its unit or a flag, or a
text."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import polars as pl

from warehouse.sort_keys import encode

# How a number was read that is not the whole value; null for a plain number.
FLAGS = ("<", "<=", ">", ">=", "range", "unit", "flag")
# What a value by itself leaves open: whether the letter behind a number is its unit or a flag, as in `8.1 L`, and
# whether a letter before a number is a flag at all, as in `A 17.2`. extractors.events.units settles both.
UNIT_OR_FLAG, FLAG_OR_TEXT = "unit or flag", "flag or text"
READ_AS = (*FLAGS, UNIT_OR_FLAG, FLAG_OR_TEXT)
# Units that are flags elsewhere: litre and low, degree Celsius and critical, hour and high.
LETTERS = ("L", "l", "C", "h")

# Bytes of the longest text that is more than a number and still one.
_LONGEST = 64
# Texts whose reading is kept.
_MOST_TEXTS = 1 << 14
_SIGN = r"[+\-−]?"
_EXPONENT = r"(?:[eE][+-]?\d+)?"
# Units of UCUM that laboratories print; a word that is none of them leaves the value a text.
_UNIT = (
    r"(?:%|°?[CF]|deg ?[CF]|(?:x ?)?10[*^E]\d{1,2}(?:/[mu]?L)?|[KkMm]/(?:[mu]?L|mm3|cumm)"
    r"|(?:[kcdmunpfµμ]|mc|da)?(?:g|mol|L|l|Eq|eq|EQ|IU|iu|U|u|m|s|Hg|Pa|osm|Osm|cal|gm|G|M)(?:[23])?"
    r"|mmHg|cmH2O|sec|min|hrs?|h|days?|wks?|yrs?|bpm|ratio|cells|copies|units?|lbs?|[Ii]n(?:ch(?:es)?)?)"
)
_UNITS = rf"(?:{_UNIT}(?:/(?:{_UNIT}|d|kg|hpf|HPF|lpf|LPF|1\.73 ?m2))*|/(?:hpf|HPF|lpf|LPF))"
_COMPARATORS = {"≤": "<=", "≥": ">=", "=<": "<=", "=>": ">="}
# Abnormal flags as analysers print them (HL7 table 0078 and what is used beside it), in any case. A single letter may
# also be something else: it stands apart or in brackets.
_FLAG = r"HH?|LL|high|low|hi|lo|crit(?:ical)?|abn(?:ormal)?"
_LETTER = r"AA?|N|C"
_MARK = r"\*{1,3}|!{1,3}|↑{1,3}|↓{1,3}"
_BRACKETED = rf"[(\[]\s*((?i:{_FLAG}|L|{_LETTER}|{_MARK}))\s*[)\]]"
_BEFORE = rf"^(?:((?:{_MARK})?(?i:{_FLAG}|L)(?:{_MARK})?)\s+|({_MARK})\s*|{_BRACKETED}\s*|((?i:{_LETTER}))\s+)(.*\d.*)$"
_ENDING = rf"(?:{_MARK})?(?i:{_FLAG})(?:{_MARK})?"
_BEHIND = rf"^(.*?\d.*?)(?:\s*({_MARK})|\s*{_BRACKETED}|\s*({_ENDING})|\s+((?:{_MARK})?(?i:L|{_LETTER})(?:{_MARK})?))$"
_BETWEEN = rf"^(\S*\d)\s*(?:({_MARK})|{_BRACKETED}|\s({_ENDING})|\s((?i:L|{_LETTER})))\s+(\S+)$"
# Separators that look the same.
_BLANKS = "[ \N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}]"
_ALIKE = {"'": "['\N{RIGHT SINGLE QUOTATION MARK}]", **dict.fromkeys(_BLANKS[1:-1], _BLANKS)}
# Where the comma divides: numbers with a point behind which no group of three digits can stand, and such groups.
_POINTED = r"(?:0|\d{4,})\.\d+|\d{1,3}\.(?:\d{1,2}|\d{4,})"
_GROUPED = rf"^\s*{_SIGN}[1-9]\d{{0,2}}(?:\.\d{{3}})+(?:[eE].*)?\s*$"


@dataclass(frozen=True)
class Writing:
    """A way of writing numbers.

    Attributes:
        decimal: the sign before the fraction, `.` or `,`. Where it is the comma, a point divides too if what follows
            can be no group of three digits: `5.25`.
        thousands: the sign between groups of three digits.
        flags: whether abnormal flags may stand beside a number.
    """

    decimal: str = "."
    thousands: str | None = None
    flags: bool = True

    @cached_property
    def known(self) -> "_Known":
        """What texts were read as so far."""
        return _Known(self)

    @cached_property
    def number(self) -> str:
        """A number with its sign."""
        return rf"{_SIGN}{self.unsigned}{_EXPONENT}"

    @cached_property
    def unsigned(self) -> str:
        point = re.escape(self.decimal)
        if self.thousands:
            return rf"(?:(?:\d{{1,3}}(?:{self.group}\d{{3}})+|\d+)(?:{point}\d*)?|{point}\d+{self._pointed})"
        return rf"(?:\d+{point}?\d*|{point}\d+{self._pointed})"

    @cached_property
    def group(self) -> str:
        """The sign between groups."""
        return _ALIKE.get(self.thousands or "", re.escape(self.thousands or ""))

    @cached_property
    def _pointed(self) -> str:
        return rf"|{_POINTED}" if self.decimal == "," else ""

    def float64(self, text: pl.Expr) -> pl.Expr:
        """Texts of numbers (n,) as numbers."""
        text = text.str.replace("−", "-", literal=True)
        if self.thousands:
            plain = text.str.replace_all(self.group, "")
            pointed = text.str.contains(rf"^{_SIGN}(?:{_POINTED}){_EXPONENT}$")
            text = pl.when(pointed).then(text).otherwise(plain) if self.decimal == "," else plain
        if self.decimal == ",":
            text = text.str.replace(",", ".", literal=True)
        return text.cast(pl.Float64, strict=False)

    def plain(self, raw: pl.Series) -> pl.Series:
        """Texts (n,) that are numbers by themselves, as float32: those that every program reads so."""
        number = _float32(raw.cast(pl.Float64, strict=False))
        if self.decimal == ",":
            number = number.set(raw.str.contains(_GROUPED).fill_null(False), None)
        return number


POINT = Writing()


def parse_values(raw: pl.Series, writing: Writing = POINT) -> pl.DataFrame:
    """Numbers of text values (n,).

    Gives columns `number` float32, the source's value rounded once, null for a text; `flag`, one of READ_AS, where the
    value is more than its number; `text`, the value itself where it is no plain number; `unit`, where it holds one;
    `mark`, the flag beside the number, if it is one. A range stands for its middle.
    """
    number = writing.plain(raw)
    places = (raw.is_not_null() & number.is_null()).arg_true()
    if places.is_empty():
        nothing = pl.Series([None], dtype=pl.String).new_from_index(0, len(raw))
        flag = pl.Series([None], dtype=pl.Enum(READ_AS)).new_from_index(0, len(raw))
        return pl.DataFrame({"number": number, "flag": flag, "text": nothing, "unit": nothing, "mark": nothing})
    text, spelt = encode(raw.gather(places))
    text = text.str.strip_chars().replace("", None)
    # What is left may be only blanks around a number.
    plain = writing.plain(text)
    written = text.set(plain.is_not_null(), None)
    read = _read_short(written, writing)
    whole = read["number"].is_not_null() & read["flag"].is_null()
    read = read.with_columns(written.set(whole, None).alias("text"), pl.col("flag").cast(pl.Enum(READ_AS)))
    numbers = plain.zip_with(plain.is_not_null(), read["number"])
    of_row = np.full(len(raw), -1, np.int64)
    of_row[places.to_numpy()] = spelt
    rows = pl.Series(of_row).cast(pl.UInt32, strict=False)
    return pl.DataFrame(
        {
            "number": number.scatter(places, numbers.gather(pl.Series(spelt))),
            **{name: read[name].gather(rows) for name in ("flag", "text", "unit", "mark")},
        }
    )


def _read_short(text: pl.Series, writing: Writing) -> pl.DataFrame:
    """Number, flag, unit and mark of texts (n,); a long text, or one without a digit, is not worth a look."""
    nothing = {"number": pl.Float32, "flag": pl.String, "unit": pl.String, "mark": pl.String}
    columns = [pl.Series(name, [None], dtype).new_from_index(0, len(text)) for name, dtype in nothing.items()]
    places = ((text.str.len_bytes() <= _LONGEST) & text.str.contains(r"\d")).arg_true()
    if places.is_empty():
        return pl.DataFrame(columns)
    read = writing.known.read(text.gather(places))
    return pl.DataFrame([column.scatter(places, read[column.name]) for column in columns])


class _Known:
    """What short texts were read as: an export says the same ones block after block, and to look is slow.

    Args:
        writing: how numbers are written.
    """

    def __init__(self, writing: Writing) -> None:
        self._writing = writing
        self._places: dict[str, int] = {}
        self._read = _flagged(pl.Series([], dtype=pl.String), writing)

    def read(self, text: pl.Series) -> pl.DataFrame:
        """Number, flag, unit and mark of texts (n,), none of which is null."""
        if len(text) > _MOST_TEXTS:
            return _flagged(text, self._writing)
        asked = text.to_list()
        new = list(dict.fromkeys(value for value in asked if value not in self._places))
        if new:
            if len(self._places) + len(new) > _MOST_TEXTS:
                self._places, self._read = {}, self._read.clear()
                new = list(dict.fromkeys(asked))
            self._read = pl.concat([self._read, _flagged(pl.Series(new, dtype=pl.String), self._writing)])
            self._places |= {value: place for place, value in enumerate(new, len(self._places))}
        return self._read[[self._places[value] for value in asked]]


def _read(text: pl.Series, writing: Writing) -> pl.DataFrame:
    """Number, flag and unit of texts (n,): null for one that holds no number, or one that float32 cannot hold."""
    number, unsigned = writing.number, writing.unsigned
    signed = rf"^(<=|>=|=<|=>|<|>|≤|≥)\s*({number})\s*({_UNITS})?$"
    spanned = rf"^({number})\s*(?:-|–|to)\s*({unsigned})\s*({_UNITS})?$"
    with_unit = rf"^({number})\s*({_UNITS})?$"
    value = pl.col("text")
    bound, low, high, plain = (
        writing.float64(value.str.extract(pattern, group))
        for pattern, group in ((signed, 2), (spanned, 1), (spanned, 2), (with_unit, 1))
    )
    unit = value.str.extract(with_unit, 2)
    read = pl.DataFrame({"text": text}).select(
        pl.when(bound.is_not_null())
        .then(bound)
        .when(low <= high)
        .then((low + high) / 2)
        .otherwise(plain)
        .alias("number"),
        pl.when(bound.is_not_null())
        .then(value.str.extract(signed, 1).replace(_COMPARATORS))
        .when(low <= high)
        .then(pl.lit("range"))
        .when(plain.is_not_null() & unit.is_in(LETTERS))
        .then(pl.lit(UNIT_OR_FLAG if writing.flags else "unit"))
        .when(plain.is_not_null() & unit.is_not_null())
        .then(pl.lit("unit"))
        .alias("flag"),
        pl.coalesce(
            pl.when(bound.is_not_null()).then(value.str.extract(signed, 3)),
            pl.when(low <= high).then(value.str.extract(spanned, 3)),
            pl.when(low.is_null() & bound.is_null()).then(unit),
        ).alias("unit"),
    )
    single = _float32(read["number"])
    return read.with_columns(single.alias("number")).with_columns(
        pl.when(pl.lit(single).is_not_null()).then(pl.col("flag", "unit"))
    )


def _flagged(text: pl.Series, writing: Writing) -> pl.DataFrame:
    """Number, flag and unit of texts (n,), also of those that hold a number beside a flag, which is `mark`."""
    read = _read(text.alias("text"), writing)
    nothing = pl.Series("mark", [None], dtype=pl.String).new_from_index(0, len(text))
    places = (read["number"].is_null() & text.is_not_null()).arg_true()
    if places.is_empty() or not writing.flags:
        return read.with_columns(nothing)
    whole = text.gather(places).alias("text").to_frame()
    value, rest = pl.col("text"), pl.coalesce("rest", "text")
    parts = whole.with_columns(value.str.extract(_BEFORE, 5).alias("rest")).with_columns(
        _first_of(value, _BEFORE, (1, 2, 3, 4)).alias("before"),
        value.str.extract(_BEFORE, 4).is_not_null().alias("letter"),
        pl.coalesce(
            rest.str.extract(_BEHIND, 1),
            pl.concat_str(rest.str.extract(_BETWEEN, 1), pl.lit(" "), rest.str.extract(_BETWEEN, 6)),
        ).alias("inner"),
        pl.coalesce(_first_of(rest, _BEHIND, (2, 3, 4, 5)), _first_of(rest, _BETWEEN, (2, 3, 4, 5))).alias("behind"),
    )
    if parts["rest"].null_count() == parts["inner"].null_count() == len(parts):
        return read.with_columns(nothing)
    both = _read(pl.concat([parts["rest"], parts["inner"]]).alias("text"), writing)
    outer, inner = both.head(len(parts)), both.tail(len(parts))
    found = outer["number"].is_not_null()
    within = ~found & inner["number"].is_not_null()
    beside = pl.DataFrame(
        {
            **{name: outer[name].zip_with(found, inner[name]) for name in ("number", "flag", "unit")},
            "mark": parts["before"].zip_with(found | parts["before"].is_not_null(), parts["behind"]),
            "doubtful": found & parts["letter"],
        }
    ).with_columns(pl.when(pl.lit(found | within)).then("mark"))
    # A letter beside a sign such as `*` is what the sign stands for; beside another letter it is the unit.
    named = (pl.col("flag") == UNIT_OR_FLAG) & pl.col("mark").str.contains("^[^A-Za-z]")
    marked = pl.col("flag").is_null() | pl.col("flag").is_in(["unit", UNIT_OR_FLAG])
    beside = beside.select(
        "number",
        pl.when(pl.col("number").is_null())
        .then(None)
        .when(marked & pl.col("doubtful"))
        .then(pl.lit(FLAG_OR_TEXT))
        .when(marked)
        .then(pl.lit("flag"))
        .otherwise("flag")
        .alias("flag"),
        pl.when(~named.fill_null(False)).then("unit").alias("unit"),
        pl.when(~(marked & pl.col("doubtful"))).then("mark").alias("mark"),
    )
    columns = read.with_columns(nothing)
    return columns.with_columns(columns[name].scatter(places, beside[name]) for name in columns.columns)


def _first_of(text: pl.Expr, pattern: str, groups: tuple[int, ...]) -> pl.Expr:
    return pl.coalesce(text.str.extract(pattern, group) for group in groups)


def _float32(number: pl.Series) -> pl.Series:
    single = number.cast(pl.Float32)
    # -0 sorts as equal to 0 and is not the same bytes; what float32 cannot hold is no number here.
    single = single.set(single == 0, 0.0)
    return single if single.is_finite().all() else single.set(~single.is_finite(), None)
