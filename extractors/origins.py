"""Where a table's columns come from, and so how a site wrote them: a rule may name what was looked up or derived."""

from collections.abc import Iterator
from dataclasses import dataclass

from extractors.reading import ColumnReading, laid_over
from extractors.source import Source, TableRule, aggregate, sql
from extractors.time_rule import TimeRule


@dataclass(frozen=True)
class TimeReading:
    """Columns of one rule that are written alike.

    Attributes:
        rule: those columns, with the formats that the site writes.
        zone: IANA name of the wall clock to which values with an offset are converted; UTC where None.
    """

    rule: TimeRule
    zone: str | None


def origins(table: str, rule: TableRule, column: str) -> Iterator[tuple[str, str]]:
    """The raw columns that a column comes from, with their tables."""
    if column in rule.derive:
        for root in sql(rule.derive[column]).meta.root_names():
            if root != column:
                yield from origins(table, rule, root)
        return
    looked_up = [(join.table, aggregate(join.columns[column])[1]) for join in rule.joins if column in join.columns]
    yield looked_up[-1] if looked_up else (table, column)


def joins_behind(rule: TableRule, columns: list[str]) -> set[int]:
    """The joins, as places in the table's list, that some columns hang on."""
    found: set[int] = set()
    asked, seen = list(columns), set()
    while asked:
        column = asked.pop()
        if column in seen:
            continue
        seen.add(column)
        if column in rule.derive:
            asked += sql(rule.derive[column]).meta.root_names()
        for number, join in enumerate(rule.joins):
            if column in join.columns:
                found.add(number)
                asked += join.key
    return found


def readings_of(source: Source, table: str, rule: TimeRule) -> list[TimeReading]:
    """How a site wrote the columns of a time, in their order; one reading where they are all written alike."""
    found: list[TimeReading] = []
    for column in rule.column:
        formats, zone = _written(source, table, rule, column)
        if found and (found[-1].rule.formats, found[-1].zone) == (formats, zone):
            before = found.pop().rule
            alike = before.model_copy(update={"column": [*before.column, column]})
        else:
            alike = rule.model_copy(update={"column": [column], "formats": formats})
        found.append(TimeReading(alike, zone))
    return found


def value_reading(source: Source, table: str, column: str) -> ColumnReading:
    """How a site wrote the column of a value: as it is said of the column itself, else of those that it comes from, the
    first of which that says something holds."""
    reading = source.reading_of(table)
    found = reading.of_column(column)
    if column in reading.columns:
        return found
    for other, name in origins(table, source.tables[table], column):
        found = laid_over(source.reading_of(other).of_column(name), found)
    return found


def _written(source: Source, table: str, rule: TimeRule, column: str) -> tuple[list[str], str | None]:
    """A column's formats and wall clock."""
    table_rule, reading = source.tables[table], source.reading_of(table)
    if column in reading.columns:
        columns = [reading.of_column(column)]
        derived = False
    else:
        columns = [source.reading_of(other).of_column(name) for other, name in origins(table, table_rule, column)]
        columns = columns or [reading.of_column(column)]
        derived = column in table_rule.derive
    zone = next((column_reading.time_zone for column_reading in columns if column_reading.time_zone), None)
    return _formats(rule, columns, derived=derived), zone


def _formats(rule: TimeRule, columns: list[ColumnReading], *, derived: bool) -> list[str]:
    given = [time_format for column_reading in columns for time_format in column_reading.formats or ()]
    if not given:
        return rule.formats
    kept: list[str] = []
    if not all(column_reading.formats for column_reading in columns):
        kept = rule.formats
    elif derived:
        # What `derive` puts together itself begins with the year, whatever the site writes.
        kept = [time_format for time_format in rule.formats if time_format.startswith("%Y")]
    return list(dict.fromkeys([*given, *kept]))
