"""How one site wrote its tables: separators, quotes, encodings, numbers, times, what stands for nothing, whose ids.

The same keys may stand in a source's YAML and, beside any source, in a run's configuration, which is laid over it. What
is said of a table holds for it alone, what is said of a column for that column.
"""

import codecs
import re
from collections.abc import Iterable
from datetime import date, datetime
from functools import cache, cached_property
from itertools import product
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import available_timezones

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, field_validator, model_validator

from extractors.ids import STRIP_ZEROS, UPPER, SubjectIds
from extractors.source_model import Columns, SourceModel, check_format

Reads = TypeVar("Reads", bound="ColumnReading")
# What YAML reads as its own null, where a text was meant.
YAML_NULLS = ("null", "Null", "NULL", "~")
DecimalSign = Literal[".", ","]
ThousandsSign = Literal[".", ",", " ", "'", "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}"]
# A number of these spellings, or a date with a midnight after it, is what `null_values` names once.
_NUMBER = re.compile(r"([+-]?)(0|[1-9]\d*)(?:\.(\d+))?")
_DAY = re.compile(r"(\d{1,4}[-./]\d{1,2}[-./]\d{1,4})(?:[ T]00:00(?::00(?:\.0+)?)?)?")
_SIGNS = {"": ("", "+"), "+": ("", "+"), "-": ("-", "\N{MINUS SIGN}")}
_NOUGHTS = 10
_FRACTIONS = ("", *(f".{'0' * digits}" for digits in (1, 2, 3, 6, 7, 9)))
_MIDNIGHTS = ("", " 0:00", " 12:00 AM", " 12:00:00 AM") + tuple(
    f"{between}00:00{seconds}{zone}"
    for between, seconds, zone in product(
        " T", ("", *(f":00{fraction}" for fraction in _FRACTIONS)), ("", "Z", "+00:00", "+0000", "+00", " UTC", " GMT")
    )
)


def _texts(value: Any) -> Any:
    """Texts, from one or several, as they stand in a file; YAML's own null stands for the spellings that it has."""
    return [text for item in (value if isinstance(value, list) else [value]) for text in _texts_of(item)]


def _texts_of(item: Any) -> tuple[Any, ...]:
    if item is None:
        return YAML_NULLS
    if isinstance(item, bool):
        raise ValueError("YAML reads yes, no, on, off, true and false as no text: put it into quotes")
    if isinstance(item, float) and item.is_integer():
        return (str(int(item)),)
    if isinstance(item, datetime):
        return (item.isoformat(" "),)
    # YAML reads 9999999 and 1900-01-01 as a number and a date.
    return (str(item) if isinstance(item, (int, float, date)) else item,)


NullValues = Annotated[
    list[str],
    BeforeValidator(_texts, json_schema_input_type=str | float | date | None | list[str | float | date | None]),
]


def _sign(text: str) -> str:
    if not text.isascii() or text in "\r\n":
        raise ValueError("it must be a sign of ASCII, and no line end")
    return text


def _tab(value: Any) -> Any:
    """A tab by its name, or as it is written in YAML without double quotes."""
    return "\t" if value in ("tab", r"\t") else value


# One sign between or around fields.
Sign = Annotated[str, Field(min_length=1, max_length=1), AfterValidator(_sign)]


class ColumnReading(SourceModel):
    """How a column is written.

    Attributes:
        null_values: texts that mean "nothing" besides an empty field; added to those of the table and the source. A
            number stands for its other spellings too, a date also for the midnight that begins it.
        decimal: the sign before the fraction of a value; a point, or a comma where `thousands` is a point.
        thousands: the sign between groups of three digits of a value; none where null.
        flags: whether a letter behind a value that may be its unit or a flag (`8.1 L`) is a flag; where null, it is one
            if the row has a unit of its own or the column has other flags. False leaves all flags texts.
        formats: strptime formats of its times, instead of the rule's.
        time_zone: IANA name of the wall clock, instead of the source's.
    """

    null_values: NullValues = Field(default_factory=list)
    decimal: DecimalSign | None = None
    thousands: ThousandsSign | None = None
    flags: bool | None = None
    formats: Columns | None = None
    time_zone: str | None = None

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str | None) -> str | None:
        return known_zone(name)

    @model_validator(mode="after")
    def _checked(self) -> "ColumnReading":
        for time_format in self.formats or ():
            check_format(time_format)
        if self.thousands is not None and self.thousands == self.decimal:
            raise ValueError("decimal and thousands are the same sign")
        return self

    @property
    def decimal_sign(self) -> DecimalSign:
        """The sign before the fraction of a value."""
        return self.decimal or ("," if self.thousands == "." else ".")

    @property
    def nothing(self) -> list[str]:
        """The texts that mean "nothing", in all their spellings."""
        return list(
            dict.fromkeys(text for written in self.null_values for text in spellings(written, self.decimal_sign))
        )


