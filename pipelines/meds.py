"""meds: raw file → segment, its events already de-identified, in pieces of one bucket each.

The record beside a segment says where its pieces are, and what became of every raw row. It is reused as long as the raw
file, the tables it is joined with and the rules stand.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import polars as pl

from extractors.deid import DeidConfig, Deidentifier, load_key
from extractors.events.by_block import BlockCounts, sums_of
from extractors.events.convert import Converter
from extractors.events.converted import Account
from extractors.events.joins import attach_rows, looked_up, name_of
from extractors.events.lookups import JoinCounts
from extractors.source import CROSSWALK, checked_source, raw_columns
from extractors.tables.content_blocks import Known
from extractors.tables.export import Export
from extractors.tables.raw_table import RawTable
from extractors.tables.rows import Rows
from pipelines.aligning.continued import SUBJECTS, Closed, Conversion, NotContinuedError
from pipelines.aligning.former_extract import Followed, FormerExtract, FormerPart
from pipelines.aligning.segments import SegmentWriter, read_frame_blob
from pipelines.engine.context import StageReport, counts_of
from pipelines.engine.fingerprints import Fingerprints
from pipelines.engine.task import RawFile, Result, Task
from pipelines.limits import LimitsConfig
from pipelines.night import Night, Stage, raw_files
from warehouse.errors import TimeloomError
from warehouse.files import atomic_write, sha256_json
from warehouse.sealed import write_sealed

# Of a source, what all of its tables hang on.
OF_ALL_TABLES = {"name", "subject", "null_values", "time_zone", "case_insensitive", "units"}


class Counts(TypedDict):
    """What a task tells: where the pieces of its segment are, and what became of every raw row.

    Where the file had changed and the rest of it was kept, `segment` holds the new rows and the blobs, and `formers`
    the others (see pipelines.aligning.continued).
    """

    table: str
    source: str
    segment: str
    formers: list[FormerPart]
    followed: Followed | None
    rules: str
    joined: str
    buckets: dict[str, dict[str, Any]]
    blobs: dict[str, Any]
    kinds: list[str]
    raw: int
    events: int
    static: int
    reference: int
    emitted: int
    quarantined: dict[str, int]
    partial: dict[str, int]
    times: dict[str, dict[str, int]]
    joins: dict[str, dict[str, int]]
    values: dict[str, dict[str, int]]
    noticed: str


class Params(TypedDict):
    """What a task is given: paths and settings, and of the key its fingerprint alone."""

    source: dict[str, Any]
    export: str
    crosswalks: dict[str, str]
    table: str
    label: str
    path: str
    deid: dict[str, Any]
    key: str
    private: str
    buckets: int
    segment: str
    line: str
    rules: str
    joined: str


def ready(night: Night) -> None:
    """Reads the raw files for their hashes, several at a time."""
    night.fingerprints.read_ahead(sorted(raw_files(night.exports)), night.context.engine.workers)


def plan(night: Night) -> list[Task]:
    """One task per raw file.

    Raises:
        TimeloomError: a table is missing.
    """
    config, layout, fingerprints = night.config, night.layout, night.fingerprints
    deid = Deidentifier(config.deid, load_key(config.deid, layout.private))
    tasks = []
    names: dict[str, str] = {}
    for number, export in enumerate(night.exports):
        source = export.source
        found = export.mapped()
        # An unmapped file is called by a hash: its name is nobody's choice here, and may be a patient's.
        unmapped = {f"unmapped-{deid.item_key(name)[:8]}": (name, [path]) for name, path in export.unmapped().items()}
        for table, (name, files) in {**{table: (table, files) for table, files in found.items()}, **unmapped}.items():
            rule = source.tables.get(name)
            joined = sorted({join.table for join in rule.joins}) if rule else []
            label = table if len(config.sources) == 1 else f"{source.name}/{table}"
            if table in unmapped:
                names[label] = name
            rules = sha256_json(
                [STAGE.name, STAGE.version, pl.__version__, rule.model_dump(mode="json") if rule else None]
                + [source.model_dump(mode="json", include=OF_ALL_TABLES)]
                + [source.reading.model_dump(mode="json", include={"subject_pattern", "subject_normalise"})]
                # Of the tables that it reads alone: what is said of another changes nothing here.
                + [source.reading_of(read).model_dump(mode="json") for read in (name, *joined)]
                + [config.buckets, config.deid.model_dump(), deid.key_fingerprint, label]
            )
            inputs = [[name, [fingerprints.of(path) for path in export.files(name)]] for name in joined]
            there = [name for name in joined if export.files(name)]
            looked_up = planned_files(export, joined, fingerprints)
            for part, path in enumerate(files):
                fingerprint = sha256_json([rules, fingerprints.of(path), inputs, number, part])
                # The same for this file every night, until its rules change, or which of its joined tables are there.
                line = sha256_json([rules, number, there, deid.item_key(str(path))])[:12]
                stem = f"{line}-{fingerprint[:24]}"
                tasks.append(
                    Task(
                        stage=STAGE.name,
                        function=STAGE.run,
                        key=f"{number}-{table}-{part}",
                        base=str(layout.segments),
                        record=str(layout.segments / f"{stem}.json"),
                        params=Params(
                            source=source.model_dump(mode="json"),
                            export=str(export.path),
                            crosswalks={name: str(file) for name, file in export.crosswalks.items()},
                            table=name,
                            label=label,
                            path=str(path),
                            deid=config.deid.model_dump(mode="json"),
                            key=deid.key_fingerprint,
                            private=str(layout.private),
                            buckets=config.buckets,
                            segment=f"{stem}.segment",
                            line=line,
                            rules=rules,
                            joined=sha256_json(inputs),
                        ),
                        fingerprint=fingerprint,
                        weight=path.stat().st_size,
                        raw_files=looked_up | fingerprints.planned(path, f"the table {label}"),
                        checked_when_read=True,
                    )
                )
    # For `timeloom status` on the site's own machine; nothing else reads it.
    write_sealed(layout.unmapped_files, names)
    return tasks


def planned_files(export: Export, tables: Iterable[str], fingerprints: Fingerprints) -> dict[str, RawFile]:
    """The files of some tables, and crosswalks, of which fingerprints know the hashes, as tasks are held to them."""
    planned: dict[str, RawFile] = {}
    for name in tables:
        what = f"the {name}" if name.startswith(CROSSWALK) else f"the table {name}"
        for path in export.files(name):
            planned |= fingerprints.planned(path, what)
    return planned


def run(params: Params, base: Path) -> Result:
    """Converts one raw file; of a file that was converted before, what is new in it, where that can be told."""
    former = FormerExtract.find(base, params["line"], params["segment"])
    if former is not None:
        # What is wrong with the file itself is said when it is converted whole.
        with suppress(TimeloomError, NotContinuedError):
            return _convert(params, base, former)
    return _convert(params, base, None)


def _convert(params: Params, base: Path, former: FormerExtract | None) -> Result:
    """Converts one raw file, but for the blocks of it that a former segment holds."""
    source = checked_source(params["source"])
    export = Export(Path(params["export"]), source, {name: Path(file) for name, file in params["crosswalks"].items()})
    deid_config = DeidConfig.model_validate(params["deid"])
    deid = Deidentifier.held_to(deid_config, Path(params["private"]), params["key"])
    table, segment = params["table"], params["segment"]
    private = Path(params["private"])
    closed: Closed | None = None
    settled: list[tuple[str, str, bool]] = []
    with atomic_write(base / segment, sync=False) as temporary, SegmentWriter(temporary, params["buckets"]) as writer:
        rule = source.tables.get(table)
        if rule is None:
            account, columns, no_rows, noticed = _unmapped(export, params)
        else:
            raw = export.open(Path(params["path"]), table, params["label"])
            raw.require(source.needed_columns(table))
            followed = None
            if rule.role != "reference":
                known = former.known() if former is not None else None
                if former is not None and known is not None and former.joined != params["joined"]:
                    known = known.without(_looked_up_anew(former, known, export, params, deid))
                followed = raw.follow(deid.row_seed, known)
            counts_by_block = BlockCounts(followed) if followed is not None else None
            texts = {"codes": former.codes, "units": former.units} if former is not None else {}
            converter = Converter(source, table, deid, lambda: raw.label, blocks=counts_by_block, **texts)
            if rule.role == "reference":
                converter.account.raw = converter.account.reference = _count(raw)
            else:
                for block in _rows(converter, raw, export, private):
                    writer.write(converter.convert(block))
            made = Conversion(writer, converter, followed, counts_by_block, raw.no_rows, raw.invisible.total())
            closed = made.close(former)
            account, settled = closed.account, converter.units.settled
            account.partial += raw.invisible
            columns, no_rows, noticed = raw.columns, raw.no_rows, raw.noticed
        rows = writer.rows
    for reason, numbers in no_rows.items():
        account.raw += len(numbers)
        account.quarantined[reason] = len(numbers)
    counts = Counts(
        table=params["label"],
        source=source.name,
        segment=segment,
        formers=closed.formers if closed is not None else [],
        followed=closed.followed if closed is not None else None,
        # With the header, which says what each of the bytes that were hashed means, and what the whole file decided.
        rules=sha256_json([params["rules"], columns, *settled]),
        joined=params["joined"],
        buckets=closed.index if closed is not None else {},
        blobs=closed.blobs if closed is not None else {},
        kinds=[event.kind for event in rule.events] if rule is not None else [],
        raw=account.raw,
        events=account.events,
        static=account.static,
        reference=account.reference,
        emitted=account.emitted,
        quarantined={reason: rows for reason, rows in account.quarantined.items() if rows},
        partial={reason: rows for reason, rows in account.partial.items() if rows},
        times=account.times,
        joins={
            name_of(join): asdict(account.joins[name_of(join)]) | {"optional": int(join.optional)}
            for join in (rule.joins if rule is not None else ())
            if name_of(join) in account.joins
        },
        values=account.values,
        noticed=noticed,
    )
    return Result({segment: rows}, counts, closed.made_before if closed is not None else {})


def _looked_up_anew(
    former: FormerExtract, known: Known, export: Export, params: Params, deid: Deidentifier
) -> list[int]:
    """The places of the known blocks for whose rows the joined tables say something else than they did, and of those
    that the file has not: of all others the keys are read, and looked up."""
    rule, seed = export.source.tables[params["table"]], deid.row_seed
    joins = rule.joins
    raw = export.open(Path(params["path"]), params["table"], params["label"])
    followed = raw.follow(seed, known, known_alone=True)
    if followed is None or followed.known is None:
        return []
    keys = {name for join in joins for name in join.key} & raw_columns(rule, export.source.subject)
    records = former.records

    def asking() -> Iterator[Rows]:
        for block in raw.blocks(sorted(keys)):
            yield Rows(block.columns, block.numbers(np.arange(len(block))), np.zeros(len(block), np.uint64))

    sums = np.zeros(len(records), np.uint64)
    for rows in attach_rows(asking(), export, joins, Path(params["private"])):
        places = np.array(followed.seen, np.int64)
        places = places[places >= 0]
        block = np.searchsorted(np.cumsum(records[places]), rows.number, side="left")
        sums += sums_of(places[block], looked_up(rows, joins, seed), len(sums))
    met = np.zeros(len(records), np.bool_)
    met[[place for place in followed.seen if place >= 0]] = True
    changed: list[int] = np.flatnonzero(~met | (sums != former.looked_up)).tolist()
    return changed


def _rows(converter: Converter, raw: RawTable, export: Export, scratch: Path) -> Iterator[Rows]:
    """The table's rows, with the columns that its joins look up."""
    joins = converter.rule.joins
    plain = converter.moments | {name for join in joins for name in join.key}
    blocks = raw.blocks(converter.columns, seed=converter.deid.row_seed, plain=plain)
    prepared = (converter.prepare(block) for block in blocks)
    return attach_rows(prepared, export, joins, scratch, converter.account.joins, converter.blocks)


