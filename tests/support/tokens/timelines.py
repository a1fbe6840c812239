"""Turns a frame of events into named tokens, with the functions of a run: count, fit, encode."""

from typing import Any

import polars as pl

from pipelines.profiles.counting import Counts, count_part
from pipelines.profiles.events import Part
from pipelines.profiles.fitting import extend, fixed_tokens, with_values, without_the_rest
from pipelines.profiles.lexicon import Ids, make_lexicon
from pipelines.profiles.rules import ProfileConfig
from pipelines.profiles.timeline import TimelineWriter, choose
from pipelines.profiles.values import fit
from warehouse.order import sort_events
from warehouse.parquet import empty_frame
from warehouse.schemas import EVENTS
from warehouse.vocabulary import QUANTILES

EMPTY = empty_frame(EVENTS)


def events(*rows: dict[str, Any], **usual: Any) -> pl.DataFrame:
    """Rows as EVENTS in the order of data/; columns that a row does not have get usual values."""
    usual = {"subject_id": 1, "kind": "clinical", "source": "t", "time_precision": "s"} | usual
    filled = [dict.fromkeys(EVENTS.names) | usual | row for row in rows]
    for row in filled:
        row["available_time"] = row["available_time"] or row["time"]
    return sort_events(pl.DataFrame(filled, schema=EMPTY.schema))


def usable(*keys: str) -> pl.Series:
    return pl.Series("item_key", keys, dtype=pl.String)


def part_of(frame: pl.DataFrame) -> Part:
    return Part.of(frame.to_arrow())


def fitted(
    frame: pl.DataFrame,
    profile: ProfileConfig,
    items: pl.Series | None = None,
    parents: pl.DataFrame | None = None,
    splits: dict[int, str] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame, Counts]:
    """Vocabulary, quantiles and counts of a frame; every subject is in train where no splits are given."""
    part = part_of(frame)
    chosen = choose(
        part, make_lexicon(part.code.distinct, profile, parents), usable() if items is None else items, profile
    )
    given = splits or dict.fromkeys(part.subjects.tolist(), "train")
    assigned = pl.DataFrame({"subject_id": list(given), "split": list(given.values())})
    counts = count_part(chosen, assigned, profile)
    train = counts.values.filter(pl.col("split") == "train")
    quantiles = fit(train, empty_frame(QUANTILES), profile.quantiles, profile.min_values)
    kept, _ = without_the_rest(counts.tokens, None, profile)
    tokens, _ = with_values(kept, counts.values, quantiles, profile)
    return extend(tokens, None, fixed_tokens(profile, quantiles)), quantiles, counts


def named_tokens(
    frame: pl.DataFrame,
    profile: ProfileConfig,
    items: pl.Series | None = None,
    parents: pl.DataFrame | None = None,
    vocabulary: pl.DataFrame | None = None,
    quantiles: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """Timelines with columns subject_id, token_id, type, time, item_key and token."""
    if vocabulary is None or (quantiles is None and profile.values != "codes_only"):
        vocabulary, quantiles, _ = fitted(frame, profile, items, parents)
    part, ids = part_of(frame), Ids(vocabulary)
    lexicon = make_lexicon(part.code.distinct, profile, parents, ids)
    chosen = choose(part, lexicon, usable() if items is None else items, profile)
    known = empty_frame(QUANTILES) if quantiles is None else quantiles
    made = pl.DataFrame(pl.from_arrow(TimelineWriter(profile, ids, known).encode(chosen).table()))
    names = vocabulary.select("token_id", "token")
    return made.with_columns(pl.col("item_key").cast(pl.String)).join(
        names, on="token_id", how="left", maintain_order="left"
    )


def left_out(frame: pl.DataFrame, profile: ProfileConfig, items: pl.Series | None = None) -> list[tuple[str, str, int]]:
    """Namespace, reason and number of the events without tokens."""
    counts = fitted(frame, profile, items)[2].left_out
    return counts.group_by("namespace", "reason").agg(pl.col("count").sum()).sort("namespace", "reason").rows()
