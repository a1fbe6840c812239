"""Choices in a source's YAML that are likely mistakes: those that show beside the rows of an export.

No finding tells a value or a count of patients; a code is named where eleven or more subjects have it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from extractors.check.suspicions_yaml import BILLING, Suspicion, declares_offsets, idle_zone, key_of, times_of
from extractors.events.converted import MISSED, RECORDED, Account
from extractors.events.times import Times, precision_of
from extractors.events.values import parse_values
from extractors.origins import readings_of
from extractors.source import EventRule, Source, TableRule, sql, template_columns
from extractors.source_model import reads_offsets
from extractors.time_rule import TimeRule

SHOWN_SUBJECTS = 11
UNREADABLE = 0.001  # the default of limits.unparsable_times
MANY_CODES = 1000
MOMENTS = ("us", "s", "min")
EARLY = 0.1  # share of discharge codes known before the discharge
SWAPPED = 0.02  # share of rows in the right order, of those that tell, where two columns have changed places
FEW = 5  # values below which "all of them" says little
_UNIT = re.compile(r"units?|uom|(.*[a-z_])?(_units?|uom)|unit_?(of_?measure|name|source_value|concept_id)", re.I)
_LITERAL = re.compile(r"'|\b\d")
_UUID = r"^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$"


@dataclass(frozen=True)
class JoinFacts:
    """What a join found.

    Attributes:
        table, key: the other table, and this one's key.
        found, missed, keyless: rows whose key is there, is not, or is null.
        absent: the other table is not there.
    """

    table: str
    key: str
    found: int = 0
    missed: int = 0
    keyless: int = 0
    absent: bool = False


@dataclass(frozen=True)
class Sample:
    """The first rows of a table, converted.

    Attributes:
        frame: (n) rows, looked-up and derived columns included.
        events: columns CONVERTED, `code` and `unit` as texts.
        columns: what the file has.
        times: what the rules' times became, by `key_of`.
        doubtful: by value's column, events whose letter was taken for a unit although it may be a flag.
    """

    table: str
    rule: TableRule
    frame: pl.DataFrame
    events: pl.DataFrame
    account: Account
    columns: list[str]
    joins: list[JoinFacts] = field(default_factory=list)
    times: dict[str, Times] = field(default_factory=dict)
    doubtful: dict[str, int] = field(default_factory=dict)


def in_table(source: Source, sample: Sample) -> Iterator[Suspicion]:
    """What shows in the rows of one table."""
    rows = len(sample.frame)
    if not rows:
        return
    if sample.events.is_empty():
        yield Suspicion(
            "no_events", sample.table, "", "none of the rows read makes an event",
            "the quarantine reasons of the table say why",
        )  # fmt: skip
        if rows < FEW:
            return
    yield from _subjects(source, sample)
    for join in sample.joins:
        if join.found < join.missed:
            yield Suspicion(
                "join_misses", sample.table, join.table,
                f"fewer than half of the keys in {join.key} are found", "check `key`, and that both spell it alike",
            )  # fmt: skip
    for time in times_of(sample.rule):
        read = sample.times[key_of(time)]
        if int(read.unreadable.sum()) > UNREADABLE * read.present:
            yield Suspicion(
                "unreadable_times", sample.table, ", ".join(time.column),
                "no format fits more than 0.1 % of its values, and a run stops there",
                "add the missing format, or put what stands for no date into `null_values`",
            )  # fmt: skip
    for time in times_of(sample.rule):
        yield from _time_of_day(sample, time)
    yield from _availability(sample)
    for number, event in enumerate(sample.rule.events):
        events = sample.events.filter(pl.col("rule") == number)
        yield from _where(sample, event)
        yield from _codes(sample, event, events)
        yield from _value(sample, event)
    yield from _before_time(sample)


def _subjects(source: Source, sample: Sample) -> Iterator[Suspicion]:
    column = sample.rule.subject or source.subject
    ids = sample.frame[column].str.strip_chars().replace("", None)
    known = ids.drop_nulls()
    whole = known.cast(pl.Int64, strict=False).is_not_null()
    if len(known) < 0.99 * len(ids):
        yield Suspicion(
            "subject_missing", sample.table, column, "more than 1 % of the rows have no subject id",
            "name the column that holds it with the table's `subject`",
        )  # fmt: skip
    if whole.any() and not whole.all():
        yield Suspicion(
            "subject_not_integer", sample.table, column,
            "some ids are no integers: under `deid.subject_ids: keep` their rows are lost",
            "use `deid.subject_ids: hash`",
        )  # fmt: skip


def _where(sample: Sample, event: EventRule) -> Iterator[Suspicion]:
    condition = sql(event.where or "TRUE")
    empty = [name for name in condition.meta.root_names() if sample.frame[name].null_count() == len(sample.frame)]
    # Of a column that is empty in these rows a condition says nothing; one that names no text and no number has nothing
    # that could be spelt wrongly, and may hold in other rows.
    if (
        event.where
        and _LITERAL.search(event.where)
        and not empty
        and not sample.frame.select(condition.fill_null(False).any()).item()
    ):
        yield Suspicion(
            "where_never_holds", sample.table, event.code, f"`{event.where}` holds in none of the rows read",
            "check its spelling; columns are texts, so a number needs a CAST",
        )  # fmt: skip


def _time_of_day(sample: Sample, rule: TimeRule) -> Iterator[Suspicion]:
    """Dates that pass for moments, of facts other than birth and death."""
    moments = [
        event.code
        for event in sample.rule.events
        if event.time and key_of(event.time) == key_of(rule) and event.kind != "death"
        if not event.code.startswith("MEDS_BIRTH")
    ]
    read = sample.times[key_of(rule)]
    precision, times = read.precision.drop_nulls(), read.time.drop_nulls()
    if not moments or times.is_empty() or rule.midnight_is_date:
        return
    column = ", ".join(rule.column)
    timed = any(precision_of(time_format) in MOMENTS for time_format in read.tried)
    if timed and "anchor" not in rule.model_fields_set and not precision.is_in(MOMENTS).any():
        yield Suspicion(
            "date_as_time", sample.table, column,
            f"only dates stand there, so {moments[0]} counts as happening at the end of its day",
            'say so with `formats: "%Y-%m-%d"`, or take a column with a time of day; `anchor: start` starts a stay',
        )  # fmt: skip
    if len(times) >= FEW and precision.is_in(MOMENTS).all() and (times.dt.truncate("1d") == times).all():
        yield Suspicion(
            "midnight_as_time", sample.table, column,
            f"every value is at 00:00:00, so {moments[0]} stands before all else of its day",
            "`midnight_is_date: true` puts it at the end of the day",
        )  # fmt: skip


def _availability(sample: Sample) -> Iterator[Suspicion]:
    said: set[str] = set()
    for number, event in enumerate(sample.rule.events):
        events = sample.events.filter(pl.col("rule") == number)
        if event.available is None or int((events["availability"] != RECORDED).sum()) <= len(events) / 2:
            continue
        columns, lag = ", ".join(event.available.column), event.available.otherwise == "lag"
        if columns in said:
            continue
        said.add(columns)
        if int((events["availability"] == MISSED).sum()) > len(events) / 2:
            yield Suspicion(
                "availability_mostly_empty", sample.table, columns,
                f"its join misses for most of {event.code}, which is then estimated",
                "check the join's `key`, and that both tables spell it alike",
            )  # fmt: skip
        else:
            yield Suspicion(
                "availability_mostly_empty", sample.table, columns,
                f"it is empty for most of {event.code}, which is then {'estimated' if lag else 'known at its time'}",
                "take another column" if lag else "take another column, or `otherwise: lag`",
            )  # fmt: skip


def _before_time(sample: Sample) -> Iterator[Suspicion]:
    """Availability columns that stand before every time that they are given to, in most rows."""
    early: dict[str, list[tuple[bool, EventRule]]] = {}
    for event in sample.rule.events:
        if event.time is None or event.available is None:
            continue
        time, known = sample.times[key_of(event.time)], sample.times[key_of(event.available)]
        # A date stands for a moment of its day: what is known on that day is not known too early.
        happened = time.time.dt.truncate("1d").zip_with(~time.precision.is_in(MOMENTS), time.time)
        both = happened.is_not_null() & known.time.is_not_null()
        before, after = (int(found.filter(both).sum()) for found in (known.time < happened, known.time > happened))
        swapped = before > int(both.sum()) / 2 and after <= SWAPPED * (before + after)
        if both.any():
            early.setdefault(key_of(event.available), []).append((swapped, event))
    for found in early.values():
        if all(before for before, _ in found):
            event = found[0][1]
            assert event.time and event.available
            yield Suspicion(
                "available_before_time", sample.table, event.code,
                f"{', '.join(event.available.column)} stands before {', '.join(event.time.column)} in most rows",
                "have they changed places? An order that is entered ahead of its start is fine",
            )  # fmt: skip


def _codes(sample: Sample, event: EventRule, events: pl.DataFrame) -> Iterator[Suspicion]:
    distinct = events["code"].n_unique()
    if distinct > MANY_CODES and distinct > len(events) / 2:
        yield Suspicion(
            "too_many_codes", sample.table, event.code,
            "more than half of its codes are different: an identifier, a number or free text",
            "put it into `value` or `text`, not into the code",
        )  # fmt: skip
    for column in dict.fromkeys(template_columns(event.code)):
        values = sample.frame[column].drop_nulls()
        if len(values) and values.str.contains(_UUID).mean() > 0.5:  # type: ignore[operator]
            yield Suspicion(
                "telling_code", sample.table, event.code, f"{column} holds UUIDs, and codes are not de-identified",
                "make the code of columns that many patients share",
            )  # fmt: skip


def _value(sample: Sample, event: EventRule) -> Iterator[Suspicion]:
    if event.text and not event.value:
        values = sample.frame[event.text].drop_nulls()
        if len(values) >= FEW and int(parse_values(values)["number"].is_not_null().sum()) > 0.9 * len(values):
            yield Suspicion(
                "numbers_as_text", sample.table, event.text,
                f"{event.code} keeps it as text, and nearly all are numbers", "map it with `value`",
            )  # fmt: skip
    if event.value and not event.unit:
        used = {event_rule.unit for event_rule in sample.rule.events}
        units = [name for name in sample.columns if _UNIT.fullmatch(name) and name not in used]
        if units:
            yield Suspicion(
                "value_without_unit", sample.table, event.value,
                f"{event.code} takes the value and leaves its unit, which {units[0]} seems to hold",
                f"add `unit: {units[0]}`",
            )  # fmt: skip


def between_tables(source: Source, samples: list[Sample]) -> Iterator[Suspicion]:
    """What shows only when tables are seen together."""
    yield from _before_the_end(samples)
    yield from _units(samples)
    yield from _zones(source, samples)
    whole = {}
    for sample in samples:
        ids = sample.frame[sample.rule.subject or source.subject].str.strip_chars().replace("", None).drop_nulls()
        if len(ids):
            whole[sample.table] = bool(ids.cast(pl.Int64, strict=False).is_not_null().all())
    if len(set(whole.values())) > 1:
        odd = next(table for table, is_whole in whole.items() if not is_whole)
        yield Suspicion(
            "subject_not_integer", odd, "subject", "its ids are no integers, and those of other tables are",
            "name the column that holds the same id as elsewhere with the table's `subject`",
        )  # fmt: skip


def _before_the_end(samples: list[Sample]) -> Iterator[Suspicion]:
    """Billing codes that are known before the stay that they belong to has ended."""
    ends = [
        sample.events.filter(pl.col("rule") == number).group_by("visit_id").agg(pl.col("time").max().alias("end"))
        for sample in samples
        for number, event in enumerate(sample.rule.events)
        if event.kind == "visit_end"
    ]
    for sample in samples:
        for number, event in enumerate(sample.rule.events):
            events = sample.events.filter(pl.col("rule") == number)
            billing = events.filter(pl.col("code").str.extract("^([^/]*)").is_in(_billing_namespaces(events)))
            # Of several kinds of stays, such as a ward's within a hospital's, the one that fits most rows.
            known = max(
                (billing.join(end.drop_nulls(), on="visit_id") for end in ends), key=len, default=billing.clear()
            )
            if known.is_empty():
                continue
            if int((known["available_time"] < known["end"]).sum()) > EARLY * len(known):
                yield Suspicion(
                    "billing_code_before_the_end", sample.table, event.code,
                    "a code assigned at discharge is available before the stay ends",
                    "give `available:` the end of the stay, looked up with `joins` where it stands in another table",
                )  # fmt: skip


def _billing_namespaces(events: pl.DataFrame) -> list[str]:
    spaces = events["code"].str.extract("^([^/]*)").unique().drop_nulls().to_list()
    return [space for space in spaces if BILLING.fullmatch(space)]


def _units(samples: list[Sample]) -> Iterator[Suspicion]:
    frames = [
        sample.events.filter(pl.col("unit").is_not_null()).select(
            "code", "unit", "subject_id", pl.lit(sample.table).alias("table")
        )
        for sample in samples
    ]
    if not frames:
        return
    seen = pl.concat(frames).group_by("code", "table").agg(pl.col("unit").unique().sort())
    differ = seen.group_by("code").agg(pl.col("table").sort(), pl.col("unit").n_unique().alias("kinds"))
    differ = differ.filter((pl.col("table").list.len() > 1) & (pl.col("kinds") > 1)).sort("code")
    subjects = pl.concat(frames).group_by("code").agg(pl.col("subject_id").n_unique().alias("subjects"))
    for (tables,), codes in differ.join(subjects, on="code").group_by(["table"], maintain_order=True):
        shown = codes.filter(pl.col("subjects") >= SHOWN_SUBJECTS)["code"].to_list()
        example = f", such as {shown[0]}" if shown else ""
        names = list(tables)
        yield Suspicion(
            "units_differ", names[-1], ", ".join(names),
            f"the same code has other units in {' and '.join(names)}{example}",
            "spell them alike with `units`, or give each table a code of its own",
        )  # fmt: skip


def _zones(source: Source, samples: list[Sample]) -> Iterator[Suspicion]:
    """Times with an offset beside times without one."""
    with_offset: list[str] = []
    naive: list[str] = []
    converted = False
    for sample in samples:
        for time in times_of(sample.rule):
            zoned = all(reading.zone for reading in readings_of(source, sample.table, time))
            for time_format in sample.times[key_of(time)].formats:
                if reads_offsets(time_format):
                    converted |= zoned
                    with_offset += [] if zoned else [f"{sample.table}.{time.column[0]}"]
                elif precision_of(time_format) in MOMENTS:
                    naive.append(f"{sample.table}.{time.column[0]}")
    zone = source.reading.time_zone or source.time_zone
    if zone and naive and not with_offset and not converted:
        if declares_offsets(source):
            yield idle_zone(zone)
    elif naive and with_offset:
        yield Suspicion(
            "offsets_without_time_zone", with_offset[0].rpartition(".")[0], with_offset[0].rpartition(".")[2],
            f"its times become UTC, while those of {naive[0]} stay as they are",
            "name the wall clock of the latter with `time_zone`",
        )  # fmt: skip
