"""What a source would make of the first rows of an export. Nothing is written.

Counts are exact and codes are as they stand: whoever shows them hides small cells first.
"""

import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import polars as pl

from extractors.check.suspicions_rows import SHOWN_SUBJECTS, JoinFacts, Sample, between_tables, in_table
from extractors.check.suspicions_subjects import SubjectFacts, in_subjects, subjects_alone
from extractors.check.suspicions_times import in_times
from extractors.check.suspicions_values import in_values
from extractors.check.suspicions_yaml import Suspicion, in_yaml, key_of, namespace, times_of
from extractors.deid import SYNTHETIC_KEY, DeidConfig, Deidentifier
from extractors.events.convert import Converter
from extractors.events.converted import Account
from extractors.events.joins import MISSED, attach_rows
from extractors.events.times import Times, times_as_read
from extractors.origins import readings_of
from extractors.source import PLACEHOLDER, EventRule, JoinRule, Source
from extractors.tables.block import TableBlock
from extractors.tables.export import Export, has_texts, is_table
from extractors.tables.rows import Rows, TextColumn
from extractors.time_rule import TimeRule
from warehouse.errors import TimeloomError

ROWS = 10_000
COMMON_CODES = 3


@dataclass(frozen=True)
class Made:
    """Events of one namespace that one rule made.

    Attributes:
        namespace: what stands before the code's first slash; the template's own text where fewer than eleven subjects
            have a namespace that comes from the rows.
        events, subjects: how many events, of how many subjects.
    """

    namespace: str
    events: int
    subjects: int


@dataclass(frozen=True)
class RuleFacts:
    """An event rule: what it says, and what it made.

    Attributes:
        code, kind, where: as in the YAML.
        time, available, value, unit: the columns, `a else b` where the first that is not null is taken.
        made: its events.
        silent: rows that made no such event.
        common: its most frequent codes among those that eleven or more subjects have.
    """

    code: str
    kind: str
    time: str
    available: str
    value: str
    unit: str
    where: str
    made: list[Made] = field(default_factory=list)
    silent: int = 0
    common: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TimeFacts:
    """A time: how many rows each format read, how many none did, and in how many nothing stands."""

    column: str
    formats: dict[str, int]
    unreadable: int
    empty: int


@dataclass(frozen=True)
class TableFacts:
    """A table of the source.

    Attributes:
        state: `read`, `absent` (and a run stops), `absent, optional`, or `not read` where no export was given.
        error: why the table cannot be read.
        account: what became of the rows read.
        subjects: of a table with facts, how many of its patients other tables know.
        mapped, unmapped: columns that some rule, join or description reads, and those that none does.
        noticed: how its files are written, as far as nobody said it and their first rows show it.
    """

    table: str
    role: str
    state: str = "not read"
    error: str = ""
    account: Account = field(default_factory=Account)
    rules: list[RuleFacts] = field(default_factory=list)
    times: list[TimeFacts] = field(default_factory=list)
    joins: list[JoinFacts] = field(default_factory=list)
    subjects: SubjectFacts | None = None
    mapped: list[str] = field(default_factory=list)
    unmapped: list[str] = field(default_factory=list)
    noticed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Explanation:
    """What `timeloom check-source` says.

    Attributes:
        unmentioned: tables of the export that no rule mentions; long numbers in their names are masked.
        crosswalks: those of the source that were not given.
    """

    source: str
    tables: list[TableFacts]
    unmentioned: list[str]
    crosswalks: list[str]
    suspicions: list[Suspicion]


def explain(source: Source, export: Export | None = None, rows: int = ROWS) -> Explanation:
    """Reads the first rows of every table and converts them.

    Args:
        export: where the tables lie; None looks at the YAML alone.
        rows: how many rows of a table are read. Tables that are joined are read whole.

    Raises:
        TimeloomError: the export is not there.
    """
    suspicions = list(in_yaml(source))
    if export is None:
        said = [_said(source, table) for table in source.tables]
        return Explanation(source.name, said, [], sorted(source.crosswalks), suspicions)
    if not export.path.exists():
        raise TimeloomError(f"there is no export at {export.path}", remedy="give its folder, or its .duckdb file")
    facts: list[TableFacts] = []
    samples: list[Sample] = []
    for table in source.tables:
        try:
            table_facts, sample = _table(source, export, table, rows)
        except TimeloomError as error:
            table_facts, sample = TableFacts(table, source.tables[table].role, "read", str(error)), None
        facts.append(table_facts)
        if sample is not None:
            samples.append(sample)
            suspicions += in_table(source, sample)
            suspicions += in_times(source, sample)
            suspicions += in_values(source, sample)
    suspected = {
        (suspicion.table, suspicion.rule) for suspicion in suspicions if suspicion.check.startswith("billing_code")
    }
    suspicions += [
        between_table
        for between_table in between_tables(source, samples)
        if not (
            between_table.check.startswith("billing_code") and (between_table.table, between_table.rule) in suspected
        )
    ]
    alone, broken = subjects_alone(source, export, samples)
    facts = [
        replace(table, subjects=alone.get(table.table), error=broken.get(table.table, table.error)) for table in facts
    ]
    suspicions += in_subjects(source, alone)
    unmentioned = _unmentioned(export)
    if unmentioned:
        suspicions.append(_neglect(unmentioned))
    missing = sorted(set(source.crosswalks) - set(export.crosswalks))
    return Explanation(source.name, facts, unmentioned, missing, list(dict.fromkeys(suspicions)))


