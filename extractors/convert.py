"""A block of raw rows becomes events; every row is accounted for."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import polars as pl

from extractors.columns import both, by_distinct_rows, column, filled, spread
from extractors.deid import Deidentifier
from extractors.raw import Block
from extractors.source import PLACEHOLDER, EventRule, Source, TableRule, TimeRule, raw_columns, sql, template_columns
from extractors.times import PRECISIONS, Times, parse_times
from extractors.values import parse_values
from warehouse.hashing import splitmix64

# Why a row made no event, the first that holds.
REASONS = ("bad_subject_id", "unparsable_time", "missing_time", "missing_code", "no_rule_applies")
# How `available_time` is known: its own column said so, it is taken to be the time, or it is the time and what that
# code's results usually take; `awaited` is what the last one is until that is known.
AVAILABILITY = ("recorded", "time", "estimated", "awaited")
RECORDED, AT_TIME, ESTIMATED, AWAITED = range(4)
# Lags between time and availability are counted in steps of five minutes, up to two weeks.
LAG_STEP_US = 5 * 60_000_000
LAG_STEPS = 14 * 24 * 12
_COMPACTED = 64

_FILTERS = {
    "icd": lambda column: column.str.strip_chars().str.replace_all(r"[.\s]", "").str.to_uppercase(),
    "upper": lambda column: column.str.strip_chars().str.to_uppercase(),
    "strip": lambda column: column.str.strip_chars(),
}

# What a block becomes. `code` and `unit` count in the converter's own lists, `precision` in PRECISIONS, `availability`
# in AVAILABILITY, `flag` in FLAGS, `rule` in the table's rules.
CONVERTED: dict[str, pl.DataType] = {
    "subject_id": pl.Int64(),
    "time": pl.Datetime("us"),
    "code": pl.UInt32(),
    "numeric_value": pl.Float32(),
    "text_value": pl.String(),
    "available_time": pl.Datetime("us"),
    "precision": pl.UInt8(),
    "unit": pl.UInt32(),
    "visit_id": pl.Int64(),
    "rule": pl.UInt16(),
    "availability": pl.UInt8(),
    "flag": pl.UInt8(),
    "row_hash": pl.UInt64(),
}


@dataclass
class Account:
    """What became of the rows of one raw file.

    Attributes:
        raw, events, static, reference: rows; raw = events + static + reference + the sum of quarantined.
        quarantined: rows that made nothing, by reason.
        partial: rows that made events although a column of theirs failed, by reason.
        emitted: events made.
        times: per column, values that stood there, values that no format fits, and how many each format read.
    """

    raw: int = 0
    events: int = 0
    static: int = 0
    reference: int = 0
    emitted: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    partial: Counter[str] = field(default_factory=Counter)
    times: dict[str, dict[str, int]] = field(default_factory=dict)

    def saw_times(self, rule: TimeRule, times: Times, asked: pl.Series) -> None:
        """Counts a column's values in the rows (n,) bool that some event asked for their time."""
        seen = self.times.setdefault("|".join(rule.column), {"present": 0, "unreadable": 0})
        unreadable, read_by = int((times.unreadable & asked).sum()), times.read_by.filter(asked).drop_nulls()
        seen["present"] += unreadable + len(read_by)
        seen["unreadable"] += unreadable
        for number, rows in read_by.value_counts().iter_rows():
            seen[rule.formats[number]] = seen.get(rule.formats[number], 0) + rows


