"""Which tables below a folder hold notes, and their rows as blocks of texts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import cast

import polars as pl

from extractors.note.settings import NoteSettings
from extractors.note_rule import NoteRule
from extractors.source import Source, load_source
from extractors.tables.export import Export, is_table
from extractors.tables.raw_table import DATABASE, RawTable
from extractors.time_rule import TimeRule
from extractors.trees import Entry, walk
from warehouse.errors import TimeloomError

# What tables call a note's columns, in lower case; only where nobody says so.
USUAL: Mapping[str, tuple[str, ...]] = {
    "text": ("text", "note_text", "note", "section_text", "report_text", "report"),
    "id": ("note_id", "encounter_id", "row_id", "id"),
    "subject": ("subject_id", "person_id", "patient_id"),
    "visit": ("hadm_id", "visit_occurrence_id", "visit_id"),
    "time": ("charttime", "note_datetime", "note_date", "chartdate", "time"),
    "available": ("storetime", "available_time"),
}
KNOWN_SOURCES = ("mimic-iv", "omop")
ROWS_AT_A_TIME = 1 << 12  # of ten thousand letters each
ASKED_FOR = "modalities.note"


@dataclass(frozen=True)
class NoteFile:
    """One file of a table of notes.

    Attributes:
        table: what errors call it.
        inside: the name of the table, where the file is a database.
        path: the file, from the root.
    """

    table: str
    inside: str
    path: str
    rule: NoteRule
    lower_case: bool


@dataclass
class Found:
    """A tree's files of notes, in order, all other files, and what keeps files from being found."""

    files: list[NoteFile] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    beside: list[Entry] = field(default_factory=list)
    details: list[str] = field(default_factory=list)  # of tables beside those of notes


def find_files(settings: NoteSettings) -> Found:
    """The files that the settings' rules name; without rules, tables that have a usual column of text.

    Raises:
        TimeloomError: a table is missing, or stands there twice.
    """
    found = Found()
    if settings.note_rules:
        for table, rule in settings.note_rules.items():
            found.files += files_of(settings, table, rule)
            if rule.details is not None:
                found.details += [path for _, path in _paths(settings, rule.details.table)]
    named = {file.path for file in found.files} | set(found.details)
    for entry in walk(settings.path):
        if entry.kind != "file":
            found.beside.append(entry)
        elif entry.path not in named:
            guessed = None if settings.note_rules else _guessed(settings, entry.path)
            if guessed is None:
                found.others.append(entry.path)
            else:
                found.files.append(guessed)
    return found


def files_of(settings: NoteSettings, table: str, rule: NoteRule) -> list[NoteFile]:
    """The files of a table.

    Raises:
        TimeloomError: there are none, and the rule does not say `optional`; or two that may be it.
    """
    lower_case = settings.described_by.case_insensitive
    files = [NoteFile(table, name, path, rule, lower_case) for name, path in _paths(settings, table)]
    if not files and not rule.optional:
        raise TimeloomError(
            f"the table {table} of {ASKED_FOR}.rules is not below {ASKED_FOR}.path",
            remedy="give the folder that it lies in, or mark it `optional: true`",
        )
    return files


def _paths(settings: NoteSettings, table: str) -> list[tuple[str, str]]:
    """Of each file of a table its name in there, and its path from the root: below folders, or beside each other."""
    root, source = settings.path, settings.described_by
    for name in dict.fromkeys((table, table.rpartition("/")[2])):
        files = Export(root, source).files(name)
        if files:
            return [(name, path.relative_to(root).as_posix()) for path in files]
    for database in sorted(root.glob(f"*{DATABASE}")):
        export = Export(database, source)
        if export.files(table):
            return [(table, database.name)]
    return []


def _guessed(settings: NoteSettings, path: str) -> NoteFile | None:
    """A file that is a table of notes by its columns; None for any other."""
    file = settings.path / path
    try:
        if not is_table(file, texts=False) or not file.is_file():
            return None
        columns = RawTable(file, file.name, [""], reading=settings.reading_of(""), lower_case=True).columns
    except TimeloomError:
        return None
    name = file.name.partition(".")[0].lower()
    for source in map(load_source, KNOWN_SOURCES):
        for table, rule in source.note.items():
            if table.rpartition("/")[2] == name and _needed(rule, source) <= set(columns):
                made = rule.model_copy(update={"subject": rule.subject or source.subject, "details": None})
                return NoteFile(name, "", path, made, lower_case=True)
    usual = {key: next((name for name in names if name in columns), None) for key, names in USUAL.items()}
    if usual["text"] is None:
        return None
    times = {key: name and TimeRule(column=[name], midnight_is_date=True) for key, name in usual.items()}
    rule = NoteRule(
        text=usual["text"], id=usual["id"], subject=usual["subject"], visit=usual["visit"],
        time=cast("TimeRule | None", times["time"]), available=cast("TimeRule | None", times["available"]),
    )  # fmt: skip
    return NoteFile("a table of notes", "", path, rule, lower_case=True)


def _needed(rule: NoteRule, source: Source) -> set[str]:
    return {name for name in (rule.text, rule.id, rule.subject or source.subject) if name}


def open_table(settings: NoteSettings, file: NoteFile) -> RawTable:
    """A file, held against its rule.

    Raises:
        TimeloomError: it cannot be read, or lacks a column.
    """
    reading = settings.reading_of(file.table)
    table = RawTable(
        settings.path / file.path,
        file.inside,
        reading.nothing,
        label=file.table,
        reading=reading,
        needed=file.rule.columns,
        lower_case=file.lower_case,
        optional_columns=tuple(_may_lack(file.rule)),
        rows=ROWS_AT_A_TIME,
    )
    table.require(set(file.rule.columns))
    return table


def _may_lack(rule: NoteRule) -> Iterator[str]:
    """Of several columns of one time, all may be absent but the last."""
    for times in (rule.time, rule.available):
        yield from times.column[:-1] if times else ()


def parents_of(settings: NoteSettings, rule: NoteRule) -> pl.DataFrame:
    """Columns id and parent: the notes that are addenda, by a rule's table of details; empty without one."""
    details = rule.details
    frames = [pl.DataFrame(schema={"id": pl.String, "parent": pl.String})]
    if details is not None:
        for name, path in _paths(settings, details.table):
            reading = settings.reading_of(details.table)
            table = RawTable(
                settings.path / path, name, reading.nothing, label=details.table, reading=reading,
                lower_case=settings.described_by.case_insensitive,
            )  # fmt: skip
            columns = [details.key, details.name, details.value]
            table.require(set(columns))
            for block in table.blocks(columns):
                frames.append(
                    block.frame.filter(pl.col(details.name) == details.parent)
                    .drop_nulls(details.value)
                    .select(pl.col(details.key).alias("id"), pl.col(details.value).alias("parent"))
                )
    return pl.concat(frames).unique("id", keep="first", maintain_order=True)
