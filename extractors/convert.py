"""A block of raw rows becomes events; every row is accounted for."""

from collections import Counter
from dataclasses import dataclass, field

import polars as pl

from extractors.deid import Deidentifier
from extractors.source import PLACEHOLDER, EventRule, Source, TableRule, TimeRule, sql
from extractors.times import Times, parse_times

# Why a row made no event, the first that holds.
REASONS = ("bad_subject_id", "unparsable_time", "missing_time", "missing_code", "no_rule_applies")

_FILTERS = {
    "icd": lambda column: column.str.strip_chars().str.replace_all(r"[.\s]", "").str.to_uppercase(),
    "upper": lambda column: column.str.strip_chars().str.to_uppercase(),
    "strip": lambda column: column.str.strip_chars(),
}


@dataclass
class Account:
    """What became of the rows of one raw file.

    Attributes:
        raw, events, static, reference: rows; raw = events + static + reference + the sum of quarantined.
        quarantined: rows that made nothing, by reason.
        partial: rows that made events although a column of theirs failed, by reason.
        emitted: events made.
        times: per column, values that stood there and values that no format fits.
    """

    raw: int = 0
    events: int = 0
    static: int = 0
    reference: int = 0
    emitted: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    partial: Counter[str] = field(default_factory=Counter)
    times: dict[str, list[int]] = field(default_factory=dict)

    def saw_times(self, rule: TimeRule, times: Times) -> None:
        seen = self.times.setdefault("|".join(rule.column), [0, 0])
        seen[0] += times.present
        seen[1] += int(times.unreadable.sum())


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

    Args:
        lookups: the right side of each of the table's joins, in their order.
        first_row: number of the first row; rows of a table have numbers of their own over all its files.
        label: what events call the table; its name where None.
    """

    def __init__(
        self,
        source: Source,
        table: str,
        deid: Deidentifier,
        lookups: list[pl.DataFrame],
        first_row: int = 0,
        label: str | None = None,
    ) -> None:
        self.source = source
        self.table = table
        self.label = label or table
        self.rule: TableRule = source.tables[table]
        self.deid = deid
        self.lookups = lookups
        self.account = Account()
        self._next_row = first_row

    def convert(self, block: pl.DataFrame) -> pl.DataFrame:
        """Events of a block, columns of warehouse.schemas.EVENTS and `row`, `row_hash`, in no particular order.

        The account is brought up to date. `row_hash` is over the raw row as it stands, for finding equal rows.
        """
        rows = len(block)
        self.account.raw += rows
        if self.rule.role == "reference":
            self.account.reference += rows
            return pl.DataFrame()
        frame = self._prepare(block)
        good_subject = frame["_subject"].is_not_null()
        state = {name: pl.Series([False]).new_from_index(0, rows) for name in ("timed", "static", *REASONS, "applies")}
        state["bad_subject_id"] = ~good_subject
        parsed: dict[str, Times] = {}
        made = [self._make(frame, rule, good_subject, state, parsed) for rule in self.rule.events]
        self._settle(state)
        events = pl.concat(made)
        self.account.emitted += len(events)
        return events

    def _prepare(self, block: pl.DataFrame) -> pl.DataFrame:
        rule = self.rule
        raw_columns = block.columns
        frame = block.with_columns(
            pl.struct(raw_columns).hash(seed=0).alias("_row_hash"),
            pl.int_range(self._next_row, self._next_row + len(block), dtype=pl.Int64).alias("_row"),
        )
        self._next_row += len(block)
        for join, lookup in zip(rule.joins, self.lookups, strict=True):
            # A looked-up column replaces the row's own of that name, as a derived one does.
            shadowed = [name for name in join.columns if name in frame.columns]
            frame = frame.drop(shadowed).join(lookup, on=join.key, how="left", maintain_order="left")
        for name, expression in rule.derive.items():
            frame = frame.with_columns(sql(expression).cast(pl.String).alias(name))
        subjects = frame[rule.subject or self.source.subject].str.strip_chars().replace("", None)
        visits = frame[rule.visit].str.strip_chars().replace("", None) if rule.visit else None
        return frame.with_columns(
            self.deid.subject_ids(subjects).alias("_subject"),
            self.deid.offsets(subjects).alias("_offset"),
            (self.deid.visit_ids(visits) if visits is not None else pl.lit(None, pl.Int64)).alias("_visit"),
        )

    def _times(self, frame: pl.DataFrame, rule: TimeRule, parsed: dict[str, Times]) -> Times:
        key = rule.model_dump_json()
        if key not in parsed:
            parsed[key] = parse_times(frame, rule)
            self.account.saw_times(rule, parsed[key])
        return parsed[key]

    def _make(
        self,
        frame: pl.DataFrame,
        rule: EventRule,
        good_subject: pl.Series,
        state: dict[str, pl.Series],
        parsed: dict[str, Times],
    ) -> pl.DataFrame:
        rows = len(frame)
        applies = good_subject
        if rule.where:
            applies = applies & _column(frame, sql(rule.where)).fill_null(False)
        state["applies"] |= applies
        code = _column(frame, code_expression(rule.code))
        emit = applies & code.is_not_null()
        state["missing_code"] |= applies & code.is_null()
        if rule.time is not None:
            times = self._times(frame, rule.time, parsed)
            time, precision = times.time, times.precision
            state["unparsable_time"] |= applies & times.unreadable
            state["missing_time"] |= applies & time.is_null() & ~times.unreadable
            emit = emit & time.is_not_null()
            state["timed"] |= emit
        else:
            time = pl.Series([None], dtype=pl.Datetime("us")).new_from_index(0, rows)
            precision = pl.Series([None], dtype=pl.String).new_from_index(0, rows)
            state["static"] |= emit
        available = time
        if rule.available is not None:
            known = self._times(frame, rule.available, parsed)
            self.account.partial["unparsable_available_time"] += int((emit & known.unreadable).sum())
            self.account.partial["unknown_available_time"] += int(
                (emit & known.time.is_null() & ~known.unreadable).sum()
            )
            available = known.time
        return frame.select(
            pl.col("_subject").alias("subject_id"),
            (pl.lit(time) + pl.col("_offset")).alias("time"),
            pl.lit(code).alias("code"),
            *_values(rule),
            (pl.max_horizontal(pl.lit(time), pl.lit(available)) + pl.col("_offset")).alias("available_time"),
            pl.lit(precision).alias("time_precision"),
            pl.lit(rule.kind).alias("kind"),
            (pl.col(rule.unit).str.strip_chars() if rule.unit else pl.lit(None, pl.String)).alias("unit"),
            pl.lit(self.label).alias("source"),
            pl.col("_visit").alias("visit_id"),
            pl.lit(None, pl.String).alias("item_key"),
            pl.col("_row").alias("row"),
            pl.col("_row_hash").alias("row_hash"),
        ).filter(emit)

    def _settle(self, state: dict[str, pl.Series]) -> None:
        timed, static = state["timed"], state["static"] & ~state["timed"]
        nothing = ~(timed | static)
        self.account.events += int(timed.sum())
        self.account.static += int(static.sum())
        self.account.partial["unparsable_time"] += int((~nothing & state["unparsable_time"]).sum())
        state["no_rule_applies"] = nothing
        for reason in REASONS:
            hit = nothing & state[reason]
            self.account.quarantined[reason] += int(hit.sum())
            nothing = nothing & ~hit


def _column(frame: pl.DataFrame, expression: pl.Expr) -> pl.Series:
    return frame.with_columns(expression.alias("_column"))["_column"]


def _values(rule: EventRule) -> list[pl.Expr]:
    nothing = pl.lit(None, pl.String)
    raw = pl.col(rule.value).str.strip_chars().replace("", None) if rule.value else nothing
    parsed = raw.cast(pl.Float64, strict=False)
    number = pl.when(parsed.is_finite()).then(parsed).cast(pl.Float32)
    # -0 sorts as equal to 0 and is not the same bytes.
    number = pl.when(number == 0).then(pl.lit(0.0, pl.Float32)).when(number.is_finite()).then(number)
    leftover = pl.when(number.is_null()).then(raw)
    text = pl.coalesce(pl.col(rule.text).str.strip_chars().replace("", None), leftover) if rule.text else leftover
    return [number.alias("numeric_value"), text.cast(pl.String).alias("text_value")]
