"""The model of a source: one YAML that says how a hospital's tables become events.

A column is written by its name, a code as a template such as `ICD10CM/{icd_code:icd}`, a condition or a derived column
as SQL over the row's text columns. docs/sources.md explains every key with an example.
"""

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import polars as pl
from pydantic import (
    AfterValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from extractors.expressions import check_expression, expression
from extractors.note_rule import NoteRule
from extractors.reading import NullValues, Reading, TableReading, known_zone, laid_over
from extractors.source_model import Columns, SourceModel, listed
from extractors.time_rule import Available, Time
from extractors.yaml_files import explain, parse_yaml
from warehouse.errors import TimeloomError
from warehouse.order import KIND_RANK

SOURCES = Path(__file__).parent / "sources"
PLACEHOLDER = re.compile(r"\{(?P<column>\w+)(?::(?P<filter>\w+))?(?:\|(?P<default>[^}]*))?\}")
FILTERS = ("icd", "upper", "strip")
CROSSWALK = "crosswalk/"
_Rules = TypeVar("_Rules", bound=dict[str, Any])

_CHECKED = {"checked": True}


def _check(key: str, text: str, info: ValidationInfo, *, condition: bool) -> None:
    """Refuses SQL that looks at more than a row; what a task carries was checked when its YAML was read."""
    if info.context == _CHECKED:
        return
    try:
        check_expression(text, condition=condition)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None


class EventRule(SourceModel):
    """One event that a row may make.

    Attributes:
        code: template; a null column without a default (`{column|DEFAULT}`) makes no event.
        time: null for a static fact.
        available: when the fact could first be read; `time` where absent, and never before `time`.
        value: parsed as a number where it is one, or holds one (`<5`, `5.0 mg/L`), else kept as text.
        keep_empty: a row whose value and text are empty still makes the event; otherwise it makes nothing.
        text: kept as text, after a value that is none or not only a number.
        unit: the column with the value's unit.
        kind: what kind of fact it is, which orders facts of one time.
        where: SQL condition; rows that do not meet it make no such event.
    """

    code: str
    time: Time | None = None
    available: Available | None = None
    value: str | None = None
    keep_empty: bool = False
    text: str | None = None
    unit: str | None = None
    kind: Annotated[str, Field(json_schema_extra={"enum": [*KIND_RANK]})] = "clinical"
    where: str | None = None

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> "EventRule":
        if self.kind not in KIND_RANK:
            raise ValueError(f"kind {self.kind} is none of {', '.join(KIND_RANK)}")
        if self.keep_empty and self.value is None:
            raise ValueError("keep_empty asks for a value")
        check_template(self.code)
        if self.where:
            _check("where", self.where, info, condition=True)
        return self


class JoinRule(SourceModel):
    """Columns looked up in another table.

    Attributes:
        table: name of a table of this source, or `crosswalk/<name>`.
        key: key columns, the same in both tables, or own column: the other table's.
        columns: column to look up; `min(column)` or `max(column)` where the other table has several rows a key.
        optional: the looked-up columns are null where the other table is absent.
        no_link: values of the key that mean that there is nothing to look up: such a row is neither found nor missed.
    """

    table: str
    key: dict[str, str]
    columns: dict[str, str]
    optional: bool = False
    no_link: Columns = Field(default_factory=list)

    @field_validator("key", mode="before", json_schema_input_type=str | list[str] | dict[str, str])
    @classmethod
    def _same_names(cls, value: Any) -> Any:
        names = listed(value)
        return {name: name for name in names} if isinstance(names, list) else names


class TableRule(SourceModel):
    """One raw table.

    Attributes:
        role: `events`; `reference` for dictionaries, which are counted and looked up; rows of both are accounted for.
        subject: the column that holds the subject's id, where it is not the source's.
        visit: the column that holds the visit's id.
        joins: columns looked up in other tables, in order, before `derive`; a later one may use an earlier one's.
        optional_columns: columns that some versions of the export lack; null there.
        derive: new text columns as SQL over the row; a later one may use an earlier one.
        events: what events a row makes; one that makes none is quarantined, with the reason.
        failed_casts: what becomes of a row in which a CAST fails and leaves its value null: it is counted and `keep`s
            the rest, or goes to `quarantine`.
        optional: the table may be absent.
        why: for the reader; nothing hangs on it.
    """

    role: Literal["events", "reference"] = "events"
    subject: str | None = None
    visit: str | None = None
    joins: list[JoinRule] = Field(default_factory=list)
    optional_columns: list[str] = Field(default_factory=list)
    derive: dict[str, str] = Field(default_factory=dict)
    failed_casts: Literal["keep", "quarantine"] = "keep"
    events: list[EventRule] = Field(default_factory=list)
    optional: bool = False
    why: str | None = None

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> "TableRule":
        if self.role == "events" and not self.events:
            raise ValueError("a table of role events needs at least one event")
        for name, text in self.derive.items():
            _check(f"derive.{name}", text, info, condition=False)
        return self


class CodeRule(SourceModel):
    """What codes mean: rows of a dictionary become descriptions and parents in metadata/codes.parquet.

    Attributes:
        code: templates; each row describes the code that each of them makes.
        table: a table of this source, or `crosswalk/<name>`.
        where: SQL condition; rows that do not meet it describe nothing.
        description: a template.
        joins: as a table's.
        parents: templates of the codes that this one is a kind of, or translates to; several rows add up.
    """

    code: Columns
    table: str
    joins: list[JoinRule] = Field(default_factory=list)
    where: str | None = None
    description: str | None = None
    parents: Columns = Field(default_factory=list)

    @model_validator(mode="after")
    def _checked(self, info: ValidationInfo) -> "CodeRule":
        for template in (*self.code, *self.parents, self.description or ""):
            check_template(template)
        if self.where:
            _check("where", self.where, info, condition=True)
        return self

    def columns(self) -> set[str]:
        """The dictionary's columns that the rule reads."""
        templates = (*self.code, *self.parents, self.description or "")
        named = {column for template in templates for column in template_columns(template)}
        named |= set(sql(self.where).meta.root_names()) if self.where else set()
        looked_up = {name for join in self.joins for name in join.columns}
        return {name for join in self.joins for name in join.key if name not in looked_up} | (named - looked_up)


class CrosswalkRule(SourceModel):
    """A table that the site supplies beside the export, named in the run's configuration; absent without it.

    Attributes:
        columns: the columns that it must have.
        why: for the reader; nothing hangs on it.
    """

    columns: list[str]
    why: str | None = None


def _inside(tables: _Rules) -> _Rules:
    """Refuses names of tables that lead out of the source's folder."""
    for table in tables:
        parts = re.split(r"[/\\]", table)
        if "" in parts or ".." in parts or "." in parts or parts[0].endswith(":"):
            raise ValueError(f"{table} names no table below the source's folder")
    return tables


class Source(SourceModel):
    """A whole source.

    Attributes:
        name: what releases and reports call the source.
        description: for the reader; nothing hangs on it.
        subject: the column that holds the subject's id, unless a table says otherwise.
        null_values: texts that mean "nothing", besides an empty field.
        time_zone: IANA name of the site's wall clock, to which times with an offset are converted; UTC where None.
        case_insensitive: names of tables and columns are compared in lower case.
        units: how a unit is spelt in the release, by its spelling in the export; null where it means none.
        tables: by path below the source's folder, without its ending.
        crosswalks: by name, joined and described as `crosswalk/<name>`.
        codes: what dictionaries say of codes.
        note: by table, how it holds the texts of notes, for the modality `note`; no event is made of such a table.
        reading: how the tables are written; what a run's configuration says of it is laid over this.
    """

    name: str
    description: str = ""
    subject: str
    null_values: NullValues = Field(default_factory=lambda: [""])
    time_zone: str | None = None
    case_insensitive: bool = False
    units: dict[str, str | None] = Field(default_factory=dict)
    tables: Annotated[dict[str, TableRule], AfterValidator(_inside)]
    crosswalks: dict[str, CrosswalkRule] = Field(default_factory=dict)
    codes: list[CodeRule] = Field(default_factory=list)
    note: Annotated[dict[str, NoteRule], AfterValidator(_inside)] = Field(default_factory=dict)
    reading: Reading = Reading()

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, name: str | None) -> str | None:
        return known_zone(name)

    def read_as(self, reading: Reading) -> "Source":
        """The source with what a site says of its own tables.

        Raises:
            TimeloomError: the site names a table that the source has not, or for all tables a column that no rule
                reads.
        """
        known = {*self.tables, *(f"{CROSSWALK}{name}" for name in self.crosswalks)}
        unknown = sorted(set(reading.tables) - known)
        if unknown:
            raise TimeloomError(
                f"source {self.name} has no table {unknown[0]}, which sources.reading names",
                remedy="name tables as the source does",
            )
        columns = {column for table in known for column in self.needed_columns(table)}
        for rule in self.tables.values():
            columns |= {*rule.optional_columns, *made_columns(rule)}
        unread = sorted(set(reading.columns) - columns)
        if unread:
            raise TimeloomError(
                f"source {self.name} reads no column {unread[0]}, which sources.reading names",
                remedy="name columns as the source does",
            )
        return self.model_copy(update={"reading": laid_over(self.reading, reading)})

    def reading_of(self, table: str) -> TableReading:
        """How a table is written, with what the source says of all its tables."""
        general = TableReading(null_values=self.null_values, time_zone=self.time_zone)
        return laid_over(general, self.reading.of_table(table))

    def needed_columns(self, table: str) -> set[str]:
        """Raw columns that a table must have for its own rules, for the joins of others and for descriptions."""
        needed: set[str] = set()
        rule = self.tables.get(table)
        if rule is None:
            needed |= set(self.crosswalks[table.removeprefix(CROSSWALK)].columns)
        elif rule.role == "events":
            needed |= raw_columns(rule, self.subject)
        for joins in (*(table_rule.joins for table_rule in self.tables.values()), *(code.joins for code in self.codes)):
            for join in joins:
                if join.table == table:
                    needed |= {*join.key.values(), *(aggregate(spec)[1] for spec in join.columns.values())}
        for codes in self.codes:
            needed |= codes.columns() if codes.table == table else set()
        return needed - set(rule.optional_columns if rule else ())