def _unmapped(export: Export, params: Params) -> tuple[Account, list[str], dict[str, list[int]], str]:
    """Counts the rows of a file that no rule mentions, if it is a table at all: it may be anything."""
    account = Account()
    try:
        raw = export.open(Path(params["path"]), params["table"], params["label"])
        account.raw = _count(raw)
    except TimeloomError:
        return account, [], {}, ""
    account.quarantined["unmapped_table"] = account.raw
    return account, raw.columns, raw.no_rows, raw.noticed


def _count(raw: RawTable) -> int:
    return sum(map(len, raw.blocks(raw.columns[:1])))


def check_times(report: StageReport, limit: float) -> None:
    """Stops the run where too many times of a column cannot be read.

    Raises:
        TimeloomError: names tables and columns, and how many.
    """
    seen: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for entry in report.entries.values():
        for column, times in counts_of(entry, Counts)["times"].items():
            total = seen[counts_of(entry, Counts)["table"], column]
            total[0] += times["present"]
            total[1] += times["unreadable"]
    over = [
        f"table {table}: {unreadable} of {present} times in {column}"
        for (table, column), (present, unreadable) in seen.items()
        if unreadable > limit * present
    ]
    if over:
        raise TimeloomError(
            f"{'; '.join(over)} cannot be read, the limit is {limit:.2%}",
            remedy="declare their format in the source's YAML, or raise limits.unparsable_times",
        )


