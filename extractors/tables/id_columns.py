"""Which columns of a table hold ids, and one spelling of them as they are read.

What is read here is what joins compare and what is hashed, so that a patient, a visit or a concept has one spelling on
both sides of a join, whatever tool wrote the tables.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import Enum, auto

import polars as pl

from extractors.ids import SubjectIds, are_digits, have_invisible, known_ids, letters_of, may_hide, plain_numbers
from extractors.origins import origins, value_reading
from extractors.source import Source, aggregate
from extractors.tables.rows import TextColumn

# What names of columns end in that number something: patients, orders, concepts. Codes, such as those of ICD, are
# called otherwise: of them 250.0 is another one than 250.
_NAMED = ("id", "_no", "_nr", "_num", "_nbr", "number", "_key", "csn", "mrn")


class IdKind(Enum):
    """What a column's ids are of. A KEY is only freed of what tools made of it: `NA` may be the key of sodium. A VALUE
    is none, whatever its column is called: `1.000` in `value_as_number` may be a thousand."""

    SUBJECT = auto()
    VISIT = auto()
    KEY = auto()
    VALUE = auto()


INVISIBLE = {IdKind.SUBJECT: "invisible_in_subject_id", IdKind.VISIT: "invisible_in_visit_id"}
"""What rows are counted under in whose ids something stood that nobody sees."""


def id_kinds(source: Source) -> dict[str, dict[str, IdKind]]:
    """By table and column, what holds ids of subjects and visits: what the source says, and what it joins with that.
    And what holds values."""
    kinds: dict[str, dict[str, IdKind]] = {}
    for table, rule in source.tables.items():
        kinds[table] = {rule.visit: IdKind.VISIT} if rule.visit else {}
        if rule.role == "events":
            kinds[table][rule.subject or source.subject] = IdKind.SUBJECT
    alike = [
        ((table, key), (join.table, other))
        for table, rule in source.tables.items()
        for join in rule.joins
        # The keys of a join, and what is looked up under another name, or the same.
        for key, other in [*join.key.items(), *((name, aggregate(spec)[1]) for name, spec in join.columns.items())]
    ]
    found = True
    while found:
        found = False
        for (table, column), (other_table, other_column) in (*alike, *((other, key) for key, other in alike)):
            kind = kinds.get(table, {}).get(column)
            if kind is not None and other_column not in kinds.setdefault(other_table, {}):
                kinds[other_table][other_column] = kind
                found = True
    for table in source.tables:
        for other_table, column in _values(source, table):
            kinds.setdefault(other_table, {}).setdefault(column, IdKind.VALUE)
    return kinds


def _values(source: Source, table: str) -> Iterator[tuple[str, str]]:
    """The columns that a table's values stand in, with their tables.

    What a value is derived from may be keys too: these are values only where the comma divides, and a point may not.
    """
    rule = source.tables[table]
    for name in {event.value for event in rule.events if event.value}:
        if name not in rule.derive or value_reading(source, table, name).decimal_sign == ",":
            yield from origins(table, rule, name)


class IdReader:
    """Reads the columns of one file that hold ids.

    Args:
        kinds: of the table's columns, what holds ids of subjects and visits, and what holds values. Of the others,
            those whose names say that they number something are keys.
        subjects: how the site's ids of subjects become one spelling.

    Attributes:
        invisible: rows met so far in whose ids something stood that nobody sees, by what they are counted under.
    """

    def __init__(self, kinds: Mapping[str, IdKind], subjects: SubjectIds) -> None:
        self._kinds, self._subjects = kinds, subjects
        self.invisible: Counter[str] = Counter()

    def read(self, name: str, column: TextColumn) -> TextColumn:
        """A column with its ids in one spelling, null where there is none; any other column as it is."""
        kind = self._kinds.get(name, IdKind.KEY if name.lower().endswith(_NAMED) else None)
        if kind is None or kind is IdKind.VALUE:
            return column
        declared = kind is IdKind.SUBJECT and self._subjects != SubjectIds()
        texts = column.texts
        letters, empty = (texts.letters(), False) if texts is not None else letters_of(column.values)
        if not declared and not empty and are_digits(letters):
            return column
        if kind is IdKind.KEY:
            return column.map(plain_numbers)
        if may_hide(letters):
            marked = TextColumn(have_invisible(column.values).cast(pl.UInt32), column.places)
            self.invisible[INVISIBLE[kind]] += int(marked.rows.sum())
        return column.map(self._subjects.of if kind is IdKind.SUBJECT else known_ids)
