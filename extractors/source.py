"""The model of a source: one YAML that says how a hospital's tables become events.

A column is written by its name, a code as a template such as `ICD10CM/{icd_code:icd}`, a condition or a derived column
as SQL over the row's text columns. docs/sources.md explains every key with an example.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from warehouse.errors import TimeloomError
from warehouse.order import KIND_RANK

SOURCES = Path(__file__).parent / "sources"
PLACEHOLDER = re.compile(r"\{(?P<column>\w+)(?::(?P<filter>\w+))?(?:\|(?P<default>[^}]*))?\}")
FILTERS = ("icd", "upper", "strip")
DEFAULT_FORMATS = (
    "%Y-%m-%d %H:%M:%S",
    "%Y-%m-%d",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M:%S",
    "%Y-%m-%d %H:%M",
)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Columns = Annotated[list[str], BeforeValidator(_listed)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TimeRule(_Model):
    """Where a time stands.

    Attributes:
        column: the first of these that is not null is taken.
        formats: strptime formats tried in order; one without a time of day gives a date, one with `%z` gives UTC.
        anchor: a date (or year) stands at the `end` of its span, so that nothing uses it early, or at its `start`.
        midnight_is_date: 00:00:00 means that only the day is known.
    """

    column: Columns
    formats: Columns = list(DEFAULT_FORMATS)
    anchor: Literal["start", "end"] = "end"
    midnight_is_date: bool = False

    @model_validator(mode="after")
    def _checked(self) -> "TimeRule":
        for one in self.formats:
            if re.search("%[HI]", one) and not re.search("%M|%R|%T", one):
                raise ValueError(f"the format {one} has an hour without minutes")
        return self


def _time_rule(value: Any) -> Any:
    return {"column": value} if isinstance(value, (str, list)) else value


Time = Annotated[TimeRule, BeforeValidator(_time_rule)]


class EventRule(_Model):
    """One event that a row may make.

    Attributes:
        code: template; a null column without a default (`{column|DEFAULT}`) makes no event.
        time: null for a static fact.
        available: when the fact could first be read; `time` where absent, and never before `time`.
        value: parsed as a number where it is one, else kept as text.
        where: SQL condition; rows that do not meet it make no such event.
    """

    code: str
    time: Time | None = None
    available: Time | None = None
    value: str | None = None
    text: str | None = None
    unit: str | None = None
    kind: str = "clinical"
    where: str | None = None

    @model_validator(mode="after")
    def _checked(self) -> "EventRule":
        if self.kind not in KIND_RANK:
            raise ValueError(f"kind {self.kind} is none of {', '.join(KIND_RANK)}")
        for match in PLACEHOLDER.finditer(self.code):
            if match["filter"] and match["filter"] not in FILTERS:
                raise ValueError(f"filter {match['filter']} is none of {', '.join(FILTERS)}")
        if self.code.count("{") != len(PLACEHOLDER.findall(self.code)):
            raise ValueError(f"the template {self.code} has a placeholder that is not {{column:filter|default}}")
        return self


class JoinRule(_Model):
    """Columns looked up in another table.

    Attributes:
        table: name of a table of this source.
        key: key columns, the same in both tables.
        columns: column to look up; `min(column)` or `max(column)` where the other table has several rows a key.
    """

    table: str
    key: Columns
    columns: dict[str, str]


class TableRule(_Model):
    """One raw table.

    Attributes:
        role: `events`; `reference` for dictionaries, which are counted and looked up; rows of both are accounted for.
        visit: the column that holds the visit's id.
        derive: new text columns as SQL over the row.
    """

    role: Literal["events", "reference"] = "events"
    subject: str | None = None
    visit: str | None = None
    joins: list[JoinRule] = Field(default_factory=list)
    derive: dict[str, str] = Field(default_factory=dict)
    events: list[EventRule] = Field(default_factory=list)
    optional: bool = False
    why: str | None = None

    @model_validator(mode="after")
    def _checked(self) -> "TableRule":
        if self.role == "events" and not self.events:
            raise ValueError("a table of role events needs at least one event")
        return self


class Source(_Model):
    """A whole source.

    Attributes:
        subject: the column that holds the subject's id, unless a table says otherwise.
        tables: by path below the source's folder, without its ending.
    """

    name: str
    description: str = ""
    subject: str
    null_values: list[str] = [""]
    tables: dict[str, TableRule]

    def needed_columns(self, table: str) -> set[str]:
        """Raw columns that a table must have for its own rules and for the joins of others."""
        rule = self.tables[table]
        needed: set[str] = set()
        for own in rule.joins:
            needed.update(own.key)
        if rule.role == "events":
            derived = set(rule.derive) | {name for join in rule.joins for name in join.columns}
            needed |= {name for name in rule_columns(rule, self.subject) if name not in derived}
        for other in self.tables.values():
            for join in other.joins:
                if join.table == table:
                    needed.update(join.key)
                    needed.update(aggregate(spec)[1] for spec in join.columns.values())
        return needed


def rule_columns(rule: TableRule, subject: str) -> Iterator[str]:
    """Every column that a table's rules name, raw or derived."""
    yield rule.subject or subject
    if rule.visit:
        yield rule.visit
    for condition in rule.derive.values():
        yield from sql(condition).meta.root_names()
    for event in rule.events:
        yield from (match["column"] for match in PLACEHOLDER.finditer(event.code))
        for time in (event.time, event.available):
            yield from time.column if time else ()
        yield from (name for name in (event.value, event.text, event.unit) if name)
        if event.where:
            yield from sql(event.where).meta.root_names()


def sql(text: str) -> pl.Expr:
    """A polars expression from SQL.

    Raises:
        TimeloomError: the text is no SQL expression.
    """
    try:
        return pl.sql_expr(text)
    except pl.exceptions.PolarsError as error:
        raise TimeloomError(f"`{text}` is no SQL expression", remedy="see docs/sources.md") from error


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
    try:
        source = Source.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise TimeloomError(f"the source {path.name} is no YAML", remedy="see docs/sources.md") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise TimeloomError(f"the source {path.name}, {where}: {first['msg']}", remedy="see docs/sources.md") from error
    for table, rule in source.tables.items():
        list(rule_columns(rule, source.subject))
        for join in rule.joins:
            if join.table not in source.tables:
                raise TimeloomError(f"{table} joins the unknown table {join.table}", remedy=f"mend {path.name}")
    return source
