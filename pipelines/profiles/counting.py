"""What a part's timelines will hold, counted without writing them: tokens, values and what is left out, by split."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pipelines.profiles.events import order_of
from pipelines.profiles.intervals import interval_tokens
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import Chosen, gaps
from pipelines.profiles.values import compared
from warehouse.arrays import I64
from warehouse.schemas import SPLITS
from warehouse.tokens import BOS, RESERVED, TIMELINE_END, TYPE_NAMES, TokenType

COUNTED = {"split": pl.String, "token": pl.String, "type": pl.String, "count": pl.Int64}
VALUES = {"split": pl.String, "code": pl.String, "unit": pl.String, "value": pl.Float32, "count": pl.Int64}
LEFT_OUT = {"split": pl.String, "namespace": pl.String, "reason": pl.String, "count": pl.Int64}
# By number; they count from 0.
_TYPES = pl.Series("type", [TYPE_NAMES[kind] for kind in sorted(TokenType)])


@dataclass(frozen=True)
class Counts:
    """Frames with columns COUNTED, VALUES and LEFT_OUT."""

    tokens: pl.DataFrame
    values: pl.DataFrame
    left_out: pl.DataFrame

    @classmethod
    def together(cls, parts: list["Counts"]) -> "Counts":
        """The counts of several parts."""
        return cls(
            _summed([part.tokens for part in parts], COUNTED),
            _summed([part.values for part in parts], VALUES),
            _summed([part.left_out for part in parts], LEFT_OUT),
        )

    def mended(self, before: "Counts", now: "Counts") -> "Counts":
        """These counts without those of some subjects as they were, and with those of some as they are."""
        return Counts(
            _mended(self.tokens, before.tokens, now.tokens, COUNTED),
            _mended(self.values, before.values, now.values, VALUES),
            _mended(self.left_out, before.left_out, now.left_out, LEFT_OUT),
        )


def _mended(
    frame: pl.DataFrame, before: pl.DataFrame, now: pl.DataFrame, schema: dict[str, type[pl.DataType]]
) -> pl.DataFrame:
    less = before.with_columns(-pl.col("count"))
    return _summed([each.select(schema.keys()) for each in (frame, less, now)], schema).filter(pl.col("count") != 0)


def _summed(frames: list[pl.DataFrame], schema: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    keys = [name for name in schema if name != "count"]
    every = pl.concat([pl.DataFrame(schema=schema), *frames])
    return every.group_by(keys).agg(pl.col("count").sum()).sort(keys)


def count_part(chosen: Chosen, splits: pl.DataFrame, profile: ProfileConfig) -> Counts:
    """Counts a part's tokens; subjects without a split are not counted.

    Intervals are those between all chosen events: what a rule's `top` leaves out later is still among them.

    Args:
        splits: columns subject_id and split.
    """
    part, lexicon = chosen.part, chosen.lexicon
    numbers = pl.DataFrame({"split": SPLITS, "number": range(len(SPLITS))})
    subject_splits = pl.DataFrame({"subject_id": part.subjects}).join(
        splits, on="subject_id", how="left", maintain_order="left"
    )
    split = (
        subject_splits.join(numbers, on="split", how="left", maintain_order="left")["number"]
        .fill_null(len(SPLITS))
        .to_numpy()
    )
    places, groups = chosen.groups(chosen.rows)
    rows = chosen.rows[places]
    of_row = split[part.subject[rows]]
    of_groups = lexicon.groups.select("tokens", _TYPES.gather(lexicon.types)).with_row_index("item")
    by_group = _counted(of_row, groups, len(lexicon.groups)).join(of_groups, on="item")
    counted = [
        by_group.select("split", pl.col("tokens").alias("token"), "type", "count").explode("token"),
        _in_front(chosen, split),
        _one_a_subject(split, profile),
    ]
    if profile.intervals != "none":
        counted.append(_intervals(chosen, split, profile))
    return Counts(
        _summed(counted, COUNTED),
        _values(chosen, rows, groups, of_row, profile),
        _left_out(chosen, split),
    )


def _counted(split: I64, item: I64, items: int) -> pl.DataFrame:
    """Columns split, item, count, of items (m,) by split (m,)."""
    size = (len(SPLITS) + 1) * items
    number = np.bincount(split * items + item, minlength=size)[: len(SPLITS) * items]
    counted = np.flatnonzero(number)
    return pl.DataFrame(
        {
            "split": pl.Series(SPLITS, dtype=pl.String).gather(counted // max(items, 1)),
            "item": pl.Series(counted % max(items, 1), dtype=pl.UInt32),
            "count": pl.Series(number[counted], dtype=pl.Int64),
        }
    )


def _in_front(chosen: Chosen, split: I64) -> pl.DataFrame:
    demographics, tokens = chosen.demographics, chosen.lexicon.facts.tokens
    counted = _counted(split[demographics.subject], demographics.token, len(tokens))
    kind = TYPE_NAMES[TokenType.DEMOGRAPHIC]
    return counted.select("split", tokens.gather(counted["item"]).alias("token"), pl.lit(kind).alias("type"), "count")


def _one_a_subject(split: I64, profile: ProfileConfig) -> pl.DataFrame:
    subjects = _counted(split, np.zeros_like(split), 1)
    tokens = [(RESERVED[BOS][0], TokenType.SPECIAL)]
    if profile.timeline_end:
        tokens.append((TIMELINE_END, TokenType.STRUCTURED))
    every = [(token, TYPE_NAMES[kind]) for token, kind in tokens]
    named = pl.DataFrame(every, schema=["token", "type"], orient="row")
    return subjects.join(named, how="cross").select(*COUNTED)


def _intervals(chosen: Chosen, split: I64, profile: ProfileConfig) -> pl.DataFrame:
    first = profile.image_position == "first"
    rows, at = order_of(chosen.part, chosen.rows, profile.order, images_first=first)
    subject = chosen.part.subject[rows]
    images = np.flatnonzero(chosen.lexicon.image[chosen.part.code.place[rows]])
    place, times = gaps(subject, at, images, profile)
    tokens = interval_tokens(profile.intervals)
    counted = _counted(np.repeat(split[subject], times), np.repeat(place, times), len(tokens))
    named = counted.with_columns(pl.Series("token", tokens, pl.String).gather(counted["item"]))
    return named.select("split", "token", pl.lit(TYPE_NAMES[TokenType.INTERVAL]).alias("type"), "count")


def _values(chosen: Chosen, rows: I64, groups: I64, split: I64, profile: ProfileConfig) -> pl.DataFrame:
    part = chosen.part
    if profile.values == "codes_only" or part.value is None or part.unit is None:
        return pl.DataFrame(schema=VALUES)
    holding = np.flatnonzero(chosen.lexicon.values[groups] & np.isfinite(part.value[rows]) & (split < len(SPLITS)))
    frame = pl.DataFrame(
        {
            "split": split[holding].astype(np.int8),
            "code": groups[holding],
            "unit": part.unit.place[rows[holding]],
            # A zero is written without its sign, whichever of the two comes first.
            "value": compared(part, rows[holding]) + np.float32(0),
        }
    )
    counted = frame.group_by(pl.all()).agg(pl.len().cast(pl.Int64).alias("count"))
    units = pl.concat([part.unit.distinct, pl.Series([None], dtype=pl.String)])
    unit = counted["unit"].to_numpy()
    return counted.select(
        pl.Series("split", SPLITS, pl.String).gather(counted["split"]),
        chosen.lexicon.groups["token"].gather(counted["code"]).alias("code"),
        units.gather(np.where(unit < 0, len(units) - 1, unit)).alias("unit"),
        "value",
        "count",
    ).group_by("split", "code", "unit", "value").agg(pl.col("count").sum())  # fmt: skip


def _left_out(chosen: Chosen, split: I64) -> pl.DataFrame:
    part, lexicon = chosen.part, chosen.lexicon
    of_code = np.flatnonzero(chosen.coded & ~lexicon.wanted[part.code.place])
    said = lexicon.codes.to_frame("code").with_columns(lexicon.reasons.alias("own")).with_row_index("item")
    frames = []
    for reason, rows in [(None, of_code), *chosen.left_out]:
        counted = _counted(split[part.subject[rows]], part.code.place[rows].astype(np.int64), len(said))
        frames.append(
            counted.join(said, on="item").select(
                "split",
                pl.col("code").str.split("/").list.first().alias("namespace"),
                (pl.col("own") if reason is None else pl.lit(reason)).alias("reason"),
                "count",
            )
        )
    return _summed(frames, LEFT_OUT)
