"""Whether histories and features of labels hold what was not available at their prediction times.

Both are made as readers make them, and held against the events themselves by other means: what became known when is
sorted and joined anew. A history is held to its events by counts, so the longest one stands for every shorter one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from validation.measure.measures import Measures
from validation.measure.reading import collect, existing, gather, scan, unreadable
from warehouse.arrays import I64, NO_TIME, Bools
from warehouse.hashing import splitmix64
from warehouse.layout import ReleaseLayout
from warehouse.manifest import LabelsEntry, ProfileEntry
from warehouse.parquet import read_frame
from warehouse.readers.tasks.counting import BIRTH, BucketCounts, LabelRows, Units, event_rows
from warehouse.readers.tasks.demographics import OLDEST, BucketDemographics
from warehouse.readers.tasks.features import ATTRIBUTES, NOT_COUNTED
from warehouse.readers.tasks.item_means import ItemRows
from warehouse.readers.tasks.labels import Clock, check_clock
from warehouse.readers.tasks.windows import AGE, RIGHT, BucketTokens, LateFacts, spans, windows
from warehouse.schemas import LABELS
from warehouse.tokens import TIMELINE_END, TokenType

# A row for features by each clock, and for the histories of each profile: labels of one subject and moment are one row.
PROBED = {"of": pl.String, "rows": pl.Int64, "ahead": pl.Int64}
_FEATURES, _HISTORIES = "features by {}", "histories of {}"
_KEYS = ["subject_id", "prediction_time"]
_NEVER = np.iinfo(np.int64).max
_DAY_US, _DAYS_A_YEAR = 86_400_000_000, 365.2425
# Labels whose counts are in memory at a time.
_HELD = 50_000


class Probed(NamedTuple):
    """A token profile as far as histories depend on it.

    Attributes:
        order: by which time its tokens stand.
        unknown: attributes that stand as unknown where no value does.
    """

    order: str
    unknown: tuple[str, ...]


def measure_probes(
    profiles: Mapping[str, ProfileEntry], tasks: Mapping[str, LabelsEntry], measures: Measures
) -> pl.DataFrame:
    """A row for features by each clock of the tasks, and for histories of each profile that stands by such a clock.

    Columns: of; rows, the labels that were looked at; ahead, those of them with a fault.

    Raises:
        TimeloomError: a file is damaged.
    """
    clocks = {str(task.rules["clock"]) for task in tasks.values()}
    names = [
        name
        for clock in sorted(clocks)
        for name in (_FEATURES.format(clock), *map(_HISTORIES.format, _of_clock(profiles, clock)))
    ]
    counted = measures.counted("probes", ["rows", "ahead"], of="of")
    wanted = pl.DataFrame({"of": names}, schema={"of": pl.String})
    return wanted.join(counted, on="of", how="left", maintain_order="left").with_columns(pl.col(pl.Int64).fill_null(0))


def _of_clock(profiles: Mapping[str, Probed | ProfileEntry], clock: str) -> list[str]:
    return [name for name, profile in profiles.items() if profile.order == clock]


def probe_bucket(
    tree: ReleaseLayout, bucket: int, profiles: Mapping[str, Probed], clocks: Mapping[str, str]
) -> pl.DataFrame:
    """The rows of one bucket, PROBED.

    Args:
        clocks: by task, the time of events that its predictions are made at.

    Raises:
        TimeloomError: a file is damaged.
    """
    rows: list[tuple[str, int, int]] = []
    for clock in sorted(set(clocks.values())):
        asked = [tree.labels(name, bucket) for name in clocks if clocks[name] == clock]
        labels = gather(asked, LABELS, _KEYS).unique().sort(_KEYS)
        if labels.is_empty():
            continue
        described = _described(tree)
        known = _Known.read(tree, bucket, labels, check_clock(clock), described)
        audited = {_FEATURES.format(clock): np.zeros(2, np.int64)}
        for part in labels.iter_slices(_HELD):
            audited[_FEATURES.format(clock)] += _judged(_features(tree, bucket, part, known, described["code"]))
        for name in _of_clock(profiles, clock):
            makers = _makers(tree, name, profiles[name].unknown)
            audited[_HISTORIES.format(name)] = _judged(_histories(tree, bucket, name, labels, known, makers))
        rows += [(what, int(looked), int(ahead)) for what, (looked, ahead) in audited.items()]
    return pl.DataFrame(rows, schema=PROBED, orient="row")


def _stated(path: Path) -> tuple[Path, int, int]:
    """A file, and what the file system says of it: what is remembered of it is of no other one."""
    stat = path.stat()
    return path, stat.st_ino, stat.st_mtime_ns


def _described(tree: ReleaseLayout) -> pl.DataFrame:
    """Every code of the release once, in order, with its parents."""
    try:
        return _read_described(_stated(tree.codes))
    except OSError as error:
        raise unreadable(tree.codes) from error


@lru_cache(maxsize=1)
def _read_described(stated: tuple[Path, int, int]) -> pl.DataFrame:
    return read_frame(stated[0]).select("code", "parent_codes").unique("code").sort("code")


def _makers(tree: ReleaseLayout, name: str, unknown: tuple[str, ...]) -> "_Makers":
    """Of a profile; worked out once by a process, for all buckets."""
    try:
        return _read_makers(_stated(tree.vocabulary(name)), _stated(tree.codes), unknown)
    except OSError as error:
        raise unreadable(tree.vocabulary(name)) from error


@lru_cache(maxsize=8)
def _read_makers(
    vocabulary: tuple[Path, int, int], codes: tuple[Path, int, int], unknown: tuple[str, ...]
) -> "_Makers":
    return _Makers.of(read_frame(vocabulary[0]), _read_described(codes), unknown)


def _judged(ahead: Bools) -> I64:
    return np.array([len(ahead), int(ahead.sum())])


@dataclass(frozen=True)
class _Known:
    """What was known of a bucket's labelled subjects, and when.

    Attributes:
        events: subject_id; code, its place among the release's codes; image; item_key; time and known in µs, NO_TIME
            for none.
    """

    clock: Clock
    events: pl.DataFrame

    @classmethod
    def read(
        cls, tree: ReleaseLayout, bucket: int, labels: pl.DataFrame, clock: Clock, described: pl.DataFrame
    ) -> "_Known":
        subjects = labels.select("subject_id").unique()
        numbered = described.select("code").with_row_index("number")
        known = pl.col("time") if clock == "time" else pl.coalesce("available_time", "time")
        empty = pl.DataFrame(schema=_EVENTS)
        frames = [
            collect(
                scan(path)
                .join(subjects.lazy(), on="subject_id", how="semi")
                .join(numbered.lazy(), on="code", how="left")
                .select(
                    "subject_id",
                    pl.col("number").cast(pl.Int64).alias("code"),
                    (pl.col("kind") == "image").alias("image"),
                    "item_key",
                    pl.col("time").to_physical().fill_null(NO_TIME),
                    known.to_physical().fill_null(NO_TIME).alias("known"),
                ),
                path,
            )
            for path in existing([tree.events(bucket)])
        ]
        return cls(clock, pl.concat([empty, *frames]))

    @property
    def items(self) -> pl.DataFrame:
        """item_key and known: since when each item could be seen."""
        return self.events.filter("image").group_by("item_key").agg(pl.col("known").min())


_EVENTS = {
    "subject_id": pl.Int64, "code": pl.Int64, "image": pl.Boolean, "item_key": pl.String, "time": pl.Int64,
    "known": pl.Int64,
}  # fmt: skip


def _asked(labels: pl.DataFrame) -> pl.DataFrame:
    """row, subject_id and at, the prediction time in µs."""
    return labels.select("subject_id", pl.col("prediction_time").to_physical().alias("at")).with_row_index("row")


def _features(tree: ReleaseLayout, bucket: int, labels: pl.DataFrame, known: _Known, codes: pl.Series) -> Bools:
    """(n,) which labels have features of something else than what was available."""
    asked = _asked(labels)
    rows = LabelRows.of(asked["subject_id"].to_numpy(), asked["at"].to_numpy())
    units = Units.of(codes, NOT_COUNTED)
    counts, demographics = BucketCounts(rows, units), BucketDemographics(rows, units, ATTRIBUTES)
    for path in existing([tree.events(bucket)]):
        for events in event_rows(path, units, known.clock, rows.subjects):
            counts.add(events)
            demographics.add(events)
    # Counts are compared by one number a label: the sum of a number drawn for each unit.
    drawn = (splitmix64(np.arange(len(units.names))) >> np.uint64(33)).astype(np.int64)
    counted, facts = counts.counted(), demographics.known_facts()
    summed = np.zeros(len(asked), np.int64)
    np.add.at(summed, counted.row, counted.count * drawn[counted.unit])
    by_then = _by_then(asked, known, np.where(units.unit >= 0, drawn[units.unit], 0), codes)
    ahead: Bools = summed != by_then["drawn"].to_numpy()
    ahead |= ~np.isclose(facts.age, by_then["age"].to_numpy(), rtol=0, atol=1e-9, equal_nan=True)
    first = known.events.group_by("subject_id", "code").agg(pl.col("known").min())
    shown = pl.DataFrame({"row": facts.row, "code": facts.code}, schema={"row": pl.UInt32, "code": pl.Int64})
    ahead[_early(shown.join(asked, on="row").join(first, on=["subject_id", "code"], how="left"))] = True
    for path in existing([tree.items(bucket)]):
        items = ItemRows.read(path, rows, known.clock)
        places, of_labels = rows.later(items.rows)
        seen = pl.DataFrame({"row": of_labels, "item_key": pl.Series(items.keys, dtype=pl.String)[places]})
        seen = seen.with_columns(pl.col("row").cast(pl.UInt32)).join(asked, on="row")
        ahead[_early(seen.join(known.items, on="item_key", how="left"))] = True
    return ahead


def _early(shown: pl.DataFrame) -> I64:
    """Rows that tell what no event had told at `at`; `known` is null where none does."""
    early: I64 = shown.filter(pl.col("known").is_null() | (pl.col("known") > pl.col("at")))["row"].to_numpy()
    return early


def _by_then(asked: pl.DataFrame, known: _Known, drawn: I64, codes: pl.Series) -> pl.DataFrame:
    """Of each label the sum of the numbers of what was known, and the age at the first event of it."""
    birth, timed = pl.col("code") == (codes == BIRTH).arg_max(), pl.col("time") != NO_TIME
    if BIRTH not in codes:
        birth = pl.lit(False)
    running = (
        known.events.select(
            "subject_id",
            "known",
            pl.when("image").then(0).otherwise(pl.lit(pl.Series(drawn)).gather(pl.col("code"))).alias("drawn"),
            pl.when(timed & birth).then("time").otherwise(_NEVER).alias("born"),
            pl.when(timed & ~birth).then("time").otherwise(_NEVER).alias("first"),
        )
        .sort("subject_id", "known")
        .select(
            "subject_id",
            "known",
            pl.col("drawn").cum_sum().over("subject_id"),
            pl.col("born", "first").cum_min().over("subject_id"),
        )
        .unique(["subject_id", "known"], keep="last", maintain_order=True)
    )
    # Within a subject both sides ascend.
    joined = asked.join_asof(
        running, left_on="at", right_on="known", by="subject_id", strategy="backward", check_sortedness=False
    ).sort("row")
    days = (pl.col("first") - pl.col("born")) // _DAY_US
    has_age = (pl.col("born") != _NEVER) & (pl.col("first") != _NEVER)
    age = pl.when(has_age).then((days / _DAYS_A_YEAR).clip(0, OLDEST))
    return joined.select(pl.col("drawn").fill_null(0), age.fill_null(np.nan).alias("age"))


@dataclass(frozen=True)
class _Makers:
    """Which codes the tokens of a profile can come from, as far as their names tell.

    Attributes:
        names: the vocabulary, by id.
        base: of each id the number of what its token is a part of or has a value of, -1 where no code begins so.
        codes: code and base: how often an event of the code may make a token of that base.
        numbered: code, its place among the release's codes, and name.
        end: the token of a timeline's end.
        unknown: attributes that stand as unknown where no value does.
    """

    names: list[str]
    base: I64
    codes: pl.DataFrame
    numbered: pl.DataFrame
    end: int | None
    unknown: tuple[str, ...]

    @classmethod
    def of(cls, vocabulary: pl.DataFrame, described: pl.DataFrame, unknown: tuple[str, ...]) -> "_Makers":
        vocabulary = vocabulary.sort("token_id")
        structured = TokenType.STRUCTURED.name.lower()
        tokens = vocabulary.filter(pl.col("type") == structured).select(
            "token_id", pl.col("token").str.replace(r"//Q\d+$", "").alias("base")
        )
        place = pl.int_range(pl.len(), dtype=pl.Int64).alias("code")
        numbered = described.select(place, pl.col("code").alias("name"), "parent_codes")
        through = numbered.select("code", pl.col("parent_codes").alias("text")).explode("text").drop_nulls()
        texts = pl.concat([numbered.select("code", pl.col("name").alias("text")), through]).unique()
        bases = tokens.select("base").unique().sort("base").with_row_index("number")
        found = [pl.DataFrame(schema={"code": pl.Int64, "base": pl.Int64})]
        for length in bases["base"].str.len_chars().unique():
            cut = texts.filter(pl.col("text").str.len_chars() >= length).with_columns(
                pl.col("text").str.slice(0, length).alias("base")
            )
            found.append(cut.join(bases, on="base").select("code", pl.col("number").cast(pl.Int64).alias("base")))
        codes = pl.concat(found)
        base = np.full(len(vocabulary), -1, np.int64)
        made = tokens.join(bases, on="base").filter(pl.col("number").is_in(codes["base"].unique().implode()))
        base[made["token_id"].to_numpy()] = made["number"].to_numpy()
        names = vocabulary["token"].to_list()
        end = names.index(TIMELINE_END) if TIMELINE_END in names else None
        return cls(names, base, codes, numbered.select("code", "name"), end, unknown)


def _histories(
    tree: ReleaseLayout, bucket: int, name: str, labels: pl.DataFrame, known: _Known, makers: _Makers
) -> Bools:
    """(n,) which labels have a history of something that was not available."""
    asked = _asked(labels)
    ahead = np.zeros(len(asked), np.bool_)
    for path in existing([tree.timeline(name, bucket)]):
        tokens = BucketTokens.read(path, makers.end)
        subjects, times = asked["subject_id"].to_numpy(), asked["at"].to_numpy()
        place = tokens.places(subjects)
        wanted = np.unique(place[place >= 0])
        events = next(iter(existing([tree.events(bucket)])), None)
        late = LateFacts.of(tokens, wanted, events, makers.names, makers.unknown)
        plan = windows(tokens, subjects, times, len(tokens.ids) + 1, front=False, late=late, prompt=None)
        last = np.full(len(tokens.subjects), NO_TIME)
        np.maximum.at(last, place[place >= 0], times[place >= 0])
        ends = tokens.upto(wanted, last[wanted], RIGHT)
        stood = _tokens(tokens, spans(tokens.starts[wanted], ends - tokens.starts[wanted]), makers)
        # Within a subject, since when all tokens up to each were known.
        since = np.full(len(tokens.ids), NO_TIME)
        shown = _since(stood, known, makers).select("place", pl.col("since").cum_max().over("subject_id"))
        since[shown["place"].to_numpy()] = shown["since"].to_numpy()
        filled = np.flatnonzero((place >= 0) & (plan.ends > plan.starts))
        ahead[filled] = since[plan.ends[filled] - 1] > times[filled]
        ahead[_early(_fronts(tokens, asked, place, late, known, makers))] = True
    return ahead


def _tokens(tokens: BucketTokens, places: I64, makers: _Makers) -> pl.DataFrame:
    """Some tokens, in order: place, subject_id, at, base and item_key; those without a time left out."""
    owner = np.searchsorted(tokens.starts, places, side="right") - 1
    image = np.searchsorted(tokens.image_places, places)
    image[tokens.types[places] != int(TokenType.IMAGE)] = len(tokens.image_keys)
    keys = pl.concat(
        [pl.Series("key", pl.from_arrow(tokens.image_keys), pl.String), pl.Series("key", [None], pl.String)]
    )
    return pl.DataFrame(
        {
            "place": places,
            "subject_id": tokens.subjects[owner],
            "at": tokens.times[places],
            "base": makers.base[tokens.ids[places].astype(np.int64)],
            "item_key": keys.gather(image),
        }
    ).filter(pl.col("at") != NO_TIME)


def _since(stood: pl.DataFrame, known: _Known, makers: _Makers) -> pl.DataFrame:
    """`stood`, and since when what each token tells was known: `since`, the latest there is for never.

    The n-th token of a base is known with the n-th event that may make one. Of a token that no code's name begins with,
    as of a value or an interval, it is known that something of the subject became known at its time.
    """
    each = ["subject_id", "base"]
    nth = pl.int_range(pl.len()).over(each).alias("nth")
    made = known.events.join(makers.codes, on="code").select(*each, "known").sort("known").with_columns(nth)
    moments = known.events.select("subject_id", pl.col("known").alias("at"), pl.lit(True).alias("moment")).unique()
    by_item = pl.col("item_key").is_not_null()
    found = (
        stood.with_columns(nth)
        .join(known.items, on="item_key", how="left", maintain_order="left")
        .join(made.rename({"known": "of_code"}), on=[*each, "nth"], how="left", maintain_order="left")
        .join(moments, on=["subject_id", "at"], how="left", maintain_order="left")
    )
    of_moment = pl.when("moment").then("at")
    since = pl.when(by_item).then("known").when(pl.col("base") >= 0).then("of_code").otherwise(of_moment)
    return found.with_columns(since.fill_null(_NEVER).alias("since"))


def _fronts(
    tokens: BucketTokens, asked: pl.DataFrame, place: I64, late: LateFacts, known: _Known, makers: _Makers
) -> pl.DataFrame:
    """row, at and known of the facts that stand in front of each label's history; those that no event ever tells left
    out, as those that are told to be unknown."""
    rows = np.flatnonzero(place >= 0)
    starts = tokens.starts[place[rows]]
    counts = tokens.upto(place[rows], np.full(len(rows), NO_TIME), RIGHT) - starts
    places, row = spans(starts, counts), np.repeat(rows, counts)
    times = asked["at"].to_numpy()[row]
    ids, kept = late.as_known(places, times, tokens.ids[places].astype(np.int64))
    kept &= tokens.types[places] == int(TokenType.DEMOGRAPHIC)
    shown = pl.DataFrame({"row": row[kept], "at": times[kept], "token": ids[kept]})
    named = pl.DataFrame({"name": makers.names}).with_row_index("token").with_columns(pl.col("token").cast(pl.Int64))
    owners = asked.select(pl.col("row").cast(pl.Int64), "subject_id")
    shown = shown.join(named.filter(~pl.col("name").str.ends_with("/UNKNOWN")), on="token").join(owners, on="row")
    first = known.events.group_by("subject_id", "code").agg(pl.col("known").min())
    of_code = first.join(makers.numbered, on="code").select("subject_id", "name", "known")
    timed = known.events.filter(pl.col("time") != NO_TIME)
    of_age = timed.group_by("subject_id").agg(pl.col("known").min())
    aged = pl.col("name").str.starts_with(f"{AGE}/")
    return pl.concat(
        [
            shown.filter(~aged).join(of_code, on=["subject_id", "name"]).select("row", "at", "known"),
            shown.filter(aged).join(of_age, on="subject_id").select("row", "at", "known"),
        ]
    )
