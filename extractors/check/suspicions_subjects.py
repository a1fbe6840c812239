"""Patients of one table whom no other table of an export knows: most often a second spelling of another's id."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import polars as pl

from extractors.check.suspicions_rows import Sample
from extractors.check.suspicions_yaml import Suspicion
from extractors.source import Source, TableRule, made_columns
from extractors.tables.export import Export
from warehouse.errors import TimeloomError

ALONE = 0.01  # the default of limits.unknown_subjects_warning


@dataclass(frozen=True)
class SubjectFacts:
    """The patients of a table's first rows.

    Attributes:
        known: those that the tables which define patients have; where none does, those that any other table has.
        alone: the others.
    """

    known: int
    alone: int


def subjects_alone(
    source: Source, export: Export, samples: Sequence[Sample]
) -> tuple[dict[str, SubjectFacts], dict[str, str]]:
    """By table of facts, its patients that other tables know, and those that they do not; and by table why one that is
    asked cannot be read behind its first rows: nothing is known then.

    The tables that are asked are read whole. Nothing is said of a table that defines patients, nor where an export has
    one table with patients.
    """
    ids = {sample.table: _distinct(_spelt(source, sample)) for sample in samples}
    ids = {table: found for table, found in ids.items() if len(found)}
    defining = _defining(source, list(ids))
    judged = {table: found for table, found in ids.items() if table not in defining}
    if len(ids) < 2 or any(_is_made(source, table) for table in defining):
        return {}, {}
    found: dict[str, SubjectFacts] = {}
    whole: dict[str, pl.Series] = {}
    for table, subjects in judged.items():
        left = subjects
        for other in defining or [name for name in ids if name != table]:
            if len(left) and not _is_made(source, other):
                if other not in whole:
                    try:
                        whole[other] = _read(source, export, other)
                    except TimeloomError as error:
                        return {}, {other: str(error)}
                left = left.filter(~left.is_in(whole[other].implode()))
        found[table] = SubjectFacts(len(subjects) - len(left), len(left))
    return found, {}


def in_subjects(source: Source, facts: dict[str, SubjectFacts]) -> Iterator[Suspicion]:
    """Tables of which many patients are in no other one."""
    for table, found in facts.items():
        if found.alone and found.alone >= ALONE * (found.known + found.alone):
            yield Suspicion(
                "subjects_of_one_table", table, _column(source, source.tables[table]),
                "some of its patients are in no other table: they may be others, whose ids are written otherwise there",
                "write ids alike with `reading: {subject_normalise: …}`, or name the column that holds the same id",
            )  # fmt: skip


def _column(source: Source, rule: TableRule) -> str:
    return rule.subject or source.subject


def _is_made(source: Source, table: str) -> bool:
    """Whether the ids of a table's patients stand in none of its files."""
    rule = source.tables[table]
    return _column(source, rule) in made_columns(rule)


def _spelt(source: Source, sample: Sample) -> pl.Series:
    """The ids of a table's first rows in one spelling: what stands in a file has it already."""
    column = _column(source, sample.rule)
    ids = sample.frame[column]
    return source.reading.subject_ids.of(ids) if column in sample.rule.derive else ids


def _defining(source: Source, tables: Sequence[str]) -> list[str]:
    """Tables with births; where there is none, those with facts without a time."""
    births = [
        table for table in tables if any(event.code.startswith("MEDS_BIRTH") for event in source.tables[table].events)
    ]
    return births or [table for table in tables if any(event.time is None for event in source.tables[table].events)]


def _read(source: Source, export: Export, table: str) -> pl.Series:
    """The ids of all patients of a table."""
    column = _column(source, source.tables[table])
    found = [pl.Series("id", dtype=pl.String)]
    for path in export.files(table):
        raw = export.open(path, table)
        found += [_distinct(block.columns[column].values) for block in raw.blocks([column])]
    return pl.concat(found).unique()


def _distinct(ids: pl.Series) -> pl.Series:
    return ids.cast(pl.String).drop_nulls().unique().rename("id")