def made_columns(rule: TableRule) -> set[str]:
    """The columns that a table's rules look up or derive."""
    return {*rule.derive, *(name for join in rule.joins for name in join.columns)}


def raw_columns(rule: TableRule, subject: str) -> set[str]:
    """The columns that a table's rules read of the row as it stands: neither looked up nor derived."""
    made: set[str] = set()
    raw: set[str] = set()
    for join in rule.joins:
        raw |= set(join.key) - made
        made |= set(join.columns)
    for name, text in rule.derive.items():
        raw |= set(sql(text).meta.root_names()) - made
        made.add(name)
    return raw | (set(_event_columns(rule, subject)) - made)


def _event_columns(rule: TableRule, subject: str) -> Iterator[str]:
    yield rule.subject or subject
    if rule.visit:
        yield rule.visit
    for event in rule.events:
        yield from template_columns(event.code)
        for time in (event.time, event.available):
            yield from time.column if time else ()
        yield from (name for name in (event.value, event.text, event.unit) if name)
        if event.where:
            yield from sql(event.where).meta.root_names()


def template_columns(template: str) -> list[str]:
    """The columns of a template's placeholders, in order."""
    return [match["column"] for match in PLACEHOLDER.finditer(template)]


@lru_cache(1 << 10)
def check_template(template: str) -> None:
    """Refuses a placeholder that is not one.

    Raises:
        ValueError: says which.
    """
    for match in PLACEHOLDER.finditer(template):
        if match["filter"] and match["filter"] not in FILTERS:
            raise ValueError(f"filter {match['filter']} is none of {', '.join(FILTERS)}")
    if template.count("{") != len(PLACEHOLDER.findall(template)):
        raise ValueError(f"the template {template} has a placeholder that is not {{column:filter|default}}")