class TableReading(ColumnReading):
    """How a table is written; what it says of columns holds for each of them that does not say otherwise.

    Attributes:
        separator: the sign between fields of a CSV file, or `tab`; where null, a comma (in .tsv files a tab), unless
            the header shows another.
        quote: the sign around fields; `none` where quotes are signs like others. `"` where null; between tabs what the
            first rows show.
        escape: the sign before a quote, or itself, inside a quoted field, where quotes are not doubled.
        encoding: of a CSV file, such as cp1252; UTF-8 where null.
        columns: by column, how it alone is written.
    """

    separator: Annotated[Sign, BeforeValidator(_tab, json_schema_input_type=Sign | Literal["tab"])] | None = None
    quote: Sign | Literal["none"] | None = None
    escape: Sign | None = None
    encoding: str | None = None
    columns: dict[str, ColumnReading] = Field(default_factory=dict)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            "".encode(name)  # what makes no text of bytes, such as hex, is refused here
            return codecs.lookup(name).name
        except (LookupError, UnicodeError):
            raise ValueError(f"there is no encoding {name}") from None

    def of_column(self, name: str) -> ColumnReading:
        """How a column of the table is written."""
        general = ColumnReading.model_construct(**{field: getattr(self, field) for field in ColumnReading.model_fields})
        return laid_over(general, self.columns[name]) if name in self.columns else general


class SubjectReading(BaseModel):
    """How ids of subjects are written.

    Attributes:
        subject_pattern: a regular expression that a subject's id must match whole, after `subject_normalise`; a row
            with another one has no subject.
        subject_normalise: what is done to an id before it is hashed, in this order: `upper`, `strip_zeros` (in front),
            or a regular expression whose one group is the id; where it is not found, the id stays.
    """

    subject_pattern: str | None = None
    subject_normalise: Columns = Field(default_factory=list)

    @model_validator(mode="after")
    def _expressions(self) -> "SubjectReading":
        steps = [step for step in self.subject_normalise if step not in (UPPER, STRIP_ZEROS)]
        for expression in [*steps, *([self.subject_pattern] if self.subject_pattern else [])]:
            try:
                groups = re.compile(expression).groups
            except re.error as error:
                raise ValueError(f"{expression} is no regular expression: {error}") from None
            if expression in steps and groups != 1:
                raise ValueError(f"{expression} has {groups} groups; the one group of a step is the id")
        return self

    @property
    def subject_ids(self) -> SubjectIds:
        """What makes ids of subjects one spelling."""
        return SubjectIds(self.subject_pattern, tuple(self.subject_normalise))


class Reading(SubjectReading, TableReading):
    """How a site writes all its tables.

    Attributes:
        tables: by table, how it alone is written.
    """

    tables: dict[str, TableReading] = Field(default_factory=dict)

    @cached_property
    def _general(self) -> TableReading:
        return TableReading.model_construct(**{field: getattr(self, field) for field in TableReading.model_fields})

    def of_table(self, table: str) -> TableReading:
        """How a table is written."""
        return laid_over(self._general, self.tables[table]) if table in self.tables else self._general


def spellings(written: str, decimal: DecimalSign = ".") -> Iterable[str]:
    """A text that means "nothing" as other programs may have written it: 9999999 as 9999999.0, a day with its midnight.

    Args:
        decimal: the sign before the fraction of numbers.
    """
    if number := _NUMBER.fullmatch(written):
        sign, whole, digits = number[1], number[2], (number[3] or "").rstrip("0")
        fractions = [""] if not digits else []
        # Where the comma divides, three digits behind a point may be thousands.
        fractions += [
            f"{point}{digits}{'0' * noughts}"
            for point in dict.fromkeys((decimal, "."))
            for noughts in range(_NOUGHTS + 1)
            if point == decimal or len(digits) + noughts != 3
        ]
        return [written, *(f"{before}{whole}{fraction}" for before, fraction in product(_SIGNS[sign], fractions))]
    if day := _DAY.fullmatch(written):
        return [written, *(f"{day[1]}{midnight}" for midnight in _MIDNIGHTS)]
    return [written]


def known_zone(name: str | None) -> str | None:
    """The name of a time zone.

    Raises:
        ValueError: there is none of this name.
    """
    if name is not None and name not in _zones():
        raise ValueError(f"there is no time zone {name}")
    return name


@cache
def _zones() -> set[str]:
    """Every time zone: the system's folders are searched once, not for each column."""
    return available_timezones()


def laid_over(below: Reads, above: Reads) -> Reads:
    """Two settings as one: what `above` sets holds; texts that mean nothing add up; tables and columns are laid over
    each other one by one."""
    merged: dict[str, Any] = {}
    for field in type(below).model_fields:
        low, high = getattr(below, field), getattr(above, field)
        if field == "null_values":
            merged[field] = list(dict.fromkeys([*low, *high]))
        elif isinstance(low, dict):
            both = {name: laid_over(low[name], high[name]) for name in low.keys() & high.keys()}
            merged[field] = {**low, **high, **both}
        else:
            merged[field] = high if field in above.model_fields_set and high is not None else low
    if merged.get("thousands") is not None and merged["thousands"] == merged["decimal"]:
        # One of the two is below, where the other was not known.
        merged["thousands" if above.thousands is None else "decimal"] = None
    # All of it was checked where it was written.
    return type(below).model_construct(**merged)