def _neglect(tables: list[str]) -> Suspicion:
    return Suspicion(
        "unmentioned_tables", ", ".join(tables[:5]), "",
        "no rule mentions them, so all their rows go into quarantine", "write their events, or `role: reference`",
    )  # fmt: skip


def _unmentioned(export: Export) -> list[str]:
    if export.is_database:
        names = list(export.unmapped())
    else:
        known = {path for table in export.source.tables for path in _files(export, table)}
        texts = has_texts(known)
        names = [
            str(path.relative_to(export.path))
            for path in export.path.rglob("*")
            if path.is_file() and is_table(path, texts) and path not in known
        ]
    # Nobody chose these names here: one may hold a patient's number.
    return sorted({re.sub(r"\d{5,}", "#", name) for name in names})


def _files(export: Export, table: str) -> list[Path]:
    try:
        return export.files(table)
    except TimeloomError:
        return []


def _said(source: Source, table: str) -> TableFacts:
    rule = source.tables[table]
    joins = [JoinFacts(join.table, ", ".join(join.key)) for join in rule.joins]
    return TableFacts(table, rule.role, rules=[_rule_facts(event) for event in rule.events], joins=joins)


def _rule_facts(event: EventRule) -> RuleFacts:
    value = " and ".join(name for name in (event.value, event.text) if name)
    time, available = (
        " else ".join(time_rule.column) if time_rule else "" for time_rule in (event.time, event.available)
    )
    return RuleFacts(event.code, event.kind, time, available, value, event.unit or "", event.where or "")


def _table(source: Source, export: Export, table: str, rows: int) -> tuple[TableFacts, Sample | None]:
    rule, said = source.tables[table], _said(source, table)
    if not export.files(table):
        return replace(said, state="absent, optional" if rule.optional else "absent"), None
    blocks, columns, met = _read(source, export, table, rows)
    converter = Converter(source, table, Deidentifier(DeidConfig(mode="synthetic", dates="keep"), SYNTHETIC_KEY))
    if rule.role == "reference":
        converter.account.raw = converter.account.reference = sum(map(len, blocks))
        return replace(said, state="read", account=_whole(converter, met), noticed=met.noticed), None
    wanted = (replace(block, columns={name: block.columns[name] for name in converter.columns}) for block in blocks)
    prepared = (converter.prepare(block) for block in wanted)
    with tempfile.TemporaryDirectory(prefix=".check-source-") as scratch:
        frame = pl.concat(rows.frame() for rows in attach_rows(prepared, export, rule.joins, Path(scratch)))
    events = _texts(converter, converter.convert(Rows.of_frame(frame)))
    facts = [_join_facts(export, join, frame, number) for number, join in enumerate(rule.joins)]
    frame = converter.derive(Rows.of_frame(frame))[0].frame()
    times = {
        key_of(time_rule): times_as_read(frame, readings_of(source, table, time_rule)) for time_rule in times_of(rule)
    }
    used = source.needed_columns(table) | set(rule.optional_columns)
    table_facts = replace(
        said,
        state="read",
        account=_whole(converter, met),
        noticed=met.noticed,
        rules=[_made(said.rules[number], number, events, len(frame)) for number in range(len(rule.events))],
        times=[_time_facts(time_rule, times[key_of(time_rule)], len(frame)) for time_rule in times_of(rule)],
        joins=facts,
        mapped=[name for name in columns if name in used],
        unmapped=[name for name in columns if name not in used],
    )
    return table_facts, Sample(
        table, rule, frame, events, converter.account, columns, facts, times, converter.units.doubtful
    )


@dataclass
class _Met:
    """What was met while a table was read: records that are no rows, and cells that needed mending, by reason; and how
    its files are written, as far as nobody said it."""

    no_rows: Counter[str] = field(default_factory=Counter)
    mended: Counter[str] = field(default_factory=Counter)
    noticed: list[str] = field(default_factory=list)