def sql(text: str) -> pl.Expr:
    """A polars expression from SQL; null where a cast fails.

    Raises:
        TimeloomError: the text is no SQL expression, or none that is worked out row by row.
    """
    try:
        return expression(text).made
    except ValueError as error:
        raise TimeloomError(str(error), remedy="see docs/sources.md") from None


def aggregate(spec: str) -> tuple[str, str]:
    """`min(column)` as ("min", "column"); a plain column as ("", "column")."""
    match = re.fullmatch(r"(min|max)\((\w+)\)", spec)
    return (match[1], match[2]) if match else ("", spec)


def load_source(name_or_path: str, base: Path | None = None) -> Source:
    """Loads a built-in source by name, or a YAML file.

    Raises:
        TimeloomError: no such source, no YAML, or not a valid source.
    """
    builtin = SOURCES / f"{name_or_path}.yaml"
    path = builtin if builtin.is_file() else (base or Path()) / name_or_path
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in SOURCES.glob("*.yaml")))
        raise TimeloomError(f"there is no source {name_or_path}", remedy=f"give a YAML file, or one of {known}")
    return _parse(path, path.read_bytes())


def checked_source(keys: dict[str, Any]) -> Source:
    """A source as a task carries it: `load_source` checked its SQL, which takes longer than the rest."""
    return Source.model_validate(keys, context=_CHECKED)


@lru_cache(maxsize=8)
def _parse(path: Path, text: bytes) -> Source:
    try:
        source = Source.model_validate(parse_yaml(text, f"the source {path.name}", "docs/sources.md"))
    except ValidationError as error:
        said = explain(error, Source)
        raise TimeloomError(f"the source {path.name}, {said}", remedy="see docs/sources.md") from error
    known_tables = {*source.tables, *(f"{CROSSWALK}{name}" for name in source.crosswalks)}
    for table, rule in source.tables.items():
        raw_columns(rule, source.subject)
        for join in rule.joins:
            if join.table not in known_tables:
                raise TimeloomError(f"{table} joins the unknown table {join.table}", remedy=f"mend {path.name}")
    for table in source.reading.tables:
        if table not in known_tables:
            raise TimeloomError(f"reading names the unknown table {table}", remedy=f"mend {path.name}")
    for codes in source.codes:
        for table in (codes.table, *(join.table for join in codes.joins)):
            if table not in known_tables:
                raise TimeloomError(f"codes names the unknown table {table}", remedy=f"mend {path.name}")
    return source