class Interner:
    """Numbers of texts, in the order of their first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def texts(self) -> list[str]:
        return list(self._numbers)

    def of(self, texts: pl.Series) -> pl.Series:
        """(n,) uint32 of distinct texts (n,), null where null."""
        numbers = [None if one is None else self._numbers.setdefault(one, len(self._numbers)) for one in texts]
        return pl.Series(numbers, dtype=pl.UInt32)


def code_expression(template: str) -> pl.Expr:
    """A template as an expression; null where a column without a default is null."""
    parts: list[pl.Expr] = []
    end = 0
    for match in PLACEHOLDER.finditer(template):
        if match.start() > end:
            parts.append(pl.lit(template[end : match.start()]))
        column = pl.col(match["column"])
        if match["filter"]:
            column = _FILTERS[match["filter"]](column)
        column = column.replace("", None)
        parts.append(column.fill_null(match["default"]) if match["default"] is not None else column)
        end = match.end()
    if end < len(template):
        parts.append(pl.lit(template[end:]))
    return pl.concat_str(parts)


class Converter:
    """Turns blocks of one table into events, keeping the account.

    `prepare` reads what hangs on the row as it stands; then the table's joins may attach columns, in any order of rows;
    `convert` makes events.

    Args:
        label: what events call the table; its name where None.

    Attributes:
        columns: the raw columns that the rules read.
        codes, units: the texts that the columns `code` and `unit` count in.
        quarantine: by reason, record numbers of the rows that made nothing.
        subjects: distinct ids, with a check that tells two raw ids apart which share one.
    """

    def __init__(self, source: Source, table: str, deid: Deidentifier, label: str | None = None) -> None:
        self.source, self.table, self.deid = source, table, deid
        self.label = label or table
        self.rule: TableRule = source.tables[table]
        self.account = Account()
        self.codes, self.units = Interner(), Interner()
        self.quarantine: dict[str, list[npt.NDArray[np.int64]]] = {reason: [] for reason in REASONS}
        self._lags: list[pl.DataFrame] = []
        self.subjects = pl.DataFrame(schema={"subject_id": pl.Int64, "check": pl.Int64})
        self.columns = sorted(raw_columns(self.rule, source.subject))

    def prepare(self, block: Block) -> pl.DataFrame:
        """The columns that the rules read, the record's number `_row`, and `_row_hash` over everything in it.

        Args:
            block: of `columns`, hashed.
        """
        assert block.hashes is not None, "blocks are hashed"
        self.account.raw += len(block.frame)
        numbers = block.numbers(np.arange(len(block.frame)))
        return block.frame.with_columns(block.hashes.alias("_row_hash"), pl.Series("_row", numbers, dtype=pl.Int64))

    def convert(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Events of prepared rows, columns CONVERTED and the record's number `row`, in no particular order.

        The account is brought up to date.
        """
        rows = len(frame)
        frame = self._derive(frame)
        good_subject = frame["_subject"].is_not_null()
        never = pl.Series([False]).new_from_index(0, rows)
        state = dict.fromkeys(("timed", "static", *REASONS), never)
        state["bad_subject_id"] = ~good_subject
        parsed: dict[str, Times] = {}
        asked: dict[tuple[str, ...], tuple[TimeRule, Times, pl.Series]] = {}
        made = [
            self._make(frame, number, rule, good_subject, state, parsed, asked)
            for number, rule in enumerate(self.rule.events)
        ]
        for rule, times, rows_asked in asked.values():
            self.account.saw_times(rule, times, rows_asked)
        self._settle(state, frame["_row"])
        events = pl.concat(made)
        self.account.emitted += len(events)
        return events

    def _derive(self, frame: pl.DataFrame) -> pl.DataFrame:
        rule = self.rule
        looked_up = [name for join in rule.joins for name in join.columns]
        if looked_up:
            # A bucket is aligned again where a looked-up column changed, though the row did not.
            attached = frame.select(looked_up).hash_rows(seed=self.deid.row_seed).to_numpy()
            frame = frame.with_columns(pl.Series("_row_hash", frame["_row_hash"].to_numpy() ^ splitmix64(attached)))
        for name, expression in rule.derive.items():
            frame = frame.with_columns(sql(expression).cast(pl.String).alias(name))
        raw = frame[rule.subject or self.source.subject]
        visits = frame[rule.visit] if rule.visit else None
        # Exports stand in the order of their subjects: few runs, each looked at once.
        runs = raw.rle().struct.field("value").unique()
        self.subjects = pl.concat([self.subjects, self.deid.subject_checks(runs)]).unique()
        return frame.with_columns(
            self.deid.subject_ids(raw).alias("_subject"),
            self.deid.offsets(raw).alias("_offset"),
            (self.deid.visit_ids(visits) if visits is not None else pl.lit(None, pl.Int64)).alias("_visit"),
        )

    def _times(self, frame: pl.DataFrame, rule: TimeRule, parsed: dict[str, Times]) -> Times:
        key = rule.model_dump_json(exclude={"otherwise"})
        if key not in parsed:
            parsed[key] = parse_times(frame, rule, self.source.time_zone)
        return parsed[key]

    def _make(
        self,
        whole: pl.DataFrame,
        number: int,
        rule: EventRule,
        good_subject: pl.Series,
        state: dict[str, pl.Series],
        parsed: dict[str, Times],
        asked: dict[tuple[str, ...], tuple[TimeRule, Times, pl.Series]],
    ) -> pl.DataFrame:
        frame, applies = whole, good_subject
        if rule.where:
            applies = applies & column(frame, sql(rule.where)).fill_null(False)
        places = None if applies.all() else applies.arg_true()
        if places is not None:
            frame = frame[places]
        rows = len(frame)

        def mark(reason: str, marked: pl.Series) -> None:
            if marked.any():
                state[reason] = state[reason] | (marked if places is None else spread(marked, places, len(applies)))

        def times_of(one: TimeRule) -> Times:
            times = self._times(whole, one, parsed)
            read = ("|".join(one.column), *one.formats)
            before = asked.get(read)
            asked[read] = (one, times, applies if before is None else before[2] | applies)
            return times if places is None else times.gather(places)

        code = self._codes(frame, rule.code)
        emit = code.is_not_null()
        mark("missing_code", ~emit)
        if rule.time is not None:
            times = times_of(rule.time)
            time, precision = times.time, times.precision
            mark("unparsable_time", times.unreadable)
            mark("missing_time", time.is_null() & ~times.unreadable)
            emit = emit & time.is_not_null()
            mark("timed", emit)
        else:
            time = pl.Series([None], dtype=pl.Datetime("us")).new_from_index(0, rows)
            precision = pl.Series([None], dtype=pl.Enum(PRECISIONS)).new_from_index(0, rows)
            mark("static", emit)
        known = times_of(rule.available) if rule.available is not None and rule.time is not None else None
        available, availability = self._available(rule, time, precision, code, emit, known)
        number_, flag, text, unit = self._values(frame, rule)
        offset = frame["_offset"] if self.deid.config.dates == "shift" else None
        made = pl.DataFrame(
            {
                "subject_id": frame["_subject"],
                "time": time if offset is None else time + offset,
                "code": code,
                "numeric_value": number_,
                "text_value": text,
                "available_time": available if offset is None else available + offset,
                "precision": precision.to_physical().cast(pl.UInt8),
                "unit": unit,
                "visit_id": frame["_visit"],
                "rule": pl.Series([number], dtype=pl.UInt16).new_from_index(0, rows),
                "availability": availability,
                "flag": flag,
                "row_hash": frame["_row_hash"],
                "row": frame["_row"],
            }
        )
        return made if emit.all() else made.filter(emit)

    def _codes(self, frame: pl.DataFrame, template: str) -> pl.Series:
        return by_distinct_rows(
            frame, template_columns(template), lambda rows: self.codes.of(column(rows, code_expression(template)))
        )

    def _available(
        self,
        rule: EventRule,
        time: pl.Series,
        precision: pl.Series,
        code: pl.Series,
        emit: pl.Series,
        known: Times | None,
    ) -> tuple[pl.Series, pl.Series]:
        """When each fact could first be read, never before its time, and how that is known."""
        rows = len(time)
        if rule.available is None or known is None:
            how = AT_TIME if rule.time is not None else None
            return time, pl.Series([how], dtype=pl.UInt8).new_from_index(0, rows)
        recorded = pl.Series([RECORDED], dtype=pl.UInt8).new_from_index(0, rows)
        missing = known.time.is_null()
        available = known.time.zip_with((known.time >= time).fill_null(False), time)
        if not missing.any():
            availability = recorded
        else:
            self.account.partial["unparsable_available_time"] += int((emit & known.unreadable).sum())
            self.account.partial["unknown_available_time"] += int((emit & missing & ~known.unreadable).sum())
            otherwise = AWAITED if rule.available.otherwise == "lag" else AT_TIME
            availability = recorded.set(missing, otherwise)
        if rule.available.otherwise == "lag":
            self._count_lags(code, (available - time).dt.total_microseconds(), emit & ~missing, precision)
        return available, availability

    def _count_lags(self, code: pl.Series, lag: pl.Series, counted: pl.Series, precision: pl.Series) -> None:
        # Against the end of a day that is all that is known, a lag says nothing.
        counted = counted & precision.is_in(["us", "s", "min"])
        steps = ((lag + (LAG_STEP_US - 1)) // LAG_STEP_US).clip(0, LAG_STEPS)
        keys = (code.cast(pl.Int64) * (LAG_STEPS + 1) + steps).filter(counted)
        self._lags.append(keys.value_counts(name="rows").rename({keys.name: "key"}))
        if len(self._lags) >= _COMPACTED:
            self._lags = [self._summed_lags()]

    def _summed_lags(self) -> pl.DataFrame:
        nothing = pl.DataFrame(schema={"key": pl.Int64, "rows": pl.UInt32})
        return pl.concat([nothing, *self._lags]).group_by("key").agg(pl.col("rows").sum())

    def lags(self) -> pl.DataFrame:
        """How often a fact of a code became available so many steps of LAG_STEP_US after its time: columns code (as in
        `code`), step, rows."""
        return self._summed_lags().select(
            (pl.col("key") // (LAG_STEPS + 1)).cast(pl.UInt32).alias("code"),
            (pl.col("key") % (LAG_STEPS + 1)).alias("step"),
            pl.col("rows").cast(pl.Int64),
        ).sort("code", "step")  # fmt: skip

    def _values(self, frame: pl.DataFrame, rule: EventRule) -> tuple[pl.Series, pl.Series, pl.Series, pl.Series]:
        """Number, flag, text and unit of each row."""
        rows = len(frame)
        number = pl.Series([None], dtype=pl.Float32).new_from_index(0, rows)
        flag = pl.Series([None], dtype=pl.UInt8).new_from_index(0, rows)
        text = pl.Series([None], dtype=pl.String).new_from_index(0, rows)
        own_unit: pl.Series | None = None
        if rule.value:
            parsed = parse_values(frame[rule.value])
            number = parsed["number"]
            if parsed["text"].null_count() < rows:
                text, own_unit = parsed["text"], parsed["unit"]
                flag = parsed["flag"].to_physical().cast(pl.UInt8)
        if rule.text:
            text = both(text, filled(frame[rule.text]))
        return number, flag, text, self._unit(frame, rule, own_unit)

    def _unit(self, frame: pl.DataFrame, rule: EventRule, own: pl.Series | None) -> pl.Series:
        if own is not None and own.null_count() < len(own):
            stated = filled(frame[rule.unit]) if rule.unit else own
            frame, name = pl.DataFrame({"_unit": stated.zip_with(stated.is_not_null(), own)}), "_unit"
        elif rule.unit:
            name = rule.unit
        else:
            return pl.Series([None], dtype=pl.UInt32).new_from_index(0, len(frame))
        spelt = pl.col(name).str.strip_chars().replace("", None).replace(self.source.units)
        return by_distinct_rows(frame, [name], lambda rows: self.units.of(column(rows, spelt)))

    def _settle(self, state: dict[str, pl.Series], rows: pl.Series) -> None:
        timed, static = state["timed"], state["static"] & ~state["timed"]
        nothing = ~(timed | static)
        self.account.events += int(timed.sum())
        self.account.static += int(static.sum())
        self.account.partial["unparsable_time"] += int((~nothing & state["unparsable_time"]).sum())
        state["no_rule_applies"] = nothing
        for reason in REASONS:
            if not nothing.any():
                break
            hit = nothing & state[reason]
            self.account.quarantined[reason] += int(hit.sum())
            if hit.any():
                self.quarantine[reason].append(rows.filter(hit).to_numpy())
            nothing = nothing & ~hit
