"""How one site wrote its tables: separators, quotes, encodings, numbers, times, what stands for nothing, whose ids.

The same keys may stand in a source's YAML and, beside any source, in a run's configuration, which is laid over it. What
is said of a table holds for it alone, what is said of a column for that column.
"""

import codecs
import re
from functools import cached_property
from typing import Annotated, Any, Literal, TypeVar
from zoneinfo import available_timezones

from pydantic import BeforeValidator, Field, field_validator, model_validator

from extractors.source_model import Columns, SourceModel, check_format

Reads = TypeVar("Reads", bound="ColumnReading")
# What YAML reads as its own null, where a text was meant.
YAML_NULLS = ("null", "Null", "NULL")


def _texts(value: Any) -> Any:
    """Texts, from one or several; YAML's own null stands for the spellings that it has."""
    listed = value if isinstance(value, list) else [value]
    return [text for item in listed for text in (YAML_NULLS if item is None else (item,))]


NullValues = Annotated[list[str], BeforeValidator(_texts, json_schema_input_type=str | None | list[str | None])]


class ColumnReading(SourceModel):
    """How a column is written.

    Attributes:
        null_values: texts that mean "nothing" besides an empty field; added to those of the table and the source.
        decimal: the sign before the fraction of a number.
        thousands: the sign between groups of three digits; none where null.
        formats: strptime formats of its times, instead of the rule's.
        time_zone: IANA name of the wall clock, instead of the source's.
    """

    null_values: NullValues = Field(default_factory=list)
    decimal: Literal[".", ","] | None = None
    thousands: Literal[".", ",", " ", "'", "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}"] | None = None
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
        if self.thousands is not None and self.thousands == (self.decimal or "."):
            raise ValueError("decimal and thousands are the same sign")
        return self


class TableReading(ColumnReading):
    """How a table is written; what it says of columns holds for each of them that does not say otherwise.

    Attributes:
        separator: the sign between fields of a CSV file; one character.
        quote: the sign around fields; `none` where quotes are signs like others.
        escape: the sign before a quote inside a quoted field, where it is not doubled.
        encoding: of a CSV file, such as cp1252; UTF-8 where null.
        columns: by column, how it alone is written.
    """

    separator: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    quote: Annotated[str, Field(min_length=1, max_length=1)] | Literal["none"] | None = None
    escape: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    encoding: str | None = None
    columns: dict[str, ColumnReading] = Field(default_factory=dict)

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            return codecs.lookup(name).name
        except LookupError:
            raise ValueError(f"there is no encoding {name}") from None

    def of_column(self, name: str) -> ColumnReading:
        """How a column of the table is written."""
        general = ColumnReading(**{field: getattr(self, field) for field in ColumnReading.model_fields})
        return laid_over(general, self.columns[name]) if name in self.columns else general


class Reading(TableReading):
    """How a site writes all its tables.

    Attributes:
        subject_pattern: a regular expression that a subject's id must match whole, after `subject_normalise`; a row
            with another one has no subject.
        subject_normalise: what is done to an id before it is hashed, in this order: `upper`, `strip_zeros`, or a
            regular expression whose one group is the id.
        tables: by table, how it alone is written.
    """

    subject_pattern: str | None = None
    subject_normalise: Columns = Field(default_factory=list)
    tables: dict[str, TableReading] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _expressions(self) -> "Reading":
        steps = [step for step in self.subject_normalise if step not in ("upper", "strip_zeros")]
        for expression in [*steps, *([self.subject_pattern] if self.subject_pattern else [])]:
            try:
                groups = re.compile(expression).groups
            except re.error as error:
                raise ValueError(f"{expression} is no regular expression: {error}") from None
            if expression in steps and groups != 1:
                raise ValueError(f"{expression} has {groups} groups; the one group of a step is the id")
        return self

    @cached_property
    def _general(self) -> TableReading:
        return TableReading(**{field: getattr(self, field) for field in TableReading.model_fields})

    def of_table(self, table: str) -> TableReading:
        """How a table is written."""
        return laid_over(self._general, self.tables[table]) if table in self.tables else self._general


def known_zone(name: str | None) -> str | None:
    """The name of a time zone.

    Raises:
        ValueError: there is none of this name.
    """
    if name is not None and name not in available_timezones():
        raise ValueError(f"there is no time zone {name}")
    return name


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
    return type(below)(**merged)
