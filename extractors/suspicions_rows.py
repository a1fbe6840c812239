"""Choices in a source's YAML that are likely mistakes: those that show beside the rows of an export.

No finding tells a value or a count of patients; a code is named where eleven or more subjects have it.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from extractors.convert import RECORDED, Account
from extractors.source import EventRule, Source, TableRule, sql, template_columns
from extractors.suspicions import BILLING, Suspicion, idle_zone, key_of, times_of
from extractors.times import Times, precision_of
from extractors.values import parse_values

SHOWN_SUBJECTS = 11
UNREADABLE = 0.001  # the default of limits.unparsable_times
MANY_CODES = 1000
FEW = 5  # values below which "all of them" says little
_UNIT = re.compile(r"units?|uom|(.*[a-z_])?(_units?|uom)|unit_?(of_?measure|name|source_value|concept_id)", re.I)
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
    """

    table: str
    rule: TableRule
    frame: pl.DataFrame
    events: pl.DataFrame
    account: Account
    columns: list[str]
    joins: list[JoinFacts] = field(default_factory=list)
    times: dict[str, Times] = field(default_factory=dict)


def in_table(source: Source, sample: Sample) -> Iterator[Suspicion]:
    """What shows in the rows of one table."""
    rows = len(sample.frame)
    if not rows:
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
    if sample.events.is_empty():
        yield Suspicion(
            "no_events", sample.table, "", "none of the rows read makes an event",
            "the quarantine reasons of the table say why",
        )  # fmt: skip
    for number, event in enumerate(sample.rule.events):
        events = sample.events.filter(pl.col("rule") == number)
        yield from _where(sample, event)
        yield from _time_of_day(sample, event)
        yield from _availability(sample, event, events)
        yield from _codes(sample, event, events)
        yield from _value(sample, event)


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
    if event.where and not _holds(sample.frame, event.where).any():
        yield Suspicion(
            "where_never_holds", sample.table, event.code, f"`{event.where}` holds in none of the rows read",
            "check its spelling; columns are texts, so a number needs a CAST",
        )  # fmt: skip


def _holds(frame: pl.DataFrame, condition: str) -> pl.Series:
    return frame.select(sql(condition).fill_null(False).alias("holds"))["holds"]


def _time_of_day(sample: Sample, event: EventRule) -> Iterator[Suspicion]:
    if event.time is None or event.kind == "death" or event.code.startswith("MEDS_BIRTH"):
        return
    rule, read = event.time, sample.times[key_of(event.time)]
    precision = read.precision.drop_nulls()
    timed = [one for one in rule.formats if precision_of(one) in ("us", "s", "min")]
    if precision.is_empty() or rule.midnight_is_date:
        return
    if timed and "anchor" not in rule.model_fields_set and precision.is_in(["day", "month", "year"]).all():
        yield Suspicion(
            "date_as_time", sample.table, ", ".join(rule.column),
            f"only dates stand there, so {event.code} counts as happening at the end of its day",
            'say so with `formats: "%Y-%m-%d"`, or take a column with a time of day; `anchor: start` starts a stay',
        )  # fmt: skip
    times = read.time.drop_nulls()
    if len(times) >= FEW and precision.is_in(["us", "s", "min"]).all() and (times.dt.truncate("1d") == times).all():
        yield Suspicion(
            "midnight_as_time", sample.table, ", ".join(rule.column),
            f"every value is at 00:00:00, so {event.code} stands before all else of its day",
            "`midnight_is_date: true` puts it at the end of the day",
        )  # fmt: skip