def check_rows(report: StageReport, limits: LimitsConfig) -> None:
    """Stops the run where too many rows of a table are malformed, or made nothing.

    Small tables may have a few bad rows; one that has no good row at all is read wrongly. A single row does not count:
    exports of empty tables have such ones.

    Raises:
        TimeloomError: names tables, and how many rows are quarantined for which reasons.
    """
    raw: Counter[str] = Counter()
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in report.entries.values():
        counts = counts_of(entry, Counts)
        if "unmapped_table" not in counts["quarantined"]:
            raw[counts["table"]] += counts["raw"]
            reasons[counts["table"]].update(counts["quarantined"])
    over: dict[str, list[str]] = {"malformed": [], "quarantined": []}
    for table, rows in raw.items():
        for name, nothing in (("malformed", reasons[table]["malformed_row"]), ("quarantined", reasons[table].total())):
            limit = limits.malformed if name == "malformed" else limits.quarantined
            # That no rule applies to a few rows is the source's own choice.
            whole = nothing == rows > 1 and (rows >= limits.fewest or reasons[table]["no_rule_applies"] < rows)
            if (rows >= limits.fewest and nothing > limit * rows) or (whole and limit < 1):
                over[name].append(_said(table, rows, reasons[table]))
                break
    for name, said in over.items():
        if said:
            raise TimeloomError(
                f"{'; '.join(said)}, which is beyond the limit",
                remedy=f"look with check-source at how the table is read, or raise limits.{name}",
            )


