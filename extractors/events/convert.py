"""A block of raw rows becomes events; every row is accounted for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import polars as pl

from extractors.deid import Deidentifier
from extractors.events.by_block import BlockCounts, Key
from extractors.events.converted import AT_TIME, AWAITED, MISSED, REASONS, RECORDED, Account
from extractors.events.interner import Interner
from extractors.events.joins import MISSED as MISSED_COLUMN
from extractors.events.joins import looked_up
from extractors.events.lag_counts import LagCounts, by_code
from extractors.events.series import both, column, filled, spread
from extractors.events.times import MOMENTS, PRECISIONS, Times, column_times, first_filled, times_as_read
from extractors.events.units import Units
from extractors.events.values import Writing, parse_values
from extractors.events.worked_out import worked_out
from extractors.origins import TimeReading, joins_behind, readings_of, value_reading
from extractors.source import (
    PLACEHOLDER,
    EventRule,
    Source,
    TableRule,
    made_columns,
    raw_columns,
    template_columns,
)
from extractors.tables.block import TableBlock
from extractors.tables.rows import Rows, TextColumn, without
from extractors.time_rule import TimeRule
from warehouse.arrays import I64
from warehouse.hashing import splitmix64

# Before every moment in microseconds.
_NEVER = np.iinfo(np.int64).min

_FILTERS = {
    "icd": lambda column: column.str.strip_chars().str.replace_all(r"[.\s]", "").str.to_uppercase(),
    "upper": lambda column: column.str.strip_chars().str.to_uppercase(),
    "strip": lambda column: column.str.strip_chars(),
}


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


@dataclass(frozen=True)
class _Patient:
    """Whose rows (n,) they are: id, shift of the dates where there is one, visit."""

    subject: pl.Series
    offset: pl.Series | None
    visit: pl.Series

    def take(self, places: pl.Series) -> "_Patient":
        offset = None if self.offset is None else self.offset.gather(places)
        return _Patient(self.subject.gather(places), offset, self.visit.gather(places))


class Converter:
    """Turns blocks of one table into events, keeping the account.

    `prepare` reads what hangs on the row as it stands; then the table's joins may attach columns, in any order of rows;
    `convert` makes events.

    Args:
        label: gives what errors call the file; the table's name where None.
        blocks: counts the rows by the block of the file that they stand in; None where nobody asks.
        codes, units: texts that those of the same name begin with.

    Attributes:
        columns: the raw columns that the rules read.
        moments: those that are times by themselves, and nearly all differ.
        codes, units: the texts that the columns `code` and `unit` count in; those of units stand when the last row is
            converted.
        quarantine: by reason, record numbers of the rows that made nothing.
        subjects: distinct ids, with a check that tells two raw ids apart which share one.
    """

    def __init__(
        self,
        source: Source,
        table: str,
        deid: Deidentifier,
        label: Callable[[], str] | None = None,
        *,
        blocks: BlockCounts | None = None,
        codes: Sequence[str] = (),
        units: Sequence[str] = (),
    ) -> None:
        self.source, self.table, self.deid = source, table, deid
        self._label = label or (lambda: table)
        self.rule: TableRule = source.tables[table]
        self.account = Account()
        self.blocks = blocks
        self.codes, self.units = Interner(codes), Units(source.units, units)
        self.quarantine: dict[str, list[npt.NDArray[np.int64]]] = {reason: [] for reason in REASONS}
        self.subjects = pl.DataFrame(schema={"subject_id": pl.Int64, "check": pl.Int64})
        self.columns = sorted(raw_columns(self.rule, source.subject))
        values = {event.value: value_reading(source, table, event.value) for event in self.rule.events if event.value}
        # Of what is looked up or derived; what the file holds is read without it.
        reading, made = source.reading_of(table), made_columns(self.rule)
        self._nothing = {name: reading.of_column(name).nothing for name in reading.columns if name in made}
        self._flags = {name: of_column.flags for name, of_column in values.items()}
        self._writings = {
            name: Writing(of_column.decimal_sign, of_column.thousands, of_column.flags is not False)
            for name, of_column in values.items()
        }
        times = [time for event in self.rule.events for time in (event.time, event.available) if time]
        self.moments = {time.column[0] for time in times if len(time.column) == 1}
        self._readings: dict[str, list[TimeReading]] = {}
        self._marks = [
            [f"{MISSED_COLUMN}{number}" for number in sorted(joins_behind(self.rule, event.available.column))]
            if event.available
            else []
            for event in self.rule.events
        ]
        self.lag_counts = LagCounts(self.rule.events, [bool(marks) for marks in self._marks])

    def prepare(self, block: TableBlock) -> Rows:
        """The columns of a block, its records' numbers, and hashes of everything in them.

        Args:
            block: of `columns`, hashed.
        """
        assert block.hashes is not None, "blocks are hashed"
        numbers = block.numbers(np.arange(len(block)))
        self._count(("raw",), numbers)
        return Rows(block.columns, numbers, block.hashes.to_numpy())

    def _count(self, key: Key, numbers: I64, which: pl.Series | None = None) -> int:
        """Counts rows under a key of the account: records of some numbers (n,), all or those that are marked (n,)."""
        rows = len(numbers) if which is None else int(which.sum())
        self.account.add(key, rows)
        if self.blocks is not None:
            self.blocks.add(key, numbers if which is None or rows == len(numbers) else numbers[which.to_numpy()])
        return rows

    def convert(self, rows: Rows) -> pl.DataFrame:
        """Events of prepared rows, columns CONVERTED and the record's number `row`, in no particular order.

        The account is brought up to date.
        """
        never = pl.Series([False]).new_from_index(0, len(rows))
        if self.blocks is not None and self.rule.joins:
            self.blocks.add_looked_up(rows.number, looked_up(rows, self.rule.joins, self.deid.row_seed))
        rows, failed = self.derive(rows)
        conditions, failed = self._conditions(rows, failed)
        patient = self._patient(rows)
        good_subject = patient.subject.is_not_null()
        state = dict.fromkeys(("timed", "static", *REASONS), never)
        state["bad_subject_id"], state["failed_cast"] = ~good_subject, failed
        if self.rule.failed_casts == "quarantine":
            good_subject = good_subject & ~failed
        parsed: dict[str, Times] = {}
        asked: dict[tuple[str, ...], tuple[TimeRule, Times, pl.Series]] = {}
        made = [
            self._make(rows, number, rule, patient, good_subject & met, state, parsed, asked)
            for number, (rule, met) in enumerate(zip(self.rule.events, conditions, strict=True))
        ]
        for rule, times, rows_asked in asked.values():
            self._saw_times(rule.column, times, rows_asked, rows.number)
        self._settle(state, rows.number, patient.subject)
        return pl.concat(made)

    def derive(self, rows: Rows) -> tuple[Rows, pl.Series]:
        """The rows with what is looked up, as the site writes it, and derived; and where (n,) a cast failed."""
        looked_up = [name for join in self.rule.joins for name in join.columns]
        hashes, failed = rows.hashes, pl.Series([False]).new_from_index(0, len(rows))
        # A bucket is aligned again where a looked-up column changed, though the row did not, or where it is found now.
        if looked_up:
            attached = pl.DataFrame({name: rows.columns[name].rows for name in dict.fromkeys(looked_up)})
            hashes = hashes ^ splitmix64(attached.hash_rows(seed=self.deid.row_seed).to_numpy())
        for name in sorted({name for marks in self._marks for name in marks}):
            missed = rows.columns[name].rows.is_not_null().to_numpy()
            hashes = np.where(missed, splitmix64(hashes), hashes) if missed.any() else hashes
        columns = {name: without(column, self._nothing.get(name)) for name, column in rows.columns.items()}
        derived = Rows(columns, rows.number, hashes)
        for name, text in self.rule.derive.items():
            made, failing = worked_out(derived, text, pl.String, partial(self._place, f"derive.{name}"))
            derived = derived.with_column(name, without(made, self._nothing.get(name)))
            failed = failed if failing is None else failed | failing
        return derived, failed

    def _conditions(self, rows: Rows, failed: pl.Series) -> tuple[list[pl.Series], pl.Series]:
        """Of each event, which rows (n,) meet its condition; and in which rows a cast failed."""
        every, conditions = pl.Series([True]).new_from_index(0, len(rows)), []
        for number, event in enumerate(self.rule.events):
            if not event.where:
                conditions.append(every)
                continue
            met, failing = worked_out(rows, event.where, pl.Boolean, partial(self._place, f"events.{number}.where"))
            conditions.append(met.rows.fill_null(False))
            failed = failed if failing is None else failed | failing
        return conditions, failed

    def _place(self, key: str) -> str:
        return f"source {self.source.name}, table {self._label()}: {key}"

    def _patient(self, rows: Rows) -> _Patient:
        name = self.rule.subject or self.source.subject
        raw = rows.columns[name]
        if name in self.rule.derive:
            # What stands in a file has one spelling already.
            raw = raw.map(self.source.reading.subject_ids.of)
        # Exports stand in the order of their subjects: few runs, each looked at once.
        runs = raw.values if raw.places is not None else raw.values.rle().struct.field("value")
        self.subjects = pl.concat([self.subjects, self.deid.subject_checks(runs.unique())]).unique()
        shifted = self.deid.config.dates == "shift"
        visits = rows.columns[self.rule.visit].map(self.deid.visit_ids) if self.rule.visit else None
        return _Patient(
            raw.map(self.deid.subject_ids).rows,
            raw.map(self.deid.offsets).rows if shifted else None,
            _nothing(pl.Int64(), len(rows)) if visits is None else visits.rows,
        )

    def _times(self, rows: Rows, rule: TimeRule, parsed: dict[str, Times]) -> Times:
        key = rule.model_dump_json(exclude={"otherwise"})
        if key not in self._readings:
            self._readings[key] = readings_of(self.source, self.table, rule)
        readings = self._readings[key]
        if key not in parsed and len(readings) > 1:
            parsed[key] = times_as_read(pl.DataFrame({name: rows.columns[name].rows for name in rule.column}), readings)
        elif key not in parsed:
            single = len(rule.column) == 1
            texts = rows.columns[rule.column[0]] if single else rows.by(rule.column, first_filled)
            parsed[key] = column_times(texts, readings[0].rule, readings[0].zone)
        return parsed[key]

    def _make(
        self,
        whole: Rows,
        number: int,
        rule: EventRule,
        patient: _Patient,
        applies: pl.Series,
        state: dict[str, pl.Series],
        parsed: dict[str, Times],
        asked: dict[tuple[str, ...], tuple[TimeRule, Times, pl.Series]],
    ) -> pl.DataFrame:
        rows = whole
        places = None if applies.all() else applies.arg_true()
        if places is not None:
            read = {*template_columns(rule.code), *(name for name in (rule.value, rule.text, rule.unit) if name)}
            rows, patient = whole.take(places.to_numpy(), read), patient.take(places)

        def mark(reason: str, marked: pl.Series) -> None:
            if marked.any():
                state[reason] = state[reason] | (marked if places is None else spread(marked, places, len(applies)))

        def times_of(time_rule: TimeRule) -> Times:
            times = self._times(whole, time_rule, parsed)
            read = ("|".join(time_rule.column), *time_rule.formats)
            before = asked.get(read)
            asked[read] = (time_rule, times, applies if before is None else before[2] | applies)
            return times if places is None else times.gather(places)

        code = self._codes(rows, rule.code)
        emit = code.is_not_null()
        mark("missing_code", ~emit)
        if rule.time is not None:
            times = times_of(rule.time)
            time, precision = times.time, times.precision
            mark("unparsable_time", times.unreadable)
            mark("missing_time", time.is_null() & ~times.unreadable)
            emit = emit & time.is_not_null()
        else:
            time = _nothing(pl.Datetime("us"), len(rows))
            precision = _nothing(pl.Enum(PRECISIONS), len(rows))
        number_, flag, text, unit = self._values(rows, rule)
        if rule.value and not rule.keep_empty and number_.null_count():
            empty = emit & number_.is_null() & text.is_null()
            if empty.any():
                mark("empty_value", empty)
                self._count(("values", rule.value, "empty"), rows.number, empty)
                emit = emit & ~empty
        mark("timed" if rule.time is not None else "static", emit)
        self.units.count(unit, emit)
        known = times_of(rule.available) if rule.available is not None and rule.time is not None else None
        missed = None
        if known is not None and self._marks[number]:
            marked = pl.DataFrame({name: whole.columns[name].rows for name in self._marks[number]})
            missed = marked.select(pl.any_horizontal(pl.all().is_not_null())).to_series()
            missed = (missed if places is None else missed.gather(places)) & known.time.is_null() & ~known.unreadable
        available, availability = self._available(number, time, precision, code, emit, known, missed, rows.number)
        self._count(("emitted",), rows.number, emit)
        offset = patient.offset
        made = pl.DataFrame(
            {
                "subject_id": patient.subject,
                "time": time if offset is None else time + offset,
                "code": code,
                "numeric_value": number_,
                "text_value": text,
                "available_time": available if offset is None else available + offset,
                "precision": precision.to_physical().cast(pl.UInt8),
                "unit": unit,
                "visit_id": patient.visit,
                "rule": pl.Series([number], dtype=pl.UInt16).new_from_index(0, len(rows)),
                "availability": availability,
                "flag": flag,
                "row_hash": rows.hashes,
                "row": rows.number,
                "block": np.zeros(len(rows), np.uint32) if self.blocks is None else self.blocks.of(rows.number),
            }
        )
        return made if emit.all() else made.filter(emit)

    def _codes(self, rows: Rows, template: str) -> pl.Series:
        made = code_expression(template)
        return rows.by(template_columns(template), lambda frame: self.codes.of(column(frame, made)), distinct=True).rows

    def _available(
        self,
        number: int,
        time: pl.Series,
        precision: pl.Series,
        code: pl.Series,
        emit: pl.Series,
        known: Times | None,
        missed: pl.Series | None,
        numbers: I64,
    ) -> tuple[pl.Series, pl.Series]:
        """When each fact could first be read, never before its time, and how that is known.

        Args:
            number: of the rule.
            missed: (n,) where a join that should have said it missed; None where no join says it.
            numbers: (n,) of the rows' records.
        """
        rows, rule = len(time), self.rule.events[number]
        if rule.available is None or known is None:
            how = AT_TIME if rule.time is not None else None
            return time, pl.Series([how], dtype=pl.UInt8).new_from_index(0, rows)
        availability = pl.Series([RECORDED], dtype=pl.UInt8).new_from_index(0, rows)
        missing = known.time.is_null()
        at, known_at = (times.to_physical().fill_null(_NEVER).to_numpy() for times in (time, known.time))
        later = np.maximum(at, known_at)
        available = pl.Series(later).cast(pl.Datetime("us"))
        if missing.any():
            otherwise = AWAITED if rule.available.otherwise == "lag" else AT_TIME
            availability = availability.set(missing, otherwise)
            empty = emit & missing & ~known.unreadable
            if missed is not None:
                availability = availability.set(missed, MISSED)
                self._count(("partial", "availability_join_missed"), numbers, emit & missed)
                empty = empty & ~missed
            self._count(("partial", "unparsable_available_time"), numbers, emit & known.unreadable)
            self._count(("partial", "unknown_available_time"), numbers, empty)
        counted = (emit & ~missing).to_numpy()
        known_day = precision.to_physical().fill_null(MOMENTS).to_numpy() >= MOMENTS
        self.lag_counts.add(number, code, later - at, known_day, counted)
        return available, availability

    def lags(self) -> pl.DataFrame:
        """The lags that were counted, columns of LAGS; `code` as in `codes`."""
        # How long it takes until a stay is over is asked only where a join missed.
        kinds = (False, True) if self.account.partial["availability_join_missed"] else (False,)
        return by_code(*(self.lag_counts.frame(joined=joined) for joined in kinds))

    def _values(self, rows: Rows, rule: EventRule) -> tuple[pl.Series, pl.Series, pl.Series, pl.Series]:
        """Number, flag, text and unit of each row."""
        number, flag = _nothing(pl.Float32(), len(rows)), _nothing(pl.UInt8(), len(rows))
        text, unit = _nothing(pl.String(), len(rows)), self.units.stated(rows, rule.unit)
        if rule.value:
            raw = rows.columns[rule.value]
            parsed = parse_values(raw.values, self._writings[rule.value])
            number = TextColumn(parsed["number"], raw.places).rows
            if parsed["text"].null_count() < len(parsed):
                text, written = (TextColumn(parsed[name], raw.places).rows for name in ("text", "unit"))
                flag = TextColumn(parsed["flag"].to_physical().cast(pl.UInt8), raw.places).rows
                self.units.saw(rule.value, parsed["mark"])
                number, flag, unit = self.units.settle(rule.value, number, flag, written, unit, self._flags[rule.value])
            self._saw_values(rule.value, number, text, rows.number)
        if rule.text:
            filled_text = rows.columns[rule.text].map(filled)
            if filled_text.values.null_count() < len(filled_text.values):
                text = both(text, filled_text.rows)
        return number, flag, text, unit

    def _saw_values(self, column: str, number: pl.Series, text: pl.Series, numbers: I64) -> None:
        """Counts a column's values (n,): numbers, and texts that hold none."""
        is_number = number.is_not_null()
        self._count(("values", column, "numbers"), numbers, is_number)
        self._count(("values", column, "present"), numbers, is_number | text.is_not_null())

    def _saw_times(self, columns: list[str], times: Times, asked: pl.Series, numbers: I64) -> None:
        """Counts a time's values in the rows (n,) bool that some event asked for it."""
        column = "|".join(columns)
        read, unreadable = times.read_by.is_not_null() & asked, times.unreadable & asked
        present = read | unreadable if self._count(("times", column, "unreadable"), numbers, unreadable) else read
        stands, read_by = numbers if present.all() else numbers[present.to_numpy()], times.read_by.filter(present)
        self._count(("times", column, "present"), stands)
        formats = read_by.drop_nulls().unique().to_list()
        for number in formats:
            by_format = None if len(formats) == 1 and not read_by.null_count() else (read_by == number).fill_null(False)
            self._count(("times", column, times.tried[number]), stands, by_format)

    def finish(self) -> None:
        """Counts what only the whole file decides."""
        doubtful = sum(self.units.doubtful.values())
        if doubtful:
            self.account.partial["unit_or_flag"] = doubtful

    def _settle(self, state: dict[str, pl.Series], numbers: I64, subject: pl.Series) -> None:
        timed, static = state["timed"], state["static"] & ~state["timed"]
        nothing = ~(timed | static)
        self._count(("events",), numbers, timed)
        self._count(("static",), numbers, static)
        for reason in ("unparsable_time", "failed_cast"):
            self._count(("partial", reason), numbers, ~nothing & state[reason])
        if self.blocks is not None and nothing.any():
            silent = nothing & subject.is_not_null()
            self.blocks.add_silent(numbers[silent.to_numpy()], subject.filter(silent).to_numpy())
        state["no_rule_applies"] = nothing
        for reason in REASONS:
            if not nothing.any():
                break
            hit = nothing & state[reason]
            if self._count(("quarantined", reason), numbers, hit):
                self.quarantine[reason].append(numbers[hit.to_numpy()])
            nothing = nothing & ~hit


def _nothing(dtype: pl.DataType, rows: int) -> pl.Series:
    return pl.Series([None], dtype=dtype).new_from_index(0, rows)