def _whole(converter: Converter, met: _Met) -> Account:
    """The account, with the records that are no rows."""
    converter.finish()
    converter.account.raw += met.no_rows.total()
    converter.account.quarantined += met.no_rows
    converter.account.partial += met.mended
    return converter.account


def _read(source: Source, export: Export, table: str, rows: int) -> tuple[list[TableBlock], list[str], _Met]:
    """The table's first rows, its columns, and what was met on the way."""
    blocks: list[TableBlock] = []
    columns: list[str] = []
    met = _Met()
    for path in export.files(table):
        raw = export.open(path, table)
        raw.require(source.needed_columns(table))
        columns += [name for name in raw.columns if name not in columns]
        for block in raw.blocks(seed=0):
            hashes = block.hashes.head(rows) if block.hashes is not None else None
            first = np.arange(min(rows, len(block)))
            kept = {name: column.take(first) for name, column in block.columns.items()}
            blocks.append(TableBlock(kept, block.first, block.gaps, hashes))
            rows -= len(blocks[-1])
            if rows <= 0:
                break
        met.no_rows.update({reason: len(numbers) for reason, numbers in raw.no_rows.items()})
        met.mended += raw.invisible
        met.noticed += [raw.noticed] if raw.noticed and raw.noticed not in met.noticed else []
        if rows <= 0:
            break
    if not blocks:
        names = [*columns, *(name for name in source.tables[table].optional_columns if name not in columns)]
        nothing = pl.Series([], dtype=pl.UInt64)
        empty = pl.Series([], dtype=pl.String)
        blocks.append(TableBlock({name: TextColumn(empty) for name in names}, 1, hashes=nothing))
    return blocks, columns, met


def _texts(converter: Converter, events: pl.DataFrame) -> pl.DataFrame:
    """The events with their codes and units as texts."""
    columns: dict[str, Sequence[str | None]] = {"code": converter.codes.texts, "unit": converter.units.texts}
    return events.with_columns(
        pl.Series(name, [*texts, None], dtype=pl.String).gather(events[name].fill_null(len(texts)))
        for name, texts in columns.items()
    )


def _join_facts(export: Export, join: JoinRule, frame: pl.DataFrame, number: int) -> JoinFacts:
    key = ", ".join(join.key)
    if not export.files(join.table):
        return JoinFacts(join.table, key, absent=True)
    nowhere = pl.Series(join.no_link, dtype=pl.String).implode()
    links = (pl.col(name).is_not_null() & ~pl.col(name).is_in(nowhere) for name in join.key)
    keyed = int(frame.select(pl.all_horizontal(links).sum()).item())
    missed = len(frame) - frame[f"{MISSED}{number}"].null_count()
    return JoinFacts(join.table, key, keyed - missed, missed, len(frame) - keyed)


def _time_facts(rule: TimeRule, times: Times, rows: int) -> TimeFacts:
    return TimeFacts(" else ".join(rule.column), times.formats, int(times.unreadable.sum()), rows - times.present)


def _made(facts: RuleFacts, number: int, events: pl.DataFrame, rows: int) -> RuleFacts:
    rule_events = events.filter(pl.col("rule") == number)
    subjects = pl.col("subject_id").n_unique().alias("subjects")
    first = namespace(facts.code)
    fixed = not PLACEHOLDER.search(first)
    spaces = rule_events.with_columns(pl.col("code").str.extract("^([^/]*)").alias("namespace"))
    if not fixed:
        # A namespace that comes from the rows may be anything: it is shown where enough subjects share it.
        shared = spaces.group_by("namespace").agg(subjects).filter(pl.col("subjects") >= SHOWN_SUBJECTS)["namespace"]
        spaces = spaces.with_columns(
            pl.when(pl.col("namespace").is_in(shared.to_list()))
            .then("namespace")
            .otherwise(pl.lit(first))
            .alias("namespace")
        )
    by_space = spaces.group_by("namespace").agg(pl.len().alias("events"), subjects).sort("events", descending=True)
    by_code = rule_events.group_by("code").agg(pl.len().alias("events"), subjects)
    common = by_code.filter(pl.col("subjects") >= SHOWN_SUBJECTS).sort(["events", "code"], descending=[True, False])
    return replace(
        facts,
        made=[Made(*row) for row in by_space.select("namespace", "events", "subjects").iter_rows()],
        silent=rows - len(rule_events),
        common=common["code"].head(COMMON_CODES).to_list() if PLACEHOLDER.search(facts.code) else [],
    )