def _said(table: str, rows: int, reasons: Counter[str]) -> str:
    each = ", ".join(f"{number} {reason}" for reason, number in reasons.most_common() if number)
    return f"table {table}: {reasons.total()} of {rows} rows make nothing ({each})"


def check_joins(report: StageReport, limits: LimitsConfig) -> None:
    """Stops the run where too many rows of a table ask another one for a key that it does not have.

    Of a join that the source can do without the report warns.

    Raises:
        TimeloomError: names tables and joins, and how many rows asked in vain.
    """
    seen: dict[tuple[str, str], JoinCounts] = defaultdict(JoinCounts)
    for entry in report.entries.values():
        for name, counted in counts_of(entry, Counts)["joins"].items():
            if counted["optional"]:
                continue
            total = seen[counts_of(entry, Counts)["table"], name]
            total.asked += counted["asked"]
            total.missed += counted["missed"]
    over = [
        f"table {table}: {total.missed} of {total.asked} rows find nothing in {name}"
        for (table, name), total in seen.items()
        if total.asked >= limits.fewest and total.missed > limits.missed_joins * total.asked
    ]
    if over:
        raise TimeloomError(
            f"{'; '.join(over)}, the limit is {limits.missed_joins:.2%}",
            remedy="look whether both tables write the key alike, or raise limits.missed_joins",
        )


def subjects_of(report: StageReport, segments: Path) -> pl.DataFrame:
    """Every subject that a raw row names, columns of SUBJECTS.

    Raises:
        TimeloomError: two raw ids share one hash.
    """
    frames = [
        read_frame_blob(
            segments / counts_of(entry, Counts)["segment"], counts_of(entry, Counts)["blobs"]["subjects"], SUBJECTS
        )
        for entry in report.entries.values()
        if counts_of(entry, Counts)["blobs"]
    ]
    subjects = pl.concat([SUBJECTS, *frames]).unique()
    if subjects["subject_id"].n_unique() < len(subjects):
        raise TimeloomError("two subject ids share one hash", remedy="start another root with another key")
    return subjects


def check(report: StageReport, night: Night) -> None:
    """Says what was found out of how tables are written; looks at the rows and times that could be read, at joins, and
    at the hashes of subject ids.

    Raises:
        TimeloomError: more of these failed than the limits allow, or two raw ids share one hash.
    """
    accounts = [counts_of(entry, Counts) for entry in report.entries.values()]
    noticed = {(account["table"], account["noticed"]) for account in accounts}
    for table, what in sorted(noticed):
        if what:
            night.log(f"table {table}: {what}")
    # First what names a column: it is what makes rows fail.
    check_times(report, night.config.limits.unparsable_times)
    check_rows(report, night.config.limits)
    check_joins(report, night.config.limits)
    subjects_of(report, night.layout.segments)


def declare(night: Night) -> dict[str, Any]:
    """The fingerprint of each raw file."""
    entries = night.report(STAGE.name).entries.values()
    return {
        "sources": {
            f"{counts_of(entry, Counts)['source']}/{counts_of(entry, Counts)['table']}/{number}": entry.fingerprint
            for number, entry in enumerate(entries)
        }
    }


def quarantined(report: StageReport) -> int:
    """Raw rows that made nothing and are no duplicates."""
    return sum(sum(counts_of(entry, Counts)["quarantined"].values()) for entry in report.entries.values())


STAGE = Stage(
    "meds",
    version=6,
    run="pipelines.meds:run",
    in_release=False,
    in_conversion=True,
    keys=("sources", "deid", "buckets"),
    plan=plan,
    ready=ready,
    check=check,
    declare=declare,
    quarantined=quarantined,
)