def _availability(sample: Sample, event: EventRule, events: pl.DataFrame) -> Iterator[Suspicion]:
    if event.available is None or events.is_empty():
        return
    columns, lag = ", ".join(event.available.column), event.available.otherwise == "lag"
    unknown = events["availability"] != RECORDED
    if int(unknown.sum()) > len(events) / 2:
        yield Suspicion(
            "availability_mostly_empty", sample.table, columns,
            f"it is empty for most of {event.code}, which is then {'estimated' if lag else 'known at its time'}",
            "take another column" if lag else "take another column, or `otherwise: lag`",
        )  # fmt: skip
    if event.time is None:
        return
    time, known = sample.times[key_of(event.time)], sample.times[key_of(event.available)]
    # The end of a day stands for a moment of it: what is known on the same day is not known too early.
    happened = time.time.dt.truncate("1d").zip_with(time.precision.is_in(["day", "month", "year"]), time.time)
    both = happened.is_not_null() & known.time.is_not_null()
    if int((known.time < happened).filter(both).sum()) > int(both.sum()) / 2:
        yield Suspicion(
            "available_before_time", sample.table, event.code,
            f"{columns} stands before {', '.join(event.time.column)} in most rows", "have they changed places?",
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
        used = {one.unit for one in sample.rule.events}
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
        odd = next(table for table, one in whole.items() if not one)
        yield Suspicion(
            "subject_not_integer", odd, "subject", "its ids are no integers, and those of other tables are",
            "name the column that holds the same id as elsewhere with the table's `subject`",
        )  # fmt: skip


def _before_the_end(samples: list[Sample]) -> Iterator[Suspicion]:
    """Billing codes that are known before the stay that they belong to has ended."""
    ends = []
    for sample in samples:
        rules = [number for number, event in enumerate(sample.rule.events) if event.kind == "visit_end"]
        ends.append(sample.events.filter(pl.col("rule").is_in(rules)).select("visit_id", pl.col("time").alias("end")))
    if not ends:
        return
    end = pl.concat(ends).drop_nulls().group_by("visit_id").agg(pl.col("end").max())
    for sample in samples:
        for number, event in enumerate(sample.rule.events):
            if event.kind != "clinical":
                continue
            events = sample.events.filter(pl.col("rule") == number)
            billing = events.filter(pl.col("code").str.extract("^([^/]*)").is_in(_billing_namespaces(events)))
            known = billing.join(end, on="visit_id")
            early = int((known["available_time"] < known["end"]).sum())
            if early > 0.1 * len(known):
                yield Suspicion(
                    "billing_code_before_the_end", sample.table, event.code,
                    "a code assigned at discharge is available before the stay ends",
                    "give `available:` the end of the stay, looked up with `joins` where it stands in another table",
                )  # fmt: skip


def _billing_namespaces(events: pl.DataFrame) -> list[str]:
    spaces = events["code"].str.extract("^([^/]*)").unique().drop_nulls().to_list()
    return [one for one in spaces if BILLING.fullmatch(one)]


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
        names = list(tables)  # type: ignore[call-overload]
        yield Suspicion(
            "units_differ", names[-1], ", ".join(names),
            f"the same code has other units in {' and '.join(names)}{example}",
            "spell them alike with `units`, or give each table a code of its own",
        )  # fmt: skip


def _zones(source: Source, samples: list[Sample]) -> Iterator[Suspicion]:
    """Times with an offset beside times without one."""
    with_offset: list[str] = []
    naive: list[str] = []
    for sample in samples:
        for time in times_of(sample.rule):
            for one in sample.times[key_of(time)].formats:
                if "%z" in one:
                    with_offset.append(f"{sample.table}.{time.column[0]}")
                elif precision_of(one) in ("us", "s", "min"):
                    naive.append(f"{sample.table}.{time.column[0]}")
    if source.time_zone and naive and not with_offset:
        if any("%z" in one for rule in source.tables.values() for time in times_of(rule) for one in time.formats):
            yield idle_zone(source.time_zone)
    elif not source.time_zone and naive and with_offset:
        yield Suspicion(
            "offsets_without_time_zone", with_offset[0].rpartition(".")[0], with_offset[0].rpartition(".")[2],
            f"its times become UTC, while those of {naive[0]} stay as they are",
            "name the wall clock of the latter with `time_zone`",
        )  # fmt: skip
